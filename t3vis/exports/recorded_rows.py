"""Whether a dataset is the one that was recorded, and the one that can be made of the store alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from t3vis.errors import AnalysisError
from t3vis.exports.table import ROWS, batches, ids_of_rows, of_texts
from t3vis.store.examples import RaggedColumn
from t3vis.store.reader import Split

LABELS = ("labels", "label", "label_ids")


def check_recorded(split: Split, dataset: datasets.Dataset) -> None:
    """See that row i of a dataset is example i of a split.

    Compared are all texts whose columns the dataset has, else token ids, else labels. Where there are none of these the
    number of rows is all that is known, and a warning says so.

    Raises
    ------
    AnalysisError
        If it is no ``datasets.Dataset``, has another number of rows, or differs in a row.
    """
    if not isinstance(dataset, datasets.Dataset):
        raise AnalysisError(
            f"the dataset is a {type(dataset).__name__}; expected a datasets.Dataset, whose rows are numbered."
        )
    if len(dataset) != split.n_examples:
        raise AnalysisError(
            f"the dataset has {len(dataset):,} rows but {split.path} has {split.n_examples:,} examples; pass the "
            "dataset that was recorded, before any filter."
        )
    for name, compared in _comparisons(split, dataset):
        row = _first_difference(dataset, name, compared)
        if row is not None:
            raise AnalysisError(
                f"row {row} of the dataset has another {name!r} than example {row} of {split.path}; pass the dataset "
                "that was recorded, in its order."
            )
        if name in LABELS or name == "input_ids":
            return
    if not set(split.text) & set(dataset.column_names):
        warnings.warn(
            f"the store and the dataset have no column in common: that it is the dataset of {split.path} is only "
            "known from its number of rows.",
            stacklevel=3,
        )


def stored_dataset(split: Split, ids: NDArray[np.int64]) -> datasets.Dataset:
    """Texts and labels of some examples as they were recorded, in memory.

    Raises
    ------
    AnalysisError
        If no texts, or no labels, were recorded.
    """
    labels = split.labels
    if not split.text or np.all(labels == -1):
        raise AnalysisError(f"{split.path} holds no texts and labels; pass the dataset that was recorded.")
    texts = of_texts(split, ("label",)).values()
    found = pa.Table.from_batches(batches([*texts, ids_of_rows(split.n_examples)], split.n_examples, ids))
    of_some = labels[ids]
    values = pa.array(of_some) if of_some.ndim == 1 else pa.array(list(of_some))
    table = found.drop_columns(["example"]).append_column("label", values)
    dataset = datasets.Dataset(table)
    if split.class_names and labels.ndim == 1:
        features = dataset.features.copy()
        features["label"] = datasets.ClassLabel(names=split.class_names)
        dataset = datasets.Dataset(table.cast(features.arrow_schema), datasets.DatasetInfo(features=features))
    return dataset


Same = Callable[[pa.ChunkedArray, slice], NDArray[np.bool_]]


def _comparisons(split: Split, dataset: datasets.Dataset) -> Iterator[tuple[str, Same]]:
    """Columns that are there on both sides, those that say most first, and how they are compared."""
    names = set(dataset.column_names)
    texts = split.text
    for name in texts:
        if name in names:
            yield name, partial(_same_texts, texts[name])
    if names & set(texts):
        return
    token_ids = split.token_ids
    if token_ids is not None and "input_ids" in names:
        yield "input_ids", lambda values, rows: _equal(values.to_pylist(), [ids.tolist() for ids in token_ids[rows]])
    labels = split.labels
    label = next((name for name in LABELS if name in names), None)
    if label is not None and not np.all(labels == -1):
        yield label, lambda values, rows: _same_labels(values, labels[rows])


def _first_difference(dataset: datasets.Dataset, name: str, same: Same) -> int | None:
    plain = dataset.select_columns([name]).with_format("arrow")
    for start in range(0, len(dataset), ROWS):
        stop = min(start + ROWS, len(dataset))
        different = np.flatnonzero(~same(plain[start:stop].column(name), slice(start, stop)))
        if len(different):
            return start + int(different[0])
    return None


def _same_texts(texts: RaggedColumn, values: pa.ChunkedArray, rows: slice) -> NDArray[np.bool_]:
    return _equal(values.to_pylist(), texts[rows], or_empty="")


def _equal(found: list[Any], expected: list[Any], *, or_empty: Any = None) -> NDArray[np.bool_]:
    return np.array([(or_empty if one is None else one) == other for one, other in zip(found, expected, strict=True)])


def _same_labels(values: pa.ChunkedArray, expected: NDArray[Any]) -> NDArray[np.bool_]:
    if expected.ndim == 1:
        found = np.maximum(pc.fill_null(values.cast(pa.int64()), -1).to_numpy(), -1)
        return np.asarray(found == expected)
    given = np.array(values.to_pylist(), np.float32).reshape(expected.shape)
    return np.asarray(np.isclose(given, expected, equal_nan=True).all(axis=1))
