from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from t3vis.errors import ProbingError
from t3vis.probing import ablation as module
from t3vis.probing.ablation import Ablation, ablation
from t3vis.probing.gating import Heads
from t3vis.probing.head_importance import found_heads
from tests.callbacks.attention_models import ARCHITECTURES, attention_model
from tests.callbacks.tiny import tiny_rows
from tests.probing.models import answers_with, batch_of, examples_of, heads_of_kind, language_model


def check_one_by_one(heads: Heads, rows: Any, found: Ablation, pruned: Any = ()) -> None:
    batch = batch_of(heads, rows)
    whole = answers_with(heads, heads.without(pruned), batch)
    np.testing.assert_allclose(found.loss[batch.ids], whole.loss, rtol=1e-5)
    for layer, head in set(heads) - set(pruned):
        without = answers_with(heads, heads.without([*pruned, (layer, head)]), batch)
        for values, expected in (
            (found.loss_change, without.loss - whole.loss),
            (found.divergence, whole.divergence(without)),
            (found.score_change, without.score - whole.score),
        ):
            np.testing.assert_allclose(values[layer, batch.ids, head], expected, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_heads_removed_side_by_side_are_as_those_removed_one_by_one(kind: str) -> None:
    heads, rows = heads_of_kind(kind), examples_of(kind)
    found = ablation(heads, rows, batch_size=4)
    check_one_by_one(heads, rows, found)
    missing = np.isnan(found.loss_change).all(axis=1)
    assert [[layer, head] for layer, head in heads] == np.argwhere(~missing).tolist()


@pytest.mark.parametrize("kind", ["bert", "albert", "gpt2", "bart"])
def test_heads_removed_from_a_pruned_model(kind: str) -> None:
    heads, rows = heads_of_kind(kind), examples_of(kind)
    pruned = [(0, 1), (heads.n_layers - 1, 0)]
    found = ablation(heads, rows, gates=heads.without(pruned))
    check_one_by_one(heads, rows, found, pruned)


def test_a_language_model() -> None:
    rows = [{"input_ids": row["input_ids"]} for row in tiny_rows(5)]
    heads = found_heads(language_model(), rows)
    found = ablation(heads, rows)
    check_one_by_one(heads, rows, found)
    assert found.logits is None
    with pytest.raises(ProbingError, match="a metric of logits needs one answer"):
        found.metric_change(lambda *_: 0.0)


@pytest.mark.parametrize("max_rows", [512, 12, 1])
def test_what_lies_before_is_computed_once(max_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a layer in the first pass, and once for each group of heads of a layer before."""
    monkeypatch.setattr(module, "MAX_ROWS", {"cpu": max_rows, "cuda": 1})
    model, rows = attention_model("bert"), examples_of("bert")
    heads = found_heads(model, rows)
    counts: Counter[str] = Counter()
    for name in ("attention.self.key", "intermediate.dense"):
        for layer in range(2):
            part = model.bert.encoder.layer[layer].get_submodule(name)
            part.register_forward_hook(lambda _, args, __, key=f"{layer} {name}": counts.update([key] * len(args[0])))
    ablation(heads, rows)
    n, n_heads = len(rows), 4
    assert counts == {
        "0 attention.self.key": n,
        "0 intermediate.dense": n + n_heads * n,
        "1 attention.self.key": n + n_heads * n,
        "1 intermediate.dense": n + 2 * n_heads * n,
    }


def test_effects_on_a_metric() -> None:
    heads, rows = heads_of_kind("bert"), tiny_rows(12)
    found = ablation(heads, rows, batch_size=5)

    def accuracy(logits: Any, labels: Any) -> float:
        return float((logits.argmax(-1) == labels).mean())

    np.testing.assert_allclose(found.metric_change(accuracy), found.score_change.mean(1), atol=1e-6)
    assert found.labels.tolist() == [row["labels"] for row in rows]


def test_only_some_heads_and_examples_and_what_is_known_early() -> None:
    heads, rows, seen = heads_of_kind("bert"), tiny_rows(9), []
    found = ablation(
        heads,
        rows,
        among={(0, 3), (1, 1)},
        ids=np.array([8, 1, 2]),
        batch_size=2,
        watch=lambda partial: seen.append(int(partial.seen.sum())),
    )
    assert np.flatnonzero(found.seen).tolist() == [1, 2, 8]
    assert seen[-1] == 3
    assert len(seen) == 2
    known = ~np.isnan(found.loss_change)
    assert np.argwhere(known.any(1)).tolist() == [[0, 3], [1, 1]]
    whole = ablation(heads, rows)
    np.testing.assert_allclose(found.loss_change[known], whole.loss_change[known], atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model, rows = attention_model("albert"), tiny_rows(4)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ablation(found_heads(model, rows), rows)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(part) for part in model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_examples_without_labels() -> None:
    heads = heads_of_kind("bert")
    with pytest.raises(ProbingError, match="no labels"):
        ablation(heads, [{"input_ids": [5, 6]}])
    with pytest.raises(ProbingError, match="there are no examples"):
        ablation(heads, [])
