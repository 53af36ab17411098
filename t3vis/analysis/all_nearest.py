"""Nearest neighbours of every row among the others: each pair is compared once, for both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis import nearest
from t3vis.analysis.nearest import N_SPARE, Progress, by_distance, lowest

MANY = 4
"""From so many times as many candidates as are wanted on, the lowest are looked for before they are compared."""


def all_nearest(
    rows: NDArray[np.float32], *, k: int, progress: Progress | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k other rows nearest to each in Euclidean distance; exact.

    Parameters
    ----------
    rows
        Shape (n_rows, hidden), finite. The nearer their mean is to zero, the more digits the products keep.
    k
        How many, below ``n_rows``.
    progress
        Called after every block of rows, with the share of the pairs that is done, in rows of all.

    Returns
    -------
    Places and distances, shape (n_rows, k), by rising distance; of rows at equal distance the first comes first.

    Notes
    -----
    As `nearest_rows`, with half of the products: what a block of rows has in common with those after it counts for
    these too, whose nearest so far are kept until it is their turn.

    Examples
    --------
    >>> all_nearest(np.array([[0.0], [1.0], [3.0]], dtype=np.float32), k=2)
    (array([[1, 2],
           [0, 2],
           [1, 0]], dtype=int32), array([[1., 3.],
           [1., 2.],
           [2., 3.]], dtype=float32))
    """
    known = _Candidates(len(rows), min(k + N_SPARE, len(rows)))
    indices, distances = np.empty((len(rows), k), np.int32), np.empty((len(rows), k), np.float32)
    n_pairs = len(rows) ** 2
    for block, apart in _half_squares(rows):
        n_own = block.stop - block.start
        apart[np.arange(n_own), np.arange(n_own)] = np.inf
        later, values = lowest(apart, min(known.n_kept, apart.shape[1]))
        known.add(np.arange(block.start, block.stop), later + block.start, values)
        known.add_columns(apart[:, n_own:], block)
        is_left_out = np.isinf(known.values[block])
        found, distance = by_distance(rows[block], rows, known.places[block], is_left_out=is_left_out)
        indices[block], distances[block] = found[:, :k], distance[:, :k]
        if progress is not None:
            n_left = (len(rows) - block.stop) ** 2
            progress((n_pairs - n_left) * len(rows) // n_pairs, len(rows))
    return indices, distances


class _Candidates:
    """The nearest known of each row, the nearest first; of equally near ones the first row comes first."""

    def __init__(self, n_rows: int, n_kept: int) -> None:
        self.n_kept = n_kept
        self.places = np.zeros((n_rows, n_kept), np.int32)
        self.values = np.full((n_rows, n_kept), np.inf, np.float32)

    def add(self, ids: NDArray[np.intp], places: NDArray[np.integer], values: NDArray[np.float32]) -> None:
        """Further candidates of some rows, later than those known and in rising order of place."""
        both = np.concatenate([self.values[ids], values], axis=1)
        order = np.argsort(both, axis=1, kind="stable")[:, : self.n_kept]
        self.values[ids] = np.take_along_axis(both, order, axis=1)
        both_places = np.concatenate([self.places[ids], places.astype(np.int32)], axis=1)
        self.places[ids] = np.take_along_axis(both_places, order, axis=1)

    def add_columns(self, apart: NDArray[np.float32], block: slice) -> None:
        """The rows of a block as candidates of all rows after it, given how far they are apart."""
        is_nearer = apart < self.values[block.stop :, -1]
        n_nearer = np.count_nonzero(is_nearer)
        if n_nearer > MANY * self.n_kept * apart.shape[1]:
            found, values = lowest(np.ascontiguousarray(apart.T), min(self.n_kept, len(apart)))
            self.add(np.arange(block.stop, len(self.values)), found + block.start, values)
            return
        place, column = np.divmod(np.flatnonzero(is_nearer), apart.shape[1])
        by_column = np.argsort(column, kind="stable")
        place, column = place[by_column], column[by_column]
        met, first, count = np.unique(column, return_index=True, return_counts=True)
        if not len(met):
            return
        row, number = np.repeat(np.arange(len(met)), count), np.arange(len(column)) - np.repeat(first, count)
        values = np.full((len(met), count.max()), np.inf, np.float32)
        places = np.zeros(values.shape, np.int32)
        values[row, number], places[row, number] = apart[place, column], place + block.start
        self.add(met + block.stop, places, values)


def _half_squares(rows: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Half the squared distances of a block of rows from itself and all rows after it; the next takes their memory."""
    half, one = np.vecdot(rows, rows)[:, np.newaxis] / 2, np.ones((len(rows), 1), np.float32)
    left, right = np.concatenate([rows, half, one], axis=1), np.concatenate([-rows, one, half], axis=1).T
    n_held = max(nearest.BLOCK_BYTES // 4, len(rows))
    room = np.empty(min(n_held, len(rows) ** 2), np.float32)
    start = 0
    while start < len(rows):
        n_columns = len(rows) - start
        block = slice(start, min(start + n_held // n_columns, len(rows)))
        n_own = block.stop - start
        apart = room[: n_own * n_columns].reshape(n_own, n_columns)
        np.matmul(left[block], right[:, start:], out=apart)
        yield block, apart
        start = block.stop
