"""Gate gradients of the attention heads of many models, against the gradients of the weights of one example."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
)

from tests.callbacks import test_head_settings
from tests.callbacks.attention_models import (
    ARCHITECTURES,
    attention_model,
    check_heads,
    images,
    layers_of,
    recorded,
    said_once,
    stacked,
)
from tests.callbacks.tiny import EOS, PAD, VOCABULARY, OwnModel, Rows, as_dataset, pad, tiny_rows

# Architectures


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures(kind: str, tmp_path: Path) -> None:
    model, rows = attention_model(kind), images(6) if kind == "vit" else tiny_rows(6)
    options = {"data_collator": stacked if kind == "vit" else pad}
    train = recorded(tmp_path, model=model, train=as_dataset(rows), options=options).train
    said = train.attributes["arrays"]["head_gradients"]
    assert list(zip(said["attention"], said["modules"], strict=True)) == layers_of(kind)
    assert train.head_gradients.dims == ("epoch", "attention", "example", "head")
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


@pytest.mark.parametrize("kind", ["bert", "albert", "bart"])
def test_it_is_the_gradient_of_a_gate(kind: str, tmp_path: Path) -> None:
    """By finite differences, each layer by itself, also where one module is all of them."""
    model, rows = attention_model(kind), tiny_rows(3)
    train = recorded(tmp_path, model=model, train=as_dataset(rows), num_train_epochs=1).train
    model = model.double()
    said = train.attributes["arrays"]["head_gradients"]
    for layer, (name, n_heads) in enumerate(zip(said["modules"], said["n_heads"], strict=True)):
        module, call = model.get_submodule(name), said["modules"][:layer].count(name)
        width = module.in_features // n_heads
        for i, head in itertools.product(range(3), range(n_heads)):
            at = slice(head * width, (head + 1) * width)
            up, down = (gated_loss(model, rows[i], module, call, at, gate) for gate in (1.001, 0.999))
            found = train.head_gradients[0, layer, i, head]
            np.testing.assert_allclose(found, (up - down) / 0.002, rtol=1e-3, atol=1e-4)


# Outputs of other kinds


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


# Attentions that are not understood


class WindowAttention(nn.Module):
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
    [WindowAttention(), nn.MultiheadAttention(8, 2, batch_first=True), SelfAttention(each=3)],
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


def test_the_page_names_every_architecture_and_test() -> None:
    page = (Path(__file__).parents[2] / "docs" / "heads.md").read_text()
    names = re.sub(r"[^a-z0-9]", "", page.lower())
    assert [kind for kind in ARCHITECTURES if re.sub(r"[^a-z0-9]", "", kind) not in names] == []
    tests = set(re.findall(r"`(test_\w+)", page)) - {"test_two_processes", "test_fsdp2"}
    assert tests <= {*globals(), *vars(test_head_settings)}
