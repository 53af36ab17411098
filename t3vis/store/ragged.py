"""Rows of different lengths, such as one value per token of each example: values after one another, and offsets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[NDArray[Any]]):
    """Rows of different lengths: row i is ``values[offsets[i]:offsets[i + 1]]``.

    ``values`` has shape (n_values,), ``offsets`` shape (n_rows + 1,) int64, increasing from 0 to ``n_values``.

    Examples
    --------
    >>> rows = Ragged.of([[0.5, 0.25], [], [1.0]], np.float32)
    >>> len(rows), rows[0].tolist(), rows.lengths.tolist(), rows[[2, 0]].values.tolist()
    (3, [0.5, 0.25], [2, 0, 1], [1.0, 0.5, 0.25])
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[ArrayLike], dtype: Any = None) -> Ragged:
        """From one sequence for each row; ``dtype`` may be left out where there are rows."""
        parts = [np.asarray(row, dtype) for row in rows]
        values = np.concatenate(parts) if parts else np.empty(0, dtype)
        return cls.with_lengths(values, np.array([len(part) for part in parts], np.int64))

    @classmethod
    def with_lengths(cls, values: NDArray[Any], lengths: NDArray[np.integer]) -> Ragged:
        """From values after one another, and how many of them each row has."""
        return cls(values, offsets_of(lengths))

    def with_empty_rows(self, n_rows: int) -> Ragged:
        """These rows, and so many empty ones after them."""
        return Ragged(self.values, np.pad(self.offsets, (0, n_rows), mode="edge")) if n_rows else self

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Values in each row, shape (n_rows,)."""
        return np.diff(self.offsets)

    @property
    def shape(self) -> tuple[int]:
        """Shape of the array of rows: how many there are."""
        return (len(self),)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, key: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> Ragged: ...
    @overload
    def __getitem__(self, key: ArrayLike) -> Ragged: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            number = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= number < len(self):
                raise IndexError(f"row {key} of {len(self)}")
            return self.values[self.offsets[number] : self.offsets[number + 1]]
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            offsets = self.offsets[start : max(stop, start) + 1]
            return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])
        return self._take(np.arange(len(self))[key])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(np.split(self.values, self.offsets[1:-1])) if len(self) else iter(())

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {len(self.values)} values, {self.values.dtype}>"

    def _take(self, rows: NDArray[np.integer]) -> Ragged:
        """These rows, in any order."""
        lengths = self.lengths[rows]
        return Ragged.with_lengths(self.values[positions(self.offsets[:-1][rows], lengths)], lengths)


def offsets_of(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where rows of these lengths begin, and where the last one ends; shape (n_rows + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def positions(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the values of rows that begin at ``starts``, row after row.

    Examples
    --------
    >>> positions(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
