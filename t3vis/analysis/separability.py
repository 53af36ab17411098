"""Separability: how well the classes of a task lie apart in the hidden states of one layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from t3vis.analysis.nearest import Neighbours, nearest_neighbours, sample_of
from t3vis.analysis.states import CHUNK_SIZE, StatesLike, check_states_and_labels, state_chunks
from t3vis.errors import AnalysisError


@dataclass(frozen=True)
class Separability:
    """Figures of one layer in one pass. NaN where a figure is not defined, as with a single class."""

    knn_accuracy: float
    """Leave-one-out accuracy of the k nearest neighbours by cosine, in [0, 1]."""
    probe_accuracy: float
    """Cross-validated accuracy of a linear classifier, in [0, 1]."""
    silhouette: float
    """Mean silhouette of the classes, in [-1, 1]; above 0 the own class is nearer than the next."""
    davies_bouldin: float
    """Davies-Bouldin index, from 0; low is better."""
    fisher_ratio: float
    """Scatter of the class means over the scatter within the classes, from 0."""
    mean_cosine: float
    """Mean cosine between the centred means of two classes, in [-1, 1]; -1 / (n_classes - 1) where they lie evenly."""
    n_queries: int
    """Examples that `knn_accuracy` and `silhouette` were taken over; their standard error is at most
    ``0.5 / sqrt(n_queries)``."""

    def as_row(self) -> dict[str, float]:
        """Return the figures by name, in the order of the fields."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ClassGeometry:
    """Means and scatter of the classes; classes without an example are left out of every figure."""

    counts: NDArray[np.int64]
    """Shape (n_classes,)."""
    means: NDArray[np.float64]
    """Shape (n_classes, hidden); zero where there is no example."""
    within: float
    """Mean squared distance of an example to the mean of its class."""
    between: float
    """Mean squared distance of the class mean of an example to the mean of all."""
    davies_bouldin: float
    """Mean over the classes of the worst ratio of two mean radii to the distance of their class means."""

    @property
    def fisher_ratio(self) -> float:
        """Between over within; NaN where there is no scatter within the classes, or a single class."""
        several = np.count_nonzero(self.counts) > 1
        return self.between / self.within if several and self.within > 0 else np.nan

    @property
    def mean_cosine(self) -> float:
        """Mean cosine between two class means, the mean of all taken off; NaN for fewer than two classes."""
        present = self.counts > 0
        n_present = np.count_nonzero(present)
        centered = (
            self.means[present] - np.average(self.means, axis=0, weights=self.counts) if n_present else self.means
        )
        norms = np.linalg.norm(centered, axis=1)
        if n_present < 2 or not norms.all():
            return np.nan
        unit = centered / norms[:, np.newaxis]
        return float(((unit.sum(axis=0) ** 2).sum() - n_present) / (n_present * (n_present - 1)))


def separability(
    states: StatesLike,
    labels: NDArray[np.integer],
    *,
    k: int = 15,
    n_folds: int = 5,
    max_queries: int = 5_000,
    max_references: int = 50_000,
    seed: int = 0,
) -> Separability:
    """All figures of one layer.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), read a chunk at a time.
    labels
        Shape (n_examples,); negative where there is none.
    k
        Neighbours that vote.
    n_folds
        Folds of the cross-validation of the linear probe.
    max_queries
        At most that many examples, drawn at random, are classified by their neighbours, and at most 2,000 of them
        enter the silhouette.
    max_references
        At most that many, drawn at random, are neighbours.
    seed
        Decides the samples and the folds.

    Returns
    -------
    One number each; examples that were not seen or have no label are left out.

    Raises
    ------
    AnalysisError
        If the shapes disagree, or `n_folds` or `k` is too small.

    References
    ----------
    Papyan et al. (2020), "Prevalence of neural collapse during the terminal phase of deep learning training", for
    scatter and angles of class means.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 50)
    >>> found = separability(rng.normal(size=(100, 4)) + 9 * np.eye(4)[labels], labels)
    >>> found.knn_accuracy, found.probe_accuracy
    (1.0, 1.0)
    """
    check_states_and_labels(states, labels)
    known = np.flatnonzero(labels >= 0)
    queries = known[sample_of(len(known), max_queries, seed=seed)]
    references = known[sample_of(len(known), max_references, seed=seed)]
    neighbours = nearest_neighbours(states, k=k, references=references, queries=queries)
    geometry = class_geometry(states, labels)
    return Separability(
        knn_accuracy=knn_accuracy(neighbours, labels, queries=queries),
        probe_accuracy=probe_accuracy(states, labels, n_folds=n_folds, seed=seed),
        silhouette=_silhouette(states, labels, queries[sample_of(len(queries), 2_000, seed=seed)]),
        davies_bouldin=geometry.davies_bouldin,
        fisher_ratio=geometry.fisher_ratio,
        mean_cosine=geometry.mean_cosine,
        n_queries=len(queries),
    )


def knn_accuracy(
    neighbours: Neighbours, labels: NDArray[np.integer], *, queries: NDArray[np.integer] | None = None
) -> float:
    """Share of the examples whose label is the commonest among their neighbours.

    Parameters
    ----------
    neighbours
        Of the examples, or of the `queries`, among labelled examples.
    labels
        Shape (n_examples,); negative where there is none.
    queries
        Example ids that the rows of `neighbours` belong to.

    Returns
    -------
    In [0, 1]; of labels equally common the lowest counts. NaN without a labelled example that has neighbours.

    Examples
    --------
    >>> states = np.array([[0.0], [1.0], [2.0], [9.0]])
    >>> knn_accuracy(nearest_neighbours(states, k=1, metric="euclidean"), np.array([0, 0, 0, 1]))
    0.75
    """
    own = labels if queries is None else labels[queries]
    votes = neighbour_votes(neighbours, labels)
    judged = (own >= 0) & (votes.sum(axis=1) > 0)
    return float(np.mean(votes[judged].argmax(axis=1) == own[judged])) if judged.any() else np.nan


def neighbour_votes(neighbours: Neighbours, labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many neighbours of each example have each label; those without one do not vote.

    Parameters
    ----------
    neighbours
        Of any examples.
    labels
        Shape (n_examples,), of all; negative where there is none.

    Returns
    -------
    Shape (n_rows, n_classes), a row for each row of `neighbours`.

    Examples
    --------
    >>> near = nearest_neighbours(np.array([[0.0], [1.0], [3.0]]), k=2, metric="euclidean")
    >>> neighbour_votes(near, np.array([0, 0, 1]))
    array([[1, 1],
           [1, 1],
           [2, 0]])
    """
    n_rows, n_classes = len(neighbours.ids), max(int(labels.max(initial=-1)) + 1, 1)
    of_neighbour = np.where(neighbours.ids >= 0, labels[neighbours.ids], -1)
    votes = of_neighbour >= 0
    cell = np.arange(n_rows)[:, np.newaxis] * n_classes + of_neighbour
    return np.bincount(cell[votes], minlength=n_rows * n_classes).reshape(n_rows, n_classes)


def probe_accuracy(
    states: StatesLike,
    labels: NDArray[np.integer],
    *,
    n_folds: int = 5,
    ridge: float = 1e-3,
    seed: int = 0,
    chunk_size: int = CHUNK_SIZE,
) -> float:
    """Cross-validated accuracy of a linear classifier on the states.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), read twice, a chunk at a time.
    labels
        Shape (n_examples,); negative where there is none.
    n_folds
        Each example is classified by a probe that was fitted on the other folds; from 2.
    ridge
        Penalty on the squared weights, as a multiple of the mean variance of a state's values times the number of
        examples.
    seed
        Decides which example is in which fold.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Returns
    -------
    In [0, 1]; NaN with fewer than two classes, or fewer examples than folds.

    Raises
    ------
    AnalysisError
        If the shapes disagree, or `n_folds` is below 2.

    Notes
    -----
    The probe is ridge regression to one-hot labels, the highest output being the prediction. Its normal equations
    are sums over the examples: those of each fold are taken off the whole, so that all folds together read the states
    twice, whatever their number. Logistic regression, the usual probe, cannot be had in this way. Folds are random,
    not stratified.

    References
    ----------
    Alain and Bengio (2017), "Understanding intermediate layers using linear classifier probes".

    Examples
    --------
    >>> labels = np.arange(100) % 2
    >>> probe_accuracy(labels[:, np.newaxis] + np.zeros((1, 3)), labels)
    1.0
    """
    if n_folds < 2:
        raise AnalysisError(f"n_folds is {n_folds} but must be at least 2.")
    check_states_and_labels(states, labels)
    n_classes = int(labels.max(initial=-1)) + 1
    fold_of = np.random.default_rng(seed).permutation(len(labels)) % n_folds
    hidden = states.shape[1]
    center = mean_state(states, chunk_size=chunk_size)
    # Each state with a constant 1 behind it, for the intercept; that of a fold beside its one-hot labels.
    grams, targets = np.zeros((n_folds, hidden + 1, hidden + 1)), np.zeros((n_folds, hidden + 1, n_classes))
    seen_everywhere = np.zeros(len(labels), dtype=np.bool_)
    for rows, values, seen in state_chunks(states, chunk_size=chunk_size):
        seen_everywhere[rows] = seen & (labels[rows] >= 0)
        for fold in range(n_folds):
            chosen = seen & (labels[rows] >= 0) & (fold_of[rows] == fold)
            inputs = _with_constant(values[chosen] - center)
            grams[fold] += inputs.T @ inputs
            targets[fold] += inputs.T @ np.eye(n_classes, dtype=np.float32)[labels[rows][chosen]]
    n_known = np.count_nonzero(seen_everywhere)
    if len(np.unique(labels[seen_everywhere])) < 2 or n_known < n_folds:
        return np.nan
    total, total_targets = grams.sum(axis=0), targets.sum(axis=0)
    penalty = ridge * np.trace(total[:hidden, :hidden]) / hidden * np.r_[np.ones(hidden), 0]
    weights = [_solved(total - grams[i] + np.diag(penalty), total_targets - targets[i]) for i in range(n_folds)]
    n_right = 0
    for rows, values, _ in state_chunks(states, chunk_size=chunk_size):
        for fold in range(n_folds):
            chosen = seen_everywhere[rows] & (fold_of[rows] == fold)
            predicted = (_with_constant(values[chosen] - center) @ weights[fold]).argmax(axis=1)
            n_right += int(np.count_nonzero(predicted == labels[rows][chosen]))
    return float(n_right / n_known)


def class_geometry(states: StatesLike, labels: NDArray[np.integer], *, chunk_size: int = CHUNK_SIZE) -> ClassGeometry:
    """Where the classes lie: their means, and the scatter within and between them.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), read twice, a chunk at a time.
    labels
        Shape (n_examples,); negative where there is none.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Raises
    ------
    AnalysisError
        If the shapes disagree.

    References
    ----------
    Davies and Bouldin (1979), "A Cluster Separation Measure", with exponents 1 and 2, as scikit-learn has it.

    Examples
    --------
    >>> found = class_geometry(np.array([[0.0], [2.0], [9.0], [11.0]]), np.array([0, 0, 1, 1]))
    >>> found.means.ravel(), found.within, found.between
    (array([ 1., 10.]), 1.0, 20.25)
    """
    sums = class_sums(states, labels, n_classes=number_of_classes(labels), chunk_size=chunk_size)
    n_classes, counts, means = len(sums.counts), sums.counts, sums.means
    radii, squares = np.zeros(n_classes), 0.0
    for rows, values, seen in state_chunks(states, chunk_size=chunk_size):
        known = seen & (labels[rows] >= 0)
        own = labels[rows][known]
        distances = np.linalg.norm(values[known] - means[own], axis=1)
        radii += np.bincount(own, weights=distances, minlength=n_classes)
        squares += float((distances**2).sum())
    n_known = max(int(counts.sum()), 1)
    overall = sums.totals.sum(axis=0) / n_known
    present = counts > 0
    return ClassGeometry(
        counts=counts,
        means=means,
        within=squares / n_known,
        between=float((counts * ((means - overall) ** 2).sum(axis=1)).sum()) / n_known,
        davies_bouldin=_davies_bouldin(means[present], radii[present] / counts[present]),
    )


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Number and sum of the states of each class; those of parts of the examples add up."""

    counts: NDArray[np.int64]
    """Shape (n_classes,)."""
    totals: NDArray[np.float64]
    """Shape (n_classes, hidden)."""

    @property
    def means(self) -> NDArray[np.float64]:
        """Shape (n_classes, hidden); zero where there is no example."""
        return self.totals / np.maximum(self.counts, 1)[:, np.newaxis]

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(self.counts + other.counts, self.totals + other.totals)


def number_of_classes(labels: NDArray[np.integer]) -> int:
    """One more than the largest label, at least 1.

    Examples
    --------
    >>> number_of_classes(np.array([-1, 2, 0])), number_of_classes(np.array([-1]))
    (3, 1)
    """
    return max(int(labels.max(initial=-1)) + 1, 1)


def class_sums(
    states: StatesLike, labels: NDArray[np.integer], *, n_classes: int, chunk_size: int = CHUNK_SIZE
) -> ClassSums:
    """Sum up the states of each class; shapes as in `class_geometry`.

    Raises
    ------
    AnalysisError
        If the shapes disagree.

    Examples
    --------
    >>> found = class_sums(np.array([[1.0], [2.0], [4.0]]), np.array([0, 1, 1]), n_classes=2)
    >>> found.counts, found.totals
    (array([1, 2]), array([[1.],
           [6.]]))
    """
    check_states_and_labels(states, labels)
    sums = ClassSums(np.zeros(n_classes, dtype=np.int64), np.zeros((n_classes, states.shape[1])))
    for rows, values, seen in state_chunks(states, chunk_size=chunk_size):
        known = seen & (labels[rows] >= 0)
        one_hot = np.eye(n_classes)[labels[rows][known]]
        sums += ClassSums(one_hot.sum(axis=0).astype(np.int64), one_hot.T @ values[known])
    return sums


def mean_state(states: StatesLike, *, chunk_size: int = CHUNK_SIZE) -> NDArray[np.float32]:
    """Mean of the states that were seen, shape (hidden,); zero if there is none.

    Examples
    --------
    >>> mean_state(np.array([[1.0, 2.0], [3.0, 6.0], [np.nan, 0.0]]))
    array([2., 4.], dtype=float32)
    """
    total = np.zeros(states.shape[1])
    n_seen = 0
    for _, values, seen in state_chunks(states, chunk_size=chunk_size):
        total += values.sum(axis=0, dtype=np.float64)
        n_seen += int(np.count_nonzero(seen))
    return (total / max(n_seen, 1)).astype(np.float32)


def _davies_bouldin(means: NDArray[np.float64], radii: NDArray[np.float64]) -> float:
    if len(means) < 2:
        return np.nan
    squares = (means**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, np.newaxis] + squares - 2 * means @ means.T, 0))
    np.fill_diagonal(apart, np.inf)
    if not apart.all():
        return np.nan  # two classes have one mean
    return float(((radii[:, np.newaxis] + radii) / apart).max(axis=1).mean())


def _silhouette(states: StatesLike, labels: NDArray[np.integer], ids: NDArray[np.int64]) -> float:
    from sklearn.metrics import silhouette_score

    values = np.asarray(states[ids], dtype=np.float64)
    seen = np.isfinite(values).all(axis=1)
    values, own = values[seen], labels[ids][seen]
    n_present = len(np.unique(own))
    return float(silhouette_score(values, own)) if 2 <= n_present < len(own) else np.nan


def _with_constant(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([values, np.ones((len(values), 1), dtype=np.float32)], axis=1)


def _solved(gram: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float32]:
    # Where a value never varies and nothing is penalised the equations have no single solution.
    jitter = 1e-9 * np.trace(gram) / len(gram)
    solved: NDArray[Any] = cho_solve(cho_factor(gram + jitter * np.eye(len(gram))), target)
    return solved.astype(np.float32)
