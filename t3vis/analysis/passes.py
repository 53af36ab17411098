"""What each pass was like over all examples: accuracy and probability of the gold label."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.trajectories import (
    CHUNK_SIZE,
    LogitsLike,
    by_example,
    check_logits_and_labels,
    trajectories,
)


@dataclass(frozen=True, eq=False)
class PassFigures:
    """Figures of every pass; each array has shape (n_epochs,)."""

    accuracy: NDArray[np.float64]
    """Share of the known examples whose gold label was predicted, in [0, 1]; NaN where none is known."""
    gold_prob: NDArray[np.float64]
    """Mean probability of the gold label, in [0, 1]; NaN where none is known."""
    n_known: NDArray[np.int64]
    """Examples that were seen in the pass and have a label."""

    def as_columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def pass_figures(logits: LogitsLike, labels: NDArray[np.integer], *, chunk_size: int = CHUNK_SIZE) -> PassFigures:
    """Accuracy and mean gold-label probability of every pass.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_classes). A row with NaN or an infinity is an epoch in which that example was
        not seen.
    labels
        Shape (n_examples,), below ``n_classes``; negative where there is none.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Raises
    ------
    AnalysisError
        If the shapes disagree, a label is out of range, or `chunk_size` is below one.

    Notes
    -----
    Of a training pass these are means over the pass, in which the model changes and dropout is on: they are not what
    an evaluation at its end would give.

    Examples
    --------
    >>> found = pass_figures(np.log([[[3.0, 1.0], [3.0, 1.0]]]), np.array([0, 1]))
    >>> found.accuracy, found.gold_prob, found.n_known
    (array([0.5]), array([0.5]), array([2]))
    """
    check_logits_and_labels(logits, labels)

    def sums(of_block: NDArray[Any], gold: NDArray[Any], _: slice) -> dict[str, NDArray[Any]]:
        found = trajectories(of_block, gold)
        each = {
            "known": np.count_nonzero(~np.isnan(found.gold_probs), axis=1),
            "right": np.count_nonzero(found.correct, axis=1),
            "probs": np.nansum(found.gold_probs, axis=1),
        }
        return {name: values[:, np.newaxis] for name, values in each.items()}  # a column for each block

    total = {
        name: values.sum(axis=1) for name, values in by_example(sums, logits, labels, chunk_size=chunk_size).items()
    }
    known = np.where(total["known"] > 0, total["known"], np.nan)
    return PassFigures(total["right"] / known, total["probs"] / known, total["known"].astype(np.int64))
