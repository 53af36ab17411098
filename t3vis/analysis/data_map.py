"""Data maps: which examples are easy, ambiguous or hard to learn, from their logits epoch by epoch."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.forgetting import check_correct_and_seen, forgetting_events, never_learned
from t3vis.analysis.trajectories import (
    CHUNK_SIZE,
    Columns,
    LogitsLike,
    Trajectories,
    by_example,
    check_logits_and_labels,
    epoch_window,
    mean_over_epochs,
    trajectories,
)
from t3vis.errors import AnalysisError


@dataclass(frozen=True, eq=False)
class DataMap:
    """The training dynamics of every example; each array has shape (n_examples,).

    ``confidence``, ``variability``, ``correctness`` and ``threshold_closeness`` are NaN for an example that
    has no label or was never seen; its ``forgetting_events`` are 0 and its ``never_learned`` is False.
    """

    confidence: NDArray[np.float64]
    """Mean gold-label probability over the epochs in which the example was seen, in [0, 1]."""
    variability: NDArray[np.float64]
    """Population standard deviation of that probability, in [0, 0.5]."""
    correctness: NDArray[np.float64]
    """Fraction of those epochs in which the gold label was predicted, in [0, 1]."""
    threshold_closeness: NDArray[np.float64]
    """``confidence * (1 - confidence)``, in [0, 0.25]."""
    forgetting_events: NDArray[np.int64]
    """How often the example went from right to wrong."""
    never_learned: NDArray[np.bool_]
    """Seen with its label at least once, and never predicted right."""
    n_seen: NDArray[np.int64]
    """Epochs in which the example was seen, with or without a label, in ``[0, n_epochs]``."""
    n_epochs: int
    """Epochs considered, after ``burn_in`` and ``burn_out``."""

    @property
    def n_examples(self) -> int:
        """Examples in the map, those never seen included."""
        return len(self.n_seen)

    @property
    def n_never_seen(self) -> int:
        """Examples without a finite row of logits in any epoch considered."""
        return int(np.count_nonzero(self.n_seen == 0))

    @property
    def n_partly_seen(self) -> int:
        """Examples seen in some of the epochs considered and not in others."""
        return int(np.count_nonzero((self.n_seen > 0) & (self.n_seen < self.n_epochs)))

    def as_columns(self) -> dict[str, NDArray[Any]]:
        """Return the per-example arrays by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "n_epochs"}


@dataclass(frozen=True, eq=False)
class Regions:
    """Masks of shape (n_examples,) over a data map; they may overlap and need not cover it."""

    easy_to_learn: NDArray[np.bool_]
    """The highest confidence."""
    ambiguous: NDArray[np.bool_]
    """The highest variability."""
    hard_to_learn: NDArray[np.bool_]
    """The lowest confidence."""


def data_map(
    logits: LogitsLike,
    labels: NDArray[np.integer],
    *,
    burn_in: int = 0,
    burn_out: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> DataMap:
    """Training dynamics of every example, read from the logits a chunk of examples at a time.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_classes). A row with NaN or an infinity is an epoch in which that
        example was not seen: it is left out of the means and out of ``n_seen``.
    labels
        Shape (n_examples,), below ``n_classes``. Any negative label (-1, -100) means that there is none.
    burn_in
        Leave out the first epochs: those before this one.
    burn_out
        Leave out the last epochs: this one and those after it. None keeps all of them.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Returns
    -------
    One value per example and quantity, in the order of `labels`.

    Raises
    ------
    AnalysisError
        If the shapes disagree, a label is out of range, no epoch is left, or `chunk_size` is below one.

    Notes
    -----
    `burn_out` is that of the released code, which keeps the first ``burn_out`` epochs; there a number beyond
    the last epoch keeps all, here it is an error. `burn_in` is an addition. Departures in the result: the
    released code has `correctness` as a count and counts 1000 forgetting events for an example never learned;
    the option ``include_ci``, which widens the variability by a confidence interval, is left out.

    References
    ----------
    Swayamdipta et al. (2020), "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics",
    section 2.

    Examples
    --------
    Two epochs, two classes. The first example is predicted with 3/4 and then 1/4, the second was seen once:

    >>> logits = np.log([[[3.0, 1.0], [1.0, 4.0]], [[1.0, 3.0], [np.nan, np.nan]]])
    >>> examples = data_map(logits, np.array([0, 1]))
    >>> examples.confidence
    array([0.5, 0.8])
    >>> examples.variability
    array([0.25, 0.  ])
    >>> examples.forgetting_events, examples.n_seen
    (array([1, 0]), array([2, 1]))
    """
    check_logits_and_labels(logits, labels)

    def course(some: NDArray[Any], of_some: NDArray[np.integer], _: slice) -> Columns:
        return vars(trajectories(some, of_some))

    def mapped(courses: Columns, _labels: NDArray[np.integer], _: slice) -> Columns:
        return map_of(Trajectories(**courses)).as_columns()

    return map_by_example(
        course, logits, labels, then=mapped, burn_in=burn_in, burn_out=burn_out, chunk_size=chunk_size
    )


def regions(data_map: DataMap, *, fraction: float = 1 / 3) -> Regions:
    """Masks of the easy-to-learn, the ambiguous and the hard-to-learn examples.

    Parameters
    ----------
    data_map
        The training dynamics.
    fraction
        The share of the examples in each region, in (0, 1]; of those with a known confidence, rounded to the
        nearest whole number of examples.

    Returns
    -------
    Three masks. Examples that were never seen or have no label are in none of them.

    Raises
    ------
    AnalysisError
        If `fraction` is outside (0, 1].

    Notes
    -----
    As in the paper the regions are independent selections of one size, so an ambiguous example can be hard to
    learn as well. Of examples with equal values, those with the lower example id are taken first.

    References
    ----------
    Swayamdipta et al. (2020), sections 2 and 3: 33 % of the training set in each region.

    Examples
    --------
    >>> logits = np.log([[[9.0, 1.0], [5.0, 5.0], [1.0, 9.0]], [[9.0, 1.0], [9.0, 1.0], [1.0, 9.0]]])
    >>> found = regions(data_map(logits, np.array([0, 0, 0])))
    >>> found.easy_to_learn, found.ambiguous, found.hard_to_learn
    (array([ True, False, False]), array([False,  True, False]), array([False, False,  True]))
    """
    if not 0 < fraction <= 1:
        raise AnalysisError(f"fraction is {fraction} but must be in (0, 1]; pass 1 / 3 for a third of the examples.")
    n_selected = round(fraction * np.count_nonzero(~np.isnan(data_map.confidence)))
    return Regions(
        easy_to_learn=_lowest(-data_map.confidence, n_selected),
        ambiguous=_lowest(-data_map.variability, n_selected),
        hard_to_learn=_lowest(data_map.confidence, n_selected),
    )


def gold_probs(logits: NDArray[Any], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Probability of the gold label in every epoch.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_classes), in memory.
    labels
        Shape (n_examples,), below ``n_classes``; negative means that there is none.

    Returns
    -------
    Shape (n_epochs, n_examples), in [0, 1]; NaN where the row of logits is not finite or there is no label.

    Raises
    ------
    AnalysisError
        If the shapes disagree or a label is out of range.

    Notes
    -----
    The softmax is taken in the precision of the logits, and float16 in float32: below 1e-6 from the float64
    result.

    Examples
    --------
    >>> gold_probs(np.log([[[1.0, 3.0], [1.0, 1.0]]]), np.array([1, -1]))
    array([[0.75,  nan]])
    """
    check_logits_and_labels(logits, labels)
    return trajectories(logits, labels).gold_probs


def confidence(gold_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean gold-label probability over the epochs in which an example was seen.

    Parameters
    ----------
    gold_probs
        Shape (n_epochs, n_examples), in [0, 1]; NaN where the example was not seen.

    Returns
    -------
    Shape (n_examples,), in [0, 1]; NaN for an example that was never seen.

    References
    ----------
    Swayamdipta et al. (2020), section 2.

    Examples
    --------
    >>> confidence(np.array([[0.2, 0.5], [0.6, np.nan]]))
    array([0.4, 0.5])
    """
    return mean_over_epochs(gold_probs)


def variability(gold_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Spread of the gold-label probability over the epochs in which an example was seen.

    Parameters
    ----------
    gold_probs
        Shape (n_epochs, n_examples), in [0, 1]; NaN where the example was not seen.

    Returns
    -------
    The population standard deviation, shape (n_examples,), in [0, 0.5]; NaN for an example that was never
    seen. High: the model kept changing its mind.

    References
    ----------
    Swayamdipta et al. (2020), section 2.

    Examples
    --------
    >>> variability(np.array([[0.25, 0.5], [0.75, np.nan]]))
    array([0.25, 0.  ])
    """
    return _spread(gold_probs, mean_over_epochs(gold_probs))


def correctness(correct: NDArray[np.bool_], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fraction of the epochs in which an example was seen that predicted it right.

    Parameters
    ----------
    correct, seen
        Shape (n_epochs, n_examples); `correct` is ignored where not `seen`.

    Returns
    -------
    Shape (n_examples,), in [0, 1]; NaN for an example that was never seen.

    Raises
    ------
    AnalysisError
        If the two arrays are not boolean, not two-dimensional, or differ in shape.

    Notes
    -----
    The paper defines the fraction; its released code returns the count.

    References
    ----------
    Swayamdipta et al. (2020), section 2.

    Examples
    --------
    >>> correctness(np.array([[True, True], [False, False]]), np.array([[True, True], [True, False]]))
    array([0.5, 1. ])
    """
    check_correct_and_seen(correct, seen)
    n_seen = seen.sum(axis=0)
    fraction = np.full(n_seen.shape, np.nan)
    np.divide((correct & seen).sum(axis=0), n_seen, out=fraction, where=n_seen > 0)
    return fraction


def threshold_closeness(confidence: NDArray[np.floating]) -> NDArray[np.float64]:
    """How close the mean gold-label probability is to one half.

    Parameters
    ----------
    confidence
        Shape (n_examples,), in [0, 1].

    Returns
    -------
    ``confidence * (1 - confidence)``, shape (n_examples,), in [0, 0.25].

    Notes
    -----
    As in the released code of Dataset Cartography, without the smoothing constant that Chang et al. add: it
    does not change the order of the examples.

    References
    ----------
    Chang et al. (2017), "Active Bias: Training More Accurate Neural Networks by Emphasizing High Variance
    Samples".

    Examples
    --------
    >>> threshold_closeness(np.array([0.5, 1.0]))
    array([0.25, 0.  ])
    """
    known = confidence.astype(np.float64)
    return known * (1 - known)


def map_by_example(
    function: Callable[[NDArray[Any], NDArray[Any], slice], Columns],
    logits: LogitsLike,
    labels: NDArray[Any],
    *,
    burn_in: int,
    burn_out: int | None,
    chunk_size: int,
    then: Callable[[Columns, NDArray[Any], slice], Columns] | None = None,
) -> DataMap:
    """Map all examples by what maps some, as `by_example` calls it; options as in `data_map`."""
    epochs = epoch_window(logits.shape[0], burn_in=burn_in, burn_out=burn_out)
    columns = by_example(function, logits, labels, epochs=epochs, chunk_size=chunk_size, then=then)
    return DataMap(n_epochs=epochs.stop - epochs.start, **columns)


def map_of(chunk: Trajectories) -> DataMap:
    """Reduce trajectories to a data map: one value for each example; without a label, no epoch counts.

    Examples
    --------
    >>> from t3vis.analysis.trajectories import trajectories
    >>> found = map_of(trajectories(np.log([[[0.8, 0.2]], [[0.4, 0.6]]]), np.array([0])))
    >>> found.confidence.round(3), found.variability.round(3), found.correctness, found.forgetting_events
    (array([0.6]), array([0.2]), array([0.5]), array([1]))
    """
    known = ~np.isnan(chunk.gold_probs)
    mean = confidence(chunk.gold_probs)
    return DataMap(
        confidence=mean,
        variability=_spread(chunk.gold_probs, mean),
        correctness=correctness(chunk.correct, known),
        threshold_closeness=threshold_closeness(mean),
        forgetting_events=forgetting_events(chunk.correct, known),
        never_learned=never_learned(chunk.correct, known),
        n_seen=chunk.seen.sum(axis=0),
        n_epochs=len(chunk.seen),
    )


def _spread(gold_probs: NDArray[np.floating], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square distance from the mean over the epochs."""
    return np.sqrt(mean_over_epochs(np.square(gold_probs - mean)))


def _lowest(values: NDArray[np.float64], n_selected: int) -> NDArray[np.bool_]:
    """Mask of the `n_selected` lowest values; NaN sorts last."""
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[np.argsort(values, kind="stable")[:n_selected]] = True
    return mask
