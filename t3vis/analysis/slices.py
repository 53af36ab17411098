"""Slices: what a quantity is like in each class, or in any other group of examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import AnalysisError


@dataclass(frozen=True, eq=False)
class SliceSummary:
    """One quantity by group; each array has shape (n_groups,), NaN for a group without a known value."""

    n_examples: NDArray[np.int64]
    """Examples of the group, those without a value included."""
    n_known: NDArray[np.int64]
    """Examples with a value."""
    mean: NDArray[np.float64]
    """Mean of the known values."""
    quantiles: NDArray[np.float64]
    """Shape (n_groups, 3): the first quartile, the median and the third quartile."""


def by_group(values: NDArray[Any], groups: NDArray[np.integer], *, n_groups: int | None = None) -> SliceSummary:
    """Mean and quartiles of a quantity in every group.

    Parameters
    ----------
    values
        Shape (n_examples,); NaN where not known.
    groups
        Shape (n_examples,): the group of each example, such as its label; negative for none.
    n_groups
        Groups to return; by default up to the highest there is.

    Raises
    ------
    AnalysisError
        If the shapes differ, or there is a group beyond `n_groups`.

    Notes
    -----
    Quantiles are interpolated linearly, as NumPy's are. One sort serves all groups.

    Examples
    --------
    >>> found = by_group(np.array([1.0, 3.0, 5.0, np.nan]), np.array([0, 0, 1, 1]))
    >>> found.mean, found.n_examples, found.quantiles[0]
    (array([2., 5.]), array([2, 2]), array([1.5, 2. , 2.5]))
    """
    if values.ndim != 1 or values.shape != groups.shape or not np.issubdtype(groups.dtype, np.integer):
        raise AnalysisError(
            f"values has shape {values.shape} but groups has shape {groups.shape} and dtype {groups.dtype}; "
            "pass one value and one whole number for each example."
        )
    highest = int(groups.max(initial=-1))
    if n_groups is None:
        n_groups = highest + 1
    if highest >= n_groups:
        raise AnalysisError(f"there is a group {highest} but n_groups is {n_groups}; groups count from 0.")
    grouped = groups >= 0
    known = grouped & ~np.isnan(values.astype(np.float64))
    order = np.lexsort((values[known], groups[known]))
    ordered = values[known][order].astype(np.float64)
    n_known = np.bincount(groups[known], minlength=n_groups)
    sums = np.bincount(groups[known], weights=values[known].astype(np.float64), minlength=n_groups)
    some = n_known > 0
    mean, quantiles = np.full(n_groups, np.nan), np.full((n_groups, 3), np.nan)
    mean[some] = sums[some] / n_known[some]
    first = (np.cumsum(n_known) - n_known)[some, np.newaxis]
    place = np.array([0.25, 0.5, 0.75]) * (n_known[some, np.newaxis] - 1)
    low = np.floor(place).astype(np.int64)
    high = np.ceil(place).astype(np.int64)
    if some.any():
        quantiles[some] = ordered[first + low] + (place - low) * (ordered[first + high] - ordered[first + low])
    return SliceSummary(np.bincount(groups[grouped], minlength=n_groups), n_known, mean, quantiles)


def quantile_groups(values: NDArray[Any], n_groups: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Cut the range of a quantity, such as the length of a text, into groups of about equal size.

    Parameters
    ----------
    values
        Shape (n_examples,); NaN where not known.
    n_groups
        At most that many; equal values are never in two groups.

    Returns
    -------
    The group of each example, -1 where the value is not known, and the edges between the groups, shape (n_found + 1,).
    A group holds the values from its lower edge, up to and without its upper one; the last also that.

    Raises
    ------
    AnalysisError
        If `n_groups` is below one.

    Examples
    --------
    >>> groups, edges = quantile_groups(np.array([3.0, 9.0, 5.0, 12.0]), 2)
    >>> groups, edges
    (array([0, 1, 0, 1]), array([ 3.,  7., 12.]))
    """
    if n_groups < 1:
        raise AnalysisError(f"n_groups is {n_groups} but must be at least 1.")
    numbers = values.astype(np.float64)
    known = ~np.isnan(numbers)
    if not known.any():
        return np.full(len(values), -1), np.empty(0)
    edges = np.unique(np.quantile(numbers[known], np.linspace(0, 1, n_groups + 1)))
    inner = edges[1:-1]
    return np.where(known, np.searchsorted(inner, numbers, side="right"), -1), edges
