"""Nearest neighbours in the space of the hidden states: exact, by blocks of matrix products."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.states import StatesLike, state_chunks, unit_rows
from t3vis.errors import AnalysisError

Metric = Literal["cosine", "euclidean"]

BLOCK_VALUES = 1 << 24
"""Similarities held at a time, in float32: 64 MB."""


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

    Returns
    -------
    Neighbours; of references at equal distance those with the lower id come first.

    Raises
    ------
    AnalysisError
        If `k` is below one or `states` is not two-dimensional.

    Notes
    -----
    Candidates are found by similarity in float32, 8 more than k; their distances are then computed from
    differences, since the matrix product loses what is small beside the norms.

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
    n_examples = states.shape[0]
    index = _index(states, metric, references)
    rows = np.arange(n_examples) if queries is None else np.asarray(queries, dtype=np.int64)
    found = Neighbours(np.full((len(rows), k), -1), np.full((len(rows), k), np.nan))
    block = int(np.clip(BLOCK_VALUES // max(len(index.ids), 1), 1, 4096))
    for start in range(0, len(rows), block):
        _search(index, states, rows[start : start + block], start, found, metric)
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


@dataclass(frozen=True, eq=False)
class _Index:
    """The references: their ids, shape (n,), values as compared, shape (n, hidden), and half their squared norm."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    half_squares: NDArray[np.float32]
    center: NDArray[np.float32]


def _index(states: StatesLike, metric: Metric, references: NDArray[np.integer] | None) -> _Index:
    kept_ids, kept_values = [], []
    chosen = np.ones(states.shape[0], dtype=np.bool_)
    if references is not None:
        chosen[:] = False
        chosen[references] = True
    for rows, values, seen in state_chunks(states):
        wanted = seen & chosen[rows]
        kept_ids.append(rows.start + np.flatnonzero(wanted))
        kept_values.append(_comparable(values[wanted], metric))
    hidden = states.shape[1]
    values = np.concatenate(kept_values) if kept_values else np.empty((0, hidden), np.float32)
    # Distances do not change when all are moved; products are then as precise as the spread, not as the mean.
    center = values.mean(axis=0) if metric == "euclidean" and len(values) else np.zeros(hidden, np.float32)
    values -= center
    ids = np.concatenate(kept_ids) if kept_ids else np.empty(0, np.int64)
    return _Index(ids, values, np.einsum("nd,nd->n", values, values) / 2, center)


def _comparable(values: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    return values if metric == "euclidean" else unit_rows(values)


def _search(
    index: _Index, states: StatesLike, queries: NDArray[np.int64], start: int, found: Neighbours, metric: Metric
) -> None:
    """Enter the neighbours of some examples, whose first row of the result is `start`."""
    raw = np.asarray(states[queries], dtype=np.float32)
    seen = np.isfinite(raw).all(axis=1)
    rows = start + np.flatnonzero(seen)
    own = queries[seen]
    if not len(rows) or not len(index.ids):
        return
    values = _comparable(raw[seen], metric) - index.center
    similar = values @ index.values.T
    similar -= index.half_squares
    at = np.minimum(np.searchsorted(index.ids, own), len(index.ids) - 1)
    among = np.flatnonzero(index.ids[at] == own)
    similar[among, at[among]] = -np.inf
    n_candidates = min(found.k + 8, len(index.ids))
    candidates = np.argpartition(similar, len(index.ids) - n_candidates, axis=1)[:, -n_candidates:]
    candidates.sort(axis=1)
    is_self = index.ids[candidates] == own[:, np.newaxis]
    exact = _distances(values, index.values, candidates)
    exact[is_self] = np.inf
    nearest = np.argsort(exact, axis=1, kind="stable")[:, : found.k]
    distances = np.take_along_axis(exact, nearest, axis=1)
    ids = index.ids[np.take_along_axis(candidates, nearest, axis=1)]
    is_known = np.isfinite(distances)
    width = ids.shape[1]
    found.ids[rows, :width] = np.where(is_known, ids, -1)
    # Of unit vectors, one minus the cosine is half the squared distance.
    found.distances[rows, :width] = np.where(is_known, distances**2 / 2 if metric == "cosine" else distances, np.nan)


def _distances(
    values: NDArray[np.float32], references: NDArray[np.float32], candidates: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Euclidean distance of each row to each of its candidates, a few candidates at a time."""
    found = np.empty(candidates.shape)
    for column in range(candidates.shape[1]):
        differences = values - references[candidates[:, column]]
        found[:, column] = np.einsum("nd,nd->n", differences, differences, dtype=np.float64)
    return np.sqrt(found)
