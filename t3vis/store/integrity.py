"""What can be wrong with one stored array: its metadata, and each of its shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.checksums import checksum, size_of
from t3vis.store.layout import RowLayout
from t3vis.store.sealed import SealedArray
from t3vis.store.shard import Codec, ShardFile, index_length, shard_path
from t3vis.store.storage import as_path

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """Something of a run that is damaged: the file, what is wrong with it, and what it holds.

    ``index`` is the number of the pass, ``layer`` the index along the axis ``layer``. ``rows`` are those concerned:
    examples, or in a segment the rows in order of arrival, or in a ragged array its values or offsets.
    """

    file: Path
    what: str
    split: str | None = None
    array: str | None = None
    index: int | None = None
    layer: int | None = None
    rows: range | None = None

    def __str__(self) -> str:
        where = "/".join(filter(None, [self.split, self.array]))
        where += "" if self.index is None else f", pass {self.index}"
        where += "" if self.layer is None else f", layer {self.layer}"
        where += "" if self.rows is None else f", rows {self.rows.start} to {self.rows.stop - 1}"
        return f"{where + ': ' if where else ''}{self.what} ({self.file})"


@dataclass(frozen=True)
class ShardProblem:
    """Something wrong with a shard: with one of its chunks, or with all of them."""

    what: str
    chunk: int | None = None


def shard_problems(
    file: Path, *, n_chunks: int, chunk_bytes: int, decode: Codec | None, expected: int | None = None
) -> Iterator[ShardProblem]:
    """What is wrong with one shard.

    Parameters
    ----------
    chunk_bytes
        Size of a chunk once it is decoded.
    expected
        The checksum of the whole file, if it was kept.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    intact = expected is None or checksum(file) == expected
    try:
        with ShardFile(file, n_chunks) as shard:
            found = list(_content_problems(shard, file, n_chunks, chunk_bytes, decode, try_to_decode=intact))
    except StoreError:
        found = [ShardProblem(f"it does not end in an index of {n_chunks} chunks with the right checksum")]
    if not (intact or found):
        found = [ShardProblem("its bytes do not have the checksum that was kept of them")]
    yield from found


def _content_problems(
    shard: ShardFile, file: Path, n_chunks: int, chunk_bytes: int, decode: Codec | None, *, try_to_decode: bool
) -> Iterator[ShardProblem]:
    """What is wrong with the chunks of a shard whose index is whole."""
    spans = {chunk: span for chunk, span in enumerate(shard.spans) if span is not None}
    end = 0
    for offset, length in sorted(spans.values()):
        if offset != end:
            yield ShardProblem(f"its index speaks of a chunk at byte {offset}, expected {end}")
            return
        end += length
    payload = file.stat().st_size - index_length(n_chunks)
    if end != payload:
        yield ShardProblem(f"it holds {payload} bytes of chunks, but its index speaks of {end}")
        return
    for chunk, span in spans.items():
        n_bytes: int | str = span[1]
        if decode is not None:
            n_bytes = _decoded_size(shard, span, decode) if try_to_decode else chunk_bytes
        if isinstance(n_bytes, str):
            yield ShardProblem(f"chunk {chunk} cannot be decoded ({n_bytes})", chunk)
        elif n_bytes != chunk_bytes:
            yield ShardProblem(f"chunk {chunk} holds {n_bytes} bytes, expected {chunk_bytes}", chunk)


def _decoded_size(shard: ShardFile, span: tuple[int, int], decode: Codec) -> int | str:
    """Bytes of a chunk, or why it cannot be decoded."""
    encoded = np.empty(span[1], np.uint8)
    shard.read_into(encoded, span[0])
    try:
        return len(decode(encoded.tobytes()))
    except (RuntimeError, ValueError, MemoryError) as error:
        return str(error)


def row_bytes(array: SealedArray) -> int:
    """Bytes of one row."""
    return array.dtype.itemsize * int(np.prod(array.shape[array.row_axis + 1 :], dtype=np.int64))


def shards_of(
    array: SealedArray, leading: tuple[int, ...], n_rows: int
) -> Iterator[tuple[tuple[int, ...], range, Path]]:
    """The shards that the first ``n_rows`` rows are kept in, of every index that begins with ``leading``.

    Yields
    ------
    The whole leading index, the rows of the shard, and its file.
    """
    path, n_trailing, size = as_path(array.path), len(array.shape) - array.row_axis - 1, array.layout.shard_rows
    for rest in product(*map(range, array.shape[len(leading) : array.row_axis])):
        for number in range(-(-n_rows // size)):
            rows = range(number * size, min((number + 1) * size, n_rows))
            yield (*leading, *rest), rows, shard_path(path, (*leading, *rest), number, n_trailing)


def problems_of_shard(array: SealedArray, rows: range, file: Path, expected: int | None = None) -> Iterator[Problem]:
    """What is wrong with the shard that holds ``rows`` of an array, in terms of its rows."""
    chunk_rows = array.layout.chunk_rows
    for found in shard_problems(
        file,
        n_chunks=array.layout.chunks_per_shard,
        chunk_bytes=chunk_rows * row_bytes(array),
        decode=array.decode,
        expected=expected,
    ):
        concerned = rows if found.chunk is None else rows[found.chunk * chunk_rows : (found.chunk + 1) * chunk_rows]
        yield Problem(file, found.what, rows=concerned or None)


def offset_problems(
    offsets: SealedArray, leading: tuple[int, ...], *, n_rows: int | None = None, n_values: range
) -> Iterator[Problem]:
    """What is wrong with offsets whose shards are whole: they must rise from 0 to the number of values.

    Parameters
    ----------
    n_rows
        How many of them there are; all of the array if that is not given.
    n_values
        How many values there may be.
    """
    path, end = as_path(offsets.path), 0
    n_rows = offsets.n_rows if n_rows is None else n_rows
    for start in range(0, n_rows, offsets.layout.shard_rows):
        part = offsets.read(leading, range(start, min(start + offsets.layout.shard_rows, n_rows)))
        falling = np.flatnonzero(np.diff(part, prepend=end) < 0)
        if len(falling) or (not start and part[0]):
            at = start + int(falling[0] if len(falling) else 0)
            yield Problem(path, "its offsets do not rise from 0 on", rows=range(at, at + 1))
            return
        end = int(part[-1])
    if end not in n_values:
        yield Problem(path, f"its offsets end at {end}, but there are {n_values.stop - 1} values")


def metadata_problem(
    node: Path, *, dims: tuple[str, ...], dtype: str, fill: float | int, row_axis: int, in_one_shard: bool = False
) -> str | None:
    """What an array's metadata says other than it must, or ``None``.

    Parameters
    ----------
    in_one_shard
        Whether all of the array is one shard, as in a segment.

    Raises
    ------
    FileNotFoundError
        If there is no array.
    """
    try:
        found = schema.read_metadata(node)
        shape = tuple(map(int, found["shape"]))
        sharding = found["codecs"][0]["configuration"]
        shards, chunks = found["chunk_grid"]["configuration"]["chunk_shape"], sharding["chunk_shape"]
        layout = RowLayout(int(chunks[row_axis]), int(shards[row_axis]))
        inner = tuple(sharding["codecs"][1:])
    except (StoreError, KeyError, IndexError, TypeError, ValueError) as error:
        return f"its metadata is not that of an array of shards ({type(error).__name__}: {error})"
    if len(shape) != len(dims):
        return f"it has {len(shape)} dimensions, expected {dims}"
    if layout.chunk_rows < 1 or layout.shard_rows % layout.chunk_rows:
        return f"its shards of {layout.shard_rows} rows are not whole chunks of {layout.chunk_rows}"
    ones, trailing = (1,) * row_axis, shape[row_axis + 1 :]
    sizes = (*ones, layout.shard_rows, *trailing)
    if in_one_shard:
        n_chunks = max(-(-shape[row_axis] // layout.chunk_rows), 1)
        sizes = tuple(max(size, 1) for size in (*shape[:row_axis], n_chunks * layout.chunk_rows, *trailing))
    expected = schema.array_metadata(
        shape=shape,
        shard_shape=sizes,
        chunk_shape=(*ones, layout.chunk_rows, *trailing),
        dtype=dtype,
        fill=fill,
        dims=dims,
        attributes={},
        codecs=inner,
    )
    if found.get("dimension_names") == [schema.EARLY_DIMS.get(dim, dim) for dim in dims]:
        expected["dimension_names"] = found["dimension_names"]
    for key in expected.keys() - {"attributes", "storage_transformers"}:
        if found.get(key) != expected[key]:
            return f"its {key} is {found.get(key)!r}, expected {expected[key]!r}"
    if not found.get("attributes", {}).get("description"):
        return "it has no description"
    return None


def about(problem: Problem, **where: Any) -> Problem:
    """The problem, with what the one who found it did not know: split, array, pass, layer."""
    return replace(problem, **where)


@dataclass
class Meter:
    """Counts the bytes that have been looked at."""

    report: Progress | None
    total: int
    done: int = 0

    def add(self, file: Path) -> None:
        """Count a shard that has been looked at, if it is there."""
        if self.report is not None:
            self.done = min(self.done + size_of(file), self.total)
            self.report(self.done, self.total)

    def end(self) -> None:
        """Report that all has been looked at."""
        if self.report is not None:
            self.report(self.total, self.total)


def lacking_problems(
    node: Path,
    attributes: Mapping[str, Any],
    names: Collection[str],
    *,
    numbers: Collection[str] = (),
    split: str | None = None,
) -> Iterator[Problem]:
    """What a group's attributes do not say although they must, or do not say in integers."""
    missing = [name for name in names if name not in attributes]
    wrong = [name for name in numbers if name in attributes and not isinstance(attributes[name], int)]
    if missing:
        yield Problem(node / "zarr.json", f"its attributes lack {', '.join(missing)}", split=split)
    for name in wrong:
        yield Problem(node / "zarr.json", f"its {name} is {attributes[name]!r}, expected an integer", split=split)


def attributes_of(node: Path) -> dict[str, Any] | None:
    """Attributes of a group, ``None`` if there are none to read; that is a problem of the metadata by itself."""
    try:
        attributes = schema.read_metadata(node).get("attributes", {})
    except (StoreError, FileNotFoundError):
        return None
    return attributes if isinstance(attributes, dict) else None
