"""The quantities of a data map for tasks without one gold class: several labels, numbers, tokens, sequences.

What takes the place of the gold-label probability is said with each function. Token labelling needs no function of
its own for its tokens: give `data_map` and `suspected_errors` one row for each token, and `by_sentence` their result.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.data_map import DataMap, map_by_example, map_of
from t3vis.analysis.trajectories import (
    CHUNK_SIZE,
    Columns,
    LogitsLike,
    Trajectories,
    by_example,
    is_seen,
    mean_over_epochs,
)
from t3vis.errors import AnalysisError

IGNORED_LABEL = -100


def multi_label_map(
    logits: LogitsLike,
    targets: NDArray[Any],
    *,
    burn_in: int = 0,
    burn_out: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> DataMap:
    """Training dynamics of examples that have any number of labels.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_labels), before the sigmoid.
    targets
        Shape (n_examples, n_labels), 0 or 1; NaN where not known.
    burn_in, burn_out, chunk_size
        As in `data_map`.

    Returns
    -------
    The map of the mean over the known labels of p for a label that is given and 1 - p for one that is not. An example
    is right where all of its known labels are: given exactly if p > 1/2.

    Raises
    ------
    AnalysisError
        If the shapes disagree, a target is neither 0 nor 1, no epoch is left, or `chunk_size` is below one.

    Examples
    --------
    >>> logits = np.log([[[3.0, 1 / 3], [1.0, 1 / 4]]])
    >>> multi_label_map(logits, np.array([[1, 0], [1, 0]])).confidence
    array([0.75, 0.65])
    """
    check_targets(logits, targets, are_labels=True)

    def mapped(some: NDArray[Any], of_some: NDArray[Any], _: slice) -> Columns:
        return map_of(_multi_label_trajectories(some, of_some)).as_columns()

    return map_by_example(mapped, logits, targets, burn_in=burn_in, burn_out=burn_out, chunk_size=chunk_size)


def _multi_label_trajectories(logits: NDArray[Any], targets: NDArray[Any]) -> Trajectories:
    """What takes the place of gold-label probability and prediction, epoch by epoch, for logits in memory."""
    right_side = signed_logits(logits, targets)
    is_known = ~np.isnan(targets.astype(np.float64))
    seen = is_seen(logits)
    usable = seen & is_known.any(axis=-1)
    with np.errstate(over="ignore"):
        probs = np.where(is_known, 1 / (1 + np.exp(-right_side)), 0)
    # Given exactly if p > 1/2: at p = 1/2 a label that is not given is right.
    right = np.where(targets == 1, right_side > 0, right_side >= 0)
    return Trajectories(
        gold_probs=np.where(usable, mean_of_known(probs, is_known), np.nan),
        correct=usable & (right | ~is_known).all(axis=-1),
        seen=seen,
    )


def mean_of_known(values: NDArray[np.float64], is_known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the last axis of the values that are known; 0 where none is.

    Examples
    --------
    >>> mean_of_known(np.array([[0.2, 0.4, 9.0]]), np.array([[True, True, False]])).round(3)
    array([0.3])
    """
    total = np.where(is_known, values, 0).sum(axis=-1)
    return np.asarray(total / np.maximum(is_known.sum(axis=-1), 1))


def multi_label_aum(logits: LogitsLike, targets: NDArray[Any], *, chunk_size: int = CHUNK_SIZE) -> NDArray[np.float64]:
    """Area under the margin of every label of every example: the mean over the epochs of ``(2 * y - 1) * z``.

    Parameters
    ----------
    logits, targets, chunk_size
        As in `multi_label_map`.

    Returns
    -------
    Shape (n_examples, n_labels), in logits. Low where the label is probably wrong; NaN where it is not known, or the
    example was never seen.

    Raises
    ------
    AnalysisError
        If the shapes disagree or `chunk_size` is below one.

    Notes
    -----
    With two classes whose logits are z and 0 this is the margin of Pleiss et al. (2020).

    Examples
    --------
    >>> multi_label_aum(np.array([[[2.0, -1.0]], [[4.0, 1.0]]]), np.array([[1, 0]]))
    array([[3., 0.]])
    """
    check_targets(logits, targets)

    def areas(some: NDArray[Any], of_some: NDArray[Any], _: slice) -> Columns:
        signed = signed_logits(some, of_some)
        signed[~is_seen(some)] = np.nan
        return {"aum": mean_over_epochs(signed).T}

    return np.ascontiguousarray(by_example(areas, logits, targets, chunk_size=chunk_size)["aum"].T)


def signed_logits(logits: NDArray[Any], targets: NDArray[Any]) -> NDArray[np.float64]:
    """``(2 * y - 1) * z``: positive where the prediction agrees with the label; NaN where it is not known.

    Shapes (n_epochs, n_examples, n_labels) and (n_examples, n_labels), in memory.

    Examples
    --------
    >>> signed_logits(np.array([[[2.0, -1.0]]]), np.array([[0, 0]]))
    array([[[-2.,  1.]]])
    """
    signed: NDArray[np.float64] = (2 * targets.astype(np.float64) - 1) * logits.astype(np.float64)
    return signed


def regression_map(
    predictions: LogitsLike,
    targets: NDArray[Any],
    *,
    scale: float | None = None,
    burn_in: int = 0,
    burn_out: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> DataMap:
    """Training dynamics of examples whose labels are numbers.

    Parameters
    ----------
    predictions
        Shape (n_epochs, n_examples, n_outputs).
    targets
        Shape (n_examples, n_outputs); NaN where not known.
    scale
        The one distance s, in units of the targets, that all examples and epochs are measured by. By default the
        standard deviation of the known targets, and 1 where that is 0.
    burn_in, burn_out, chunk_size
        As in `data_map`.

    Returns
    -------
    The map of ``exp(-|r| / s)``, its mean over the known outputs, with r the residual. An example is right where that
    is at least 1/2: at one output, within 0.69 s. ``variability`` is that of the prediction, its standard deviation
    over the epochs divided by s, and unlike elsewhere not bounded.

    Raises
    ------
    AnalysisError
        If the shapes disagree, `scale` is not positive, no epoch is left, or `chunk_size` is below one.

    Notes
    -----
    There is no such map in the paper. A scale that changed with the epoch would make every epoch look alike.

    Examples
    --------
    >>> found = regression_map(np.array([[[1.0]], [[3.0]]]), np.array([[1.0]]), scale=2)
    >>> found.confidence.round(3), found.variability
    (array([0.684]), array([0.5]))
    """
    check_targets(predictions, targets)
    unit = target_scale(targets, scale)

    def mapped(some: NDArray[Any], of_some: NDArray[Any], _: slice) -> Columns:
        is_known = ~np.isnan(of_some.astype(np.float64))
        seen = is_seen(some)
        usable = seen & is_known.any(axis=-1)
        values = np.where(usable[..., np.newaxis], some.astype(np.float64), np.nan)
        close = mean_of_known(np.exp(-np.abs(values - of_some) / unit), is_known)
        course = Trajectories(np.where(usable, close, np.nan), usable & (close >= 0.5), seen)
        deviation = np.sqrt(mean_over_epochs(np.square(values - mean_over_epochs(values))))
        spread = np.where(usable.any(axis=0), mean_of_known(deviation, is_known) / unit, np.nan)
        return replace(map_of(course), variability=spread).as_columns()

    return map_by_example(mapped, predictions, targets, burn_in=burn_in, burn_out=burn_out, chunk_size=chunk_size)


def target_scale(targets: NDArray[Any], scale: float | None) -> float:
    """Return the distance that residuals are measured by: `scale`, or the standard deviation of the known targets.

    Where that is 0 it is 1. Raises `AnalysisError` if `scale` is not positive.

    Examples
    --------
    >>> target_scale(np.array([[1.0], [5.0], [np.nan]]), None)
    2.0
    """
    if scale is None:
        known = targets[~np.isnan(targets.astype(np.float64))]
        return (float(known.std()) if known.size else 0.0) or 1.0
    if not scale > 0:
        raise AnalysisError(f"scale is {scale} but must be positive, in units of the targets.")
    return scale


def by_sentence(
    values: NDArray[np.floating],
    offsets: NDArray[np.integer],
    *,
    reduction: Literal["min", "softmin"] = "softmin",
    temperature: float = 0.05,
) -> NDArray[np.float64]:
    """One value for each sentence from those of its tokens, such that its worst token decides.

    Parameters
    ----------
    values
        Shape (n_tokens,), of all sentences one after another, low for bad tokens; NaN where not known.
    offsets
        Shape (n_sentences + 1,): sentence i has the tokens ``offsets[i]`` up to ``offsets[i + 1]``.
    reduction
        The minimum, or the mean weighted by ``softmax(-values / temperature)``.
    temperature
        Of the softmin, above 0, in units of the values: towards 0 it is the minimum, towards infinity the mean.

    Returns
    -------
    Shape (n_sentences,); NaN for a sentence without a known token.

    Raises
    ------
    AnalysisError
        If the offsets do not run from 0 to n_tokens without going back, or `temperature` is not positive.

    References
    ----------
    Wang and Mueller (2022), "Detecting Label Errors in Token Classification Data", whose default is the minimum.

    Examples
    --------
    >>> by_sentence(np.array([0.9, 0.1, 0.8]), np.array([0, 2, 2, 3]), reduction="min")
    array([0.1, nan, 0.8])
    """
    n_sentences = len(offsets) - 1
    if n_sentences < 0 or offsets[0] != 0 or offsets[-1] != len(values) or np.any(np.diff(offsets) < 0):
        raise AnalysisError(
            f"the offsets must run from 0 to the {len(values)} tokens without going back; "
            "pass the beginning of each sentence and the end of the last."
        )
    if not temperature > 0:
        raise AnalysisError(f"temperature is {temperature} but must be positive.")
    sentence = np.repeat(np.arange(n_sentences), np.diff(offsets))
    known = ~np.isnan(values)
    sentence, tokens = sentence[known], values[known].astype(np.float64)
    lowest = np.full(n_sentences, np.inf)
    np.minimum.at(lowest, sentence, tokens)
    lowest[np.isinf(lowest)] = np.nan
    if reduction == "min":
        return lowest
    weights = np.exp(-(tokens - lowest[sentence]) / temperature)
    total = np.bincount(sentence, weights=weights, minlength=n_sentences)
    soft = np.full(n_sentences, np.nan)
    np.divide(np.bincount(sentence, weights=weights * tokens, minlength=n_sentences), total, out=soft, where=total > 0)
    return soft


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """How well every target sequence was predicted in one pass; each array has shape (n_examples,)."""

    mean_prob: NDArray[np.float64]
    """Geometric mean of the probabilities of its tokens, in [0, 1]: one over the perplexity."""
    token_accuracy: NDArray[np.float64]
    """Share of its tokens with the highest logit, in [0, 1]."""
    mean_margin: NDArray[np.float64]
    """Mean over its tokens of the logit minus the largest other one."""
    n_tokens: NDArray[np.int64]
    """Tokens that count; where there is none the other values are NaN."""


def sequence_scores(logits: NDArray[Any], labels: NDArray[np.integer], *, causal: bool) -> SequenceScores:
    """What takes the place of gold-label probability, correctness and margin where the label is a sequence.

    Parameters
    ----------
    logits
        Shape (n_examples, n_positions, n_classes), in memory: a batch of one pass.
    labels
        Shape (n_examples, n_positions), token ids; negative ones (-100) are left out.
    causal
        Whether position i predicts the token at i + 1, as in a decoder-only model. An encoder-decoder predicts the
        token at i.

    Returns
    -------
    Scores of each sequence. Stack ``mean_prob`` over the passes for `confidence` and `variability`.

    Raises
    ------
    AnalysisError
        If the shapes disagree or a label is out of range.

    Notes
    -----
    The geometric mean does not shrink with the length, as the probability of the whole sequence does. A position
    whose logits are not finite is left out.

    Examples
    --------
    Two tokens with probabilities 1/2 and 1/8, the last position left out:

    >>> logits = np.log([[[4.0, 2.0, 2.0], [6.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    >>> found = sequence_scores(logits, np.array([[0, 1, -100]]), causal=False)
    >>> found.mean_prob, found.token_accuracy, found.n_tokens
    (array([0.25]), array([0.5]), array([2]))
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise AnalysisError(
            f"labels has shape {labels.shape} but logits has shape {logits.shape}; "
            "pass (n_examples, n_positions) and (n_examples, n_positions, n_classes)."
        )
    if labels.max(initial=-1) >= logits.shape[2]:
        raise AnalysisError(f"labels holds {labels.max()} but logits has {logits.shape[2]} classes.")
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = (labels >= 0) & is_seen(logits)
    values = np.where(counted[..., np.newaxis], logits, 0).astype(np.float64)
    column = np.where(counted, labels, 0)[..., np.newaxis]
    gold = np.take_along_axis(values, column, axis=-1)[..., 0]
    predicted = values.argmax(axis=-1)
    top = values.max(axis=-1)
    log_prob = gold - top - np.log(np.exp(values - top[..., np.newaxis]).sum(axis=-1))
    np.put_along_axis(values, column, -np.inf, axis=-1)
    margin = gold - values.max(axis=-1)
    n_tokens = np.count_nonzero(counted, axis=1)

    def mean(of_token: NDArray[Any]) -> NDArray[np.float64]:
        found = np.full(n_tokens.shape, np.nan)
        np.divide(np.where(counted, of_token, 0).sum(axis=1), n_tokens, out=found, where=n_tokens > 0)
        return found

    return SequenceScores(np.exp(mean(log_prob)), mean(predicted == labels), mean(margin), n_tokens.astype(np.int64))


def check_targets(logits: LogitsLike, targets: NDArray[Any], *, are_labels: bool = False) -> None:
    """Raise `AnalysisError` unless `targets` has a value for each example and output of `logits`: of labels, 0 or 1."""
    if len(logits.shape) != 3 or targets.shape != tuple(logits.shape[1:]):
        raise AnalysisError(
            f"targets has shape {targets.shape} but logits has shape {tuple(logits.shape)}; "
            "pass (n_examples, n_outputs) and (n_epochs, n_examples, n_outputs)."
        )
    if are_labels and np.any((targets != 0) & (targets != 1) & ~np.isnan(targets.astype(np.float64))):
        raise AnalysisError("targets holds values other than 0 and 1; for numbers use the functions for regression.")
