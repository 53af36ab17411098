"""Blocks of rows on their way to the disk: written in a thread, one after the other; what is lost is told."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from t3vis.store import schema, segments
from t3vis.store.buffer import Buffer, Column, Rows
from t3vis.store.codecs import rounded
from t3vis.store.open_segment import OpenSegment, write_segment
from t3vis.store.options import StorageOptions
from t3vis.store.ragged import Ragged


class Lost(NamedTuple):
    """Rows of a split that could not be written, and why."""

    split: str
    n_rows: int
    error: BaseException | None


class SegmentThread:
    """Writes the segments of one process, in the background.

    Parameters
    ----------
    path
        Directory of the run.
    attempt, rank
        Which attempt at the run this is, and which process of it.
    """

    def __init__(self, path: Path, *, attempt: int, rank: int, options: StorageOptions) -> None:
        self._path, self._attempt, self._rank, self._options = path, attempt, rank, options
        self._durable_in = path if options.durability == "fsync" else None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: deque[tuple[str, Future[None]]] = deque()

    def end_segment(self, name: str, buffer: Buffer) -> None:
        """Have every row of a split that was taken written and committed."""
        if buffer.n_rows or buffer.segment is not None:
            self.hand_over(name, buffer, ends_segment=True)

    def hand_over(self, name: str, buffer: Buffer, *, ends_segment: bool) -> None:
        """Have a block of a split written behind those before it; waits while all others are being written."""
        attributes = {
            "pass": buffer.index,
            "attempt": self._attempt,
            "rank": self._rank,
            "sequence": buffer.sequence,
            "of_pass": buffer.of_pass,
        }
        segment = buffer.segment
        if segment is None:
            path = segments.segment_path(self._path / name, attributes)
            segment = OpenSegment(path, durable_in=self._durable_in)
        buffer.segment, buffer.n_handed = segment, buffer.n_handed + buffer.n_rows
        if ends_segment:
            buffer.segment, buffer.n_handed, buffer.due, buffer.sequence = None, 0, math.inf, buffer.sequence + 1
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="t3vis-writer")
        writing = self._thread.submit(self._write, segment, buffer.filled(), attributes if ends_segment else None)
        self._writing.append((name, writing))
        buffer.turn(writing)

    def _write(self, segment: OpenSegment, rows: Rows, attributes: dict[str, Any] | None) -> None:
        """Write a block, in the thread, and with attributes commit its segment; a failure loses all of it."""
        n_rows = segment.n_rows + len(rows["example"])
        try:
            if not segment.n_rows:
                _make_group(segment.path.parent)
            if len(rows["example"]):
                segment.put(self._as_stored(rows))
            if attributes is not None and segment.n_rows:
                segment.commit(attributes)
        except BaseException as error:
            segment.discard()
            raise _SegmentLostError(n_rows) from error

    def write_now(self, path: Path, rows: Rows, attributes: dict[str, Any]) -> None:
        """Write a segment whose rows are all there, and return when it is committed."""
        _make_group(path.parent)
        write_segment(path, self._as_stored(rows), attributes, durable_in=self._durable_in)

    def lost(self, *, wait: bool = False) -> list[Lost]:
        """What could not be written of the blocks that are done, of all if ``wait``; each is told once."""
        found = []
        while self._writing and (wait or self._writing[0][1].done()):  # one is written after the other
            name, writing = self._writing.popleft()
            try:
                writing.result()
            except _SegmentLostError as lost:
                found.append(Lost(name, lost.n_rows, lost.__cause__))
        return found

    def stop(self) -> None:
        """Wait for what is being written, and let the thread go; another is begun when there is more to write."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _as_stored(self, rows: Rows) -> dict[str, Column]:
        return {
            name: column if isinstance(column, Ragged) else rounded(self._options.compression, name, column)
            for name, column in rows.items()
        }


class _SegmentLostError(Exception):
    """Rows that could not be written; the cause says why."""

    def __init__(self, n_rows: int) -> None:
        super().__init__(f"{n_rows} rows")
        self.n_rows = n_rows


def _make_group(folder: Path) -> None:
    if not schema.node_exists(folder):
        schema.write_metadata(folder, schema.group_metadata())
