"""The dataset of a run with what was found out about each example, and the part of it that is worth training on."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t3vis.analysis.selection import dropped, kept, select, suspect_ids
from t3vis.analyze import analyzed_data_map, analyzed_suspects
from t3vis.errors import AnalysisError
from t3vis.exports.recorded_rows import check_recorded, stored_dataset
from t3vis.exports.table import EXAMPLE, arrow_columns, available
from t3vis.store.reader import Run, Split
from t3vis.strategies import Strategy

ANNOTATIONS = ("confidence", "variability", "correctness", "region", "suspicion", "suggested_label")


def annotated(
    run: Run, split: Split, dataset: datasets.Dataset, *, epoch: int = -1, columns: Sequence[str] | None = None
) -> datasets.Dataset:
    """The dataset with further columns; see `Run.annotate`."""
    there = available(run, split, epoch=epoch)
    wanted = [name for name in ANNOTATIONS if name in there] if columns is None else list(columns)
    taken = [name for name in wanted if name in getattr(dataset, "column_names", ())]
    if taken:
        raise AnalysisError(
            f"the dataset has a column {taken[0]!r} already; remove it, or name the columns that are to be added."
        )
    check_recorded(split, dataset)
    for column in arrow_columns(run, split, epoch=epoch, columns=wanted):
        if column.name != EXAMPLE or EXAMPLE in wanted:
            values = pa.chunked_array([column.read(slice(None))])
            more = datasets.Dataset(pa.table({column.name: values}))
            dataset = datasets.concatenate_datasets([dataset, more], axis=1)
    return dataset


def selected(
    run: Run,
    split: Split,
    strategy: Strategy,
    dataset: datasets.Dataset | None,
    *,
    fraction: float,
    balanced: bool,
    seed: int,
) -> datasets.Dataset:
    """The rows that come first under a strategy; see `Run.select`."""
    labels = split.labels if balanced else None
    ids = select(analyzed_data_map(run, split), strategy, fraction=fraction, labels=labels, seed=seed)
    return _rows(split, dataset, ids)


def without_suspects(
    run: Run, split: Split, dataset: datasets.Dataset | None, *, fraction: float | None
) -> datasets.Dataset:
    """The rows whose label is not suspected; see `Run.drop_suspects`."""
    suspects = analyzed_suspects(run, split)
    return _rows(split, dataset, dropped(suspects.n_examples, suspect_ids(suspects, fraction=fraction)))


def _rows(split: Split, dataset: datasets.Dataset | None, ids: NDArray[np.int64]) -> datasets.Dataset:
    if dataset is None:
        return stored_dataset(split, ids)
    check_recorded(split, dataset)
    return kept(dataset, ids)
