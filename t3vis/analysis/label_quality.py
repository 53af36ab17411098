"""Label quality: which examples probably carry a wrong label, and which label would suit them."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.margins import margins_of
from t3vis.analysis.nearest import Neighbours
from t3vis.analysis.trajectories import (
    CHUNK_SIZE,
    Columns,
    LogitsLike,
    by_example,
    check_logits_and_labels,
    classes_first,
    mean_over_epochs,
    softmax,
)
from t3vis.errors import AnalysisError

MAX_FOR_MEDIAN = 100_000
"""Of more examples than this, some are enough for a median of distances."""

MOST_NEIGHBOURS = 100
"""Neighbours that are asked about a label: a tenth of a small data set, so that they are near, and at most so many."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """How suspicious the label of every example is, and why; each array has shape (n_examples,).

    All but the suggestion are NaN for an example that has no label or was never seen.
    """

    score: NDArray[np.float64]
    """In [0, 1]; 1 is most probably a wrong label."""
    suggested_label: NDArray[np.int64]
    """The most credible class, the given label left out; -1 for an example that was never seen."""
    suggested_prob: NDArray[np.float64]
    """How credible the suggested label is, in [0, 1]; NaN where there is none."""
    self_confidence: NDArray[np.float64]
    """Mean probability of the given label, in [0, 1]: the confidence of the data map. Low is suspicious, here and
    below."""
    normalized_margin: NDArray[np.float64]
    """As `normalized_margin` has it, of the mean probabilities, in [0, 1]; below 1/2 another class is more probable."""
    confidence_weighted_entropy: NDArray[np.float64]
    """As `confidence_weighted_entropy` has it, of the mean probabilities, in [0, 1]."""
    aum: NDArray[np.float64]
    """Area under the margin, in logits; negative when the given label mostly lost."""
    neighbour_agreement: NDArray[np.float64]
    """As `neighbour_agreement` has it, in [0, 1]; NaN where there are no neighbours."""

    @property
    def n_examples(self) -> int:
        """Examples judged, those without a score included."""
        return len(self.score)

    def as_columns(self) -> dict[str, NDArray[Any]]:
        """Return the per-example arrays by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def ranking(self) -> NDArray[np.int64]:
        """Order the examples from the most to the least suspicious.

        Returns
        -------
        Their ids, shape (n_examples,). Examples of equal score are ordered by ``aum``, lowest first, then by
        id; those without a score come last.
        """
        return np.lexsort((self.aum, -self.score)).astype(np.int64)


def suspected_errors(
    logits: LogitsLike,
    labels: NDArray[np.integer],
    *,
    neighbours: Neighbours | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Suspects:
    """Score every label by how little the model and the neighbours believe it, and suggest another one.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_classes), at least two classes. A row with NaN or an infinity is an
        epoch in which that example was not seen.
    labels
        Shape (n_examples,), below ``n_classes``. Any negative label means that there is none.
    neighbours
        Of all examples, in the space of their hidden states; best 100 of them, by the `MeanDirection` over the epochs
        of several layers `SideBySide`.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Returns
    -------
    A class is as credible as its mean probability over the epochs in which the example was seen; where there are
    neighbours, `credibility` joins that with its share among them. The score is one minus the credibility of the given
    label. Without neighbours that is one minus the confidence of the data map.

    Raises
    ------
    AnalysisError
        If the shapes disagree, a label is out of range, there are fewer than two classes, or `chunk_size` is
        below one.

    Notes
    -----
    The combination was chosen by ``benchmarks/bench_label_quality.py --tuning``, on other examples than those that the
    benchmark reports on. The model comes to memorise wrong labels, at once in its probabilities, later in where its
    last layer puts the example, and least in its first layers: so neighbours are best looked for in several layers.

    References
    ----------
    Swayamdipta et al. (2020), "Dataset Cartography", section 5, detects mislabelled examples by low
    confidence; Pleiss et al. (2020) by a low area under the margin, which breaks ties here.

    Examples
    --------
    One epoch, three examples; the label of the second is the most suspicious:

    >>> logits = np.log([[[8.0, 1.0, 1.0], [1.0, 6.0, 1.0], [2.0, 1.0, 5.0]]])
    >>> suspects = suspected_errors(logits, np.array([0, 0, 2]))
    >>> suspects.score
    array([0.2  , 0.875, 0.375])
    >>> suspects.suggested_label
    array([1, 1, 0])
    >>> suspects.ranking()
    array([1, 2, 0])
    """
    check_logits_and_labels(logits, labels, min_classes=2)
    votes = None if neighbours is None else Votes(neighbours, len(labels))

    def means(some: NDArray[Any], of_some: NDArray[np.integer], _: slice) -> Columns:
        probs, aum = _means(some, of_some)
        return {"probs": probs, "aum": aum}

    def judged(means: Columns, of_some: NDArray[np.integer], examples: slice) -> Columns:
        shares = None if votes is None else votes.shares(examples, labels, logits.shape[2])
        return _judged(np.ascontiguousarray(means["probs"].T), means["aum"], of_some, shares).as_columns()

    return Suspects(**by_example(means, logits, labels, then=judged, chunk_size=chunk_size))


def credibility(of_model: NDArray[np.floating], of_neighbours: NDArray[np.floating]) -> NDArray[np.float64]:
    """How credible each class is by the model and the neighbours: their product, in which the neighbours count twice.

    Parameters
    ----------
    of_model, of_neighbours
        Shape (n_examples, n_classes); each row sums to one, or is NaN.

    Returns
    -------
    Shape (n_examples, n_classes): proportional to ``(p + 1/c) * (s + 1/c)**2`` for the probability p, the share s and c
    classes; each row sums to one. Where the neighbours' is NaN that of the model stands alone.

    Notes
    -----
    A mean would take a model that knows nothing yet for one that believes nothing; its factor is the same for every
    class. What is added keeps either from ruling a class out.

    Examples
    --------
    >>> credibility(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([[0.3, 0.7], [np.nan, np.nan]])).round(3)
    array([[0.509, 0.491],
           [0.9  , 0.1  ]])
    """
    equal = 1 / of_model.shape[1]
    together = (of_model.astype(np.float64) + equal) * np.square(of_neighbours + equal)
    together /= together.sum(axis=1, keepdims=True)
    return np.where(np.isnan(of_neighbours), of_model, together)


def normalized_margin(probs: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Probability of the given label minus the highest other one, brought to [0, 1].

    Parameters
    ----------
    probs
        Shape (n_examples, n_classes), at least two classes; each row sums to one, or is NaN.
    labels
        Shape (n_examples,), below ``n_classes``; negative where there is none.

    Returns
    -------
    Shape (n_examples,), in [0, 1]; below 1/2 another class is more probable. NaN where there is no label.

    References
    ----------
    Northcutt et al. (2021), "Confident Learning: Estimating Uncertainty in Dataset Labels", section 3; brought to
    [0, 1] as cleanlab does.

    Examples
    --------
    >>> normalized_margin(np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]), np.array([0, 0]))
    array([0.75, 0.25])
    """
    labelled, column = _column(labels)
    others = probs.astype(np.float64)
    given = np.take_along_axis(others, column, axis=-1)[:, 0]
    np.put_along_axis(others, column, -np.inf, axis=-1)
    return np.where(labelled, (given - others.max(axis=-1) + 1) / 2, np.nan)


def confidence_weighted_entropy(probs: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Entropy of the probabilities over that of the given label, brought to [0, 1].

    Parameters
    ----------
    probs, labels
        As in `normalized_margin`.

    Returns
    -------
    ``log(1 + h / p) / (h / p)``, with h the entropy over that of equal probabilities and p the probability of the
    given label; shape (n_examples,), in [0, 1], low for labels that are suspicious. NaN where there is no label.

    Notes
    -----
    A label that is certain has 1, the limit of the formula; cleanlab gives it 0, the lowest quality.

    References
    ----------
    Kuan and Mueller (2022), "Model-agnostic label quality scoring to detect real-world label errors", section 3;
    brought to [0, 1] as cleanlab does.

    Examples
    --------
    >>> confidence_weighted_entropy(np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([0, 0])).round(3)
    array([0.549, 0.805])
    """
    labelled, column = _column(labels)
    values = probs.astype(np.float64)
    given = np.maximum(np.take_along_axis(values, column, axis=-1)[:, 0], 1e-6)
    # Where a probability is 0 so is its part of the entropy.
    entropy = -np.einsum("nc,nc->n", values, np.log(np.maximum(values, 1e-300))) / np.log(values.shape[1])
    ratio = np.maximum(entropy, 0) / given
    # Without entropy one class is certain: the given one, or another.
    quality = np.where(ratio > 1e-6, np.log1p(ratio) / np.maximum(ratio, 1e-6), given > 1 / 2)
    return np.where(labelled, quality, np.nan)


def neighbour_agreement(
    neighbours: Neighbours, labels: NDArray[np.integer], *, chunk_size: int = CHUNK_SIZE
) -> NDArray[np.float64]:
    """Share of the neighbours of every example that carry its label, near ones counting more.

    Parameters
    ----------
    neighbours
        Of all examples.
    labels
        Shape (n_examples,); negative where there is none. Neighbours without a label are left out.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Returns
    -------
    Shape (n_examples,), in [0, 1]; NaN for an example without a label or without labelled neighbours. A neighbour at
    distance d has the weight ``exp(-8 * d / m)``, with m the median of all distances to neighbours; of more than
    100,000 examples, that of every second, third, ... example.

    Raises
    ------
    AnalysisError
        If there are not as many labels as examples with neighbours.

    Examples
    --------
    Distances 1, 3, then 1, 2, then 2, 3, of median 2; the first example's weights are exp(-4) and exp(-12):

    >>> from t3vis.analysis.nearest import nearest_neighbours
    >>> near = nearest_neighbours(np.array([[0.0], [1.0], [3.0]]), k=2, metric="euclidean")
    >>> neighbour_agreement(near, np.array([0, 0, 1])).round(3)
    array([1.   , 0.982, 0.   ])
    """
    votes, n_classes = Votes(neighbours, len(labels)), max(int(labels.max(initial=-1)) + 1, 1)
    labelled, column = _column(labels)
    found = np.full(len(labels), np.nan)
    for start in range(0, len(labels), chunk_size):
        rows = slice(start, start + chunk_size)
        own = np.take_along_axis(votes.shares(rows, labels, n_classes), column[rows], axis=1)[:, 0]
        found[rows] = np.where(labelled[rows], own, np.nan)
    return found


def n_voters(n_examples: int) -> int:
    """How many neighbours of each example are asked about its label.

    Examples
    --------
    >>> [n_voters(n) for n in (50, 500, 50_000)]
    [10, 50, 100]
    """
    return max(10, min(MOST_NEIGHBOURS, n_examples // 10))


def voting_sample(n_examples: int) -> slice:
    """Which examples the `vote_scale` is taken of: every second, third, ... of more than 100,000.

    Examples
    --------
    >>> voting_sample(250_000)
    slice(None, None, 3)
    """
    return slice(None, None, -(-n_examples // MAX_FOR_MEDIAN) or 1)


def vote_scale(distances: NDArray[np.float64]) -> float:
    """Median of the known distances to neighbours; 1 where it is 0, or none is known.

    Examples
    --------
    >>> vote_scale(np.array([[0.1, 0.3], [0.5, np.nan]])), vote_scale(np.zeros((2, 2)))
    (0.3, 1.0)
    """
    known = distances[~np.isnan(distances)]
    return float(np.median(known)) if known.size and np.median(known) > 0 else 1.0


class Votes:
    """The neighbours of every example as voters, near ones counting more; for some examples at a time.

    Parameters
    ----------
    neighbours
        Of the examples.
    n_examples
        As many as there are labels.
    scale
        The distance that weights are measured by; by default the `vote_scale` of these neighbours.

    Raises
    ------
    AnalysisError
        If there are not as many labels as examples with neighbours.
    """

    def __init__(self, neighbours: Neighbours, n_examples: int, *, scale: float | None = None) -> None:
        if len(neighbours.ids) != n_examples:
            raise AnalysisError(
                f"there are neighbours of {len(neighbours.ids)} examples but labels of {n_examples}; "
                "pass those of the same examples in the same order."
            )
        self._neighbours = neighbours
        self._scale = vote_scale(neighbours.distances[voting_sample(n_examples)]) if scale is None else scale

    def weights(self, rows: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Ids of the neighbours and what they weigh, shape (n_rows, k); 0 where there is none, with any id."""
        ids, distances = self._neighbours.ids[rows], self._neighbours.distances[rows]
        # From the nearest on, so that far ones do not all vanish together.
        weights = np.exp(-8 * (distances - distances[:, :1]) / self._scale)
        return ids, np.where(ids >= 0, weights, 0)

    def shares(self, rows: slice, labels: NDArray[np.integer], n_classes: int) -> NDArray[np.float64]:
        """Share of each class among the neighbours, shape (n_rows, n_classes); NaN without labelled neighbours.

        `labels` are those of all examples, negative where there is none.
        """
        ids, weights = self.weights(rows)
        of_voter = labels[ids]
        votes = of_voter >= 0
        cell = np.arange(len(ids))[:, np.newaxis] * n_classes + of_voter
        size = len(ids) * n_classes
        counted = np.bincount(cell[votes], weights=weights[votes], minlength=size).reshape(len(ids), n_classes)
        total = counted.sum(axis=1, keepdims=True)
        shares = np.full(counted.shape, np.nan)
        np.divide(counted, total, out=shares, where=total > 0)
        return shares


@dataclass(frozen=True, eq=False)
class ConfidentCounts:
    """What confident learning says of the noise in the labels."""

    joint: NDArray[np.float64]
    """Shape (n_classes, n_classes): estimated share of all examples with this given and this true label."""
    noise_matrix: NDArray[np.float64]
    """Shape (n_classes, n_classes): probability of the given label (row) where the true label is the column's."""
    is_error: NDArray[np.bool_]
    """Shape (n_examples,): off the diagonal of the confident counts, and least probable of those there."""

    @property
    def n_errors(self) -> int:
        """Estimated number of wrong labels among the examples that were counted."""
        return int(np.count_nonzero(self.is_error))


def confident_learning(probs: NDArray[np.floating], labels: NDArray[np.integer]) -> ConfidentCounts:
    """Noise between the classes and examples off the diagonal, by the library cleanlab.

    Parameters
    ----------
    probs
        Shape (n_examples, n_classes), out of sample; a row with NaN, or without a label, is left out of the counts and
        is no error.
    labels
        Shape (n_examples,), below ``n_classes``; negative where there is none.

    Raises
    ------
    AnalysisError
        If cleanlab is not installed, the shapes disagree, a label is out of range, or a class has no example.

    Notes
    -----
    The probabilities are meant to come from a model that was not trained on the example. Those recorded in training
    are not of that kind, and make too few errors of what the model has memorised.

    References
    ----------
    Northcutt et al. (2021), section 3: confident joint and pruning by noise rate, as cleanlab 2 has them.

    Examples
    --------
    >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9]])
    >>> confident_learning(probs, np.array([0, 0, 1, 1, 0])).is_error
    array([False, False, False, False,  True])
    """
    try:
        from cleanlab.count import compute_confident_joint, estimate_joint, estimate_latent
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise AnalysisError(
            'confident learning needs the library cleanlab; install it with: pip install "t3vis[cleanlab]"'
        ) from error
    check_logits_and_labels(probs[np.newaxis], labels, min_classes=2)
    counted = np.flatnonzero((labels >= 0) & np.isfinite(probs).all(axis=1))
    missing = np.flatnonzero(np.bincount(labels[counted], minlength=probs.shape[1]) == 0)
    if len(missing):
        raise AnalysisError(f"class {missing[0]} has no example; confident learning needs one of every class.")
    kept_labels, kept_probs = labels[counted].astype(np.int64), probs[counted].astype(np.float64)
    counts = compute_confident_joint(kept_labels, kept_probs)
    _, noise_matrix, _ = estimate_latent(counts, kept_labels)
    issues = find_label_issues(kept_labels, kept_probs, confident_joint=counts, n_jobs=1)
    is_error = np.zeros(len(labels), dtype=np.bool_)
    is_error[counted[issues]] = True
    return ConfidentCounts(estimate_joint(kept_labels, kept_probs, confident_joint=counts), noise_matrix, is_error)


def _means(logits: NDArray[Any], labels: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean probability of every class, shape (n_classes, n_examples), and area under the margin, from one copy.

    Over the epochs in which an example was seen; NaN for one that never was.
    """
    values, top, seen = classes_first(logits)
    aum = mean_over_epochs(margins_of(values, seen, labels))
    softmax(values, top)
    values[:, ~seen] = 0
    n_seen = seen.sum(axis=0)
    probs = values.sum(axis=1, dtype=np.float64)
    probs /= np.where(n_seen > 0, n_seen, np.nan)
    return probs, aum


def suspects_of_some(logits: NDArray[Any], labels: NDArray[np.integer], shares: NDArray[np.float64] | None) -> Suspects:
    """Do what `suspected_errors` does, for logits in memory and the shares of the classes among the neighbours."""
    probs, aum = _means(logits, labels)
    return _judged(np.ascontiguousarray(probs.T), aum, labels, shares)


def _judged(
    probs: NDArray[np.float64],
    aum: NDArray[np.float64],
    labels: NDArray[np.integer],
    shares: NDArray[np.float64] | None,
) -> Suspects:
    """Suspects by the mean probabilities of shape (n_examples, n_classes), the areas, and the shares of the classes."""
    seen = ~np.isnan(probs[:, 0])
    labelled, column = _column(labels)

    def given(of_class: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(labelled & seen, np.take_along_axis(of_class, column, axis=-1)[:, 0], np.nan)

    credible = probs.copy() if shares is None else credibility(probs, shares)
    score = 1 - given(credible)
    suggested, suggested_prob = _best_other(credible, labels)
    return Suspects(
        score=score,
        suggested_label=np.where(seen, suggested, -1),
        suggested_prob=suggested_prob,
        self_confidence=given(probs),
        normalized_margin=normalized_margin(probs, labels),
        confidence_weighted_entropy=confidence_weighted_entropy(probs, labels),
        aum=aum,
        neighbour_agreement=np.full(len(labels), np.nan) if shares is None else given(shares),
    )


def _best_other(
    credible: NDArray[np.float64], labels: NDArray[np.integer]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The most credible class but the given one, and how credible it is; overwrites `credible`."""
    rows = np.flatnonzero(labels >= 0)
    credible[rows, labels[rows]] = -1
    best = credible.argmax(axis=-1)
    return best, np.take_along_axis(credible, best[:, np.newaxis], axis=-1)[:, 0]


def _column(labels: NDArray[np.integer]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which examples have a label, and their labels as a column, 0 where there is none."""
    labelled = labels >= 0
    return labelled, np.where(labelled, labels, 0)[:, np.newaxis].astype(np.int64)
