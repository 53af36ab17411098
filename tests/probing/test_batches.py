from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from t3vis.errors import ProbingError
from t3vis.probing.batches import batches, collated
from tests.callbacks.attention_models import attention_model
from tests.callbacks.tiny import PAD, as_dataset, tiny_model, tiny_rows


@pytest.mark.parametrize("wrap", [list, as_dataset])
def test_every_example_comes_once_with_its_own_tokens(wrap: Any) -> None:
    rows = tiny_rows(23)
    found = list(batches(tiny_model("bert"), wrap(rows), batch_size=4))
    assert sorted(np.concatenate([batch.ids for batch in found])) == list(range(23))
    for batch in found:
        assert set(batch.inputs) == {"input_ids", "attention_mask", "labels"}
        for i, ids, mask, label in zip(batch.ids, *batch.inputs.values(), strict=True):
            n = len(rows[i]["input_ids"])
            assert ids[:n].tolist() == rows[i]["input_ids"]
            assert ids[n:].eq(PAD).all()
            assert mask.tolist() == [1] * n + [0] * (len(ids) - n)
            assert label == rows[i]["labels"]


def test_examples_of_like_length_stand_together_in_batches_in_random_order() -> None:
    rows = tiny_rows(40)
    found = list(batches(tiny_model("bert"), rows, batch_size=5))
    lengths = [[len(rows[i]["input_ids"]) for i in batch.ids] for batch in found]
    ranges = sorted((min(each), max(each)) for each in lengths)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    assert lengths != sorted(lengths)
    again = list(batches(tiny_model("bert"), rows, batch_size=5))
    assert [batch.ids.tolist() for batch in again] == [batch.ids.tolist() for batch in found]


def test_a_mask_is_made_and_a_label_is_a_label() -> None:
    rows = [{"input_ids": row["input_ids"], "label": row["labels"], "text": "x"} for row in tiny_rows(3)]
    (batch,) = batches(tiny_model("bert"), rows)
    assert batch.inputs["attention_mask"].sum(1).tolist() == [len(rows[i]["input_ids"]) for i in batch.ids]
    assert batch.inputs["labels"].tolist() == [rows[i]["label"] for i in batch.ids]


def test_only_the_examples_asked_for() -> None:
    found = list(batches(tiny_model("bert"), tiny_rows(9), ids=[7, 2, 5], batch_size=2))
    assert sorted(np.concatenate([batch.ids for batch in found])) == [2, 5, 7]


def test_what_cannot_be_read() -> None:
    with pytest.raises(ProbingError, match="example 0 has none of input_ids"):
        next(batches(tiny_model("bert"), [{"text": "words"}]))


def test_labels_of_tokens_and_pictures() -> None:
    found = collated([{"labels": [1, 2], "input_ids": [3, 4]}, {"labels": [5], "input_ids": [6]}], pad_token=9)
    assert found["labels"].tolist() == [[1, 2], [5, -100]]
    assert found["input_ids"].tolist() == [[3, 4], [6, 9]]
    pictures = [{"pixel_values": torch.ones(3, 8, 8).tolist(), "labels": 1}] * 2
    (batch,) = batches(attention_model("vit"), pictures)
    assert batch.inputs["pixel_values"].shape == (2, 3, 8, 8)
