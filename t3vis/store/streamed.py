"""An array written row after row: a few of its chunks are in memory, whatever its size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from awscrt.checksums import crc32c
from numpy.typing import NDArray

from t3vis.store.layout import BLOCK_BYTES, RowLayout
from t3vis.store.shard import Codec, PartialFile, chunks_of, index_of, one_after_another, shard_path


class StreamedRows:
    """Writes the rows of an array without leading axes as shards, in the order in which they come.

    Parameters
    ----------
    array
        Its directory.
    layout
        Of its shards and chunks.
    like
        An array of the type and the trailing shape of the rows.
    fill
        What the last chunk is filled up with.
    codec
        Encodes the bytes of one chunk; none leaves them as they are.
    """

    def __init__(
        self, array: Path, layout: RowLayout, like: NDArray[Any], fill: float | int, codec: Codec | None = None
    ) -> None:
        self._array, self._layout, self._fill, self._codec = array, layout, fill, codec
        self._n_trailing = like.ndim - 1
        chunk_bytes = layout.chunk_rows * like.itemsize * math.prod(like.shape[1:])
        self._n_together = max(BLOCK_BYTES // max(chunk_bytes, 1), 1) * layout.chunk_rows
        self._pending: list[NDArray[Any]] = []
        self._n_pending = 0
        self._file: PartialFile | None = None
        self._lengths: list[int] = []
        self._crc = 0
        self.checksums: dict[Path, int] = {}
        """The crc32c of each shard that is written."""

    def append(self, rows: NDArray[Any]) -> None:
        """Take rows over, C-contiguous; those that make whole chunks are written."""
        self._pending.append(rows)
        self._n_pending += len(rows)
        if self._n_pending >= self._n_together:
            self._write(self._n_pending - self._n_pending % self._layout.chunk_rows)

    def close(self) -> None:
        """Write what is left."""
        self._write(self._n_pending)
        if self._file is not None:
            self._end_shard(self._file)

    def _write(self, n_rows: int) -> None:
        if not n_rows:
            return
        rows = np.concatenate(self._pending)
        self._pending, self._n_pending = [rows[n_rows:].copy()], len(rows) - n_rows
        try:
            for chunk in chunks_of(rows[:n_rows], self._layout.chunk_rows, self._fill):
                self._put(chunk if self._codec is None else self._codec(chunk))
        except BaseException:
            if self._file is not None:
                self._file.discard()
            raise

    def _put(self, chunk: Any) -> None:
        """Write a chunk, as it is encoded, behind the others of its shard."""
        if self._file is None:
            self._file = PartialFile(shard_path(self._array, (), len(self.checksums), self._n_trailing))
        view = memoryview(chunk)
        self._file.append([view])
        self._lengths.append(len(view))
        self._crc = crc32c(view, self._crc)
        if len(self._lengths) == self._layout.chunks_per_shard:
            self._end_shard(self._file)

    def _end_shard(self, file: PartialFile) -> None:
        n_left_out = self._layout.chunks_per_shard - len(self._lengths)
        index = index_of(one_after_another([*self._lengths, *[None] * n_left_out]))
        file.append([index])
        file.complete()
        self.checksums[file.path] = crc32c(index, self._crc)
        self._file, self._lengths, self._crc = None, [], 0
