"""What logits, labels and loss mean, by hand."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from t3vis.callbacks.settings import Settings
from t3vis.callbacks.tasks import sequence_task, task_of_model, unreduced_loss
from t3vis.errors import ConfigurationError
from t3vis.store.options import StorageOptions
from tests.callbacks.tiny import tiny_model

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


@pytest.mark.parametrize(
    ("kind", "auto", "task"),
    [
        ("bert", "SequenceClassification", None),
        ("bert", "MultipleChoice", "multiple_choice"),
        ("bert", "QuestionAnswering", "question_answering"),
        ("roberta", "TokenClassification", "token_classification"),
        ("distilbert", "MaskedLM", "masked_lm"),
        ("gpt2", "CausalLM", "causal_lm"),
        ("bart", "Seq2SeqLM", "seq2seq_lm"),
        ("bart", "CausalLM", "causal_lm"),
        ("vit", "ImageClassification", None),
    ],
)
def test_the_task_of_a_model(kind: str, auto: str, task: str | None) -> None:
    assert task_of_model(tiny_model(kind, auto=getattr(transformers, f"AutoModelFor{auto}"))) == task


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # peft uses it
def test_the_task_of_a_model_under_another_name() -> None:
    model = tiny_model("llama", auto=AutoModelForCausalLM)
    own = type("Own", (type(model),), {})
    assert task_of_model(own(model.config)) == "causal_lm"
    assert task_of_model(torch.compile(model, backend="eager")) == "causal_lm"
    assert task_of_model(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))) == "causal_lm"
    assert task_of_model(nn.Linear(1, 1)) is None


def test_a_task_that_there_is_not() -> None:
    task: Any = "translation"
    with pytest.raises(ConfigurationError, match="task='translation': expected 'single_label', 'multi_label', "):
        Settings(
            hidden_states="all",
            pooling="mean",
            text="auto",
            id_column=None,
            on_error="warn",
            resume=False,
            overwrite=False,
            storage=StorageOptions(None, "process", None),
            heads=False,
            task=task,
        )
