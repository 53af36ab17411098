"""Arrays beside a table: what the model gave each class, and the hidden states, one row for each example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from t3vis.exports.table import ROWS
from t3vis.store.reader import Split

PROBABILITIES = "pred_probs.npy"
FEATURES = "features.npy"


def class_names(split: Split) -> list[str]:
    """Names of the classes of a single-label task, else their numbers; empty for other tasks."""
    if split.attributes.get("task") != "single_label" or "logits" not in split.arrays:
        return []
    return split.class_names or [str(number) for number in range(split.logits.shape[-1])]


def write_probabilities(path: Path, split: Split, classes: Sequence[int] | None = None) -> None:
    """The mean probabilities over the passes in which an example was seen, float32; NaN where there was none.

    Parameters
    ----------
    classes
        Which of them, in the order of the columns, brought to a sum of one; by default all as they are.
    """
    chosen = list(range(split.logits.shape[-1])) if classes is None else list(classes)
    indices = [record.index for record in split.passes]

    def read(rows: slice) -> NDArray[np.float64]:
        logits = split.logits[indices, rows].astype(np.float64)[..., chosen]
        seen = np.isfinite(logits).all(axis=-1, keepdims=True)
        known = np.where(seen, logits, 0)
        shifted = np.exp(known - known.max(axis=-1, keepdims=True))
        probs = np.where(seen, shifted / shifted.sum(axis=-1, keepdims=True), 0).sum(axis=0)
        n_seen = seen.sum(axis=0)
        return np.where(n_seen > 0, probs / np.maximum(n_seen, 1), np.nan)

    _write(path, (split.n_examples, len(chosen)), read)


def write_features(path: Path, split: Split, index: int) -> None:
    """The hidden states of the last layer in one pass, float32; NaN where the example was not seen."""
    states, last = split.hidden_states, len(split.layers) - 1

    def read(rows: slice) -> NDArray[np.floating]:
        found: NDArray[np.floating] = states[index, last, rows]
        return found

    _write(path, (split.n_examples, states.shape[-1]), read)


def _write(path: Path, shape: tuple[int, int], read: Callable[[slice], NDArray[np.floating]]) -> None:
    file = open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, shape[0], ROWS):
        rows = slice(start, min(start + ROWS, shape[0]))
        file[rows] = read(rows)
    file.flush()
