from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t3vis.errors import ProbingError
from t3vis.probing.gating import answer, gated
from t3vis.probing.materialize import materialize
from t3vis.probing.model import forward, load_model, probed
from tests.probing.models import batch_of, examples_of, heads_of_kind

FEWER = {
    "a group of each layer": {(0, 0), (0, 1), (1, 2), (1, 3)},
    "one head of each group": {(0, 0), (0, 2), (1, 1), (1, 2)},
    "more of one layer": {(0, 0), (0, 1), (0, 2), (1, 2), (1, 3)},
    "a whole layer": {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)},
}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma"])
@pytest.mark.parametrize("which", FEWER)
def test_a_smaller_model_is_saved_that_answers_the_same(kind: str, which: str, tmp_path: Path) -> None:
    heads, pruned = heads_of_kind(kind), FEWER[which]
    inputs = batch_of(heads, examples_of(kind)).inputs
    del inputs["labels"]
    before = {name: value.clone() for name, value in heads.model.state_dict().items()}
    state = torch.get_rng_state()
    materialize(heads, pruned, inputs).save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    small = load_model(tmp_path)
    with probed(heads.model), torch.no_grad():
        with gated(heads, heads.without(pruned)):
            expected = answer(forward(heads.model, inputs))
        torch.testing.assert_close(answer(forward(small, inputs)), expected, rtol=1e-5, atol=1e-5)
    assert small.config.num_attention_heads == 2
    assert small.num_parameters() < heads.model.num_parameters()
    assert all(torch.equal(value, before[name]) for name, value in heads.model.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bart", "albert", "modernbert"])
def test_where_the_width_of_a_head_follows_from_their_number(kind: str) -> None:
    heads = heads_of_kind(kind)
    inputs = batch_of(heads, examples_of(kind)).inputs
    with pytest.raises(ProbingError, match="its config has no head_dim, the width of a head is the hidden size over"):
        materialize(heads, {(layer, 0) for layer in range(heads.n_layers)}, inputs)


def test_where_a_bias_belongs_to_heads_of_several_layers() -> None:
    heads = heads_of_kind("t5")
    inputs = batch_of(heads, examples_of("t5")).inputs
    with pytest.raises(ProbingError, match="T5ForSequenceClassification with fewer heads cannot be saved: "):
        materialize(heads, {(layer, layer % 4) for layer in range(6)}, inputs)


def test_where_nothing_becomes_smaller() -> None:
    heads = heads_of_kind("llama")
    inputs = batch_of(heads, examples_of("llama")).inputs
    with pytest.raises(ProbingError, match="nothing becomes smaller: a layer of LlamaForSequenceClassification keeps"):
        materialize(heads, {(0, 1)}, inputs)
