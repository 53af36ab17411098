from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from t3vis.errors import ProbingError
from t3vis.probing.ablation import ablation
from t3vis.probing.answers import question
from t3vis.probing.head_importance import found_heads
from t3vis.probing.pruning import effect, effect_on_example, greedy_order, prune, pruning_curve
from tests.callbacks.attention_models import ARCHITECTURES, attention_model
from tests.callbacks.tiny import pad, tiny_rows
from tests.probing.models import answers_with, batch_of, examples_of, heads_of_kind

PRUNED = {(0, 1), (1, 3)}


def test_pruning_is_undone_bit_by_bit() -> None:
    model, inputs = attention_model("bert").eval(), pad(tiny_rows(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = model(**inputs).logits
    with prune(model, PRUNED) as pruned:
        assert pruned is model
        without = model(**inputs).logits
        again = model(inputs["input_ids"], inputs["attention_mask"]).logits
    assert torch.equal(without, again)
    heads = found_heads(model, tiny_rows(4))
    with prune(heads, PRUNED):
        assert torch.equal(model(**inputs).logits, without)
    assert not torch.equal(without, whole)
    assert torch.equal(model(**inputs).logits, whole)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_pruned_heads_have_no_gradient_and_can_be_pruned_within() -> None:
    model, inputs = attention_model("llama").eval(), pad(tiny_rows(4))
    with prune(model, {(0, 1)}), prune(model, {(1, 3)}):
        one_in_the_other = model(**inputs)
        one_in_the_other.loss.backward()
    with prune(model, PRUNED):
        torch.testing.assert_close(model(**inputs).logits, one_in_the_other.logits)
    assert model.model.layers[0].self_attn.o_proj.weight.grad[:, 4:8].eq(0).all()
    assert model.model.layers[0].self_attn.o_proj.weight.grad[:, :4].ne(0).any()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_heads_of_a_model_are_found_without_examples(kind: str) -> None:
    heads = heads_of_kind(kind)
    inputs = question(heads.model, batch_of(heads, examples_of(kind)).inputs)
    with torch.no_grad():
        with prune(heads.model.eval(), PRUNED):
            found = heads.model(**inputs).logits
        with prune(heads, PRUNED):
            assert torch.equal(heads.model(**inputs).logits, found)


@pytest.mark.parametrize("given", ["model", "heads"])
def test_heads_that_are_not_there(given: str) -> None:
    heads = heads_of_kind("bert")
    with (
        pytest.raises(ProbingError, match=r"there is no head \(7, 0\)"),
        prune(heads.model if given == "model" else heads, {(7, 0)}),
    ):
        heads.model(**pad(tiny_rows(2)))
    assert not any(module._forward_pre_hooks for module in heads.model.modules())


def test_an_effect_on_examples() -> None:
    heads, rows = heads_of_kind("bert"), tiny_rows(9)
    found, batch = effect(heads, rows, PRUNED, batch_size=4), batch_of(heads, rows)
    whole, without = (answers_with(heads, heads.without(some), batch) for some in ((), PRUNED))
    np.testing.assert_allclose(found.loss[batch.ids], whole.loss, atol=1e-6)
    np.testing.assert_allclose(found.loss_without[batch.ids], without.loss, atol=1e-6)
    np.testing.assert_allclose(found.divergence[batch.ids], whole.divergence(without), atol=1e-6)
    np.testing.assert_array_equal(found.score_without[batch.ids], without.score)


def test_an_effect_on_one_example_and_whatever_else_is_asked() -> None:
    heads, (row, *_) = heads_of_kind("bert"), tiny_rows(1)

    def largest(model: Any, example: Any) -> int:
        assert not model.training
        return int(model(input_ids=torch.tensor([example["input_ids"]])).logits.argmax())

    before, after = effect_on_example(heads, row, PRUNED, more={"largest": largest})
    assert before.keys() == after.keys() == {"logits", "loss", "largest"}
    for values, pruned in ((before, ()), (after, PRUNED)):
        expected = answers_with(heads, heads.without(pruned), batch_of(heads, [row]))
        np.testing.assert_allclose(values["logits"], expected.logits[0], atol=1e-6)
        assert values["loss"] == pytest.approx(float(expected.loss[0]), rel=1e-5)
        assert values["largest"] == int(expected.logits.argmax())
    unlabelled, _ = effect_on_example(heads, {"input_ids": row["input_ids"]}, PRUNED)
    assert "loss" not in unlabelled


def test_a_curve_says_what_is_left_after_each_head() -> None:
    heads, rows = heads_of_kind("gpt2"), tiny_rows(12)
    order = [(1, 0), (0, 2), (0, 0)]
    found = pruning_curve(heads, rows, order, batch_size=5)
    assert found.n_pruned.tolist() == [0, 1, 2, 3]
    for k in range(4):
        expected = answers_with(heads, heads.without(order[:k]), batch_of(heads, rows))
        assert found.loss[k] == pytest.approx(float(expected.loss.mean()), rel=1e-5)
        assert found.score[k] == pytest.approx(float(expected.score.mean()))
    assert (found.score_low <= found.score).all()
    assert (found.score <= found.score_high).all()
    few = pruning_curve(heads, rows, order, n_pruned=[0, 3])
    np.testing.assert_allclose(few.loss, found.loss[[0, 3]], rtol=1e-5)


@pytest.mark.parametrize("by", ["loss_change", "divergence", "score_change"])
def test_greedy_takes_what_is_missed_least(by: Any) -> None:
    heads, rows = heads_of_kind("llama"), tiny_rows(12)
    order = greedy_order(heads, rows, n_pruned=3, by=by)
    gone: list[tuple[int, int]] = []
    for head in order:
        changes = getattr(ablation(heads, rows, gates=heads.without(gone)), by).mean(1)
        for before in gone:
            changes[before] = np.nan
        changes = -changes if by == "score_change" else changes
        assert changes[head] == np.nanmin(changes)
        gone.append(head)


def test_greedy_is_not_beaten_by_any_other_first_head() -> None:
    heads, rows = heads_of_kind("bert"), tiny_rows(12)
    (first,) = greedy_order(heads, rows, n_pruned=1)
    left = {head: pruning_curve(heads, rows, [head]).loss[1] for head in itertools.chain(heads)}
    assert left[first] == min(left.values())
    with pytest.raises(ProbingError, match="9 heads cannot be removed from 8"):
        greedy_order(heads, rows, n_pruned=9)
