"""THE oracle: with learning rate 0 and dropout 0, every recorded row equals a fresh pass on its example alone.

Whatever shuffles, shards, prefetches, pads, accumulates or wraps must not move a row to another example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t3vis.analysis.generalised import signed_logits
from tests.callbacks.tiny import (
    N_CLASSES,
    PlainDataset,
    alone,
    as_dataset,
    check_training,
    pad,
    recorded,
    tiny_model,
    tiny_rows,
)

# Pooling and layers


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_pooling(pooling: str, tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, recorder={"pooling": pooling}, model=model)
    check_training(run.train, model, tiny_rows(), pooling=pooling)
    assert run.train.hidden_states.attributes["pooling"] == pooling


def spread(states: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the tokens, beside the number of them."""
    highest = states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    return torch.cat([highest, mask.sum(1, keepdim=True)], 1)


def test_a_pooling_of_ones_own(tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, recorder={"pooling": spread}, model=model, num_train_epochs=1)
    assert run.train.hidden_states.shape == (1, 3, 41, 17)
    for i, row in enumerate(tiny_rows()):
        _, states = alone(model, row)
        np.testing.assert_allclose(run.train.hidden_states[0, :, i, :-1], states.max(1), rtol=2e-3, atol=2e-3)
        assert (run.train.hidden_states[0, :, i, -1] == len(row["input_ids"])).all()
    assert run.train.hidden_states.attributes["pooling"] == "spread"


@pytest.mark.parametrize(
    ("hidden_states", "layers"), [("all", (0, 1, 2)), ("last", (2,)), ([0, -1], (0, 2)), ((1,), (1,)), (None, None)]
)
def test_layers(hidden_states: Any, layers: Any, tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, recorder={"hidden_states": hidden_states}, model=model)
    check_training(run.train, model, tiny_rows(), layers=layers)


# Tasks


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(outputs: int, tmp_path: Path) -> None:
    def values(rng: np.random.Generator) -> Any:
        drawn = rng.normal(size=outputs).astype(np.float32).tolist()
        return drawn[0] if outputs == 1 else drawn

    model, rows = tiny_model(num_labels=outputs, problem_type="regression"), tiny_rows(label=values)
    run = recorded(tmp_path, model=model, train=as_dataset(rows))
    check_training(run.train, model, rows, task="regression")
    assert run.train.attributes["task"] == "regression"


@pytest.mark.parametrize("train", [as_dataset, PlainDataset], ids=["datasets.Dataset", "torch Dataset"])
def test_multi_label(train: Any, tmp_path: Path) -> None:
    def classes(rng: np.random.Generator) -> list[float]:
        return rng.integers(0, 2, N_CLASSES).astype(float).tolist()

    model, rows = tiny_model(), tiny_rows(label=classes)
    run = recorded(tmp_path, model=model, train=train(rows))
    check_training(run.train, model, rows, task="multi_label")
    assert run.train.attributes["task"] == "multi_label"
    targets = np.array([row["labels"] for row in rows])
    of_each_label = np.logaddexp(0, -signed_logits(run.train.logits[:], targets))
    np.testing.assert_allclose(run.train.loss[:], of_each_label.mean(-1), rtol=1e-5)


# By hand


class Constant(nn.Module):
    """Hidden states and logits known beforehand: token t of the input becomes the vector (t, -t)."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> dict[str, Any]:
        vectors = torch.stack([input_ids, -input_ids], -1).float() + 0 * self.weight
        logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(len(input_ids), 1) + 0 * self.weight
        outputs: dict[str, Any] = {"loss": logits.mean(), "logits": logits}
        return {**outputs, "hidden_states": (vectors, 10 * vectors)} if output_hidden_states else outputs

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


HAND_ROWS = [
    {"input_ids": [1, 2, 6], "attention_mask": [1, 1, 1], "labels": 2},
    {"input_ids": [4], "attention_mask": [1], "labels": 0},
]
BY_HAND: dict[str, list[float]] = {"mean": [3.0, 4.0], "first": [1.0, 4.0], "last": [6.0, 4.0]}


@pytest.mark.parametrize("pooling", BY_HAND)
def test_values_worked_out_by_hand(pooling: str, tmp_path: Path) -> None:
    run = recorded(
        tmp_path, recorder={"pooling": pooling}, model=Constant(), train=as_dataset(HAND_ROWS), num_train_epochs=1
    )
    first: NDArray[np.float16] = run.train.hidden_states[0, 0]
    np.testing.assert_array_equal(first, [[value, -value] for value in BY_HAND[pooling]])
    np.testing.assert_array_equal(run.train.hidden_states[0, 1], 10 * first)
    np.testing.assert_array_equal(run.train.logits[0], [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(run.train.loss[0], [0.40760596, 2.40760596], rtol=1e-6)  # log(1 + e + e^2) - logit
    assert run.train.length.tolist() == [3, 1]
    assert run.train.labels.tolist() == [2, 0]


def test_pad_is_what_it_says() -> None:
    batch = pad([{"input_ids": [5], "attention_mask": [1]}, {"input_ids": [7, 8], "attention_mask": [1, 1]}])
    assert batch["input_ids"].tolist() == [[5, 0], [7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
