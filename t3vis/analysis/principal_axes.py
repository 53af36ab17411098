"""Principal axes: the directions in which hidden states vary most, exact, from sums over the examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.states import StatesLike, check_states
from t3vis.errors import AnalysisError

CHUNK_SIZE = 65_536
"""Examples read at a time: at 384 values of float32, 100 MB."""


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """The directions of largest variance."""

    mean: NDArray[np.float64]
    """Shape (hidden,)."""
    axes: NDArray[np.float64]
    """Shape (n_components, hidden), orthonormal; the entry of largest absolute value of each is positive."""
    explained: NDArray[np.float64]
    """Shape (n_components,): share of the variance along each axis, in [0, 1]."""

    def coordinates(self, states: StatesLike) -> NDArray[np.float64]:
        """States along the axes, shape (n_examples, n_components), read a chunk at a time."""
        placed = [(states[chunk] - self.mean) @ self.axes.T for chunk in _chunks(states.shape[0])]
        return np.concatenate(placed) if placed else np.empty((0, len(self.axes)))


def principal_axes(states: StatesLike, *, n_components: int = 2) -> PrincipalAxes:
    """Principal components, exact, read a chunk of examples at a time.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), finite.
    n_components
        How many; in ``[1, hidden]``.

    Raises
    ------
    AnalysisError
        If `states` is not two-dimensional or not finite, holds no example, or has fewer columns than components.

    Notes
    -----
    The eigenvectors of the covariance, which is summed up in float64 about the mean of the first chunk.

    Examples
    --------
    >>> axes = principal_axes(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]]))
    >>> axes.explained
    array([0.8, 0.2])
    >>> axes.coordinates(np.array([[2.0, 0.5]])).round(9)
    array([[1., 0.]])
    """
    check_component_count(states.shape, n_components)
    shift = first_mean(states)
    moments = Moments.zero(states.shape[1])
    for chunk in _chunks(states.shape[0]):
        moments += moments_of(states[chunk], shift)
    return axes_of(moments, shift, n_components=n_components)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over examples from which a covariance is made, about a point near their mean; those of parts add up."""

    n_examples: int
    total: NDArray[np.float64]
    """Shape (hidden,)."""
    products: NDArray[np.float64]
    """Shape (hidden, hidden)."""

    @classmethod
    def zero(cls, hidden: int) -> Moments:
        """Those of no example."""
        return cls(0, np.zeros(hidden), np.zeros((hidden, hidden)))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n_examples + other.n_examples, self.total + other.total, self.products + other.products)


def check_component_count(shape: tuple[int, ...], n_components: int) -> None:
    """Raise `AnalysisError` unless states of this shape have so many principal components."""
    n_examples, hidden = shape
    if n_examples == 0 or not 1 <= n_components <= hidden:
        raise AnalysisError(
            f"states has shape {tuple(shape)}, too little for {n_components} principal components; pass at "
            "least one example, and no fewer columns than components."
        )


def first_mean(states: StatesLike) -> NDArray[np.float64]:
    """Mean of the first chunk of examples, shape (hidden,): near enough to that of all to take moments about."""
    first = states[next(iter(_chunks(states.shape[0])))]
    check_states(first)
    return np.asarray(first.mean(axis=0, dtype=np.float64))


def moments_of(states: NDArray[np.floating], about: NDArray[np.float64]) -> Moments:
    """Moments of some examples, shape (n_examples, hidden), about a point.

    Raises
    ------
    AnalysisError
        If a state is not finite.

    Examples
    --------
    >>> found = moments_of(np.array([[1.0], [4.0]]), np.array([1.0]))
    >>> found.n_examples, found.total, found.products
    (2, array([3.]), array([[9.]]))
    """
    check_states(states)
    rows = states - about
    return Moments(len(rows), rows.sum(axis=0), rows.T @ rows)


def axes_of(moments: Moments, about: NDArray[np.float64], *, n_components: int) -> PrincipalAxes:
    """The principal axes of the examples whose moments about a point these are.

    Examples
    --------
    >>> about = np.zeros(2)
    >>> found = axes_of(moments_of(np.array([[1.0, 0.0], [3.0, 0.0]]), about), about, n_components=1)
    >>> found.mean, found.explained
    (array([2., 0.]), array([1.]))
    """
    mean = moments.total / moments.n_examples
    variances, vectors = np.linalg.eigh(moments.products / moments.n_examples - np.outer(mean, mean))
    variances = np.maximum(variances[::-1], 0)
    axes = vectors.T[::-1][:n_components]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, np.newaxis], axis=1)
    explained = variances[:n_components] / (variances.sum() or 1)
    return PrincipalAxes(about + mean, axes * np.sign(largest), explained)


def _chunks(n_examples: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_SIZE, n_examples)) for start in range(0, n_examples, CHUNK_SIZE)]
