"""What the analyses of logits share: the gold label's trajectory over the epochs, some examples at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import AnalysisError

CHUNK_SIZE = 32_768
"""Examples read at a time: at ten epochs and twenty classes of float32, 26 MB."""

BLOCK_VALUES = 1 << 19
"""Logits computed with at a time: 2 MB of float32, which stay in the cache where a chunk does not."""

N_THREADS = min(os.cpu_count() or 1, 4)
"""Threads that compute; more than a few would wait for the one that reads."""

Columns = dict[str, NDArray[Any]]
"""Arrays by name whose last axis counts the examples."""


class LogitsLike(Protocol):
    """Logits in memory or on disk, as far as the analyses need them: a shape, and slices as NumPy arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Always (n_epochs, n_examples, n_classes)."""

    def __getitem__(self, key: tuple[slice, slice], /) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Trajectories:
    """What happened to the gold label, epoch by epoch; each array has shape (n_epochs, n_examples)."""

    gold_probs: NDArray[np.float64]
    """Gold-label probability, in [0, 1]; NaN where the example was not seen or has no label."""
    correct: NDArray[np.bool_]
    """Whether the gold label was predicted; False where the example was not seen or has no label."""
    seen: NDArray[np.bool_]
    """Whether the row of logits is finite, label or not."""


def trajectories(logits: NDArray[Any], labels: NDArray[np.integer]) -> Trajectories:
    """Probability and prediction of the gold label in every epoch, for logits in memory.

    Shapes as in `gold_probs`; of examples with equal highest logits the first class is the prediction, as in
    ``argmax``.

    Examples
    --------
    >>> found = trajectories(np.log([[[0.8, 0.2], [0.4, 0.6]]]), np.array([0, 0]))
    >>> found.gold_probs.round(3), found.correct
    (array([[0.8, 0.4]]), array([[ True, False]]))
    """
    values, top, seen = classes_first(logits)
    gold = of_labels(values, labels)
    known = seen & (labels >= 0)
    correct = known & (gold == top)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values -= top
        if np.count_nonzero(values == 0) > np.count_nonzero(np.isfinite(top)):  # somewhere two classes are highest
            correct &= logits.argmax(axis=-1) == labels
        np.exp(values, out=values)
        gold_probs = np.exp(gold - top).astype(np.float64)
        gold_probs /= values.sum(axis=0)
    gold_probs[~known] = np.nan
    return Trajectories(gold_probs, correct, seen)


def classes_first(
    logits: NDArray[Any],
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
    """The logits with the classes along the first axis, the highest of each example, and who was seen.

    NumPy reduces over the first axis several times as fast as over a short last one. The values are a copy, in the
    precision of the logits, at least float32. Shapes (n_classes, n_epochs, n_examples) and, of the others, (n_epochs,
    n_examples).

    Examples
    --------
    >>> values, top, seen = classes_first(np.array([[[1.0, 3.0], [np.nan, 0.0]]]))
    >>> values.shape, top, seen
    ((2, 1, 2), array([[ 3., nan]]), array([[ True, False]]))
    """
    in_order = np.moveaxis(logits, -1, 0)
    values = np.array(in_order, dtype=np.result_type(logits.dtype, np.float32), order="C")
    with np.errstate(invalid="ignore"):
        top, low = values.max(axis=0), values.min(axis=0)
    return values, top, np.isfinite(top) & np.isfinite(low)


def of_labels(values: NDArray[Any], labels: NDArray[np.integer]) -> NDArray[Any]:
    """Values of the given labels, shape (n_epochs, n_examples), from those of `classes_first`; any where none is.

    Examples
    --------
    >>> values, _, _ = classes_first(np.array([[[1.0, 3.0], [5.0, 7.0]]]))
    >>> of_labels(values, np.array([1, 0]))
    array([[3., 5.]])
    """
    _, n_epochs, n_examples = values.shape
    # Places in the flat array: indexing by arrays along two axes takes twice as long.
    place = np.maximum(labels, 0).astype(np.int64) * (n_epochs * n_examples) + np.arange(n_examples)
    return np.asarray(values.reshape(-1).take(place + n_examples * np.arange(n_epochs)[:, np.newaxis]))


def softmax(values: NDArray[np.floating], top: NDArray[np.floating]) -> None:
    """Turn logits of `classes_first`, in place, into probabilities.

    Rows that are not finite yield NaN somewhere, or wrong numbers where a class is at -inf: the caller masks them.

    Examples
    --------
    >>> values, top, _ = classes_first(np.log([[[1.0, 3.0]]]))
    >>> softmax(values, top)
    >>> values.ravel().round(3)
    array([0.25, 0.75])
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values -= top
        np.exp(values, out=values)
        values /= values.sum(axis=0)


def is_seen(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the example was seen: all of its logits are finite. The last axis is that of the classes.

    Examples
    --------
    >>> is_seen(np.array([[[1.0, 2.0], [np.nan, 2.0]]]))
    array([[ True, False]])
    """
    finite: NDArray[np.bool_] = np.isfinite(logits).all(axis=-1)
    return finite


def mean_over_epochs(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the first axis in float64, NaN left out; NaN where there is nothing else.

    Examples
    --------
    >>> mean_over_epochs(np.array([[1.0, np.nan], [2.0, np.nan]]))
    array([1.5, nan])
    """
    unknown = np.isnan(values)
    if len(values) and not unknown.any():
        return np.asarray(values.mean(axis=0, dtype=np.float64))
    n_known = len(values) - np.count_nonzero(unknown, axis=0)
    total = np.where(unknown, 0, values).sum(axis=0, dtype=np.float64)
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
    """Return the epochs from `burn_in` up to, not including, `burn_out`; `AnalysisError` if that is none.

    Examples
    --------
    >>> epoch_window(5, burn_in=1, burn_out=None)
    slice(1, 5, None)
    """
    stop = n_epochs if burn_out is None else burn_out
    if not 0 <= burn_in < stop <= n_epochs:
        raise AnalysisError(
            f"burn_in={burn_in} and burn_out={burn_out} are no range of the {n_epochs} epochs in logits; "
            f"pass 0 <= burn_in < burn_out <= {n_epochs}."
        )
    return slice(burn_in, stop)


def by_example(
    function: Callable[[NDArray[Any], NDArray[Any], slice], Columns],
    logits: LogitsLike,
    labels: NDArray[Any],
    *,
    chunk_size: int,
    epochs: slice = slice(None),
    then: Callable[[Columns, NDArray[Any], slice], Columns] | None = None,
) -> Columns:
    """Columns of all examples from a function of the logits and labels of some, and of which these are.

    The logits are read `chunk_size` examples at a time, by the calling thread alone, while other threads compute. The
    function is given as many as fit the cache, or none if there is no example. `then` makes the columns from what it
    has found of a chunk: threads wait for each other between operations, so that on small arrays many cost most.

    Examples
    --------
    >>> found = by_example(
    ...     lambda logits, labels, examples: {"highest": logits.max(axis=(0, 2))},
    ...     np.array([[[1.0, 2.0], [4.0, 3.0]]]), np.array([0, 1]), chunk_size=1,
    ... )
    >>> found["highest"]
    array([2., 4.])
    """
    check_chunk_size(chunk_size)
    n_epochs, n_examples, n_classes = logits.shape
    block = max(BLOCK_VALUES // max(n_epochs * n_classes, 1), 1)

    def chunks() -> Iterator[tuple[slice, NDArray[Any]]]:
        for start in range(0, max(n_examples, 1), chunk_size):
            examples = slice(start, min(start + chunk_size, n_examples))
            yield examples, logits[epochs, examples]

    def columns_of_chunk(examples: slice, values: NDArray[Any]) -> Columns:
        found = []
        for start in range(0, max(values.shape[1], 1), block):
            of_all = slice(examples.start + start, min(examples.start + start + block, examples.stop))
            found.append(function(values[:, start : start + block], labels[of_all], of_all))
        columns = joined_columns(found)
        return columns if then is None else then(columns, labels[examples], examples)

    return joined_columns(list(_in_order(columns_of_chunk, chunks())))


def _in_order(function: Callable[..., Columns], items: Iterable[tuple[Any, ...]]) -> Iterator[Columns]:
    """Results of a function in the order of what it is called with, by threads that are never far behind or ahead."""
    waiting: deque[Future[Columns]] = deque()
    with ThreadPoolExecutor(N_THREADS) as pool:
        for item in items:
            waiting.append(pool.submit(function, *item))
            if len(waiting) > N_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def check_chunk_size(chunk_size: int) -> None:
    """Raise `AnalysisError` unless a chunk holds an example at least."""
    if chunk_size < 1:
        raise AnalysisError(
            f"chunk_size is {chunk_size} but must be at least 1 example; leave it out for {CHUNK_SIZE}."
        )


def joined_columns(chunks: Sequence[Columns]) -> Columns:
    """Concatenate the columns of successive examples, name by name.

    Examples
    --------
    >>> joined_columns([{"loss": np.array([1.0])}, {"loss": np.array([2.0])}])
    {'loss': array([1., 2.])}
    """
    return {name: np.concatenate([chunk[name] for chunk in chunks], axis=-1) for name in chunks[0]}
