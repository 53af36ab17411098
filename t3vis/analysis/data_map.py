"""Data maps: which examples are easy, ambiguous or hard to learn, from their logits epoch by epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.forgetting import check_correct_and_seen, forgetting_events, never_learned
from t3vis.errors import AnalysisError

CHUNK_SIZE = 65_536
"""Examples read at a time: at ten epochs and twenty classes of float32, 52 MB."""


class LogitsLike(Protocol):
    """Logits in memory or on disk, as far as the analyses need them: a shape, and slices as NumPy arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Always (n_epochs, n_examples, n_classes)."""

    def __getitem__(self, key: tuple[slice, slice], /) -> NDArray[Any]: ...


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


@dataclass(frozen=True, eq=False)
class Trajectories:
    """What happened to the gold label, epoch by epoch; each array has shape (n_epochs, n_examples)."""

    gold_probs: NDArray[np.float64]
    """Gold-label probability, in [0, 1]; NaN where the example was not seen or has no label."""
    correct: NDArray[np.bool_]
    """Whether the gold label was predicted; False where the example was not seen or has no label."""
    seen: NDArray[np.bool_]
    """Whether the row of logits is finite, label or not."""


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
    epochs = epoch_window(logits.shape[0], burn_in=burn_in, burn_out=burn_out)
    chunks = [
        _map_of_chunk(trajectories(chunk_logits, chunk_labels))
        for chunk_logits, chunk_labels in example_chunks(logits, labels, epochs=epochs, chunk_size=chunk_size)
    ]
    return DataMap(n_epochs=chunks[0].n_epochs, **joined_columns([chunk.as_columns() for chunk in chunks]))


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
    return np.sqrt(mean_over_epochs((gold_probs - mean_over_epochs(gold_probs)) ** 2))


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
    return mean_over_epochs(np.where(seen, correct, np.nan))


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


def trajectories(logits: NDArray[Any], labels: NDArray[np.integer]) -> Trajectories:
    """Probability and prediction of the gold label in every epoch, for logits in memory.

    Shapes as in `gold_probs`; of examples with equal highest logits the first class is the prediction, as in
    ``argmax``. One epoch at a time, so that what is computed on the way stays small.
    """
    labelled = labels >= 0
    column = np.where(labelled, labels, 0)[:, np.newaxis]
    found = Trajectories(
        gold_probs=np.full(logits.shape[:2], np.nan),
        correct=np.zeros(logits.shape[:2], dtype=np.bool_),
        seen=np.zeros(logits.shape[:2], dtype=np.bool_),
    )
    for epoch, epoch_logits in enumerate(logits):
        predicted = epoch_logits.argmax(axis=-1)
        relative = relative_probs(epoch_logits, predicted)
        gold = np.take_along_axis(relative, column, axis=-1)[:, 0] / relative.sum(axis=-1)
        found.seen[epoch] = is_seen(epoch_logits)
        known = found.seen[epoch] & labelled
        np.copyto(found.gold_probs[epoch], gold, where=known)
        found.correct[epoch] = known & (predicted == labels)
    return found


def is_seen(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the example was seen: all of its logits are finite. The last axis is that of the classes."""
    finite: NDArray[np.bool_] = np.isfinite(logits).all(axis=-1)
    return finite


def relative_probs(logits: NDArray[Any], predicted: NDArray[np.intp]) -> NDArray[np.floating]:
    """Probability of each class relative to that of the predicted one, in [0, 1]: softmax, undivided.

    `logits` has shape (n_examples, n_classes), `predicted` is its argmax. The precision is that of the
    logits, at least float32. Rows that are not finite yield NaN somewhere, or wrong numbers where a class is
    at -inf: the caller masks them.
    """
    relative = logits.astype(np.result_type(logits.dtype, np.float32))
    top = np.take_along_axis(relative, predicted[:, np.newaxis], axis=-1)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        relative -= top
        np.exp(relative, out=relative)
    return relative


def mean_over_epochs(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the first axis in float64, NaN left out; NaN where there is nothing else."""
    known = ~np.isnan(values)
    n_known = np.count_nonzero(known, axis=0)
    total = np.sum(values, axis=0, dtype=np.float64, where=known)
    mean = np.full(n_known.shape, np.nan)
    np.divide(total, n_known, out=mean, where=n_known > 0)
    return mean


def check_logits_and_labels(logits: LogitsLike, labels: NDArray[np.integer], *, min_classes: int = 1) -> None:
    """Raise `AnalysisError` unless `labels` can be the gold labels of `logits`, as `data_map` describes."""
    if len(logits.shape) != 3:
        raise AnalysisError(
            f"logits has shape {tuple(logits.shape)} but must have the three dimensions "
            "(n_epochs, n_examples, n_classes); for a single epoch pass logits[np.newaxis]."
        )
    _, n_examples, n_classes = logits.shape
    if n_classes < min_classes:
        raise AnalysisError(f"logits has {n_classes} classes but this analysis needs at least {min_classes}.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise AnalysisError(
            f"labels has shape {labels.shape} and dtype {labels.dtype} but must be integers of shape "
            "(n_examples,); pass one class index per example, -1 where there is none."
        )
    if len(labels) != n_examples:
        raise AnalysisError(
            f"labels has {len(labels)} examples but logits has {n_examples}; "
            "pass arrays for the same examples in the same order."
        )
    if n_examples and labels.max() >= n_classes:
        example = labels.argmax()
        raise AnalysisError(
            f"example {example} has label {labels[example]} but logits has {n_classes} classes, 0 to "
            f"{n_classes - 1}; pass class indices, negative where there is no label."
        )


def epoch_window(n_epochs: int, *, burn_in: int, burn_out: int | None) -> slice:
    """Return the epochs from `burn_in` up to, not including, `burn_out`; `AnalysisError` if that is none."""
    stop = n_epochs if burn_out is None else burn_out
    if not 0 <= burn_in < stop <= n_epochs:
        raise AnalysisError(
            f"burn_in={burn_in} and burn_out={burn_out} are no range of the {n_epochs} epochs in logits; "
            f"pass 0 <= burn_in < burn_out <= {n_epochs}."
        )
    return slice(burn_in, stop)


def example_chunks(
    logits: LogitsLike, labels: NDArray[np.integer], *, chunk_size: int, epochs: slice = slice(None)
) -> Iterator[tuple[NDArray[Any], NDArray[np.integer]]]:
    """Yield logits and labels of at most `chunk_size` examples at a time; one empty chunk if none."""
    if chunk_size < 1:
        raise AnalysisError(
            f"chunk_size is {chunk_size} but must be at least 1 example; leave it out for {CHUNK_SIZE}."
        )
    for start in range(0, max(len(labels), 1), chunk_size):
        examples = slice(start, min(start + chunk_size, len(labels)))
        yield logits[epochs, examples], labels[examples]


def joined_columns(chunks: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Concatenate the columns of successive chunks of examples, name by name."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _map_of_chunk(chunk: Trajectories) -> DataMap:
    """Reduce the trajectories of some examples to one value each; without a label, no epoch counts."""
    known = ~np.isnan(chunk.gold_probs)
    mean = confidence(chunk.gold_probs)
    return DataMap(
        confidence=mean,
        variability=variability(chunk.gold_probs),
        correctness=correctness(chunk.correct, known),
        threshold_closeness=threshold_closeness(mean),
        forgetting_events=forgetting_events(chunk.correct, known),
        never_learned=never_learned(chunk.correct, known),
        n_seen=np.count_nonzero(chunk.seen, axis=0).astype(np.int64),
        n_epochs=len(chunk.seen),
    )


def _lowest(values: NDArray[np.float64], n_selected: int) -> NDArray[np.bool_]:
    """Mask of the `n_selected` lowest values; NaN sorts last."""
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[np.argsort(values, kind="stable")[:n_selected]] = True
    return mask
