"""Nearest neighbours in the space of the hidden states: exact, by blocks of matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.states import CHUNK_SIZE, StatesLike, state_chunks, unit_rows
from t3vis.errors import AnalysisError

Metric = Literal["cosine", "euclidean"]

BLOCK_BYTES = 64 << 20
"""Distances held at a time, in float32; smaller blocks are slower."""
DIFFERENCE_BYTES = 4 << 20
"""Differences held at a time: few enough for the cache, where they are used three times."""
N_SPARE = 8
"""Candidates beyond those asked for, since products of float32 lose what is small beside the norms."""
GROUP_SIZE = 25
"""Columns in each of the groups whose lowest are compared."""

MAX_TIED = 16
"""So many times as many candidates as are wanted are held at a time, on average over the rows."""

MAX_REFERENCES = 20_000
"""Neighbours are looked for among that many examples at most, drawn at random: the work is then linear in them."""
MIN_REFERENCES = 5_000
MAX_PAIRS = 4_000_000_000
"""Above 200,000 examples neighbours are looked for among fewer, so that no more pairs are compared, down to 5,000."""

Progress = Callable[[int, int], None]
"""Called with how many examples are done, and of how many."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest references of every example, nearest first; each array has shape (n_examples, k).

    Where an example was not seen, or there are fewer references than k, ids are -1 and distances NaN.
    """

    ids: NDArray[np.int64]
    """Example ids of the neighbours; never the example itself."""
    distances: NDArray[np.float64]
    """Euclidean, or for cosine one minus the cosine, in [0, 2]."""

    @property
    def k(self) -> int:
        """Neighbours asked for."""
        return int(self.ids.shape[1])


def nearest_neighbours(
    states: StatesLike,
    *,
    k: int = 15,
    metric: Metric = "cosine",
    references: NDArray[np.integer] | None = None,
    queries: NDArray[np.integer] | None = None,
    progress: Progress | None = None,
) -> Neighbours:
    """The k nearest references of every example, itself left out; exact.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), read a chunk at a time; the references are held in memory.
    k
        Neighbours of each example, at least 1.
    metric
        Cosine of the states, or their Euclidean distance. A state of zeros has the cosine 1/2 with any other.
    references
        Example ids among which neighbours are looked for; by default all. A sample makes the work linear in the
        number of examples: see `sample_of`.
    queries
        Example ids to find neighbours for; by default all. The result has a row for each, in their order.
    progress
        Called after every chunk of examples.

    Returns
    -------
    Neighbours; of references at equal distance those with the lower id come first.

    Raises
    ------
    AnalysisError
        If `k` is below one or `states` is not two-dimensional.

    Notes
    -----
    The search is that of `nearest_rows`.

    Examples
    --------
    >>> found = nearest_neighbours(np.array([[0.0], [1.0], [3.0]]), k=2, metric="euclidean")
    >>> found.ids
    array([[1, 2], [0, 2], [1, 0]])
    >>> found.distances
    array([[1., 3.], [1., 2.], [2., 3.]])
    """
    if k < 1:
        raise AnalysisError(f"k is {k} but must be at least 1 neighbour.")
    chosen = np.ones(states.shape[0], dtype=np.bool_)
    if references is not None:
        chosen[:] = False
        chosen[references] = True
    known = References.among(states, chosen, metric)
    queried = np.arange(states.shape[0]) if queries is None else np.asarray(queries, dtype=np.int64)
    found = Neighbours(np.full((len(queried), k), -1), np.full((len(queried), k), np.nan))
    for start in range(0, len(queried), CHUNK_SIZE):
        rows = slice(start, start + CHUNK_SIZE)
        near = known.nearest(np.asarray(states[queried[rows]], dtype=np.float32), queried[rows], k=k)
        found.ids[rows], found.distances[rows] = near.ids, near.distances
        if progress is not None:
            progress(min(rows.stop, len(queried)), len(queried))
    return found


@dataclass(frozen=True, eq=False)
class References:
    """The examples among which neighbours are looked for, as they are compared."""

    ids: NDArray[np.int64]
    """Shape (n_references,), in increasing order."""
    rows: NDArray[np.float32]
    """Shape (n_references, hidden), less the `center`."""
    center: NDArray[np.float32]
    """Shape (hidden,): their mean."""
    metric: Metric

    @classmethod
    def among(cls, states: StatesLike, chosen: NDArray[np.bool_], metric: Metric = "cosine") -> References:
        """Those of the `chosen` examples that were seen, read a chunk at a time."""
        kept_ids, kept_values = [], []
        for rows, values, seen in state_chunks(states):
            wanted = seen & chosen[rows]
            kept_ids.append(rows.start + np.flatnonzero(wanted))
            kept_values.append(values[wanted])
        if not kept_ids:
            return cls.of(np.empty(0, np.int64), np.empty((0, states.shape[1]), np.float32), metric)
        return cls.of(np.concatenate(kept_ids), np.concatenate(kept_values), metric)

    @classmethod
    def of(cls, ids: NDArray[np.int64], values: NDArray[np.float32], metric: Metric = "cosine") -> References:
        """Examples by their ids, in increasing order, and their finite states of shape (n_references, hidden)."""
        values = _comparable(values, metric)
        # Distances do not change when all are moved; products are then as precise as the spread, not as the mean.
        center = (values.sum(axis=0, dtype=np.float64) / max(len(values), 1)).astype(np.float32)
        return cls(ids, values - center, center, metric)

    def nearest(self, values: NDArray[np.float32], ids: NDArray[np.int64], *, k: int) -> Neighbours:
        """The k nearest references of some examples, given their states and their ids; none of one with NaN."""
        found = Neighbours(np.full((len(values), k), -1), np.full((len(values), k), np.nan))
        k = min(k, len(self.ids))
        seen = np.isfinite(values).all(axis=1)
        if not len(self.ids):
            return found
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        own = np.where(self.ids[place] == ids, place, -1)[seen]
        queries = _comparable(values[seen], self.metric) - self.center
        indices, distances = nearest_rows(queries, self.rows, k=k, own=own)
        is_known = np.isfinite(distances)
        found.ids[seen, :k] = np.where(is_known, self.ids[indices], -1)
        # Of unit vectors, one minus the cosine is half the squared distance.
        far = distances**2 / 2 if self.metric == "cosine" else distances
        found.distances[seen, :k] = np.where(is_known, far, np.nan)
        return found


def sample_of(n_examples: int, n_sampled: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Ids of a random sample, in increasing order; all of them if there are no more than `n_sampled`.

    Examples
    --------
    >>> sample_of(3, 10)
    array([0, 1, 2])
    """
    if n_examples <= n_sampled:
        return np.arange(n_examples)
    return np.sort(np.random.default_rng(seed).choice(n_examples, n_sampled, replace=False))


def n_references(n_examples: int) -> int:
    """Among how many examples neighbours are looked for.

    Examples
    --------
    >>> [n_references(n) for n in (1_000, 50_000, 400_000, 5_000_000)]
    [1000, 20000, 10000, 5000]
    """
    return min(n_examples, MAX_REFERENCES, max(MIN_REFERENCES, MAX_PAIRS // max(n_examples, 1)))


def nearest_rows(
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
    *,
    k: int,
    own: NDArray[np.integer] | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Rows nearest to each query in Euclidean distance; exact.

    Parameters
    ----------
    queries, rows
        Shapes (n_queries, hidden) and (n_rows, hidden), finite. The nearer their mean is to zero, the more digits the
        products keep.
    k
        How many, at most ``n_rows``.
    own
        The row that each query itself is, which is then left out; -1 if it is none. Shape (n_queries,).
    progress
        Called after every block of queries.

    Returns
    -------
    Places among the rows and distances, shape (n_queries, k), by rising distance; of rows at equal distance the first
    comes first. The distance is infinite where no row is left.

    Notes
    -----
    Candidates are found by products of matrices in float32, 8 more than k, and brought into order by distances that
    are taken of the differences.

    Examples
    --------
    >>> rows = np.array([[0.0], [1.0], [3.0]], dtype=np.float32)
    >>> nearest_rows(rows, rows, k=2, own=np.arange(3))
    (array([[1, 2], [0, 2], [1, 0]], dtype=int32),
     array([[1., 3.], [1., 2.], [2., 3.]], dtype=float32))
    """
    farness = farness_to(rows)
    n_candidates = min(k + N_SPARE, len(rows))
    indices, distances = np.empty((len(queries), k), np.int32), np.empty((len(queries), k), np.float32)
    for block in row_blocks(len(queries), len(rows), BLOCK_BYTES):
        far = farness(queries[block])
        if own is not None:
            is_row = np.flatnonzero(own[block] >= 0)
            far[is_row, own[block][is_row]] = np.inf
        candidates, far = lowest(far, n_candidates)
        found, distance = by_distance(queries[block], rows, candidates, is_left_out=np.isinf(far))
        indices[block], distances[block] = found[:, :k], distance[:, :k]
        if progress is not None:
            progress(block.stop, len(queries))
    return indices, distances


def row_blocks(n_rows: int, n_columns: int, n_bytes: int) -> Iterator[slice]:
    """Slices of rows such that ``n_columns`` float32 for each of them take at most ``n_bytes``.

    Examples
    --------
    >>> list(row_blocks(5, 10, 80))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(n_bytes // (4 * max(n_columns, 1)), 1)
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def farness_to(rows: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What gives for queries a number that rises with the distance to each row, in one product of matrices.

    Half the squared distance, less half the squared length of the query: shape (n_queries, n_rows). It stands in the
    same memory after every call, since fresh memory costs a third of the product.

    Examples
    --------
    >>> farness_to(np.array([[0.0], [2.0]], dtype=np.float32))(np.array([[3.0]], dtype=np.float32)) + 3**2 / 2
    array([[4.5, 0.5]], dtype=float32)
    """
    half_squares = np.vecdot(rows, rows)[:, np.newaxis] / 2
    extended = np.concatenate([-rows, half_squares], axis=1).T
    room = np.empty((0, len(rows)), np.float32)

    def farness(queries: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal room
        if len(queries) > len(room):
            room = np.empty((len(queries), len(rows)), np.float32)
        one = np.ones((len(queries), 1), np.float32)
        return np.matmul(np.concatenate([queries, one], axis=1), extended, out=room[: len(queries)])

    return farness


def lowest(far: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Places of the ``k`` lowest in each row, in rising order of place, and what stands there; of equal ones the first.

    Examples
    --------
    >>> lowest(np.array([[5, 1, 7, 1, 5, 5]], dtype=np.float32), 3)
    (array([[0, 1, 3]]), array([[5., 1., 1.]], dtype=float32))
    """
    n_rows, n_columns = far.shape
    if far.size == 0:
        return np.empty((n_rows, 0), np.intp), far
    is_low = far <= _no_lower_than_last(far, k)[:, np.newaxis]
    if n_rows > 1 and np.count_nonzero(is_low) > MAX_TIED * n_rows * k:
        halves = [lowest(half, k) for half in np.array_split(far, 2)]
        return np.concatenate([found for found, _ in halves]), np.concatenate([values for _, values in halves])
    row, column = np.divmod(np.flatnonzero(is_low), n_columns)
    ends = np.cumsum(np.bincount(row, minlength=n_rows))
    in_row = np.arange(len(row)) - np.concatenate([[0], ends[:-1]])[row]
    low = np.full((n_rows, int(in_row.max()) + 1), np.inf, np.float32)
    places = np.zeros(low.shape, np.intp)
    low[row, in_row], places[row, in_row] = far[row, column], column
    found = np.sort(np.argsort(low, axis=1, kind="stable")[:, :k], axis=1)
    return np.take_along_axis(places, found, axis=1), np.take_along_axis(low, found, axis=1)


def _no_lower_than_last(far: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A number for each row which at least ``k`` of it do not exceed, and seldom many more.

    The columns fall into groups, each of which has a lowest. What the ``k`` lowest of these do not exceed is found
    without sorting the whole row, which takes as long as half the product of matrices that it comes from.
    """
    n_groups = far.shape[1] // GROUP_SIZE
    if n_groups < 4 * k:
        lowest_of_groups = far
    else:
        grouped = far[:, : n_groups * GROUP_SIZE].reshape(len(far), GROUP_SIZE, n_groups)
        lowest_of_groups = grouped.min(axis=1)
    limit: NDArray[np.float32] = np.sort(lowest_of_groups, axis=1)[:, k - 1]
    return limit


def by_distance(
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
    found: NDArray[np.integer],
    *,
    is_left_out: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What was found for each query by rising distance, which is taken of the differences: they lose no digits.

    Examples
    --------
    >>> rows = np.array([[0.0], [2.0], [5.0]], dtype=np.float32)
    >>> by_distance(rows[2:], rows, np.array([[0, 1]]))
    (array([[1, 0]], dtype=int32), array([[3., 5.]], dtype=float32))
    """
    distances = np.empty(found.shape, np.float32)
    for block in row_blocks(len(found), found.shape[1] * rows.shape[1], DIFFERENCE_BYTES):
        apart = rows[found[block]]
        apart -= queries[block, np.newaxis]
        np.sqrt(np.vecdot(apart, apart), out=distances[block])
    if is_left_out is not None:
        distances[is_left_out] = np.inf
    rising = np.lexsort((found, distances), axis=1)
    return np.take_along_axis(found, rising, axis=1).astype(np.int32), np.take_along_axis(distances, rising, axis=1)


def _comparable(values: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    return values if metric == "euclidean" else unit_rows(values)
