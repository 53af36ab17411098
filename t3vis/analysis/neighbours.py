"""Nearest neighbours of hidden states: exact by blocked matrix products, approximate where that takes too long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from sklearn.cluster import MiniBatchKMeans

from t3vis.analysis.all_nearest import all_nearest
from t3vis.analysis.nearest import (
    BLOCK_BYTES,
    Progress,
    by_distance,
    farness_to,
    lowest,
    nearest_rows,
    row_blocks,
)
from t3vis.analysis.states import check_states
from t3vis.errors import AnalysisError

K_NEIGHBOURS = 15
MAX_EXACT = 50_000
"""Up to this many examples the neighbours are exact."""
CELLS_SEARCHED = 0.1
"""Share of the cells in which approximate neighbours of an example are looked for."""
N_CLUSTERED = 20_000
"""Examples from which the cells are made."""
N_RECALL_EXAMPLES = 1_000
"""Examples on which the recall of approximate neighbours is measured."""


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """The nearest neighbours of every example, nearest first, without the example itself."""

    indices: NDArray[np.int32]
    """Shape (n_examples, k)."""
    distances: NDArray[np.float32]
    """Shape (n_examples, k), Euclidean, rising in each row."""
    recall: float
    """Share of the true neighbours that are among these: 1 if the search was exact, else measured on a sample."""

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(self.indices)

    @property
    def k(self) -> int:
        """Neighbours of each example."""
        return int(self.indices.shape[1])


def neighbour_graph(
    states: NDArray[np.floating],
    *,
    k: int = K_NEIGHBOURS,
    seed: int = 0,
    max_exact: int = MAX_EXACT,
    progress: Progress | None = None,
) -> NeighbourGraph:
    """The nearest neighbours of every example in Euclidean distance.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), finite, at least two examples; for cosine similarity pass `unit_rows` of them.
    k
        How many neighbours; all others, if there are fewer.
    seed
        Of the cells of the approximate search, and of the sample on which its recall is measured.
    max_exact
        Up to this many examples the search is exact.
    progress
        Called after every block of examples.

    Returns
    -------
    Neighbours by rising distance; of equal distances the lower example id is the first.

    Raises
    ------
    AnalysisError
        If `states` is not two-dimensional or not finite, has fewer than two examples, or `k` is below one.

    Notes
    -----
    The approximate search groups the examples by k-means into about ``sqrt(n_examples)`` cells, and looks for the
    neighbours of each in the tenth of the cells whose centres are nearest to it. Both searches are products of
    matrices in float32, of states whose mean is subtracted.

    Examples
    --------
    >>> found = neighbour_graph(np.array([[0.0], [1.0], [3.0], [3.5]]), k=2)
    >>> found.indices
    array([[1, 2],
           [0, 2],
           [3, 1],
           [2, 1]], dtype=int32)
    >>> found.distances[0], found.recall
    (array([1., 3.], dtype=float32), 1.0)
    """
    check_states(states)
    n_examples = len(states)
    if n_examples < 2 or k < 1:
        raise AnalysisError(f"{n_examples} examples and k={k}; neighbours need two examples, and k of at least 1.")
    k = min(k, n_examples - 1)
    rows = centred(states)
    if n_examples <= max_exact:
        indices, distances = all_nearest(rows, k=k, progress=progress)
        return NeighbourGraph(indices, distances, recall=1.0)
    indices, distances = _by_cells(rows, k, seed, progress)
    sample = np.random.default_rng(seed).choice(n_examples, min(N_RECALL_EXAMPLES, n_examples), replace=False)
    truth, _ = nearest_rows(rows[sample], rows, k=k, own=sample)
    return NeighbourGraph(indices, distances, recall=float(shared(indices[sample], truth).mean()))


def nearest_in(
    queries: NDArray[np.floating], states: NDArray[np.floating], *, k: int, progress: Progress | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Exact nearest neighbours of other examples among `states`.

    Parameters
    ----------
    queries
        Shape (n_queries, hidden), finite.
    states
        Shape (n_examples, hidden), finite.
    k
        How many neighbours; all of `states`, if there are fewer.
    progress
        Called after every block of queries.

    Returns
    -------
    Indices and Euclidean distances, shape (n_queries, k), the nearest first.

    Raises
    ------
    AnalysisError
        If an array is not two-dimensional or not finite, or if they differ in their number of columns.

    Examples
    --------
    >>> nearest_in(np.array([[0.9]]), np.array([[0.0], [1.0], [3.0]]), k=2)[0]
    array([[1, 0]], dtype=int32)
    """
    check_states(queries)
    check_states(states)
    if queries.shape[1] != states.shape[1]:
        raise AnalysisError(
            f"queries have {queries.shape[1]} columns but states have {states.shape[1]}; pass one layer."
        )
    mean = states.mean(axis=0, dtype=np.float64)
    about_mean = (queries - mean).astype(np.float32), (states - mean).astype(np.float32)
    return nearest_rows(*about_mean, k=min(k, len(states)), progress=progress)


def map_neighbours(coordinates: NDArray[np.floating], *, k: int) -> NDArray[np.int32]:
    """The nearest neighbours of every example on a map, by a tree.

    Parameters
    ----------
    coordinates
        Shape (n_examples, 2), finite.
    k
        How many neighbours, below ``n_examples``.

    Returns
    -------
    Shape (n_examples, k), the nearest first, the example itself left out.

    Examples
    --------
    >>> map_neighbours(np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), k=1)
    array([[1],
           [0],
           [1]], dtype=int32)
    """
    _, found = KDTree(coordinates).query(coordinates, k=k + 1, workers=-1)
    is_self = found == np.arange(len(found))[:, np.newaxis]
    is_self[~is_self.any(axis=1), -1] = True  # hidden behind others at the same place
    others: NDArray[np.int32] = found[~is_self].reshape(-1, k).astype(np.int32)
    return others


def neighbour_overlap(before: NeighbourGraph, after: NeighbourGraph) -> NDArray[np.float64]:
    """Share of the neighbours that an example has kept from one epoch, or layer, to another; no map is involved.

    Parameters
    ----------
    before, after
        Graphs of the same examples in the same order with the same `k`.

    Returns
    -------
    Shape (n_examples,), in [0, 1].

    Raises
    ------
    AnalysisError
        If the graphs differ in their number of examples or neighbours.

    Examples
    --------
    >>> line = neighbour_graph(np.array([[0.0], [1.0], [3.0], [3.5]]), k=2)
    >>> moved = neighbour_graph(np.array([[0.0], [9.0], [3.0], [3.5]]), k=2)
    >>> neighbour_overlap(line, moved)
    array([0.5, 0.5, 0.5, 0.5])
    """
    if before.indices.shape != after.indices.shape:
        raise AnalysisError(
            f"the graphs have shapes {before.indices.shape} and {after.indices.shape}; "
            "pass graphs of the same examples with the same number of neighbours."
        )
    return shared(before.indices, after.indices)


def shared(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of the ids in each row of `one` that are also in that row of `other`, shape (n_rows,).

    Examples
    --------
    >>> shared(np.array([[1, 2], [3, 4]]), np.array([[2, 7], [4, 3]]))
    array([0.5, 1. ])
    """
    k = one.shape[1]
    both = np.sort(np.concatenate([one, other], axis=1), axis=1)  # ids are unique in each row of either
    share: NDArray[np.float64] = np.count_nonzero(both[:, 1:] == both[:, :-1], axis=1) / k
    return share


def centred(states: NDArray[np.floating]) -> NDArray[np.float32]:
    """States about their mean: distances are the same, and their products lose fewer digits.

    Examples
    --------
    >>> centred(np.array([[1.0, 0.0], [3.0, 0.0]]))
    array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    """
    about_mean: NDArray[np.float32] = (states - states.mean(axis=0, dtype=np.float64)).astype(np.float32)
    return about_mean


def _by_cells(
    rows: NDArray[np.float32], k: int, seed: int, progress: Progress | None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Neighbours of every row among the rows of the cells nearest to it, a cell after the other."""
    cells, visitors = _cells(rows, seed)
    indices, farness_of = np.zeros((len(rows), k), np.int32), np.full((len(rows), k), np.inf, np.float32)
    for n_done, (cell, visiting) in enumerate(zip(cells, visitors, strict=True)):
        farness = farness_to(rows[cell])
        for block in row_blocks(len(visiting), len(cell), BLOCK_BYTES):
            queries = visiting[block]
            far = farness(rows[queries])
            far[queries[:, np.newaxis] == cell] = np.inf
            found, far = lowest(far, min(k, len(cell)))
            ids = np.concatenate([indices[queries], cell[found]], axis=1)
            far = np.concatenate([farness_of[queries], far], axis=1)
            best = np.argsort(far, axis=1)[:, :k]
            indices[queries] = np.take_along_axis(ids, best, axis=1)
            farness_of[queries] = np.take_along_axis(far, best, axis=1)
        if progress is not None:
            progress((n_done + 1) * len(rows) // len(cells), len(rows))
    few = np.flatnonzero(np.isinf(farness_of[:, -1]))  # whose cells hold fewer than k others
    indices[few], _ = nearest_rows(rows[few], rows, k=k, own=few)
    distances = np.empty((len(rows), k), np.float32)
    for block in row_blocks(len(rows), k * rows.shape[1], BLOCK_BYTES):
        indices[block], distances[block] = by_distance(rows[block], rows, indices[block])
    return indices, distances


def _cells(rows: NDArray[np.float32], seed: int) -> tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]]:
    """Rows grouped by k-means, and the rows that have each group among the nearest to them; both in rising order."""
    n_cells = int(np.sqrt(len(rows)))
    sample = np.random.default_rng(seed).choice(len(rows), min(len(rows), N_CLUSTERED), replace=False)
    means = MiniBatchKMeans(n_cells, init="random", n_init=1, max_iter=2, batch_size=8_192, random_state=seed)
    centres = means.fit(rows[sample]).cluster_centers_
    n_visits = max(round(CELLS_SEARCHED * n_cells), 1)
    farness = farness_to(centres)
    visits = np.concatenate(
        [
            np.argsort(farness(rows[block]), axis=1)[:, :n_visits].astype(np.int32)
            for block in row_blocks(len(rows), n_cells, BLOCK_BYTES)
        ]
    )
    return _grouped(visits[:, 0], n_cells, 1), _grouped(visits.ravel(), n_cells, n_visits)


def _grouped(cell: NDArray[np.integer], n_cells: int, n_visits: int) -> list[NDArray[np.intp]]:
    """For each cell the places at which it stands, divided by ``n_visits``."""
    ends = np.cumsum(np.bincount(cell, minlength=n_cells))
    return np.split(np.argsort(cell, kind="stable") // n_visits, ends[:-1])
