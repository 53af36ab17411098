"""How far to trust a map: what of the neighbourhoods and distances of the hidden states it keeps, point by point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.nearest import Progress, farness_to, row_blocks
from t3vis.analysis.neighbours import NeighbourGraph, centred, map_neighbours, shared
from t3vis.analysis.states import check_states
from t3vis.errors import AnalysisError

MAX_EXACT = 20_000
"""Up to this many examples every measure is exact."""
N_SAMPLED = 2_000
"""Examples on which all but the neighbour recall is measured, where there are more."""
BLOCK_BYTES = 16 << 20
"""Distances held at a time; blocks four times as large are slower."""


@dataclass(frozen=True)
class Estimate:
    """A measure of a whole map, and the standard error of it: 0 where it is exact."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class ProjectionQuality:
    """What a map keeps of the hidden states; each array has shape (n_examples,), NaN where it was not measured."""

    trustworthiness: NDArray[np.float64]
    """In [0, 1]: low where neighbours on the map are far away in hidden space. At random 0.5."""
    continuity: NDArray[np.float64]
    """In [0, 1]: low where neighbours in hidden space are far away on the map. At random 0.5."""
    neighbour_recall: NDArray[np.float64]
    """In [0, 1]: share of the neighbours in hidden space that are neighbours on the map; for every example."""
    distance_correlation: NDArray[np.float64]
    """In [-1, 1]: Pearson correlation of the distances to all others in hidden space and on the map."""
    overall_distance_correlation: Estimate
    """The same over all pairs of examples, in [-1, 1]."""
    k: int
    """Neighbours considered."""
    graph_recall: float
    """Share of the true neighbours in hidden space that were known; below 1 for an approximate graph."""

    @property
    def n_sampled(self) -> int:
        """Examples on which all but the neighbour recall was measured."""
        return int(np.count_nonzero(~np.isnan(self.trustworthiness)))

    def summary(self) -> dict[str, Estimate]:
        """Each measure for the whole map, with its standard error."""
        means = {name: _mean(getattr(self, name)) for name in ("trustworthiness", "continuity", "neighbour_recall")}
        return {**means, "distance_correlation": self.overall_distance_correlation}

    def as_columns(self) -> dict[str, NDArray[Any]]:
        """Return the per-example arrays by name."""
        names = ("trustworthiness", "continuity", "neighbour_recall", "distance_correlation")
        return {name: getattr(self, name) for name in names}


def projection_quality(
    states: NDArray[np.floating],
    coordinates: NDArray[np.floating],
    graph: NeighbourGraph,
    *,
    n_sampled: int = N_SAMPLED,
    max_exact: int = MAX_EXACT,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProjectionQuality:
    """What a map keeps of the neighbourhoods and distances of hidden states.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), finite.
    coordinates
        The map, shape (n_examples, 2), finite.
    graph
        The nearest neighbours of the states, fewer than half as many as there are examples: its ``k`` is what is
        measured. Beyond half of the examples, the first of them count.
    n_sampled
        Examples on which all but the neighbour recall is measured, if there are more than `max_exact`.
    max_exact
        Up to this many examples all is measured on all of them.
    seed
        Of the sample.
    progress
        Called after every block of examples.

    Raises
    ------
    AnalysisError
        If the shapes disagree, an array is not finite, there are fewer than four examples, or `n_sampled` is below
        two.

    Notes
    -----
    Trustworthiness and continuity are those of scikit-learn and of the paper; that of the whole map is the mean over
    its points. A rank is one more than the number of examples that are strictly nearer, so that equally near ones
    share the best rank, where scikit-learn orders them by chance. Measured on a sample, each of its points is still
    compared with all examples; standard errors are for a sample without replacement, that of the correlation by the
    jackknife.

    References
    ----------
    Venna and Kaski (2001), "Neighborhood preservation in nonlinear projection methods"; Lee and Verleysen (2009),
    "Quality assessment of dimensionality reduction: Rank-based criteria".

    Examples
    --------
    Six points on a line, and a map on which the third has gone to the end:

    >>> from t3vis.analysis.neighbours import neighbour_graph
    >>> line = np.array([[0.0], [1.0], [2.1], [3.3], [4.6], [6.0]])
    >>> mapped = np.array([[0.0, 0], [1.0, 0], [9.0, 0], [3.3, 0], [4.6, 0], [6.0, 0]])
    >>> found = projection_quality(line, mapped, neighbour_graph(line, k=1))
    >>> found.neighbour_recall
    array([1., 1., 0., 0., 1., 1.])
    >>> found.trustworthiness
    array([1.  , 1.  , 0.  , 0.75, 1.  , 1.  ])
    """
    check_states(states)
    n_examples = len(states)
    if n_examples < 4 or not graph.n_examples == len(coordinates) == n_examples:
        raise AnalysisError(
            f"there are {n_examples} states, {len(coordinates)} places and {graph.n_examples} examples in the graph; "
            "pass the same examples, at least four, in the same order."
        )
    if coordinates.ndim != 2 or not np.isfinite(coordinates).all():
        raise AnalysisError(f"coordinates of shape {coordinates.shape} must be two-dimensional and finite.")
    k = min(graph.k, (n_examples - 1) // 2)
    near = graph.indices[:, :k]
    near_on_map = map_neighbours(coordinates, k=k)
    sample = _sample(n_examples, n_sampled, max_exact, seed)
    rows, places = centred(states), centred(coordinates)
    n_intruding, n_missing = np.empty(len(sample)), np.empty(len(sample))
    sums = np.empty((6, len(sample)))
    farness = farness_to(rows)
    for block in row_blocks(len(sample), n_examples, BLOCK_BYTES):
        points = sample[block]
        itself = np.arange(len(points)), points
        far, far_on_map = farness(rows[points]), _squares(places, points)
        far[itself] = far_on_map[itself] = np.inf
        n_intruding[block] = _excess_ranks(far, near_on_map[points])
        n_missing[block] = _excess_ranks(far_on_map, near[points])
        far += np.vecdot(rows[points], rows[points])[:, np.newaxis] / 2
        far[itself] = far_on_map[itself] = 0
        sums[:, block] = _sums(np.sqrt(np.maximum(2 * far, 0)), np.sqrt(far_on_map))
        if progress is not None:
            progress(block.stop, len(sample))
    worst = k * (2 * n_examples - 3 * k - 1) / 2
    found = {
        "trustworthiness": 1 - n_intruding / worst,
        "continuity": 1 - n_missing / worst,
        "distance_correlation": _correlation(sums),
    }
    columns = {name: np.full(n_examples, np.nan) for name in found}
    for name, values in found.items():
        columns[name][sample] = values
    return ProjectionQuality(
        **columns,
        neighbour_recall=shared(near, near_on_map),
        overall_distance_correlation=_overall_correlation(sums, n_examples),
        k=k,
        graph_recall=graph.recall,
    )


def _sample(n_examples: int, n_sampled: int, max_exact: int, seed: int) -> NDArray[np.int64]:
    """The examples to measure on, sorted: all, or as many as asked for."""
    if n_sampled < 2:
        raise AnalysisError(f"n_sampled is {n_sampled} but must be at least 2 examples; leave it out for {N_SAMPLED}.")
    if n_examples <= max(max_exact, n_sampled):
        return np.arange(n_examples)
    return np.sort(np.random.default_rng(seed).choice(n_examples, n_sampled, replace=False))


def _squares(places: NDArray[np.float32], points: NDArray[np.int64]) -> NDArray[np.float32]:
    """Squared distances of some points to all places; by differences, which lose no digits to each other."""
    squares: NDArray[np.float32] = np.square(np.subtract.outer(places[points, 0], places[:, 0]))
    for axis in range(1, places.shape[1]):
        squares += np.square(np.subtract.outer(places[points, axis], places[:, axis]))
    return squares


def _excess_ranks(far: NDArray[np.float32], neighbours: NDArray[np.integer]) -> NDArray[np.int64]:
    """By how much the ranks of the neighbours exceed their number, summed for each point."""
    limits = np.take_along_axis(far, neighbours, axis=1)
    n_nearer = _n_below(np.sort(far, axis=1), limits)
    excess: NDArray[np.int64] = np.maximum(n_nearer + 1 - neighbours.shape[1], 0).sum(axis=1)
    return excess


def _n_below(ordered: NDArray[np.float32], limits: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many in a row of ``ordered`` are below each limit of that row, by halving for all rows at once."""
    n_columns = ordered.shape[1]
    low, high = np.zeros(limits.shape, np.int64), np.full(limits.shape, n_columns)
    for _ in range(n_columns.bit_length()):
        middle = (low + high) // 2
        is_below = np.take_along_axis(ordered, np.minimum(middle, n_columns - 1), axis=1) < limits
        low, high = np.where(is_below & (low < high), middle + 1, low), np.where(is_below, high, middle)
    return low


def _sums(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """What a correlation is made of: of the distances from each point to the others, shape (6, n_points).

    The distance of a point to itself is zero and adds nothing but to the number, in which it is left out.
    """
    number = np.full(len(one), one.shape[1] - 1.0)
    totals = (values.sum(axis=1, dtype=np.float64) for values in (one, other))
    products = (np.vecdot(a, b) for a, b in ((one, one), (other, other), (one, other)))
    return np.stack([number, *totals, *products])


def _correlation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlation from `_sums`, NaN where all distances are equal."""
    number, one, other, one_one, other_other, one_other = sums
    spread = (number * one_one - one**2) * (number * other_other - other**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (number * one_other - one * other) / np.sqrt(spread)
    return np.where(spread > 0, np.clip(correlation, -1, 1), np.nan)


def _overall_correlation(sums: NDArray[np.float64], n_examples: int) -> Estimate:
    """The correlation over all pairs, and its standard error by leaving out one point after the other."""
    total = sums.sum(axis=1)
    n_points = sums.shape[1]
    without = _correlation(total[:, np.newaxis] - sums)
    error = np.sqrt((n_points - 1) * without.var() * (1 - n_points / n_examples))
    return Estimate(float(_correlation(total)), float(error) if n_points < n_examples else 0.0)


def _mean(values: NDArray[np.float64]) -> Estimate:
    """Mean of what was measured, and its standard error."""
    known = values[~np.isnan(values)]
    if len(known) == len(values):
        return Estimate(float(known.mean()), 0.0)
    error = known.std(ddof=1) * np.sqrt((1 - len(known) / len(values)) / len(known))
    return Estimate(float(known.mean()), float(error))
