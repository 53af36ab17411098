"""Pooling, layers and rows, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.capture import captured, chosen_layers, pool, pooled, task_of_batch
from t3vis.errors import ConfigurationError

STATE = torch.tensor([[[1.0, 10], [2, 20], [6, 60]], [[4, 40], [8, 80], [99, 99]], [[99, 99], [5, 50], [7, 70]]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1]])  # none, right, left padding


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [[3, 30], [6, 60], [6, 60]]),
        ("first", [[1, 10], [4, 40], [5, 50]]),
        ("last", [[6, 60], [8, 80], [7, 70]]),
        (lambda state, mask: state[:, 1], [[2, 20], [8, 80], [5, 50]]),
        (lambda state, mask: mask.sum(1, keepdim=True), [[3], [2], [2]]),
    ],
    ids=["mean", "first", "last", "function", "narrower"],
)
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
def test_pool(pooling: Any, expected: list[list[float]], mask_dtype: torch.dtype) -> None:
    vectors = pool(STATE, MASK.to(mask_dtype), pooling)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, torch.tensor(expected).float())


def test_an_example_of_padding_alone_has_the_mean_zero() -> None:
    assert pool(STATE[:1], torch.zeros(1, 3), "mean").tolist() == [[0, 0]]


def test_without_a_mask_every_token_counts() -> None:
    vectors = pooled([STATE], None, "mean")
    assert vectors.dtype == torch.float16
    np.testing.assert_allclose(vectors[0, 0], [3, 30])
    np.testing.assert_allclose(vectors[0, 1], [37, 73])


def test_float16_is_saturated_not_infinite() -> None:
    vectors = pooled([1e6 * STATE, -1e6 * STATE], MASK, "first")
    assert vectors.shape == (2, 3, 2)
    assert set(vectors.flatten().tolist()) == {65504.0, -65504.0}


def test_the_mean_is_taken_in_float32_whatever_autocast_says() -> None:
    torch.manual_seed(0)
    states, mask = torch.randn(2, 50, 4), torch.ones(2, 50)
    outputs = {"logits": torch.zeros(2, 3), "hidden_states": (states,)}
    batch = Batch(torch.tensor([0, 1]), None, mask, None, training=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        taken = captured(batch, outputs, hidden_states="all", pooling="mean", problem_type=None)
    np.testing.assert_array_equal(taken.rows()["hidden_states"][0], states.mean(1).half().numpy())


def test_layers_of_different_widths_cannot_stand_side_by_side() -> None:
    with pytest.raises(ConfigurationError, match=r"\[\(3, 1\), \(3, 2\)\]; record layers of one width"):
        pooled([STATE, STATE[..., :1]], MASK, "mean")


def test_a_mask_that_does_not_fit() -> None:
    with pytest.raises(ConfigurationError, match=r"mask has shape \(3, 2\), the hidden states \(3, 3, 2\)"):
        pool(STATE, MASK[:, :2], "mean")


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", [0, 1, 2]), ("last", [2]), ([0, -1], [0, 2]), ((1,), [1]), (range(2), [0, 1])]
)
def test_chosen_layers(layers: Any, expected: list[int]) -> None:
    assert chosen_layers(layers, 3) == expected


@pytest.mark.parametrize("layers", [[3], [-4], [0, 17]])
def test_layers_that_are_not_there(layers: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="the model has 3 hidden states, 0 to 2"):
        chosen_layers(layers, 3)


def test_rows_of_a_batch() -> None:
    outputs = {
        "logits": torch.tensor([[0.0, 1, 2], [0, 1, 2], [0, 1, 2]]).bfloat16(),
        "hidden_states": (STATE, 2 * STATE),
    }
    batch = Batch(torch.tensor([7, 5, 9]), torch.tensor([2, -100, 0]), MASK, None, training=True)
    taken = captured(batch, outputs, hidden_states=[-1], pooling="last", problem_type=None)
    assert taken.task == "single_label"
    assert taken.layers == [1]
    rows = taken.rows()
    assert rows["example"].tolist() == [7, 5, 9]
    assert rows["labels"].tolist() == [2, -1, 0]
    assert rows["length"].tolist() == [3, 2, 2]
    assert rows["logits"].dtype == np.float32
    np.testing.assert_allclose(rows["loss"], [0.40760596, np.nan, 2.40760596], rtol=1e-6)
    assert rows["hidden_states"].tolist() == [[[12, 120], [16, 160], [14, 140]]]


TOKENS = {"logits": torch.zeros(2, 4, 3)}
SEVERAL = torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("outputs", "kind", "task"),
    [
        (TOKENS, {"labels": torch.zeros(2, 4)}, "token_classification"),
        (TOKENS, {"labels": torch.zeros(2, 4), "shifted": True}, "causal_lm"),
        (TOKENS, {"labels": torch.zeros(2)}, "other"),
        (TOKENS, {"paired": True}, "preference"),
        ({"logits": None, "log_probs": torch.zeros(2, 3)}, {}, "causal_lm"),
        ({"start_logits": torch.zeros(2, 4)}, {}, "question_answering"),
        ({"logits": torch.zeros(2, 3)}, {"main": SEVERAL}, "multiple_choice"),
        ({"logits": torch.zeros(2, 3)}, {"main": SEVERAL[:, 0]}, "single_label"),
        ({"logits": None}, {}, "other"),
    ],
)
def test_the_task_of_outputs(outputs: Any, kind: dict[str, Any], task: str) -> None:
    batch = Batch(**{"ids": torch.tensor([0, 1]), "labels": None, "mask": None, "main": None, "training": True, **kind})
    assert task_of_batch(batch, outputs, None, None) == task


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("causal_lm", {"logits": torch.zeros(2, 3)}),
        ("single_label", TOKENS),
        ("multiple_choice", {"logits": None}),
        ("question_answering", TOKENS),
    ],
)
def test_outputs_of_another_task(task: Any, outputs: Any) -> None:
    batch = Batch(torch.tensor([0, 1]), None, None, None, training=True)
    with pytest.raises(ConfigurationError, match=f"the task is {task}, but the model returned logits"):
        task_of_batch(batch, outputs, task, None)


def test_states_of_choices_are_averaged() -> None:
    vectors = pooled([STATE[[0, 1, 0, 0]]], MASK[[0, 1, 0, 0]], "mean", n_choices=2)
    assert vectors.tolist() == [[[4.5, 45], [3, 30]]]
