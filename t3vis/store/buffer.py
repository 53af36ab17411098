"""Rows of one split on their way to a segment: a ring of two, one being filled while the other is written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store.layout import segment_rows
from t3vis.store.ragged import Ragged
from t3vis.store.schema import PASS_ARRAYS, spec_of

Column = NDArray[Any] | Ragged
Rows = Mapping[str, Column]

_LAYERED = frozenset(name for name, spec in PASS_ARRAYS.items() if spec.leading)
_SPARE = 1.25  # room for values, of what as many rows as the first ones would need


@dataclass
class Buffer:
    """Rows of one split that are not yet on disk; two segments' worth of memory, whatever the size of the dataset.

    ``index`` and ``of_pass`` are of the pass that the rows belong to, ``sequence`` the number of the next segment.
    ``arrays`` are being filled; ``others`` are free once ``writing`` is done. ``ragged`` names those whose rows are of
    different lengths. ``known_shapes`` are those of the last batch that fitted: most are like the one before.
    """

    n_examples: int | None
    index: int = 0
    of_pass: dict[str, Any] = field(default_factory=dict)
    sequence: int = 0
    capacity: int = 0
    n_rows: int = 0
    arrays: dict[str, NDArray[Any] | _RaggedRoom] = field(default_factory=dict)
    others: dict[str, NDArray[Any] | _RaggedRoom] = field(default_factory=dict)
    ragged: tuple[str, ...] = ()
    is_full: bool = False
    writing: Future[None] | None = None
    known_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

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
        """Room for a segment of rows like these."""
        self.capacity = segment_rows(max(sum(_row_bytes(name, rows[name]) for name in rows), 1), self.n_examples)
        self.arrays, self.others = ({name: self._room(name, rows[name]) for name in rows} for _ in range(2))
        self.ragged = tuple(name for name, column in rows.items() if isinstance(column, Ragged))
        self.writing, self.known_shapes, self.is_full = None, {}, False

    def _room(self, name: str, column: Column) -> NDArray[Any] | _RaggedRoom:
        spec = spec_of(name)
        if isinstance(column, Ragged):
            n_values = int(_SPARE * self.capacity * len(column.values) / max(len(column), 1)) + 1
            return _RaggedRoom(np.empty(n_values, spec.dtype), np.zeros(self.capacity + 1, np.int64))
        lead, trail = row_shape(name, column)
        return np.empty((*lead, self.capacity, *trail), spec.dtype)

    def release(self) -> None:
        """Give the memory back; the buffer is as before the first row."""
        self.arrays, self.others, self.writing, self.capacity, self.n_rows = {}, {}, None, 0, 0
        self.known_shapes, self.is_full = {}, False

    def turn(self, writing: Future[None]) -> None:
        """Fill the other arrays from now on, as soon as they are free; ``writing`` frees these."""
        if self.writing is not None:
            wait([self.writing])
        self.arrays, self.others, self.writing, self.n_rows = self.others, self.arrays, writing, 0
        self.is_full = False

    def take(self, rows: Rows, start: int) -> int:
        """Copy the rows from number ``start`` on, as many as there is room for; returns how many."""
        wanted = len(rows["example"]) - start
        count = min(wanted, self.capacity - self.n_rows)
        if self.ragged:
            count = min([count, *self._n_fitting(rows, start)])
        into, of = slice(self.n_rows, self.n_rows + count), slice(start, start + count)
        for name, column in rows.items():
            room = self.arrays[name]
            if isinstance(room, _RaggedRoom) or isinstance(column, Ragged):
                _ragged_room(room).put(_ragged(column)[of], self.n_rows)
            elif name in _LAYERED:
                room[:, into] = column[:, of]
            else:
                room[into] = column[of]
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
