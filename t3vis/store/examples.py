"""What the examples of a split are, written once: labels, lengths, texts and token ids.

Texts and token ids are ragged: ``values`` holds them one after another, ``offsets`` (one more than there are
examples) where each begins. Everything is streamed, so memory does not grow with the dataset.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store import schema
from t3vis.store.layout import RowLayout, row_layout
from t3vis.store.sealed import SealedArray, open_sealed
from t3vis.store.shard import Codec
from t3vis.store.streamed import StreamedRows

ZSTD_LEVEL = 1


@dataclass(frozen=True)
class Columns:
    """A batch of consecutive examples, as columns.

    ``labels`` are classes, shape (n,); ``targets`` values, shape (n, n_classes); ``length`` the tokens of each that
    are not padding; ``token_ids`` those of all examples one after another, ``n_token_ids`` how many each has;
    ``texts`` the raw text columns by name; a text of ``None`` is kept as an empty one.
    """

    labels: NDArray[np.int64] | None = None
    targets: NDArray[np.float32] | None = None
    length: NDArray[np.int32] | None = None
    token_ids: NDArray[np.int32] | None = None
    n_token_ids: NDArray[np.int64] | None = None
    texts: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


class ExamplesWriter:
    """Streams the examples of one split to ``<split>/examples``, or only fingerprints them.

    Parameters
    ----------
    group
        Where the arrays go, ``<split>/examples``; ``None`` writes nothing and only computes the fingerprint.
    n_examples
        Examples to come.
    """

    def __init__(self, group: Path | None, n_examples: int) -> None:
        self._root = group
        self._n_examples = n_examples
        self._arrays: dict[str, _StreamedArray] = {}
        self._ends: dict[str, int] = {}
        self._text_columns: dict[str, str] = {}
        if group is not None:
            schema.write_metadata(group, schema.group_metadata())

    def add(self, columns: Columns) -> None:
        """Append a batch of examples."""
        if columns.labels is not None:
            self._append("labels", columns.labels.astype("<i8"), -1, "gold class of each example; -1 where unknown")
        if columns.targets is not None:
            meaning = "gold values of each example, one per output"
            self._append("targets", columns.targets.astype("<f4"), np.nan, meaning, trailing=("class",))
        if columns.length is not None:
            self._append("length", columns.length.astype("<i4"), -1, "tokens of each example that are not padding")
        if columns.token_ids is not None and columns.n_token_ids is not None:
            self._group("input_ids")
            self._append_ragged("input_ids", columns.token_ids.astype("<i4"), columns.n_token_ids, "token ids")
        for column, texts in columns.texts.items():
            encoded = [(text or "").encode("utf-8", "replace") for text in texts]
            values = np.frombuffer(b"".join(encoded), "u1")
            lengths = np.array([len(text) for text in encoded], np.int64)
            meaning = f"UTF-8 bytes of the column {column!r}"
            self._append_ragged(f"text/{self._node_of(column)}", values, lengths, meaning)

    def close(self) -> str:
        """Finish every array.

        Returns
        -------
        A fingerprint of all that was added: the same for the same content in the same order.
        """
        digest = hashlib.blake2b(repr(self._text_columns).encode(), digest_size=16)
        checksums: dict[str, int] = {}
        for name, array in sorted(self._arrays.items()):
            digest.update(name.encode() + array.close())
            if self._root is not None:
                root = self._root
                checksums |= {file.relative_to(root).as_posix(): crc for file, crc in array.checksums.items()}
        if self._root is not None:
            schema.write_metadata(self._root, schema.group_metadata({"checksums": checksums}))
        return digest.hexdigest()

    def _group(self, name: str) -> None:
        if self._root is not None and not schema.node_exists(self._root / name):
            schema.write_metadata(self._root / name, schema.group_metadata())

    def _append_ragged(self, name: str, values: NDArray[Any], lengths: NDArray[np.int64], meaning: str) -> None:
        if name not in self._ends:
            self._ends[name] = 0
            self._append(f"{name}/offsets", np.zeros(1, "<i8"), 0, _OFFSETS, dim="offset")
        ends = self._ends[name] + np.cumsum(lengths, dtype=np.int64)
        self._ends[name] += len(values)
        self._append(f"{name}/values", values, 0, f"{meaning}, example after example", dim="value", zstd=True)
        self._append(f"{name}/offsets", ends, 0, _OFFSETS, dim="offset")

    def _append(
        self,
        name: str,
        rows: NDArray[Any],
        fill: float | int,
        meaning: str,
        *,
        dim: str = "example",
        trailing: tuple[str, ...] = (),
        zstd: bool = False,
    ) -> None:
        if name not in self._arrays:
            path = None if self._root is None else self._root / name
            n_rows = {"example": self._n_examples, "offset": self._n_examples + 1}.get(dim)
            self._arrays[name] = _StreamedArray(path, rows, n_rows, fill, meaning, (dim, *trailing), zstd=zstd)
        self._arrays[name].append(rows)

    def _node_of(self, column: str) -> str:
        """A name for the column's group that any file system takes; the true name is kept in the attributes."""
        if column not in self._text_columns:
            safe = re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_") or "column"
            while safe.lower() in map(str.lower, self._text_columns.values()):  # some file systems ignore case
                safe += "_"
            self._text_columns[column] = safe
            if self._root is not None:
                names = {node: name for name, node in self._text_columns.items()}
                schema.write_metadata(self._root / "text", schema.group_metadata({"columns": names}))
                schema.write_metadata(self._root / "text" / safe, schema.group_metadata())
        return self._text_columns[column]


_OFFSETS = "where each example begins in values, and after the last one where it ends"


class _StreamedArray:
    """One array written shard after shard; ``path`` None only hashes what goes by."""

    def __init__(
        self,
        path: Path | None,
        like: NDArray[Any],
        n_rows: int | None,
        fill: float | int,
        meaning: str,
        dims: tuple[str, ...],
        *,
        zstd: bool,
    ) -> None:
        self._path, self._fill, self._meaning, self._dims, self._zstd = path, fill, meaning, dims, zstd
        self._dtype, self._trailing = like.dtype, like.shape[1:]
        row_bytes = like.dtype.itemsize * int(np.prod(like.shape[1:], dtype=np.int64))
        self._layout: RowLayout = row_layout(row_bytes, n_rows)
        self._n_rows = 0
        self._hash = hashlib.blake2b(str((like.dtype.str, like.shape[1:])).encode(), digest_size=16)
        self._rows: StreamedRows | None = None
        if path is not None:
            self._rows = StreamedRows(path, self._layout, like, fill, _zstd_encoder() if zstd else None)
        self._write_metadata()

    @property
    def checksums(self) -> dict[Path, int]:
        """The crc32c of each shard."""
        return {} if self._rows is None else self._rows.checksums

    def append(self, rows: NDArray[Any]) -> None:
        rows = np.ascontiguousarray(rows, self._dtype)
        self._hash.update(rows.tobytes())
        self._n_rows += len(rows)
        if self._rows is not None:
            self._rows.append(rows)

    def close(self) -> bytes:
        if self._rows is not None:
            self._rows.close()
        self._write_metadata()
        return self._hash.digest()

    def _write_metadata(self) -> None:
        if self._path is None:
            return
        zstd = {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}
        metadata = schema.array_metadata(
            shape=(self._n_rows, *self._trailing),
            shard_shape=(self._layout.shard_rows, *self._trailing),
            chunk_shape=(self._layout.chunk_rows, *self._trailing),
            dtype=self._dtype.str,
            fill=self._fill,
            dims=self._dims,
            attributes={"description": self._meaning},
            codecs=(zstd,) if self._zstd else (),
        )
        schema.write_metadata(self._path, metadata)


def _zstd_encoder() -> Codec:
    from numcodecs.zstd import Zstd  # slow to import, and the sealing subprocess has no need of it

    codec: Codec = Zstd(level=ZSTD_LEVEL).encode
    return codec


class RaggedColumn:
    """One value per example, of its own length each, read on demand.

    ``column[17]`` is one value, ``column[3:9]`` and ``column[[5, 2]]`` are lists of them: strings for a text
    column, else one-dimensional arrays.
    """

    def __init__(self, path: schema.Node, *, text: bool) -> None:
        self._values = open_sealed(path / "values", 0)
        self._offsets = open_sealed(path / "offsets", 0)
        self._text = text

    def __len__(self) -> int:
        return self._offsets.shape[0] - 1

    def __getitem__(self, key: int | slice | Sequence[int] | NDArray[Any]) -> Any:
        if isinstance(key, int | np.integer):
            number = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= number < len(self):
                raise IndexError(f"example {key} of {len(self)}")
            return self._range(number, number + 1)[0]
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._range(start, max(stop, start))
            return [self[i] for i in range(start, stop, step)]
        numbers = np.asarray(key)
        if numbers.dtype == bool:
            numbers = np.flatnonzero(numbers)
        return [self[int(i)] for i in numbers]

    def __repr__(self) -> str:
        return f"<{'texts' if self._text else 'sequences'} of {len(self)} examples>"

    def encoded(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The values of examples `start` to `stop`, not included, as they are kept.

        Returns
        -------
        All values one after the other, UTF-8 bytes for a text; and where each example begins among them, and after
        the last one where it ends, shape (stop - start + 1,).
        """
        offsets = self._offsets.read((), range(start, stop + 1))
        values = self._values.read((), range(int(offsets[0]), int(offsets[-1])))
        return values, offsets - offsets[0]

    def _range(self, start: int, stop: int) -> list[Any]:
        if stop == start:
            return []
        values, offsets = self.encoded(start, stop)
        parts = np.split(values, offsets[1:-1])
        return [part.tobytes().decode() for part in parts] if self._text else parts


def text_columns(split: schema.Node) -> dict[str, RaggedColumn]:
    """Raw text columns of a split by their true names."""
    root = split / "examples" / "text"
    if not schema.node_exists(root):
        return {}
    names: dict[str, str] = schema.read_metadata(root)["attributes"]["columns"]
    return {column: RaggedColumn(root / node, text=True) for node, column in names.items()}


def static_array(split: schema.Node, name: str) -> SealedArray | None:
    """``labels``, ``targets`` or ``length`` of a split, where the dataset had them."""
    path = split / "examples" / name
    return open_sealed(path, 0) if schema.node_exists(path) else None


def token_ids(split: schema.Node) -> RaggedColumn | None:
    """Token ids of a split, where the dataset had them."""
    path = split / "examples" / "input_ids"
    return RaggedColumn(path, text=False) if schema.node_exists(path / "values") else None
