"""Gate gradients in all settings of a training: always those of each example's own loss, or unknown and said so."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer

from t3vis import ConfigurationError, RecorderCallback, RecordingError, open_run
from t3vis.callbacks import gates
from tests.callbacks.attention_models import attention_model, by_weights, check_heads, layers_of, recorded, said_once
from tests.callbacks.test_models import AsksACopy
from tests.callbacks.tiny import as_dataset, pad_left, tiny_rows, tiny_trainer

# Settings of the training, with a learning rate of 0


class Scaled(Trainer):
    """Multiplies the loss, as a GradScaler does."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 4096 * super().compute_loss(*args, **kwargs)


class ClassWeights(Trainer):
    """Weighs each example by its class."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        return F.cross_entropy(model(**inputs).logits, labels, weight=torch.tensor([0.2, 1.0, 3.0]))


class AsksTwice(Trainer):
    """Calls the model on other inputs, for a gradient and without, before and after the batch's own pass."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        def other(*, grad: bool) -> Any:
            with torch.set_grad_enabled(grad):
                return model(input_ids=inputs["input_ids"].flip(1), attention_mask=torch.ones_like(inputs["input_ids"]))

        ignored = other(grad=True).logits.sum() + other(grad=False).logits.sum()
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss + 0 * (ignored + other(grad=True).logits.sum())


class TwoBackward(Trainer):
    """Asks for a gradient of its own before the backward pass, as adversarial training does."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        torch.autograd.grad(loss, self.model.bert.embeddings.word_embeddings.weight, retain_graph=True)
        return loss


def summed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    return F.cross_entropy(outputs.logits, labels, reduction="sum")


REENTRANT = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
SETTINGS: dict[str, dict[str, Any]] = {
    "one batch": {"per_device_train_batch_size": 64},
    "batches of one": {"per_device_train_batch_size": 1},
    "accumulation 2, ragged": {"gradient_accumulation_steps": 2},
    "padding on the left": {"model": lambda: attention_model("llama"), "options": {"data_collator": pad_left}},
    "evaluation in between": {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": as_dataset(tiny_rows(3))},
    "activation checkpointing": {"activation_checkpointing": True},
    "reentrant activation checkpointing": REENTRANT,
    "a multiple of the loss": {"trainer_class": Scaled},
    "the sum over the batch": {"options": {"compute_loss_func": summed}},
    "class weights": {"trainer_class": ClassWeights},
    "other passes": {"trainer_class": AsksTwice},
    "a second backward pass": {"trainer_class": TwoBackward},
    "a copy of the model is asked": {"trainer_class": AsksACopy},
    "workers": {"dataloader_num_workers": 1},
    "tuples": {"model": lambda: attention_model("bert", return_dict=False)},
    "eager attention": {"model": lambda: attention_model("bert", attn_implementation="eager")},
    "llama, accumulation by items": {"model": lambda: attention_model("llama"), "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_training(name: str, tmp_path: Path) -> None:
    settings = dict(SETTINGS[name])
    model, rows = settings.pop("model", lambda: attention_model("bert"))(), tiny_rows(10)
    run = recorded(tmp_path, model=model, train=as_dataset(rows), **settings)
    model.config.return_dict = True
    check_heads(run.train, model, rows)
    assert not any("head_gradients" in split.arrays for split in run.evals.values())
    assert run.missing_rows == 0


def test_bfloat16_autocast(tmp_path: Path) -> None:
    """The logits that the model hands out are a copy that the loss does not know of."""
    model, rows = attention_model("bert"), tiny_rows(10)
    run = recorded(tmp_path, model=model, train=as_dataset(rows), bf16=True, num_train_epochs=1)
    check_heads(run.train, model, rows, rtol=5e-2)


def test_label_smoothing(tmp_path: Path) -> None:
    """The gradient is that of the smoothed loss of each example, and the store says so."""
    model, rows = attention_model("bert"), tiny_rows(6)
    train = recorded(tmp_path, model=model, train=as_dataset(rows), label_smoothing_factor=0.2).train
    assert train.attributes["arrays"]["head_gradients"]["loss"] == "cross-entropy, nats, with label smoothing 0.2"
    smoothed = copy.deepcopy(model)
    own = smoothed.forward

    def forward(*args: Any, labels: Any, **kwargs: Any) -> Any:
        outputs = own(*args, **kwargs)
        outputs.loss = F.cross_entropy(outputs.logits, labels, label_smoothing=0.2)
        return outputs

    smoothed.forward = forward
    check_heads(train, smoothed, rows)


def test_examples_without_a_label_have_no_gradient(tmp_path: Path) -> None:
    model, rows = attention_model("bert"), tiny_rows(8)
    rows[3]["labels"] = -100
    train = recorded(tmp_path, model=model, train=as_dataset(rows), num_train_epochs=1).train
    assert np.isnan(train.head_gradients[0, :, 3]).all()
    del rows[3]
    kept = np.delete(train.head_gradients[0], 3, axis=1)
    modules = train.attributes["arrays"]["head_gradients"]["modules"]
    for i, row in enumerate(rows):
        np.testing.assert_allclose(kept[:, i], by_weights(model, row, modules, [4, 4]), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # peft uses it
def test_adapters(tmp_path: Path) -> None:
    """LoRA wraps the projection and freezes it: the input of the layer itself is what counts."""
    model, rows = attention_model("bert"), tiny_rows(6)
    names = [module for _, module in layers_of("bert")]
    config = peft.LoraConfig(r=2, target_modules=["query", "value", "attention.output.dense"], task_type="SEQ_CLS")
    adapted = peft.get_peft_model(model, config)
    train = recorded(tmp_path, model=adapted, train=as_dataset(rows), label_names=["labels"]).train
    said = train.attributes["arrays"]["head_gradients"]
    assert said["modules"] == [f"base_model.model.{name}.base_layer" for name in names]
    for parameter in adapted.parameters():
        parameter.requires_grad_(True)
    check_heads(train, adapted, rows)


# What cannot be known is said


def test_frozen_layers_below(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, rows = attention_model("bert"), tiny_rows(6)
    for module in (model.bert.embeddings, model.bert.encoder.layer[0]):
        module.requires_grad_(False)
    train = recorded(tmp_path, model=model, train=as_dataset(rows)).train
    model.requires_grad_(True)
    frozen = "bert.encoder.layer.0.attention.output.dense"
    check_heads(train, model, rows, unknown=[frozen])
    assert said_once(caplog, f"no gradient came back to the heads in front of {frozen}: head_gradients is NaN there")


class AnotherLoss(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        return model(**inputs).logits[torch.arange(len(labels)), labels].square().mean()


def test_another_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = recorded(tmp_path, model=attention_model("bert"), train=as_dataset(tiny_rows(6)), trainer_class=AnotherLoss)
    assert np.isnan(run.train.head_gradients[:]).all()
    assert not np.isnan(run.train.loss[:]).any()
    assert said_once(caplog, "is not a multiple of that of their own loss")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # of a pass without gradient
def test_passes_that_are_run_again_cannot_be_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reentrant checkpointing builds a graph in the backward pass only, where nothing says of which pass it is."""
    settings = {**REENTRANT, "trainer_class": AsksTwice, "train": as_dataset(tiny_rows(6))}
    train = recorded(tmp_path, model=attention_model("bert"), **settings).train
    assert np.isnan(train.head_gradients[:]).all()
    assert said_once(caplog, "no gradient came back to the heads in front of bert.encoder.layer.0.attention")


# Refusals, interruptions, resumption


@pytest.mark.parametrize("how", ["argument", "by its user"])
def test_a_compiled_model_is_refused(how: str, tmp_path: Path) -> None:
    model = attention_model("bert")
    if how == "by its user":
        model.compile(backend="eager")
    settings = {"torch_compile": True, "torch_compile_backend": "eager"} if how == "argument" else {}
    with pytest.raises(ConfigurationError, match="heads=True cannot be recorded of a compiled model"):
        recorded(tmp_path, model=model, **settings)
    assert not (tmp_path / "run.zarr").exists()


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise KeyboardInterrupt


class IsInterrupted(Trainer):
    """The third step ends in its backward pass."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return FailsInBackward.apply(loss) if self.state.global_step == 2 else loss


def test_an_interrupted_step_is_recorded_as_far_as_it_came(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"train_sampling_strategy": "sequential", "trainer_class": IsInterrupted}
    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path, model=attention_model("bert"), train=as_dataset(tiny_rows(20)), **settings)
    train = open_run(tmp_path / "run.zarr").train
    assert np.isnan(train.loss[0]).tolist() == [False] * 12 + [True] * 8
    assert np.isnan(train.head_gradients[0]).all((0, 2)).tolist() == [False] * 8 + [True] * 12
    assert not any("head_gradients" in message for message in caplog.messages)


def test_a_failure_to_read_is_reported_and_disturbs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room for products")

    monkeypatch.setattr(gates, "gate_gradients", fails)
    settings: dict[str, Any] = {"model": attention_model("bert"), "train": as_dataset(tiny_rows(6))}
    run = recorded(tmp_path, **settings)
    assert np.isnan(run.train.head_gradients[:]).all()
    assert not np.isnan(run.train.loss[:]).any()
    assert said_once(caplog, "OutOfMemoryError: no room for products")
    with pytest.raises(RecordingError, match="no room for products"):
        recorded(tmp_path / "raise", recorder={"on_error": "raise"}, **settings)


def test_resumption(tmp_path: Path) -> None:
    """A run goes on with the setting it was begun with."""
    model, rows = attention_model("bert"), tiny_rows(8)
    settings = {"model": model, "train": as_dataset(rows), "save_strategy": "epoch", "num_train_epochs": 1}
    recorded(tmp_path, **settings)
    settings["num_train_epochs"] = 2
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    without = RecorderCallback(tmp_path / "run.zarr", resume=True)
    with pytest.raises(ConfigurationError, match="'heads': True"):
        tiny_trainer(tmp_path / "out", without, **settings).train(resume_from_checkpoint=checkpoint)
    recorder = RecorderCallback(tmp_path / "run.zarr", heads=True, resume=True)
    tiny_trainer(tmp_path / "out", recorder, **settings).train(resume_from_checkpoint=checkpoint)
    run = open_run(tmp_path / "run.zarr")
    assert len(run.epochs) == 2
    check_heads(run.train, model, rows)
