"""Label quality: which examples probably carry a wrong label, and which label would suit them."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.margins import margins
from t3vis.analysis.trajectories import (
    CHUNK_SIZE,
    LogitsLike,
    check_logits_and_labels,
    example_chunks,
    is_seen,
    joined_columns,
    mean_over_epochs,
    relative_probs,
)


@dataclass(frozen=True, eq=False)
class Suspects:
    """How suspicious the label of every example is; each array has shape (n_examples,)."""

    score: NDArray[np.float64]
    """In [0, 1]; 1 is most probably a wrong label. NaN for an example that has no label or was never seen."""
    suggested_label: NDArray[np.int64]
    """The class with the highest mean probability, the given label left out; -1 for an example that was never
    seen."""
    suggested_prob: NDArray[np.float64]
    """Mean probability of the suggested label, in [0, 1]; NaN where there is none."""
    aum: NDArray[np.float64]
    """Area under the margin, in logits; negative when the given label mostly lost. NaN where the score is."""

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


def suspected_errors(logits: LogitsLike, labels: NDArray[np.integer], *, chunk_size: int = CHUNK_SIZE) -> Suspects:
    """Score every label by how little the model came to believe it, and suggest another one.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_classes), at least two classes. A row with NaN or an infinity is an
        epoch in which that example was not seen.
    labels
        Shape (n_examples,), below ``n_classes``. Any negative label means that there is none.
    chunk_size
        Examples held in memory at a time; the result does not depend on it.

    Returns
    -------
    The score is one minus the confidence: one minus the mean probability of the given label over the epochs
    in which the example was seen.

    Raises
    ------
    AnalysisError
        If the shapes disagree, a label is out of range, there are fewer than two classes, or `chunk_size` is
        below one.

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
    chunks = [
        _suspects_of_chunk(chunk_logits, chunk_labels)
        for chunk_logits, chunk_labels in example_chunks(logits, labels, chunk_size=chunk_size)
    ]
    return Suspects(**joined_columns([chunk.as_columns() for chunk in chunks]))


def mean_probs(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Mean probability of every class over the epochs in which an example was seen, for logits in memory.

    Returns shape (n_examples, n_classes), each row summing to one; NaN for an example that was never seen.
    """
    total = np.zeros(logits.shape[1:])
    n_seen = np.zeros(logits.shape[1])
    for epoch_logits in logits:
        seen = is_seen(epoch_logits)
        relative = relative_probs(epoch_logits, epoch_logits.argmax(axis=-1))
        relative /= relative.sum(axis=-1, keepdims=True)
        relative[~seen] = 0
        total += relative
        n_seen += seen
    total[n_seen == 0] = np.nan
    return total / np.maximum(n_seen, 1)[:, np.newaxis]


def _suspects_of_chunk(logits: NDArray[Any], labels: NDArray[np.integer]) -> Suspects:
    """Judge some examples, all of their epochs in memory."""
    others = mean_probs(logits)
    seen = ~np.isnan(others[:, 0])
    labelled = np.flatnonzero(labels >= 0)
    score = np.full(len(labels), np.nan)
    score[labelled] = 1 - others[labelled, labels[labelled]]
    others[labelled, labels[labelled]] = -1
    suggested = others.argmax(axis=-1)
    return Suspects(
        score=score,
        suggested_label=np.where(seen, suggested, -1),
        suggested_prob=np.where(seen, np.take_along_axis(others, suggested[:, np.newaxis], axis=-1)[:, 0], np.nan),
        aum=mean_over_epochs(margins(logits, labels)),
    )
