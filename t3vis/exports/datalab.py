"""A folder for ``cleanlab.Datalab``: the examples, the probabilities of the classes and features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import AnalysisError
from t3vis.exports.arrays import FEATURES, PROBABILITIES, class_names, write_features, write_probabilities
from t3vis.exports.files import write_parquet
from t3vis.exports.table import ArrowColumn
from t3vis.store.reader import Split

EXAMPLES = "examples.parquet"


def write_datalab(folder: Path, split: Split, columns: Sequence[ArrowColumn], index: int) -> None:
    """Labels and texts, with the mean probabilities over the passes, and as features the last hidden states of one.

    Datalab numbers the labels that there are in the order of their names, and so are the probabilities.

    Raises
    ------
    AnalysisError
        If the split is of another task than single-label classification, or an example has no label or was never seen:
        Datalab takes neither.
    """
    _check(split)
    names, labels = class_names(split), split.labels
    _refuse(split, labels < 0, "has no label")
    classes = sorted(np.unique(labels).tolist(), key=lambda number: names[number])
    write_probabilities(folder / PROBABILITIES, split, classes)
    _refuse(split, np.isnan(np.load(folder / PROBABILITIES, mmap_mode="r")).any(axis=1), "was never seen")
    write_parquet(folder / EXAMPLES, columns, split.n_examples)
    if split.layers:
        write_features(folder / FEATURES, split, index)


def _refuse(split: Split, unknown: NDArray[np.bool_], why: str) -> None:
    if unknown.any():
        raise AnalysisError(
            f"example {np.flatnonzero(unknown)[0]} of {split.path} {why}, and Datalab takes no such example; export to "
            "parquet, and leave it out."
        )


def _check(split: Split) -> None:
    task = split.attributes.get("task")
    if task != "single_label" or "logits" not in split.arrays:
        raise AnalysisError(
            f"{split.path} is of the task {task} with the arrays {', '.join(split.arrays)}; Datalab needs the logits "
            "of a single-label task."
        )
