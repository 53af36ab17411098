"""What the analyses of logits share: the gold label's trajectory over the epochs, a chunk of examples at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import AnalysisError

CHUNK_SIZE = 16_384
"""Examples read at a time: at ten epochs and twenty classes of float32, 13 MB."""


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
    ``argmax``. One epoch at a time, so that what is computed on the way stays small.
    """
    labelled = labels >= 0
    at_label = np.where(labelled, labels, 0), np.arange(len(labels))
    found = Trajectories(
        gold_probs=np.full(logits.shape[:2], np.nan),
        correct=np.zeros(logits.shape[:2], dtype=np.bool_),
        seen=np.zeros(logits.shape[:2], dtype=np.bool_),
    )
    for epoch, epoch_logits in enumerate(logits):
        relative, top, seen = classes_first(epoch_logits)
        known = seen & labelled
        found.seen[epoch] = seen
        found.correct[epoch] = known & (relative[at_label] == top)
        several = np.flatnonzero(found.correct[epoch] & (np.count_nonzero(relative == top, axis=0) > 1))
        found.correct[epoch, several] = epoch_logits[several].argmax(axis=-1) == labels[several]
        exponentiate(relative, top)
        np.divide(relative[at_label], relative.sum(axis=0), out=found.gold_probs[epoch], where=known)
    return found


def classes_first(
    logits: NDArray[Any],
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.bool_]]:
    """The logits of one epoch with the classes along the first axis, the highest of each example, and who was seen.

    NumPy reduces over the first of two axes several times as fast as over a short last one. The values are a copy, in
    the precision of the logits, at least float32. Shapes (n_classes, n_examples), (n_examples,) and (n_examples,).
    """
    values = np.array(logits.T, dtype=np.result_type(logits.dtype, np.float32), order="C")
    with np.errstate(invalid="ignore"):
        top, low = values.max(axis=0), values.min(axis=0)
    return values, top, np.isfinite(top) & np.isfinite(low)


def exponentiate(values: NDArray[np.floating], top: NDArray[np.floating]) -> None:
    """Turn logits of `classes_first`, in place, into probabilities relative to the highest: softmax, undivided.

    Rows that are not finite yield NaN somewhere, or wrong numbers where a class is at -inf: the caller masks them.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values -= top
        np.exp(values, out=values)


def is_seen(logits: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the example was seen: all of its logits are finite. The last axis is that of the classes."""
    finite: NDArray[np.bool_] = np.isfinite(logits).all(axis=-1)
    return finite


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
    check_chunk_size(chunk_size)
    for start in range(0, max(len(labels), 1), chunk_size):
        examples = slice(start, min(start + chunk_size, len(labels)))
        yield logits[epochs, examples], labels[examples]


def check_chunk_size(chunk_size: int) -> None:
    """Raise `AnalysisError` unless a chunk holds an example at least."""
    if chunk_size < 1:
        raise AnalysisError(
            f"chunk_size is {chunk_size} but must be at least 1 example; leave it out for {CHUNK_SIZE}."
        )


def joined_columns(chunks: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Concatenate the columns of successive chunks of examples, name by name."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
