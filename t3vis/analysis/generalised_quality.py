"""Label quality for tasks without one gold class: several labels, and numbers.

Token labelling needs no function of its own: give `suspected_errors` one row for each token, and `by_sentence` what it
finds. For sequences `sequence_scores` says how credible each target is in one pass.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.generalised import check_targets, mean_of_known, target_scale
from t3vis.analysis.label_quality import Suspects, Votes, suspects_of_some
from t3vis.analysis.nearest import Neighbours
from t3vis.analysis.trajectories import CHUNK_SIZE, Columns, LogitsLike, by_example, is_seen, mean_over_epochs


def multi_label_suspects(
    logits: LogitsLike,
    targets: NDArray[Any],
    *,
    neighbours: Neighbours | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Suspects:
    """Score examples that have any number of labels by the least credible of these.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_labels), before the sigmoid.
    targets
        Shape (n_examples, n_labels), 0 or 1; NaN where not known.
    neighbours, chunk_size
        As in `suspected_errors`.

    Returns
    -------
    Each label is a task of two classes, given or not, as `suspected_errors` judges it. Score and evidence of an example
    are those of its most suspicious label, which is ``suggested_label``: the one to give, or to take away.

    Raises
    ------
    AnalysisError
        If the shapes disagree, a target is neither 0 nor 1, or `chunk_size` is below one.

    Examples
    --------
    The second label is given, at a probability of 1/4:

    >>> found = multi_label_suspects(np.log([[[3.0, 1 / 3]]]), np.array([[1, 1]]))
    >>> found.score, found.suggested_label
    (array([0.75]), array([1]))
    """
    check_targets(logits, targets, are_labels=True)
    labels = np.nan_to_num(targets.astype(np.float64), nan=-1).astype(np.int64)
    votes = None if neighbours is None else Votes(neighbours, len(labels))

    def judged(some: NDArray[Any], of_some: NDArray[np.int64], examples: slice) -> Columns:
        known = np.where(is_seen(some)[..., np.newaxis], some, np.nan)
        found = []
        for number in range(of_some.shape[1]):
            two_classes = np.stack([np.zeros_like(known[..., number]), known[..., number]], axis=-1)
            shares = None if votes is None else votes.shares(examples, labels[:, number], 2)
            found.append(suspects_of_some(two_classes, of_some[:, number], shares).as_columns())
        return _most_suspicious(found)

    return Suspects(**by_example(judged, logits, labels, chunk_size=chunk_size))


def regression_suspects(
    predictions: LogitsLike,
    targets: NDArray[Any],
    *,
    neighbours: Neighbours | None = None,
    scale: float | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Suspects:
    """Score examples whose labels are numbers by how far these lie from what the model and the neighbours say.

    Parameters
    ----------
    predictions, targets, scale
        As in `regression_map`.
    neighbours, chunk_size
        As in `suspected_errors`.

    Returns
    -------
    Credible to the model is the confidence of `regression_map`: ``exp(-|r| / s)`` with r the residual, its mean over
    outputs and epochs. To the neighbours it is the same of their weighted mean target. The score is one minus the
    mean of both, in which the neighbours count twice. There is no suggested label, and no evidence that is of classes.

    Raises
    ------
    AnalysisError
        If the shapes disagree, `scale` is not positive, or `chunk_size` is below one.

    Examples
    --------
    >>> regression_suspects(np.array([[[1.0], [5.0]]]), np.array([[1.0], [1.0]]), scale=2).score.round(3)
    array([0.   , 0.865])
    """
    check_targets(predictions, targets)
    values, unit = targets.astype(np.float64), target_scale(targets, scale)
    votes = None if neighbours is None else Votes(neighbours, len(values))

    def close(expected: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
        usable = ~np.isnan(given) & ~np.isnan(expected)
        found = mean_of_known(np.exp(-np.abs(expected - given) / unit), usable)
        return np.where(usable.any(axis=-1), found, np.nan)

    def judged(some: NDArray[Any], of_some: NDArray[np.float64], examples: slice) -> Columns:
        seen = np.where(is_seen(some)[..., np.newaxis], some.astype(np.float64), np.nan)
        confidence = mean_over_epochs(close(seen, of_some))
        unknown = np.full(len(of_some), np.nan)
        agreement = unknown if votes is None else close(_mean_of_neighbours(votes, examples, values), of_some)
        agreement = np.where(np.isnan(confidence), np.nan, agreement)
        return Suspects(
            score=1 - np.where(np.isnan(agreement), confidence, (confidence + 2 * agreement) / 3),
            suggested_label=np.full(len(of_some), -1),
            suggested_prob=unknown,
            self_confidence=confidence,
            normalized_margin=unknown,
            confidence_weighted_entropy=unknown,
            aum=unknown,
            neighbour_agreement=agreement,
        ).as_columns()

    return Suspects(**by_example(judged, predictions, values, chunk_size=chunk_size))


def _most_suspicious(of_labels: list[Columns]) -> Columns:
    """For each example the columns of the label with the highest score, whose number is the suggestion."""
    scores = np.nan_to_num(np.stack([columns["score"] for columns in of_labels]), nan=-1)
    worst = scores.argmax(axis=0)
    rows = np.arange(len(worst))
    found = {name: np.stack([columns[name] for columns in of_labels])[worst, rows] for name in of_labels[0]}
    return {**found, "suggested_label": np.where(scores[worst, rows] >= 0, worst, -1)}


def _mean_of_neighbours(votes: Votes, examples: slice, targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean of the neighbours' targets, shape (n_rows, n_outputs); NaN where none is known."""
    ids, weights = votes.weights(examples)
    known = ~np.isnan(targets)
    total = np.einsum("nk,nko->no", weights, np.where(known, targets, 0)[ids])
    weight = np.einsum("nk,nko->no", weights, known[ids])
    mean = np.full(total.shape, np.nan)
    np.divide(total, weight, out=mean, where=weight > 0)
    return mean
