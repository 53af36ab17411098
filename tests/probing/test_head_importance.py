from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from t3vis.analysis.head_importance import head_importance
from t3vis.errors import ProbingError
from t3vis.probing.head_importance import EFFECTS, found_heads, head_gradients, importances
from tests.callbacks.attention_models import ARCHITECTURES, attention_model, by_weights
from tests.callbacks.tiny import tiny_rows
from tests.probing.models import answers_with, batch_of, examples_of, heads_of_kind

_SELF = "bert.encoder.layer.{i}.attention.self.value"
VALUES: dict[str, tuple[str, ...]] = {
    "bert": (_SELF,),
    "roberta": (_SELF.replace("bert", "roberta", 1),),
    "distilbert": ("distilbert.transformer.layer.{i}.attention.v_lin",),
    "albert": ("albert.encoder.albert_layer_groups.0.albert_layers.0.attention.value",) * 2,
    "electra": (_SELF.replace("bert", "electra", 1),),
    "deberta-v2": ("deberta.encoder.layer.{i}.attention.self.value_proj",),
    "modernbert": ("model.layers.{i}.attn.Wqkv",),
    "mpnet": ("mpnet.encoder.layer.{i}.attention.attn.v",),
    "gpt2": ("transformer.h.{i}.attn.c_attn",),
    "gpt_neox": ("gpt_neox.layers.{i}.attention.query_key_value",),
    "llama": ("model.layers.{i}.self_attn.v_proj",),
    "mistral": ("model.layers.{i}.self_attn.v_proj",),
    "qwen3": ("model.layers.{i}.self_attn.v_proj",),
    "gemma": ("model.layers.{i}.self_attn.v_proj",),
    "phi3": ("model.layers.{i}.self_attn.qkv_proj",),
    "falcon": ("transformer.h.{i}.self_attention.query_key_value",),
    "t5": (
        "transformer.encoder.block.{i}.layer.0.SelfAttention.v",
        "transformer.decoder.block.{i}.layer.0.SelfAttention.v",
        "transformer.decoder.block.{i}.layer.1.EncDecAttention.v",
    ),
    "bart": (
        "model.encoder.layers.{i}.self_attn.v_proj",
        "model.decoder.layers.{i}.self_attn.v_proj",
        "model.decoder.layers.{i}.encoder_attn.v_proj",
    ),
    "vit": ("vit.layers.{i}.attention.v_proj",),
}
GROUPS = {"llama": 2, "mistral": 2, "qwen3": 2, "gemma": 2, "phi3": 2, "falcon": 1}


def of_values(kind: str, module: Any, n_heads: int) -> np.ndarray:
    """Sum of W * dL/dW, and of the bias, over the rows that make the value of each head, or group of heads."""
    weight = module.weight * module.weight.grad
    by_row = (weight.sum(0) if isinstance(module, Conv1D) else weight.sum(1)).detach()
    if module.bias is not None:
        by_row = by_row + (module.bias * module.bias.grad).detach()
    n_groups = GROUPS.get(kind, n_heads)
    if kind == "gpt_neox":
        return by_row.view(n_heads, 3, -1)[:, 2].sum(1).numpy()
    n_values = {"modernbert": 16, "gpt2": 16, "phi3": 8, "falcon": 4}.get(kind, len(by_row))
    return by_row[-n_values:].view(n_groups, -1).sum(1).numpy()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gate_gradients_are_those_of_the_weights(kind: str) -> None:
    """Of the projection's columns, and of the value's rows with their bias; padded in a batch, and one by one."""
    heads, rows = heads_of_kind(kind), examples_of(kind, 2)
    found = head_gradients(heads, rows)
    names = [template.format(i=i) for template in VALUES[kind] for i in range(2 if "{i}" in template else 1)]
    modules = [projection.name for projection in heads.projections]
    for example, row in enumerate(rows):
        model = heads.model
        model.requires_grad_(True)
        inputs = {name: torch.as_tensor(row[name])[None] for name in row if name != "text"}
        model.eval()(**inputs).loss.backward()
        values = [of_values(kind, model.get_submodule(n), h) for n, h in zip(names, heads.n_heads, strict=True)]
        columns = by_weights(model, row, modules, heads.n_heads)
        for layer, (module, n_heads) in enumerate(zip(modules, heads.n_heads, strict=True)):
            same = [other for other, name in enumerate(modules) if name == module]
            gates = found.gradients[same, example, :n_heads].sum(0)
            scale = np.abs(gates).max()
            np.testing.assert_allclose(gates, columns[layer], atol=1e-4 * scale)
            grouped = gates.reshape(len(values[layer]), -1).sum(1)
            np.testing.assert_allclose(grouped, values[layer], atol=1e-4 * scale)


@pytest.mark.parametrize("kind", ["bert", "albert", "llama"])
def test_it_is_the_gradient_of_a_gate(kind: str) -> None:
    """By finite differences, layer by layer, also where one module is all of them."""
    heads, rows = heads_of_kind(kind), tiny_rows(4)
    found, batch = head_gradients(heads, rows), batch_of(heads, rows)
    np.testing.assert_allclose(found.loss[batch.ids], answers_with(heads, heads.open(), batch).loss, rtol=1e-5)
    for layer, head in heads:
        up, down = heads.open(), heads.open()
        up[layer, head], down[layer, head] = 1.02, 0.98
        slope = (answers_with(heads, up, batch).loss - answers_with(heads, down, batch).loss) / 0.04
        np.testing.assert_allclose(found.gradients[layer, batch.ids, head], slope, atol=2e-3)


def test_batches_change_nothing_and_results_come_early() -> None:
    heads, rows, seen = heads_of_kind("bert"), tiny_rows(11), []
    whole = head_gradients(heads, rows)
    found = head_gradients(heads, rows, batch_size=3, watch=lambda partial: seen.append(np.isnan(partial.loss).sum()))
    assert seen == [8, 5, 2, 0]
    np.testing.assert_allclose(found.gradients, whole.gradients, rtol=1e-4, atol=1e-6)
    some = head_gradients(heads, rows, ids=np.array([4, 7]))
    assert np.flatnonzero(~np.isnan(some.gradients).all((0, 2))).tolist() == [4, 7]


def test_an_example_without_a_label_has_no_gradient() -> None:
    rows = tiny_rows(4)
    rows[2]["labels"] = -100
    found = head_gradients(heads_of_kind("bert"), rows)
    assert np.isnan(found.loss).tolist() == [False, False, True, False]
    assert np.isnan(found.gradients).any((0, 2)).tolist() == [False, False, True, False]


def test_scores_are_shown_beside_true_removal() -> None:
    model, rows = attention_model("bert").train(), tiny_rows(30)
    found = importances(model, rows, n_removed=10, batch_size=8)
    assert model.training
    assert set(found.scores) == {"gate", "removal", "group", *EFFECTS}
    assert len(found.sample) == 10
    np.testing.assert_array_equal(np.flatnonzero(found.removed.seen), found.sample)
    for form in ("gate", "removal", "group"):
        score = found.scores[form]
        np.testing.assert_allclose(score.value, head_importance(found.gradients.gradients, form).value)
        assert set(found.agreements[form]) == set(EFFECTS)
    assert found.agreements["removal"]["loss_change"] > 0.8
    assert found.agreements["gate"]["divergence"] > 0.7
    assert found.scores["loss_change"].n_examples == 10


def test_no_examples() -> None:
    with pytest.raises(ProbingError, match="there are no examples"):
        found_heads(attention_model("bert"), [])
