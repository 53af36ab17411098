"""Rows of one split on their way to a segment: a ring of blocks, one being filled while others are written."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from t3vis.store import layout
from t3vis.store.layout import block_rows, ring_blocks, segment_rows
from t3vis.store.ragged import Ragged
from t3vis.store.schema import PASS_ARRAYS, spec_of

if TYPE_CHECKING:
    from t3vis.store.open_segment import OpenSegment

Column = NDArray[Any] | Ragged
Rows = Mapping[str, Column]
Block: TypeAlias = "dict[str, NDArray[Any] | _RaggedRoom]"

_PATIENCE = 0.02  # seconds; a block that was just written is in the cache, and worth more than a new one
_LAYERED = frozenset(name for name, spec in PASS_ARRAYS.items() if spec.leading)
_SPARE = 4  # room for values, of what as many rows as the first ones would need; memory only once it is used


@dataclass
class Buffer:
    """Rows of one split that are not yet on disk: a ring of blocks, one being filled while others are written.

    The memory is that of a few blocks, whatever the size of the dataset. ``index`` and ``of_pass`` are of the pass that
    the rows belong to, ``sequence`` the number of the next segment, ``segment`` the one that blocks are written to, and
    ``n_handed`` how many rows of it are on their way. ``arrays`` is the block being filled, of ``capacity`` rows, of
    which ``n_rows`` are there; the block freed last is taken next, since it is still in the cache. ``ragged`` names the
    arrays whose rows are of different lengths. ``known_shapes`` are those of the last batch that fitted: most are like
    the one before.
    """

    n_examples: int | None
    index: int = 0
    of_pass: dict[str, Any] = field(default_factory=dict)
    sequence: int = 0
    segment: OpenSegment | None = None
    n_handed: int = 0
    capacity: int = 0
    n_rows: int = 0
    arrays: Block = field(default_factory=dict)
    ragged: tuple[str, ...] = ()
    is_full: bool = False
    known_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    n_left: int = 0
    """Blocks that may still be allocated."""
    segment_rows: int = 0
    due: float = math.inf
    """When the segment ends, be it full or not; by ``time.monotonic``."""
    _free: list[Block] = field(default_factory=list)
    _waiting: deque[tuple[Future[Any], Block]] = field(default_factory=deque)

    def fits(self, rows: Rows) -> bool:
        """Whether rows of this kind are what the buffer was allocated for."""
        shapes = {name: column.shape for name, column in rows.items()}
        if shapes == self.known_shapes:
            return True
        n_rows = len(rows["example"])
        fits = rows.keys() == self.arrays.keys() and all(
            row_shape(name, column) == row_shape(name, self.arrays[name]) and n_rows_of(name, column) == n_rows
            for name, column in rows.items()
        )
        if fits:
            self.known_shapes = shapes
        return fits

    def allocate(self, rows: Rows) -> None:
        """Room for a block of rows like these."""
        row_bytes = max(sum(_row_bytes(name, rows[name]) for name in rows), 1)
        self.capacity = block_rows(row_bytes, self.n_examples)
        self.segment_rows = segment_rows(row_bytes)
        self.arrays = {name: self._room(name, rows[name]) for name in rows}
        self.n_left = ring_blocks(self.capacity * row_bytes) - 1
        self.ragged = tuple(name for name, column in rows.items() if isinstance(column, Ragged))
        self._free, self._waiting, self.known_shapes, self.is_full = [], deque(), {}, False

    def _room(self, name: str, column: Column) -> NDArray[Any] | _RaggedRoom:
        spec = spec_of(name)
        if isinstance(column, Ragged):
            n_values = int(_SPARE * self.capacity * len(column.values) / max(len(column), 1)) + 1
            return _RaggedRoom(np.empty(n_values, spec.dtype), np.zeros(self.capacity + 1, np.int64))
        lead, trail = row_shape(name, column)
        return np.empty((*lead, self.capacity, *trail), spec.dtype)

    @property
    def ends_segment(self) -> bool:
        """Whether a segment ends with the rows that are there: it is full or due, or the block is not full.

        A block of fewer rows is the last of its segment.
        """
        return (
            self.is_due
            or self.n_rows < self.capacity
            or self.n_handed + self.n_rows + self.capacity > self.segment_rows
        )

    @property
    def is_due(self) -> bool:
        """Whether readers have waited long enough for the rows of this segment."""
        return time.monotonic() >= self.due

    def turn(self, writing: Future[Any]) -> None:
        """Fill another block from now on, as soon as there is one; ``writing`` frees this one."""
        self._waiting.append((writing, self.arrays))
        self._free_what_is_written()
        if not self._free and (len(self._waiting) > 1 or not self.n_left):
            wait([self._waiting[0][0]], _PATIENCE if self.n_left else None)
            self._free_what_is_written()
        if self._free:
            self.arrays = self._free.pop()
        else:
            self.arrays = {name: _twin(room) for name, room in self.arrays.items()}
            self.n_left -= 1
        self.n_rows, self.is_full = 0, False

    def _free_what_is_written(self) -> None:
        while self._waiting and self._waiting[0][0].done():
            self._free.append(self._waiting.popleft()[1])

    def take(self, rows: Rows, start: int) -> int:
        """Copy the rows from number ``start`` on, as many as there is room for; returns how many."""
        wanted = len(rows["example"]) - start
        count = min(wanted, self.capacity - self.n_rows)
        if self.ragged:
            count = min([count, *self._n_fitting(rows, start)])
        into, of = slice(self.n_rows, self.n_rows + count), slice(start, start + count)
        for name, room in self.arrays.items():
            column = rows[name]
            if not (isinstance(room, np.ndarray) and isinstance(column, np.ndarray)):
                _ragged_room(room).put(_ragged(column)[of], self.n_rows)
            elif name in _LAYERED:
                room[:, into] = column[:, of]
            else:
                room[into] = column[of]
        if self.due == math.inf:
            self.due = time.monotonic() + layout.SEGMENT_SECONDS
        self.n_rows += count
        self.is_full = count < wanted or self.n_rows == self.capacity
        return count

    def _n_fitting(self, rows: Rows, start: int) -> list[int]:
        """How many rows each ragged array has room for; at least one while there are none."""
        found = []
        for name in self.ragged:
            room, column = _ragged_room(self.arrays[name]), _ragged(rows[name])
            if not self.n_rows:
                room.reserve(int(column.offsets[start + 1] - column.offsets[start]) if start < len(column) else 0)
            n_values = len(room.values) - int(room.offsets[self.n_rows])
            found.append(int(np.searchsorted(column.offsets, column.offsets[start] + n_values, "right")) - 1 - start)
        return found

    def filled(self) -> dict[str, Column]:
        """The rows that are waiting."""
        return {
            name: room.filled(self.n_rows)
            if isinstance(room, _RaggedRoom)
            else room[(*(slice(None) for _ in spec_of(name).leading), slice(0, self.n_rows))]
            for name, room in self.arrays.items()
        }


def _twin(room: NDArray[Any] | _RaggedRoom) -> NDArray[Any] | _RaggedRoom:
    """As much room again."""
    if isinstance(room, _RaggedRoom):
        return _RaggedRoom(np.empty_like(room.values), np.zeros_like(room.offsets))
    return np.empty_like(room)


@dataclass
class _RaggedRoom:
    """Room for a number of rows of a ragged array, and for as many values as that should need."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def reserve(self, n_values: int) -> None:
        """Make room for a row that is longer than all the room there is; nothing is there yet."""
        if n_values > len(self.values):
            self.values = np.empty(n_values, self.values.dtype)

    def put(self, rows: Ragged, at: int) -> None:
        """Put rows after the first ``at``."""
        begin = int(self.offsets[at])
        self.values[begin : begin + len(rows.values)] = rows.values
        self.offsets[at + 1 : at + 1 + len(rows)] = rows.offsets[1:] + begin

    def filled(self, n_rows: int) -> Ragged:
        """The rows that are there."""
        return Ragged(self.values[: self.offsets[n_rows]], self.offsets[: n_rows + 1])


def row_shape(name: str, column: Column | _RaggedRoom) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes before and after the axis of rows."""
    if not isinstance(column, np.ndarray):
        return (), ()
    axis = len(spec_of(name).leading)
    return column.shape[:axis], column.shape[axis + 1 :]


def n_rows_of(name: str, column: Column) -> int:
    """Size of the axis of rows; -1 where the array has too few dimensions, or too many, or should be ragged."""
    spec = spec_of(name)
    if isinstance(column, Ragged) or spec.is_ragged:
        return len(column) if isinstance(column, Ragged) and spec.is_ragged else -1
    return column.shape[len(spec.leading)] if column.ndim == len(spec.segment_dims()) else -1


def chosen_rows(name: str, column: Column, chosen: NDArray[np.bool_]) -> Column:
    """Those of the rows that are chosen."""
    if isinstance(column, Ragged):
        return column[chosen]
    return np.compress(chosen, column, len(spec_of(name).leading))


def _row_bytes(name: str, column: Column) -> int:
    item = np.dtype(spec_of(name).dtype).itemsize
    if isinstance(column, Ragged):
        return 8 + item * len(column.values) // max(len(column), 1)
    lead, trail = row_shape(name, column)
    return item * int(np.prod(lead + trail, dtype=np.int64))


def _ragged(column: Column) -> Ragged:
    if not isinstance(column, Ragged):
        raise TypeError(f"expected rows of different lengths, found an array of shape {column.shape}")
    return column


def _ragged_room(room: NDArray[Any] | _RaggedRoom) -> _RaggedRoom:
    if not isinstance(room, _RaggedRoom):
        raise TypeError(f"expected an array of shape {room.shape}, found rows of different lengths")
    return room
