"""Difficulty of single examples: EL2N, GraNd of the last layer, when they were learned, what their loss did."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.drift import flips
from t3vis.analysis.forgetting import first_learned
from t3vis.analysis.trajectories import (
    CHUNK_SIZE,
    Columns,
    LogitsLike,
    by_example,
    check_logits_and_labels,
    classes_first,
    mean_over_epochs,
    softmax,
    trajectories,
)
from t3vis.errors import AnalysisError


def el2n(
    logits: LogitsLike, labels: NDArray[np.integer], *, epochs: slice = slice(None), chunk_size: int = CHUNK_SIZE
) -> NDArray[np.float64]:
    """Length of the error vector, probabilities minus the one-hot label, averaged over the epochs.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_classes). A row with NaN or an infinity is an epoch in which that example was
        not seen.
    labels
        Shape (n_examples,), below ``n_classes``; negative where there is none.
    epochs
        Which of the epochs count; the score is meant for early ones.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Returns
    -------
    Shape (n_examples,), in [0, sqrt(2)]; high is hard. NaN for an example that has no label or was never seen.

    Raises
    ------
    AnalysisError
        If the shapes disagree, a label is out of range, or `chunk_size` is below one.

    Notes
    -----
    Paul et al. average over ten trainings at one early epoch, after their pass; here one training is averaged over
    epochs, and an example is scored at the moment it is trained on.

    References
    ----------
    Paul et al. (2021), "Deep Learning on a Data Diet: Finding Important Examples Early in Training", definition 2.

    Examples
    --------
    >>> el2n(np.log([[[3.0, 1.0], [1.0, 3.0]]]), np.array([0, 0])).round(3)
    array([0.354, 1.061])
    """
    check_logits_and_labels(logits, labels)

    def norms(some: NDArray[Any], of_some: NDArray[np.integer], _: slice) -> Columns:
        return {"el2n": mean_over_epochs(error_norms(some, of_some))}

    return by_example(norms, logits, labels, chunk_size=chunk_size, epochs=epochs)["el2n"]


@dataclass(frozen=True, eq=False)
class Learning:
    """When every example was learned, and how hard it was; each array has shape (n_examples,)."""

    el2n: NDArray[np.float64]
    """As `el2n` has it, over all epochs."""
    first_learned: NDArray[np.int64]
    """First epoch in which it was predicted right; -1 where there is none."""
    flips: NDArray[np.int64]
    """How often the predicted class changed from one epoch in which it was seen to the next."""

    def as_columns(self) -> dict[str, NDArray[Any]]:
        """Return the per-example arrays by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def learning(logits: LogitsLike, labels: NDArray[np.integer], *, chunk_size: int = CHUNK_SIZE) -> Learning:
    """EL2N, the first epoch learned and the flips of every example, in one reading of the logits.

    Parameters
    ----------
    logits, labels, chunk_size
        As in `el2n`.

    Raises
    ------
    AnalysisError
        As in `el2n`.

    Examples
    --------
    >>> found = learning(np.log([[[1.0, 3.0]], [[3.0, 1.0]], [[3.0, 1.0]]]), np.array([0]))
    >>> found.first_learned, found.flips
    (array([1]), array([1]))
    """
    check_logits_and_labels(logits, labels)

    def learned(some: NDArray[Any], of_some: NDArray[np.integer], _: slice) -> Columns:
        course = trajectories(some, of_some)
        return {
            "el2n": mean_over_epochs(error_norms(some, of_some)),
            "first_learned": first_learned(course.correct, course.seen),
            "flips": flips(some),
        }

    return Learning(**by_example(learned, logits, labels, chunk_size=chunk_size))


def error_norms(logits: NDArray[Any], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Length of the error vector in every epoch, for logits in memory.

    Shapes as in `el2n`. Returns shape (n_epochs, n_examples), in [0, sqrt(2)]; NaN where the example was not seen or
    has no label.

    Examples
    --------
    >>> error_norms(np.log([[[3.0, 1.0]], [[1.0, 3.0]]]), np.array([0])).round(3)
    array([[0.354],
           [1.061]])
    """
    probs, top, seen = classes_first(logits)
    softmax(probs, top)
    probs[np.maximum(labels, 0), :, np.arange(len(labels))] -= 1
    found: NDArray[np.float64] = np.sqrt(np.einsum("cen,cen->en", probs, probs)).astype(np.float64)
    found[~(seen & (labels >= 0))] = np.nan
    return found


def last_layer_grand(
    logits: NDArray[Any], labels: NDArray[np.integer], states: NDArray[Any], *, bias: bool = True
) -> NDArray[np.float64]:
    """Length of the gradient of each example's cross-entropy by the weights of the last linear layer.

    Parameters
    ----------
    logits
        Shape (n_examples, n_classes), of one epoch.
    labels
        Shape (n_examples,), below ``n_classes``; negative where there is none.
    states
        Shape (n_examples, hidden): what the last linear layer is given.
    bias
        Whether that layer has a bias.

    Returns
    -------
    Shape (n_examples,), from 0; high is hard. NaN where a row is not finite or has no label.

    Raises
    ------
    AnalysisError
        If the shapes disagree or a label is out of range.

    Notes
    -----
    Closed form: the gradient is the outer product of error vector and state, so its length is the product of their
    lengths; the bias adds a constant 1 to the state. Recorded hidden states are the input of the last layer only for
    heads without a layer in between and with the same pooling. GraNd itself takes the gradient of all weights, in
    expectation over initialisations.

    References
    ----------
    Paul et al. (2021), definition 1.

    Examples
    --------
    >>> logits = np.log([[3.0, 1.0]])
    >>> last_layer_grand(logits, np.array([1]), np.array([[3.0, 4.0]]), bias=False).round(3)
    array([5.303])
    """
    stacked = logits[np.newaxis]
    check_logits_and_labels(stacked, labels)
    if states.ndim != 2 or len(states) != len(labels):
        raise AnalysisError(
            f"the hidden states have shape {states.shape} but labels has {len(labels)} examples; "
            "pass (n_examples, hidden) for the same examples in the same order."
        )
    values = states.astype(np.float64)
    squares = np.einsum("nd,nd->n", values, values) + bool(bias)
    length = np.sqrt(squares) * error_norms(stacked, labels)[0]
    return np.where(np.isfinite(length), length, np.nan)


@dataclass(frozen=True, eq=False)
class LossTrajectories:
    """What the loss of every example did over training; each array has shape (n_examples,), NaN where never seen."""

    mean: NDArray[np.float64]
    """Mean over the epochs in which the example was seen."""
    first: NDArray[np.float64]
    """In the first of these epochs."""
    last: NDArray[np.float64]
    """In the last of them."""
    slope: NDArray[np.float64]
    """Of the least-squares line through them, per epoch; NaN with fewer than two. Positive: it got worse."""

    def as_columns(self) -> dict[str, NDArray[Any]]:
        """Return the per-example arrays by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def loss_trajectories(loss: NDArray[np.floating]) -> LossTrajectories:
    """Mean, ends and slope of the loss of every example.

    Parameters
    ----------
    loss
        Shape (n_epochs, n_examples), in memory; NaN in an epoch in which the example was not seen.

    Raises
    ------
    AnalysisError
        If `loss` is not two-dimensional or has no epoch.

    Examples
    --------
    >>> found = loss_trajectories(np.array([[3.0, 1.0], [2.0, np.nan], [1.0, 2.0]]))
    >>> found.mean, found.slope
    (array([2. , 1.5]), array([-1. ,  0.5]))
    """
    if loss.ndim != 2 or not len(loss):
        raise AnalysisError(f"loss has shape {loss.shape} but must be (n_epochs, n_examples) with at least one epoch.")
    known = ~np.isnan(loss)
    mean = mean_over_epochs(loss)
    epoch = np.where(known, np.arange(len(loss), dtype=np.float64)[:, np.newaxis], np.nan)
    from_mean = np.where(known, epoch - mean_over_epochs(epoch), 0)
    squares = (from_mean**2).sum(axis=0)
    slope = np.full(loss.shape[1], np.nan)
    np.divide(np.sum(from_mean * np.where(known, loss, 0), axis=0), squares, out=slope, where=squares > 0)
    first, last = known.argmax(axis=0), len(loss) - 1 - known[::-1].argmax(axis=0)
    columns = np.arange(loss.shape[1])
    return LossTrajectories(
        mean=mean,
        first=loss[first, columns].astype(np.float64),
        last=loss[last, columns].astype(np.float64),
        slope=slope,
    )
