"""Rows of one split on their way to a segment: a ring of two, one being filled while the other is written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store.layout import segment_rows
from t3vis.store.schema import spec_of

Rows = Mapping[str, NDArray[Any]]


@dataclass
class Buffer:
    """Rows of one split that are not yet on disk; two segments' worth of memory, whatever the size of the dataset.

    ``index`` and ``of_pass`` are of the pass that the rows belong to, ``sequence`` the number of the next segment.
    ``arrays`` are being filled; ``others`` are free once ``writing`` is done. ``known_shapes`` are those of the last
    batch that fitted: most are like the one before.
    """

    n_examples: int | None
    index: int = 0
    of_pass: dict[str, Any] = field(default_factory=dict)
    sequence: int = 0
    capacity: int = 0
    n_rows: int = 0
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    others: dict[str, NDArray[Any]] = field(default_factory=dict)
    writing: Future[None] | None = None
    known_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether the next row needs a segment of its own."""
        return self.n_rows == self.capacity

    def fits(self, rows: Rows) -> bool:
        """Whether rows of this kind are what the buffer was allocated for."""
        shapes = {name: array.shape for name, array in rows.items()}
        if shapes == self.known_shapes:
            return True
        n_rows = len(rows["example"])
        fits = rows.keys() == self.arrays.keys() and all(
            row_shape(name, array) == row_shape(name, self.arrays[name]) and n_rows_of(name, array) == n_rows
            for name, array in rows.items()
        )
        if fits:
            self.known_shapes = shapes
        return fits

    def allocate(self, rows: Rows) -> None:
        """Room for a segment of rows like these."""
        per_row = {name: row_shape(name, array) for name, array in rows.items()}
        row_bytes = sum(
            np.dtype(spec_of(name).dtype).itemsize * int(np.prod(lead + trail, dtype=np.int64))
            for name, (lead, trail) in per_row.items()
        )
        self.capacity = segment_rows(max(row_bytes, 1), self.n_examples)
        self.arrays, self.others = (
            {
                name: np.empty((*lead, self.capacity, *trail), spec_of(name).dtype)
                for name, (lead, trail) in per_row.items()
            }
            for _ in range(2)
        )
        self.writing, self.known_shapes = None, {}

    def release(self) -> None:
        """Give the memory back; the buffer is as before the first row."""
        self.arrays, self.others, self.writing, self.capacity, self.n_rows = {}, {}, None, 0, 0
        self.known_shapes = {}

    def turn(self, writing: Future[None]) -> None:
        """Fill the other arrays from now on, as soon as they are free; ``writing`` frees these."""
        if self.writing is not None:
            wait([self.writing])
        self.arrays, self.others, self.writing, self.n_rows = self.others, self.arrays, writing, 0

    def take(self, rows: Rows, start: int) -> int:
        """Copy the rows from number ``start`` on, as many as there is room for; returns how many."""
        count = min(len(rows["example"]) - start, self.capacity - self.n_rows)
        into, of = slice(self.n_rows, self.n_rows + count), slice(start, start + count)
        for name, array in rows.items():
            if spec_of(name).leading:
                self.arrays[name][:, into] = array[:, of]
            else:
                self.arrays[name][into] = array[of]
        self.n_rows += count
        return count

    def filled(self) -> dict[str, NDArray[Any]]:
        """The rows that are waiting."""
        return {name: array[_along_rows(name, 0, self.n_rows)] for name, array in self.arrays.items()}


def row_shape(name: str, array: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes before and after the axis of rows."""
    axis = len(spec_of(name).leading)
    return array.shape[:axis], array.shape[axis + 1 :]


def n_rows_of(name: str, array: NDArray[Any]) -> int:
    """Size of the axis of rows; -1 where the array has too few dimensions, or too many."""
    spec = spec_of(name)
    return array.shape[len(spec.leading)] if array.ndim == len(spec.segment_dims()) else -1


def _along_rows(name: str, start: int, stop: int) -> tuple[slice, ...]:
    return (*(slice(None) for _ in spec_of(name).leading), slice(start, stop))
