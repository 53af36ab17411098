from __future__ import annotations

import numpy as np
import pytest
import torch

from t3vis.probing.gating import columns_of
from t3vis.probing.head_parameters import parameter_importance
from tests.callbacks.attention_models import ARCHITECTURES, per_head
from tests.probing.models import examples_of, heads_of_kind


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_parameters_of_every_architecture_are_found(kind: str) -> None:
    heads, rows = heads_of_kind(kind), examples_of(kind)
    found = parameter_importance(heads, rows, batch_size=2)
    own = np.zeros(heads.shape, bool)
    own[tuple(np.transpose(list(heads)))] = True
    for score in found.values():
        assert (~np.isnan(score.value) == own).all()
        assert score.n_examples == len(rows)
        assert (score.low[own] <= score.high[own]).all()


def test_sums_and_squares_of_bert_by_hand() -> None:
    """Rows of query, key and value with their biases, and columns of the output, of one head."""
    heads, rows = heads_of_kind("bert"), examples_of("bert")
    found = parameter_importance(heads, rows, batch_size=2)
    model = heads.model.eval()
    model.zero_grad()
    model.requires_grad_(True)
    for row in rows:
        inputs = {name: torch.as_tensor(row[name])[None] for name in ("input_ids", "attention_mask", "labels")}
        (model(**inputs).loss / len(rows)).backward()
    for layer, head in heads:
        block, at = model.bert.encoder.layer[layer].attention, columns_of(heads.projections[layer], head)
        terms = [block.output.dense.weight[:, at] * block.output.dense.weight.grad[:, at]]
        for part in (block.self.query, block.self.key, block.self.value):
            terms += [part.weight[at] * part.weight.grad[at], part.bias[at] * part.bias.grad[at]]
        group = sum(term.sum() for term in terms).item() ** 2
        elements = sum(term.square().sum() for term in terms).item()
        assert found["parameter_group"].value[layer, head] == pytest.approx(group, rel=1e-3, abs=1e-8)
        assert found["parameter_elements"].value[layer, head] == pytest.approx(elements, rel=1e-3)
    model.zero_grad()


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_query_key_and_value_in_one_layer(kind: str) -> None:
    """Side by side in GPT-2, head by head in GPT-NeoX."""
    heads, rows = heads_of_kind(kind), examples_of(kind)
    found = parameter_importance(heads, rows)["parameter_group"].value
    model = heads.model.eval()
    model.requires_grad_(True)
    model.zero_grad()
    for row in rows:
        inputs = {name: torch.as_tensor(row[name])[None] for name in ("input_ids", "attention_mask", "labels")}
        (model(**inputs).loss / len(rows)).backward()
    for layer, projection in enumerate(heads.projections):
        fused = projection.caller.c_attn if kind == "gpt2" else projection.caller.query_key_value
        terms = (fused.weight * fused.weight.grad).sum(0 if kind == "gpt2" else 1) + fused.bias * fused.bias.grad
        of_heads = terms.view(3, 4, 4).sum((0, 2)) if kind == "gpt2" else terms.view(4, 12).sum(1)
        expected = (of_heads.detach().numpy() + per_head(projection.module, 4)) ** 2
        np.testing.assert_allclose(found[layer], expected, rtol=1e-3, atol=1e-6)
    model.zero_grad()
