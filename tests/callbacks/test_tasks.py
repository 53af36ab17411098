"""What logits, labels and loss mean, by hand."""

from typing import Any

import pytest
import torch

from t3vis.callbacks.tasks import sequence_task, unreduced_loss
from t3vis.errors import ConfigurationError

LOGITS = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("n_classes", "labels", "problem_type", "task"),
    [
        (3, torch.tensor([0, 2]), None, "single_label"),
        (3, torch.tensor([0, 2], dtype=torch.int32), None, "single_label"),
        (3, torch.tensor([[0], [2]]), None, "single_label"),
        (3, torch.zeros(2, 3), None, "multi_label"),
        (3, None, None, "single_label"),
        (1, torch.zeros(2), None, "regression"),
        (1, torch.tensor([0, 2]), None, "regression"),
        (3, torch.zeros(2, 3), "regression", "regression"),
        (3, torch.zeros(2, 3, dtype=torch.int64), "multi_label_classification", "multi_label"),
        (1, torch.tensor([0, 0]), "single_label_classification", "single_label"),
    ],
)
def test_the_task_of_a_head(n_classes: int, labels: Any, problem_type: str | None, task: str) -> None:
    assert sequence_task(torch.zeros(2, n_classes), labels, problem_type) == task


@pytest.mark.parametrize("shape", [(2,), (2, 5, 3, 1)])
def test_logits_must_be_one_row_per_example(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="expected logits of shape"):
        sequence_task(torch.zeros(shape), None, None)


def test_cross_entropy() -> None:
    loss = unreduced_loss("single_label", LOGITS, torch.tensor([2, 1]))
    torch.testing.assert_close(loss, torch.tensor([0.40760596, 3.09492296]))  # log sum exp - the label's logit


@pytest.mark.parametrize("no_class", [-100, -1, 3])
def test_a_label_that_is_no_class_has_no_loss(no_class: int) -> None:
    loss = unreduced_loss("single_label", LOGITS, torch.tensor([no_class, 1]))
    torch.testing.assert_close(loss, torch.tensor([torch.nan, 3.09492296]), equal_nan=True)


def test_binary_cross_entropy_is_the_mean_over_classes() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, -2.0]])
    loss = unreduced_loss("multi_label", logits, torch.tensor([[1, 0], [1, 1]]))
    expected = [0.69314718, (0.12692801 + 2.12692801) / 2]  # log 2; log(1 + e^-2) and log(1 + e^2)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_squared_error_is_the_mean_over_outputs() -> None:
    loss = unreduced_loss("regression", torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -4.0]]))
    assert loss.tolist() == [2.5, 8.0]
    assert unreduced_loss("regression", torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 0.0])).tolist() == [0.25, 9.0]


def test_the_loss_of_half_precision_logits_is_taken_in_float32() -> None:
    loss = unreduced_loss("single_label", LOGITS.bfloat16(), torch.tensor([2, 1]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([0.40760596, 3.09492296]))
