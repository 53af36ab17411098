"""Ids into batches and out again."""

from __future__ import annotations

import pickle
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from t3vis.callbacks.example_ids import (
    IDS_KEY,
    IdCollator,
    IdDataset,
    check_ids,
    instrument,
    is_instrumented,
    source_dataset,
    take_ids,
)
from t3vis.errors import ConfigurationError


def collate(rows: list[Any]) -> dict[str, Any]:
    return {"x": torch.tensor([row["x"] for row in rows])}


class Stream(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Any:
        return iter([{"x": 10, "id": 3}, {"x": 20, "id": np.int64(0)}, {"x": 30, "id": torch.tensor(7)}])


class Fetches:
    """Hands out a whole batch at once, as ``datasets.Dataset`` does."""

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("asked for one row")

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [10 * i for i in indices]


def test_a_dataset_with_ids() -> None:
    dataset = IdDataset("abc")
    assert len(dataset) == 3
    assert dataset[np.int64(1)] == (1, "b")
    assert type(dataset[np.int64(1)][0]) is int
    assert dataset.__getitems__([2, 0]) == [(2, "c"), (0, "a")]
    assert IdDataset(Fetches()).__getitems__([2, 0]) == [(2, 20), (0, 0)]
    assert dataset.upper() == "ABC"  # in all else the dataset it wraps
    assert pickle.loads(pickle.dumps(dataset))[2] == (2, "c")


def test_batches_carry_the_ids_of_their_rows() -> None:
    rows = [{"x": 10 * i} for i in range(5)]
    loader: DataLoader[Any] = DataLoader(rows, batch_size=2, sampler=[4, 1, 1, 0, 3], collate_fn=collate)  # type: ignore[arg-type]
    assert instrument(loader, None) is loader
    instrument(loader, None)  # a second time changes nothing
    batches = list(loader)
    assert [batch.pop(IDS_KEY).tolist() for batch in batches] == [[4, 1], [1, 0], [3]]
    assert [batch["x"].tolist() for batch in batches] == [[40, 10], [10, 0], [30]]
    assert is_instrumented(loader)
    assert source_dataset(loader) is rows


def test_a_stream_names_its_ids() -> None:
    loader = DataLoader(Stream(), batch_size=2, collate_fn=lambda rows: {"keys": [sorted(row) for row in rows]})
    batches = list(instrument(loader, "id"))
    assert [batch[IDS_KEY].tolist() for batch in batches] == [[3, 0], [7]]
    assert batches[0]["keys"] == [["x"], ["x"]]  # the collator does not get to see the ids
    assert batches[0][IDS_KEY].dtype == torch.int64


def test_a_stream_without_ids_is_refused() -> None:
    loader = DataLoader(Stream(), collate_fn=collate)
    with pytest.raises(ConfigurationError, match=r"id_column='id'"):
        instrument(loader, None)
    assert not is_instrumented(loader)


@pytest.mark.parametrize("batch", [[1, 2], (torch.zeros(2),), torch.zeros(2)], ids=["list", "tuple", "tensor"])
def test_a_collator_must_return_a_dict(batch: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"returned a {type(batch).__name__}, expected a dict-like"):
        IdCollator(lambda rows: batch, None)([(0, "a"), (1, "b")])


def test_any_mapping_that_can_be_added_to_will_do() -> None:
    batch = IdCollator(lambda rows: UserDict(x=rows), None)([(5, "a"), (6, "b")])
    assert isinstance(batch, UserDict)
    assert batch["x"] == ["a", "b"]
    ids = take_ids(batch)
    assert ids is not None
    assert ids.tolist() == [5, 6]
    assert set(batch) == {"x"}
    assert take_ids(batch) is None
    assert take_ids([1, 2]) is None


@pytest.mark.parametrize("value", [1.0, "3", None, [1], torch.tensor(2.0), 2**70, -(2**70), -1])
def test_values_that_number_nothing_are_caught(value: Any) -> None:
    batch = IdCollator(collate, "id")([{"x": 1, "id": 4}, {"x": 2, "id": value}])
    with pytest.raises(ConfigurationError, match=r"\(1 of 2 in the batch\)"):
        check_ids(batch[IDS_KEY].numpy(), None)


def test_ids_within_the_dataset_are_fine() -> None:
    check_ids(np.array([0, 4, 4]), 5)
    check_ids(np.array([2**24 - 1]), None)
    with pytest.raises(ConfigurationError, match="from 0 to 4, found 5"):
        check_ids(np.array([0, 5]), 5)
