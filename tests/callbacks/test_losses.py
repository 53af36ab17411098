"""Losses: whatever is trained, what is recorded is the task's own loss; where there is none, the run says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, Trainer

from t3vis import RecorderCallback, open_run
from tests.callbacks.tiny import (
    LEARNING,
    OwnModel,
    alone,
    check_pass,
    check_training,
    held_out,
    pad,
    recorded,
    refusal,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)


class KeywordLoss(Trainer):
    """Pops the labels and calls the model by keyword, as many custom losses do."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


class TeacherFirst(Trainer):
    """Asks the model without gradient, for other rows, before the pass that is trained."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            model(input_ids=inputs["input_ids"].flip(0), attention_mask=inputs["attention_mask"].flip(0))
        return super().compute_loss(model, inputs, *args, **kwargs)


class AskedTwice(Trainer):
    """Two passes with gradient: the first one counts."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        second = model(input_ids=inputs["input_ids"].flip(0), attention_mask=inputs["attention_mask"].flip(0))
        return loss + 0 * second.logits.sum() if isinstance(loss, Tensor) else loss


def focal(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    log_probs = F.log_softmax(outputs.logits, -1)[torch.arange(len(labels)), labels]
    return (-((1 - log_probs.exp()) ** 2) * log_probs).mean()


LOSSES: dict[str, tuple[dict[str, Any], str | None]] = {  # settings, what the store says is trained instead
    "of the model": ({}, None),
    "label smoothing": ({"label_smoothing_factor": 0.1}, "cross-entropy with label smoothing 0.1"),
    "compute_loss_func": ({"options": {"compute_loss_func": focal}}, "the function focal"),
    "overridden compute_loss": ({"trainer_class": KeywordLoss}, "the compute_loss of KeywordLoss"),
    "no-grad pass before": ({"trainer_class": TeacherFirst}, "the compute_loss of TeacherFirst"),
    "second pass after": ({"trainer_class": AskedTwice}, "the compute_loss of AskedTwice"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, tmp_path: Path) -> None:
    settings, objective = LOSSES[name]
    model = tiny_model()
    run = recorded(tmp_path, model=model, eval_dataset=held_out(), eval_strategy="epoch", **settings)
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
    said = run.train.loss.attributes
    assert said["differs_from_trained"] == (objective is not None)
    assert objective is None or said["trained_objective"] == objective
    assert said["loss"] == "cross-entropy, nats"


def test_a_compute_loss_put_on_the_instance_differs_too(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), num_train_epochs=1)
    own = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: 2 * own(*args, **kwargs)  # type: ignore[method-assign]
    trainer.train()
    assert open_run(tmp_path / "run.zarr").train.loss.attributes["differs_from_trained"]


# Outputs that are no logits of classes


class WithoutLogits(nn.Module):
    """A model whose head returns its loss only, and the hidden states of what is below."""

    def __init__(self) -> None:
        super().__init__()
        self.below = tiny_model()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, output_hidden_states: bool = False
    ) -> Any:
        outputs = self.below(input_ids, attention_mask, labels=labels, output_hidden_states=output_hidden_states)
        return {"loss": outputs.loss, "logits": None, "hidden_states": outputs.hidden_states}


def test_without_logits_the_rest_is_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = WithoutLogits()
    run = recorded(tmp_path, model=model)
    assert run.train.arrays == ["hidden_states", "step", "visits"]
    assert run.train.attributes["task"] == "other"
    for i, row in enumerate(tiny_rows()):
        _, states = alone(model.below, row)
        np.testing.assert_allclose(run.train.hidden_states[1, :, i], states.mean(1), rtol=2e-3, atol=2e-3)
    assert caplog.text.count("not recorded of train: the loss of each example.") == 1
    assert "What is recorded of each example: hidden_states, step" in caplog.text


def test_neither_logits_nor_states_is_refused(tmp_path: Path) -> None:
    class Nothing(OwnModel):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
            return {"loss": super().forward(input_ids, attention_mask, labels)["loss"], "logits": None}

    recorder = RecorderCallback(tmp_path / "run.zarr")
    message = refusal(tiny_trainer(tmp_path / "out", recorder, model=Nothing(), **LEARNING))
    assert "expected the model to return an output with logits, found loss, logits" in message
    assert not recorder.path.exists()


def tags(rows: Any) -> Any:
    """Collate: the label of a token is its number modulo three; the first token of each example has none."""
    batch = pad(rows)
    labels = (batch["input_ids"] % 3).masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    return {**batch, "labels": labels}


TOKENS = {
    "token classification": lambda: tiny_model(auto=AutoModelForTokenClassification),
    "causal language model": lambda: tiny_model("llama", auto=AutoModelForCausalLM),
}


@pytest.mark.parametrize("name", TOKENS)
def test_outputs_for_each_token(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The scores of every token are never recorded; the loss is the mean over the tokens that have a label."""
    model = TOKENS[name]()
    run = recorded(tmp_path, model=model, options={"data_collator": tags})
    assert run.train.arrays == ["loss", "n_tokens", "token_accuracy", "hidden_states", "step", "visits"]
    assert [p.n_seen for p in run.epochs] == [41, 41]
    model.eval()
    for i, row in enumerate(tiny_rows()):
        with torch.no_grad():
            outputs = model(**tags([row]), output_hidden_states=True)
        np.testing.assert_allclose(run.train.loss[1, i], outputs.loss, rtol=1e-4, atol=1e-5)
        states = torch.stack(outputs.hidden_states)[:, 0].mean(1)
        np.testing.assert_allclose(run.train.hidden_states[1, :, i], states, rtol=2e-3, atol=2e-3)
    assert caplog.text.count("not recorded of train: logits of shape (4, ") == 1
    assert run.train.loss.attributes["loss"].startswith("mean negative log-likelihood")


class ShortOfOne(nn.Module):
    """Returns scores for each token, of one example less than it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        return {"loss": self.embed.weight.sum(), "logits": None, "hidden_states": (self.embed(input_ids)[1:],)}


def test_a_row_less_for_each_token_is_refused(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr")
    message = refusal(tiny_trainer(tmp_path / "out", recorder, model=ShortOfOne(), **LEARNING))
    assert "3 rows of hidden states for 4 examples" in message
