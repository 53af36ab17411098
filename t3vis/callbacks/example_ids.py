"""Example ids into batches, and out again before the model sees them.

The dataset of a loader is wrapped so that each row carries its index, and its ``collate_fn`` so that the batch
carries one int64 tensor of them. Whatever reorders, shards, skips or prefetches batches takes the ids along.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from t3vis.errors import ConfigurationError

IDS_KEY = "t3vis_example_ids"
MAX_ID = 2**24 - 1  # of a stream that does not say its length: arrays are as long as the largest id
NOT_A_NUMBER = -(2**63)  # travels in place of an id that is none, and is refused when the rows are recorded


class IdDataset:
    """A map-style dataset whose rows are pairs of index and row; in all else the dataset it wraps."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return int(index), self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        """Rows of a whole batch at once, where the dataset can; torch's fetcher asks for this."""
        fetch = getattr(self.dataset, "__getitems__", None)
        rows = fetch(indices) if callable(fetch) else [self.dataset[index] for index in indices]
        return list(zip(map(int, indices), rows, strict=True))

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # not there yet while being unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)


class IdCollator:
    """The outermost collator: takes the ids off the rows, collates these, puts the ids into the batch.

    Parameters
    ----------
    collate
        The loader's own collator.
    id_column
        Column that holds the id; ``None`` if the rows come from an ``IdDataset``.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], id_column: str | None) -> None:
        self.collate = collate
        self.id_column = id_column

    def __call__(self, rows: list[Any]) -> Any:
        """One batch, with the ids of its rows."""
        if self.id_column is None:
            ids = [row[0] for row in rows]
            batch = self.collate([row[1] for row in rows])
        else:
            ids = [_column_id(row, self.id_column) for row in rows]
            batch = self.collate([{key: row[key] for key in row if key != self.id_column} for row in rows])
        if not isinstance(batch, MutableMapping):
            raise ConfigurationError(
                f"the data collator returned a {type(batch).__name__}, expected a dict-like batch to carry the "
                "example ids in; return a dict of tensors, as the model's forward takes them."
            )
        batch[IDS_KEY] = torch.tensor(ids, dtype=torch.int64)
        return batch


def check_identity(dataset: Any, id_column: str | None) -> None:
    """Make sure that the examples of a dataset can be told apart.

    Raises
    ------
    ConfigurationError
        If the dataset is iterable and no ``id_column`` numbers its examples.
    """
    if isinstance(dataset, IterableDataset) and id_column is None:
        raise ConfigurationError(
            "an IterableDataset has no row numbers to know its examples by; add a column of ids 0, 1, 2, ... "
            "(dataset.map(lambda row, i: {'id': i}, with_indices=True)) and name it: "
            "RecorderCallback(..., id_column='id')."
        )


def instrument(loader: Any, id_column: str | None) -> Any:
    """Let every batch of a (prepared) loader carry the ids of its examples; the loader itself is returned.

    Raises
    ------
    ConfigurationError
        If its examples cannot be told apart; see ``check_identity``.
    """
    if is_instrumented(loader):
        return loader
    base: DataLoader[Any] = getattr(loader, "base_dataloader", loader)
    check_identity(base.dataset, id_column)
    iterable = isinstance(base.dataset, IterableDataset)
    if not iterable:
        base.__dict__["dataset"] = IdDataset(base.dataset)  # DataLoader.__setattr__ forbids the plain way
    base.collate_fn = IdCollator(base.collate_fn, id_column if iterable else None)
    return loader


def is_instrumented(loader: Any) -> bool:
    """Whether the batches of a (prepared) loader carry ids."""
    return isinstance(getattr(loader, "base_dataloader", loader).collate_fn, IdCollator)


class WithoutIds:
    """A loader as others see it: its batches carry no ids. In all else the loader it wraps."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            take_ids(batch)
            yield batch

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """That of the loader, as accelerate's own loaders have it: others ask whether it is a ``DataLoader``."""
        return self.loader.__class__


def source_dataset(loader: Any) -> Any:
    """The dataset of a loader, without the wrapper."""
    dataset = getattr(loader, "base_dataloader", loader).dataset
    return dataset.dataset if isinstance(dataset, IdDataset) else dataset


def take_ids(batch: Any) -> torch.Tensor | None:
    """Remove the ids from a batch; ``None`` if it carries none."""
    return batch.pop(IDS_KEY, None) if isinstance(batch, MutableMapping) else None


def check_ids(ids: NDArray[np.int64], n_examples: int | None) -> None:
    """Make sure that the ids of a batch are row numbers of the dataset.

    Raises
    ------
    ConfigurationError
        If one is negative, no whole number, or beyond the ``n_examples`` of the dataset (where that is known).
    """
    last = MAX_ID if n_examples is None else n_examples - 1
    wrong = ids[(ids < 0) | (ids > last)]
    if len(wrong):
        longer = "" if n_examples is not None else " A stream that is longer must say how long (__len__)."
        found = "a value that is no whole number" if wrong[0] == NOT_A_NUMBER else str(wrong[0])
        raise ConfigurationError(
            f"expected example ids from 0 to {last}, found {found} ({len(wrong)} of {len(ids)} in the batch); "
            "number the examples with dataset.map(lambda row, i: {'id': i}, with_indices=True) and name that column: "
            f"RecorderCallback(..., id_column='id').{longer}"
        )


def _column_id(row: Any, column: str) -> int:
    if not isinstance(row, Mapping) or column not in row:
        found = f"the columns {', '.join(row)}" if isinstance(row, Mapping) else f"a {type(row).__name__}"
        raise ConfigurationError(
            f"expected every example to have the column {column!r} that id_column names, found {found}; name the "
            "column that numbers the examples from 0 on."
        )
    try:
        number = operator.index(row[column])
    except TypeError:
        return NOT_A_NUMBER
    return max(min(number, -NOT_A_NUMBER - 1), NOT_A_NUMBER + 1)
