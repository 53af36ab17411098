"""A segment in the making: blocks of rows are written as they come, and count once it is committed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store import schema
from t3vis.store.buffer import Column, Rows
from t3vis.store.durable import sync_tree
from t3vis.store.ragged import Ragged
from t3vis.store.shard import Buffer, PartialFile, Span, as_bytes, index_of, shard_path

_EXAMPLE = schema.EXAMPLE_ID.name
_WORTH_WRITING = 64 << 10  # bytes


class OpenSegment:
    """One segment of one process, from its first row to its commit; used by one thread.

    Its arrays grow under the names of partial files, so that memory holds one block of it, not the whole.

    Parameters
    ----------
    path
        Directory of the segment; it is made with the first rows.
    durable_in
        The run, if the segment is to survive a loss of power.

    Raises
    ------
    OSError
        If the disk refuses, in any method; what to do then is to ``discard``.
    """

    def __init__(self, path: Path, *, durable_in: Path | None = None) -> None:
        self.path = path
        self.n_rows = 0
        self._durable_in = durable_in
        self._arrays: dict[str, _GrowingArray] = {}
        self._n_values: dict[str, int] = {}
        self._steps: list[int] = []

    def put(self, rows: Rows) -> None:
        """Write rows behind those that are there.

        Parameters
        ----------
        rows
            ``example``, ``step`` and any other arrays of a pass, in the dimensions of a segment; the same ones each
            time, and of as many rows as the first time, except for the last time, when they may be fewer.
        """
        for name, column in rows.items():
            for spec, array in self._parts(schema.spec_of(name), column):
                if spec.name not in self._arrays:
                    self._arrays[spec.name] = _GrowingArray(self.path, spec, array.shape)
                self._arrays[spec.name].append(array)
        self.n_rows += len(rows["example"])
        steps = np.asarray(rows["step"])
        if len(steps):
            self._steps += [int(steps.min()), int(steps.max())]

    def _parts(self, spec: schema.ArraySpec, column: Column) -> list[tuple[schema.ArraySpec, NDArray[Any]]]:
        """What is stored of a column: itself, or values and offsets, which go on where the last ones ended."""
        if not isinstance(column, Ragged):
            return [(spec, column)]
        values, offsets = spec.parts
        is_first, n_values = spec.name not in self._n_values, self._n_values.get(spec.name, 0)
        self._n_values[spec.name] = n_values + len(column.values)
        return [(values, column.values), (offsets, column.offsets[0 if is_first else 1 :] + n_values)]

    def commit(self, attributes: Mapping[str, Any]) -> None:
        """Let readers see it: the segment exists from the moment the shard of ``example`` does.

        ``attributes`` are those of the group that its rows do not tell.
        """
        of_rows = {"n_rows": self.n_rows}
        if self._steps:
            of_rows |= {"first_step": min(self._steps), "last_step": max(self._steps)}
        schema.write_metadata(self.path, schema.group_metadata({**attributes, **of_rows}))
        for name in self._n_values:
            group = schema.group_metadata({"description": schema.spec_of(name).meaning})
            schema.write_metadata(self.path / name, group)
        for name, array in self._arrays.items():
            if name != _EXAMPLE:
                array.complete()
        if self._durable_in is not None:
            sync_tree(self.path, self._durable_in)  # what the ids vouch for comes before them
        self._arrays[_EXAMPLE].complete()
        if self._durable_in is not None:
            sync_tree(self.path / _EXAMPLE, self._durable_in)

    def discard(self) -> None:
        """Leave nothing behind; rows may be put again as if there had been none."""
        for array in self._arrays.values():
            array.discard()
        shutil.rmtree(self.path, ignore_errors=True)
        self.n_rows, self._arrays, self._n_values, self._steps = 0, {}, {}, []


def write_segment(path: Path, rows: Rows, attributes: Mapping[str, Any], *, durable_in: Path | None = None) -> None:
    """Write one segment whose rows are all there.

    Parameters
    ----------
    rows, attributes, durable_in
        See ``OpenSegment``.

    Raises
    ------
    OSError
        If the disk refuses; nothing is left behind then.
    """
    segment = OpenSegment(path, durable_in=durable_in)
    try:
        segment.put(rows)
        segment.commit(attributes)
    except BaseException:
        segment.discard()
        raise


class _GrowingArray:
    """One array of a segment: one shard of a chunk for each layer and block, or of one chunk if it has no layers."""

    def __init__(self, segment: Path, spec: schema.ArraySpec, shape: tuple[int, ...]) -> None:
        self._node, self._spec, self._shape = segment / spec.name, spec, shape
        self._n_leading = len(spec.leading)
        self._n_rows = 0
        self._kept: list[Buffer] = []  # rows that are too few to be written by themselves
        self._n_kept = 0
        self._blocks: list[int] = []  # where each begins in the file; used where there are layers
        self._file = PartialFile(shard_path(self._node, (0,) * self._n_leading, 0, len(shape) - self._n_leading - 1))

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows behind those that are there."""
        array = np.asarray(rows, self._spec.dtype)
        self._n_rows += array.shape[self._n_leading]
        if self._spec.leading:
            self._blocks.append(self._file.size)
            array = self._padded(array)
        if self._n_kept + array.nbytes < _WORTH_WRITING and not self._spec.leading:
            self._kept.append(bytes(as_bytes(array)))
            self._n_kept += array.nbytes
        else:
            self._write([as_bytes(array)])

    def _write(self, buffers: list[Buffer]) -> None:
        self._file.reserve(self._n_kept + sum(map(len, buffers)))
        self._file.append([buffer for buffer in (*self._kept, *buffers) if len(buffer)])
        self._kept, self._n_kept = [], 0

    def _padded(self, rows: NDArray[Any]) -> NDArray[Any]:
        """As many rows as in the first block, since chunks are of one size."""
        if rows.shape == self._shape:
            return rows
        whole = np.full(self._shape, self._spec.fill, self._spec.dtype)
        whole[(*(slice(None),) * self._n_leading, slice(rows.shape[self._n_leading]))] = rows
        return whole

    def complete(self) -> None:
        """Write the index and the metadata."""
        at = self._n_leading
        shape = (*self._shape[:at], self._n_rows, *self._shape[at + 1 :])
        block = tuple(max(size, 1) for size in (self._shape if at else shape))
        schema.write_metadata(
            self._node,
            schema.array_metadata(
                shape=shape,
                shard_shape=(*block[:at], block[at] * max(len(self._blocks), 1), *block[at + 1 :]),
                chunk_shape=(1, *block[1:]) if at else block,
                dtype=self._spec.dtype,
                fill=self._spec.fill,
                dims=self._spec.segment_dims(),
                attributes={"description": self._spec.meaning},
            ),
        )
        self._write([])
        self._file.append([index_of(self._spans())])
        self._file.complete()

    def _spans(self) -> list[Span | None]:
        if not self._n_leading:
            return [(0, self._file.size) if self._file.size else None]
        n_layers = self._shape[0]
        n_bytes = np.dtype(self._spec.dtype).itemsize * int(np.prod(self._shape[1:], dtype=np.int64))
        return [
            (begin + layer * n_bytes, n_bytes) if n_bytes else None
            for layer in range(n_layers)
            for begin in self._blocks
        ]

    def discard(self) -> None:
        """Leave no file behind."""
        self._file.discard()
