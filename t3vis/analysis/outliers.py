"""Outliers: examples far from all others, or from those of their class, in the space of the hidden states."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.stats import rankdata

from t3vis.analysis.nearest import Neighbours
from t3vis.analysis.separability import ClassSums, class_sums, number_of_classes
from t3vis.analysis.states import CHUNK_SIZE, StatesLike, state_chunks
from t3vis.errors import AnalysisError


@dataclass(frozen=True, eq=False)
class Outliers:
    """How far out every example lies; each array has shape (n_examples,), NaN where nothing is known."""

    score: NDArray[np.float64]
    """Mean of the ranks by the other columns, in [0, 1]; 1 is the farthest out."""
    knn_distance: NDArray[np.float64]
    """Mean distance to the nearest neighbours."""
    mahalanobis: NDArray[np.float64]
    """Mahalanobis distance to the nearest class mean."""
    mahalanobis_own: NDArray[np.float64]
    """Mahalanobis distance to the mean of the example's own class."""
    mean_loss: NDArray[np.float64]
    """Mean loss over the passes in which the example was seen."""

    def as_columns(self) -> dict[str, NDArray[Any]]:
        """Return the per-example arrays by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def ranking(self) -> NDArray[np.int64]:
        """Order the example ids from the farthest out to the most ordinary, those without a score last."""
        return np.argsort(-self.score, kind="stable")


def outliers(
    knn_distance: NDArray[np.floating],
    mahalanobis: NDArray[np.floating],
    mahalanobis_own: NDArray[np.floating],
    mean_loss: NDArray[np.floating],
) -> Outliers:
    """Join distances and dynamics to one score.

    Parameters
    ----------
    knn_distance, mahalanobis, mahalanobis_own, mean_loss
        Shape (n_examples,), each in its own unit, high for outliers; NaN where not known.

    Returns
    -------
    The score is the mean over the columns of the rank among the known values, as a share of them. A column that is
    not known of an example is left out of its mean.

    Raises
    ------
    AnalysisError
        If the shapes differ.

    Examples
    --------
    >>> far = np.array([1.0, 9.0, 2.0])
    >>> outliers(far, far, far, np.array([0.1, 0.2, np.nan])).ranking()
    array([1, 2, 0])
    """
    columns = [
        np.asarray(column, dtype=np.float64) for column in (knn_distance, mahalanobis, mahalanobis_own, mean_loss)
    ]
    if len({column.shape for column in columns}) > 1:
        raise AnalysisError(
            f"the columns have shapes {[column.shape for column in columns]}; pass values of the same examples."
        )
    ranks = np.stack([relative_rank(column) for column in columns])
    known = ~np.isnan(ranks)
    n_known = np.count_nonzero(known, axis=0)
    score = np.full(columns[0].shape, np.nan)
    np.divide(np.sum(ranks, axis=0, where=known), n_known, out=score, where=n_known > 0)
    return Outliers(score, *columns)


def knn_distance(neighbours: Neighbours) -> NDArray[np.float64]:
    """Mean distance of every example to its nearest neighbours.

    Returns
    -------
    Shape (n_examples,); NaN for an example without neighbours. Fewer neighbours than asked for are averaged as such.

    References
    ----------
    Angiulli and Pizzuti (2002), "Fast Outlier Detection in High Dimensional Spaces".

    Examples
    --------
    >>> from t3vis.analysis.nearest import nearest_neighbours
    >>> knn_distance(nearest_neighbours(np.array([[0.0], [1.0], [9.0]]), k=2, metric="euclidean"))
    array([5. , 4.5, 8.5])
    """
    known = ~np.isnan(neighbours.distances)
    n_known = np.count_nonzero(known, axis=1)
    mean = np.full(n_known.shape, np.nan)
    np.divide(np.sum(neighbours.distances, axis=1, where=known), n_known, out=mean, where=n_known > 0)
    return mean


def mahalanobis(
    states: StatesLike, labels: NDArray[np.integer], *, shrinkage: float = 1e-3, chunk_size: int = CHUNK_SIZE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mahalanobis distance of every example to the nearest class mean, and to that of its own class.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), read a chunk at a time.
    labels
        Shape (n_examples,); negative where there is none.
    shrinkage
        Share of the covariance that is replaced by its mean variance times the identity, in [0, 1]: hidden states
        have directions in which they do not vary.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Returns
    -------
    Two arrays of shape (n_examples,). NaN for an example that was not seen; the second also for one without a label,
    and both where no example has a label.

    Raises
    ------
    AnalysisError
        If the shapes disagree, or `shrinkage` is outside [0, 1].

    Notes
    -----
    One covariance is shared by all classes, and divided by the number of examples. Lee et al. use the squared
    distance, unshrunk, of new examples; here the examples also define means and covariance.

    References
    ----------
    Lee et al. (2018), "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    section 2.1.

    Examples
    --------
    >>> states = np.array([[-1.0], [1.0], [9.0], [11.0]])
    >>> nearest, own = mahalanobis(states, np.array([0, 0, 1, 0]), shrinkage=0)
    >>> own.round(3)
    array([1.027, 0.587, 0.   , 1.613])
    """
    check_shrinkage(shrinkage)
    sums = class_sums(states, labels, n_classes=number_of_classes(labels), chunk_size=chunk_size)
    products = residual_products(states, labels, sums.means, chunk_size=chunk_size)
    return Whitening.of(sums, products, shrinkage=shrinkage).distances(states, labels, chunk_size=chunk_size)


def check_shrinkage(shrinkage: float) -> None:
    """Raise `AnalysisError` unless it is a share."""
    if not 0 <= shrinkage <= 1:
        raise AnalysisError(f"shrinkage is {shrinkage} but must be in [0, 1].")


def residual_products(
    states: StatesLike, labels: NDArray[np.integer], means: NDArray[np.float64], *, chunk_size: int = CHUNK_SIZE
) -> NDArray[np.float64]:
    """Sum over labelled examples of the products of their differences from their class mean, shape (hidden, hidden).

    Examples
    --------
    >>> states = np.array([[1.0, 0.0], [3.0, 2.0]])
    >>> residual_products(states, np.array([0, 0]), means=np.array([[2.0, 1.0]]))
    array([[2., 2.],
           [2., 2.]])
    """
    products = np.zeros((states.shape[1], states.shape[1]))
    for rows, values, seen in state_chunks(states, chunk_size=chunk_size):
        known = seen & (labels[rows] >= 0)
        residuals = values[known] - means[labels[rows][known]]
        products += residuals.T @ residuals
    return products


@dataclass(frozen=True, eq=False)
class Whitening:
    """A space in which Mahalanobis distances are Euclidean ones."""

    factor: NDArray[np.float64]
    """Shape (hidden, hidden): lower factor of the covariance."""
    means: NDArray[np.float64]
    """Shape (n_classes, hidden): the class means in this space."""
    present: NDArray[np.intp]
    """Classes that have an example."""

    @classmethod
    def of(cls, sums: ClassSums, products: NDArray[np.float64], *, shrinkage: float = 1e-3) -> Whitening:
        """The space of the classes whose sums and `residual_products` these are."""
        hidden = len(products)
        covariance = products / max(sums.counts.sum(), 1)
        spread = np.trace(covariance) / hidden or 1.0  # where no example differs from its class mean
        covariance = (1 - shrinkage) * covariance + max(shrinkage, 1e-12) * spread * np.eye(hidden)
        factor = cholesky(covariance, lower=True)
        means = solve_triangular(factor, sums.means.T, lower=True).T
        return cls(factor, means, np.flatnonzero(sums.counts))

    def distances(
        self, states: StatesLike, labels: NDArray[np.integer], *, chunk_size: int = CHUNK_SIZE
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distances of examples to the nearest class mean and to that of their class, as `mahalanobis` has them."""
        nearest, own = np.full(len(labels), np.nan), np.full(len(labels), np.nan)
        if not len(self.present):
            return nearest, own
        of_present = self.means[self.present]
        for rows, values, seen in state_chunks(states, chunk_size=chunk_size):
            whitened = solve_triangular(self.factor, values[seen].T.astype(np.float64), lower=True).T
            squares = np.einsum("nd,nd->n", whitened, whitened)[:, np.newaxis]
            apart = squares - 2 * whitened @ of_present.T + (of_present**2).sum(axis=1)
            at = rows.start + np.flatnonzero(seen)
            nearest[at] = np.sqrt(np.maximum(apart.min(axis=1, initial=np.inf), 0))
            labelled = labels[at] >= 0
            differences = whitened[labelled] - self.means[labels[at][labelled]]
            own[at[labelled]] = np.linalg.norm(differences, axis=1)
        return nearest, own


def relative_rank(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rank among the values that are known, from 0 for the lowest to 1 for the highest; equal values share a rank.

    Examples
    --------
    >>> relative_rank(np.array([5.0, np.nan, 1.0, 9.0]))
    array([0.5, nan, 0. , 1. ])
    """
    ranks = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    ranks[known] = (rankdata(values[known]) - 1) / max(len(known) - 1, 1)
    return ranks
