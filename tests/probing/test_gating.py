from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from t3vis.errors import ProbingError
from t3vis.probing import gating
from t3vis.probing.gating import Heads, answer, gated, heads_of, n_inputs
from t3vis.probing.head_importance import found_heads
from t3vis.probing.model import forward, probed
from tests.callbacks.attention_models import ARCHITECTURES, attention_model, layers_of
from tests.callbacks.tiny import VOCABULARY, pad, tiny_rows
from tests.probing.models import batch_of, examples_of, heads_of_kind


def answer_of(heads: Heads, gates: torch.Tensor, inputs: Any) -> torch.Tensor:
    with probed(heads.model), torch.no_grad(), gated(heads, gates):
        return answer(forward(heads.model, inputs))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gate_zero_is_columns_of_zeros(kind: str) -> None:
    """Each head by itself; of a module that all layers share its columns, and the gates of all layers."""
    heads = heads_of_kind(kind)
    inputs = batch_of(heads, examples_of(kind)).inputs
    assert [(p.attention, p.name) for p in heads.projections] == layers_of(kind)
    whole = answer_of(heads, heads.open(), inputs)
    for layer, head in heads:
        projection = heads.projections[layer]
        same = [(other, head) for other, p in enumerate(heads.projections) if p.module is projection.module]
        found = answer_of(heads, heads.without(same), inputs)
        weight = projection.module.weight
        kept = weight.detach().clone()
        width = n_inputs(projection.module) // projection.n_heads
        with torch.no_grad():
            columns = weight if isinstance(projection.module, Conv1D) else weight.T
            columns[head * width : (head + 1) * width] = 0
            expected = answer_of(heads, heads.open(), inputs)
            weight.copy_(kept)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (found - whole).abs().max() > 1e-4, f"head {layer}, {head} does nothing"


def test_a_module_that_layers_share_is_gated_call_by_call() -> None:
    heads = heads_of_kind("albert")
    inputs = batch_of(heads, examples_of("albert")).inputs
    first, second = (answer_of(heads, heads.without([(layer, 0)]), inputs) for layer in (0, 1))
    both = answer_of(heads, heads.without([(0, 0), (1, 0)]), inputs)
    assert not torch.equal(first, second)
    assert not torch.equal(first, both)
    with probed(heads.model), torch.no_grad(), gated(heads, heads.without([(1, 0)])):
        for _ in range(2):  # calls are counted anew in each pass
            assert torch.equal(answer(forward(heads.model, inputs)), second)


def test_each_row_of_a_batch_may_have_gates_of_its_own() -> None:
    heads = heads_of_kind("bart")
    inputs = batch_of(heads, examples_of("bart")).inputs
    torch.manual_seed(0)
    gates = torch.rand(heads.n_layers, 6, 4)
    found = answer_of(heads, gates, inputs)
    for row in range(6):
        torch.testing.assert_close(found[row], answer_of(heads, gates[:, row], inputs)[row])


@pytest.mark.parametrize("kind", ["xlnet", "squeezebert"])
def test_models_without_such_a_projection_are_refused_by_name(kind: str) -> None:
    """As many tokens as examples: rows of XLNet, which are positions, could be taken for examples."""
    config = {
        "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 32},
        "squeezebert": {"hidden_size": 16, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")}
        | {"intermediate_size": 32},
    }[kind]
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(kind, vocab_size=VOCABULARY, pad_token_id=0, **config)
    )
    with pytest.raises(ProbingError, match=rf"{type(model).__name__} cannot be probed by gates: no linear layer in"):
        heads_of(model, {"input_ids": torch.randint(3, VOCABULARY, (5, 5))})


def test_a_model_is_checked_when_its_heads_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = attention_model("bert"), pad(tiny_rows(3))
    monkeypatch.setattr(gating, "scaled", lambda x, gates: x * (1 + gates.mean()))
    with pytest.raises(ProbingError, match="the gates of BertForSequenceClassification do not do what they should"):
        heads_of(model, inputs)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # peft uses it
def test_an_adapter_that_is_not_merged_is_refused() -> None:
    config = peft.LoraConfig(r=2, target_modules=["query", "attention.output.dense"])
    model = peft.get_peft_model(attention_model("bert"), config)
    with pytest.raises(ProbingError, match="merge_and_unload"):
        found_heads(model, tiny_rows(3))
    found_heads(model.merge_and_unload(), tiny_rows(3))


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0)])
def test_a_head_that_is_not_there(head: tuple[int, int]) -> None:
    with pytest.raises(ProbingError, match=r"there is no head .* 2 attentions of 4 heads"):
        heads_of_kind("bert").without([head])


def test_the_page_names_tests_that_are_there() -> None:
    folder = Path(__file__).parent
    named = set(re.findall(r"`(test_\w+)`", (folder.parents[1] / "docs" / "probing.md").read_text()))
    defined = {name for file in folder.glob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert named
    assert named <= defined
