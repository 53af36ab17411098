"""The sealed arrays of one pass: what there is to write, and writing it piece by piece."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store import schema
from t3vis.store.codecs import codec_metadata, compression_of, encoder
from t3vis.store.durable import sync_file, sync_tree
from t3vis.store.layout import row_layout
from t3vis.store.options import StorageOptions
from t3vis.store.sealed import SealedArray, open_sealed
from t3vis.store.segments import Merge
from t3vis.store.shard import write_rows
from t3vis.store.storage import as_path

GATHERED_BYTES = 512 << 20
"""Of a layer that is larger so much is put in order at a time, and the segments are read as many times."""
_TYPICAL_LENGTH = 64  # values of a ragged row; where there are more, there are more shards


@dataclass(frozen=True)
class Piece:
    """What one process writes at a time: one layer of an array, or an array that has none."""

    name: str
    layer: int = 0


@dataclass(frozen=True)
class _Part:
    """Rows of one layer of an array, from row ``start`` on, which begins a shard."""

    layer: int
    start: int
    rows: NDArray[Any]


@dataclass
class Written:
    """What was written: the crc32c of each shard by its path from the split, and the rows of each stored array."""

    checksums: dict[str, int] = field(default_factory=dict)
    n_rows: dict[str, int] = field(default_factory=dict)

    def add(self, other: Written) -> None:
        """Take in what another has written."""
        self.checksums |= other.checksums
        self.n_rows |= other.n_rows


class PassArrays:
    """Writes the arrays of one pass of a split in order of example."""

    def __init__(self, run: Path, split: Path, index: int, merged: Merge) -> None:
        self._run, self._split, self._index, self._merged = run, split, index, merged
        self._attributes: dict[str, Any] = schema.read_metadata(split)["attributes"]
        self._options = StorageOptions.of(run)
        self._row_shapes = merged.arrays()

    def pieces(self) -> list[Piece]:
        """All there is to write, the same in every process that sees the same segments."""
        found = []
        for name, row_shape in self._row_shapes.items():
            n_layers = row_shape[0] if schema.PASS_ARRAYS[name].leading else 1
            found += [Piece(name, layer) for layer in range(n_layers)]
        return found

    def write(self, pieces: Sequence[Piece]) -> Written:
        """Write some pieces over what a process that died may have left of them; layers of one array stand together."""
        written = Written()
        for name, group in groupby(pieces, lambda piece: piece.name):
            spec, layers = schema.PASS_ARRAYS[name], [piece.layer for piece in group]
            if spec.is_ragged:
                self._write_ragged(spec, written)
            elif layers:
                array = self._array(spec, self._merged.n_examples)
                self._write_parts(array, self._gathered(spec, layers, array), written)
        return written

    def cover(self, written: Written) -> None:
        """Let the shapes of the arrays cover this pass, once all of it is written; drop shards that are none of it."""
        for name, n_rows in written.n_rows.items():
            spec, node = schema.STORED_ARRAYS[name], self._split / name
            metadata = schema.read_metadata(node)
            shape, axis = list(metadata["shape"]), spec.row_axis
            shape[0], shape[axis] = max(self._index + 1, shape[0]), max(n_rows, shape[axis])
            schema.write_metadata(node, {**metadata, "shape": shape})
            if self._options.durability == "fsync":
                sync_file(node / "zarr.json")
        for name in schema.STORED_ARRAYS:
            for file in sorted((self._split / name / "c" / str(self._index)).rglob("*")):
                if file.is_file() and file.relative_to(self._split).as_posix() not in written.checksums:
                    file.unlink()  # of a sealer that died, which had seen other segments

    def _gathered(self, spec: schema.ArraySpec, layers: Sequence[int], array: SealedArray) -> Iterator[_Part]:
        """Each layer by as many whole shards as fit the memory that sealing may take."""
        trailing, n_examples, rows = array.trailing, self._merged.n_examples, None
        shard_bytes = array.layout.shard_rows * array.dtype.itemsize * int(np.prod(trailing, dtype=np.int64))
        size = array.layout.shard_rows * max(GATHERED_BYTES // max(shard_bytes, 1), 1)
        for layer in layers:
            for start in range(0, max(n_examples, 1), size):
                examples = range(start, min(start + size, n_examples))
                found = self._merged.gather(spec.name, trailing, layer, examples=examples, out=rows)
                rows = found if rows is None else rows
                yield _Part(layer, start, found)

    def _write_ragged(self, spec: schema.ArraySpec, written: Written) -> None:
        if not schema.node_exists(self._split / spec.name):
            schema.write_metadata(self._split / spec.name, schema.group_metadata(self._said_of(spec)))
        ragged = self._merged.gather_ragged(spec.name)
        for part, rows in zip(spec.parts, (ragged.values, ragged.offsets), strict=True):
            self._write_parts(self._array(part, len(rows)), iter([_Part(0, 0, rows)]), written, n_rows=len(rows))

    def _write_parts(
        self, array: SealedArray, parts: Iterator[_Part], written: Written, *, n_rows: int | None = None
    ) -> None:
        path = as_path(array.path)
        encode = encoder(compression_of(path, schema.read_metadata(path)), array.dtype)
        for part in parts:
            leading = (self._index, part.layer) if array.row_axis > 1 else (self._index,)
            folder = path.joinpath("c", *map(str, leading))
            if part.start == 0:
                shutil.rmtree(folder, ignore_errors=True)
            first_shard = part.start // array.layout.shard_rows
            files = write_rows(path, leading, part.rows, array.layout, array.fill, encode, first_shard)
            written.checksums |= {file.relative_to(self._split).as_posix(): crc for file, crc in files.items()}
            if self._options.durability == "fsync":
                sync_tree(folder, self._run)
        name = path.relative_to(self._split).as_posix()
        written.n_rows[name] = self._merged.n_examples if n_rows is None else n_rows

    def _array(self, spec: schema.ArraySpec, n_rows: int) -> SealedArray:
        """The sealed array of that name, which is made if there is none."""
        path = self._split / spec.name
        if not schema.node_exists(path):  # before the shards, so that no reader finds a directory without metadata
            schema.write_metadata(path, self._metadata(spec, n_rows))
        return open_sealed(path, spec.row_axis)

    def _metadata(self, spec: schema.ArraySpec, n_rows: int) -> dict[str, Any]:
        """Metadata of a new array, which covers no pass yet."""
        row_shape = self._row_shapes.get(spec.name, ())
        leading, trailing = row_shape[: len(spec.leading)], row_shape[len(spec.leading) :]
        dtype, n_examples = np.dtype(spec.dtype), self._attributes["n_examples"]
        row_bytes = max(dtype.itemsize * int(np.prod(trailing, dtype=np.int64)), 1)
        expected = None if n_examples is None else spec.n_rows(n_examples) or _TYPICAL_LENGTH * n_examples
        layout = row_layout(row_bytes, expected)
        ones = (1,) * spec.row_axis
        return schema.array_metadata(
            shape=(0, *leading, n_rows, *trailing),
            shard_shape=(*ones, layout.shard_rows, *trailing),
            chunk_shape=(*ones, layout.chunk_rows, *trailing),
            dtype=spec.dtype,
            fill=spec.fill,
            dims=spec.dims(self._attributes["kind"]),
            attributes=self._said_of(spec),
            codecs=codec_metadata(self._options.compression, dtype),
        )

    def _said_of(self, spec: schema.ArraySpec) -> dict[str, Any]:
        said = self._attributes["arrays"].get(spec.name, {})
        return {"description": spec.meaning, "mode": self._attributes["mode"], **said}
