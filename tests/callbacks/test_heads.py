"""Gate gradients of every attention head, against the gradients of the weights of one example at a time."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
    Trainer,
)
from transformers.pytorch_utils import Conv1D

from t3vis import ConfigurationError, RecorderCallback, RecordingError, Run, open_run
from t3vis.callbacks import gates
from t3vis.store.reader import Split
from tests.callbacks.attention_models import ARCHITECTURES, attention_model, images, layers_of, stacked
from tests.callbacks.test_non_interference import AsksACopy
from tests.callbacks.tiny import (
    EOS,
    PAD,
    VOCABULARY,
    OwnModel,
    Rows,
    as_dataset,
    pad,
    pad_left,
    tiny_rows,
    tiny_trainer,
)


def recorded(directory: Path, *, recorder: dict[str, Any] | None = None, **trainer: Any) -> Run:
    """Train with the recorder, and open what it recorded."""
    callback = RecorderCallback(directory / "run.zarr", heads=True, **(recorder or {}))
    tiny_trainer(directory / "out", callback, **trainer).train()
    return open_run(directory / "run.zarr")


def said_once(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return sum(text in message for message in caplog.messages) == 1


# The oracle


def per_head(module: Any, n_heads: int) -> NDArray[np.float64]:
    """Sum of W * dL/dW over the columns of an output projection that read each head."""
    products = (module.weight * module.weight.grad).detach().double()
    columns = products.sum(1) if isinstance(module, Conv1D) else products.sum(0)
    return columns.reshape(n_heads, -1).sum(1).numpy()


def by_weights(model: Any, row: dict[str, Any], modules: list[str], n_heads: list[int]) -> list[NDArray[np.float64]]:
    """What each module's weights say of one example by itself: its own loss, unpadded, no recorder."""
    inputs = {k: torch.as_tensor(row[k])[None] for k in ("input_ids", "attention_mask", "pixel_values") if k in row}
    model.train()
    model.zero_grad()
    model(**inputs, labels=torch.as_tensor([row["labels"]])).loss.backward()
    found = [per_head(model.get_submodule(name), n) for name, n in zip(modules, n_heads, strict=True)]
    model.zero_grad()
    return found


def check_heads(split: Split, model: Any, rows: Rows, *, rtol: float = 1e-4, unknown: Sequence[str] = ()) -> None:
    """Every gate gradient is what the weights say, in every epoch; a module of several layers holds their sum."""
    said = split.attributes["arrays"]["head_gradients"]
    modules, n_heads = said["modules"], said["n_heads"]
    values = split.head_gradients[:]
    assert values.shape == (len(split.passes), len(modules), len(rows), max(n_heads))
    for i, row in enumerate(rows):
        for name, expected in zip(modules, by_weights(model, row, modules, n_heads), strict=True):
            layers = [layer for layer, module in enumerate(modules) if module == name]
            found = values[:, layers, i]
            assert np.isnan(found[..., len(expected) :]).all()
            if name in unknown:
                assert np.isnan(found).all()
                continue
            scale = np.abs(expected).max()
            assert scale > 1e-7, f"{name} does not matter to example {i}"
            for epoch in found[..., : len(expected)].sum(1):
                np.testing.assert_allclose(epoch, expected, rtol=rtol, atol=rtol * scale, err_msg=f"{name}, {i}")


# Architectures


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures(kind: str, tmp_path: Path) -> None:
    model, rows = attention_model(kind), images(6) if kind == "vit" else tiny_rows(6)
    options = {"data_collator": stacked if kind == "vit" else pad}
    train = recorded(tmp_path, model=model, train=as_dataset(rows), options=options).train
    said = train.attributes["arrays"]["head_gradients"]
    assert list(zip(said["attention"], said["modules"], strict=True)) == layers_of(kind)
    assert train.head_gradients.dims == ("epoch", "layer", "example", "head")
    check_heads(train, model, rows)


def gated_loss(model: Any, row: dict[str, Any], module: Any, call: int, head: slice, gate: float) -> float:
    """Loss of one example when what a head hands on is multiplied by ``gate`` in that call of the projection."""
    calls = []

    def before(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        calls.append(1)
        x = args[0].clone()
        if len(calls) == call + 1:
            x[..., head] = x[..., head] * gate
        return (x,)

    handle = module.register_forward_pre_hook(before)
    with torch.no_grad():
        inputs = {key: torch.as_tensor(row[key])[None] for key in ("input_ids", "attention_mask")}
        loss = model(**inputs, labels=torch.as_tensor([row["labels"]])).loss.item()
    handle.remove()
    return float(loss)


@pytest.mark.parametrize("kind", ["bert", "albert", "t5"])
def test_it_is_the_gradient_of_a_gate(kind: str, tmp_path: Path) -> None:
    """By finite differences, each layer by itself, also where one module is all of them."""
    model, rows = attention_model(kind), tiny_rows(3)
    train = recorded(tmp_path, model=model, train=as_dataset(rows), num_train_epochs=1).train
    model = model.double()
    modules = train.attributes["arrays"]["head_gradients"]["modules"]
    for layer, name in enumerate(modules):
        module, call = model.get_submodule(name), modules[:layer].count(name)
        width = module.in_features // 4
        for i, head in itertools.product(range(3), range(4)):
            at = slice(head * width, (head + 1) * width)
            up, down = (gated_loss(model, rows[i], module, call, at, gate) for gate in (1.01, 0.99))
            found = train.head_gradients[0, layer, i, head]
            np.testing.assert_allclose(found, (up - down) / 0.02, rtol=2e-3, atol=1e-4)


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


TARGETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "regression": (lambda rng: float(rng.normal()), {"num_labels": 1}),
    "two outputs": (lambda rng: rng.normal(size=2).tolist(), {"num_labels": 2, "problem_type": "regression"}),
    "multi-label": (lambda rng: rng.integers(0, 2, 3).astype(float).tolist(), {}),
}


@pytest.mark.parametrize("name", TARGETS)
def test_tasks(name: str, tmp_path: Path) -> None:
    label, config = TARGETS[name]
    model, rows = attention_model("bert", **config), tiny_rows(6, label=label)
    check_heads(recorded(tmp_path, model=model, train=as_dataset(rows)).train, model, rows)


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
    train = recorded(tmp_path, model=adapted, train=as_dataset(rows), options={"label_names": ["labels"]}).train
    said = train.attributes["arrays"]["head_gradients"]
    assert said["modules"] == [f"base_model.model.{name}.base_layer" for name in names]
    for parameter in adapted.parameters():
        parameter.requires_grad_(True)
    check_heads(train, adapted, rows)


# Outputs for each token


def pad_labels(rows: Rows) -> dict[str, Tensor]:
    """Collate: labels of each token are padded with what is left out."""
    width = max(len(row["labels"]) for row in rows)
    labels = [F.pad(torch.as_tensor(row["labels"]), (0, width - len(row["labels"])), value=-100) for row in rows]
    return {
        **pad([{k: row[k] for k in ("input_ids", "attention_mask")} for row in rows]),
        "labels": torch.stack(labels),
    }


def of_tokens(kind: str) -> Any:
    """A model with logits for each token."""
    if kind == "bert":
        auto: Any = AutoModelForTokenClassification
    else:
        auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    torch.manual_seed(0)
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 1, "num_labels": 5}
    return auto.from_config(AutoConfig.for_model(kind, **tokens, **ARCHITECTURES[kind].config))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_outputs_for_each_token(kind: str, accumulation: int, tmp_path: Path) -> None:
    """The mean over the tokens of an example, though the Trainer takes that over those of all examples of a step."""
    rng = np.random.default_rng(0)
    rows = [{**row, "labels": rng.integers(0, 5, len(row["input_ids"])).tolist()} for row in tiny_rows(10)]
    rows[4]["labels"][0] = -100
    model, options = of_tokens(kind), {"data_collator": pad_labels}
    settings = {"train": as_dataset(rows), "gradient_accumulation_steps": accumulation, "num_train_epochs": 1}
    check_heads(recorded(tmp_path, model=model, options=options, **settings).train, model, rows, rtol=1e-3)


def test_examples_in_one_row_are_not_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny_rows(6)]
    options = {"data_collator": DataCollatorWithFlattening(return_flash_attn_kwargs=False)}
    model = of_tokens("llama")
    train = recorded(tmp_path, model=model, train=as_dataset(rows), options=options, num_train_epochs=1).train
    assert "head_gradients" not in train.arrays
    assert said_once(caplog, "recorded for 0 attentions of LlamaForCausalLM, not for model.layers.0.self_attn")


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


def test_passes_that_are_run_again_cannot_be_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reentrant checkpointing builds a graph in the backward pass only, where nothing says of which pass it is."""
    settings = {**REENTRANT, "trainer_class": AsksTwice, "train": as_dataset(tiny_rows(6))}
    train = recorded(tmp_path, model=attention_model("bert"), **settings).train
    assert np.isnan(train.head_gradients[:]).all()
    assert said_once(caplog, "no gradient came back to the heads in front of bert.encoder.layer.0.attention")


class Windows(nn.Module):
    """An attention over the halves of a sequence, one after another: its rows are not examples."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.out = 2, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        halves = x.reshape(-1, x.shape[1] // 2, x.shape[2])
        return self.out(halves.cumsum(1)).reshape(x.shape)


class SelfAttention(nn.Module):
    def __init__(self, each: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, each
        self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.value(x).cumsum(1))


class OfThisKind(nn.Module):
    """A model with attentions of one kind, and one that is like those of transformers."""

    def __init__(self, attention: nn.Module, *, and_another: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(60, 8), nn.Linear(8, 3)
        self.odd, self.usual = attention, SelfAttention() if and_another else nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(F.pad(input_ids, (0, 12 - input_ids.shape[1])))
        x = self.odd(x, x, x)[0] if isinstance(self.odd, nn.MultiheadAttention) else self.odd(x)
        logits = self.head(self.usual(x).mean(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    "attention",
    [Windows(), nn.MultiheadAttention(8, 2, batch_first=True), SelfAttention(each=3)],
    ids=["rows that are no examples", "no layer that is called", "heads that do not fit"],
)
def test_attentions_that_are_not_understood(
    attention: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are named, and the rest is recorded."""
    settings = {"train": as_dataset(tiny_rows(6)), "num_train_epochs": 1}
    train = recorded(tmp_path, model=OfThisKind(attention), **settings).train
    assert train.attributes["arrays"]["head_gradients"]["modules"] == ["usual.out"]
    assert not np.isnan(train.head_gradients[0]).any()
    assert said_once(caplog, "recorded for 1 attentions of OfThisKind, not for odd: ")
    caplog.clear()
    alone = OfThisKind(attention, and_another=False)
    train = recorded(tmp_path / "alone", model=alone, **settings).train
    assert "head_gradients" not in train.arrays
    assert said_once(caplog, "recorded for 0 attentions of OfThisKind, not for odd: ")


def test_a_model_without_attention(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = recorded(tmp_path, model=OwnModel(), num_train_epochs=1).train
    assert "head_gradients" not in train.arrays
    assert not np.isnan(train.loss[0]).any()
    assert said_once(caplog, "OwnModel has no attention that says how many heads it has")


# Refusals, interruptions, resumption, processes


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


def test_the_page_names_every_architecture_and_test() -> None:
    page = (Path(__file__).parents[2] / "docs" / "heads.md").read_text()
    names = re.sub(r"[^a-z0-9]", "", page.lower())
    assert [kind for kind in ARCHITECTURES if re.sub(r"[^a-z0-9]", "", kind) not in names] == []
    tests = set(re.findall(r"`(test_\w+)", page)) - {"test_two_processes", "test_fsdp2"}
    assert tests <= set(globals())
