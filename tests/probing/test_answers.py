"""Losses, scores and divergences against the textbook formulas, one example at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

from t3vis.errors import ProbingError
from t3vis.probing.answers import Answers, answers, answers_of
from t3vis.probing.batches import batches
from tests.callbacks.tiny import Rows, loss_by_hand, tiny_model, tiny_rows
from tests.probing.models import language_model


def answered(model: Any, rows: Rows) -> tuple[Answers, Any]:
    batch = next(batches(model.eval(), rows))
    with torch.no_grad():
        return answers(model, batch.inputs), batch


def whole_numbers(rng: Any) -> int:
    return int(rng.integers(3))


@pytest.mark.parametrize(
    ("task", "label", "config"),
    [
        ("single_label", whole_numbers, {}),
        ("multi_label", lambda rng: rng.integers(0, 2, 3).astype(float).tolist(), {}),
        ("regression", lambda rng: float(rng.normal()), {"num_labels": 1}),
        ("regression", lambda rng: rng.normal(size=2).tolist(), {"num_labels": 2, "problem_type": "regression"}),
    ],
)
def test_answers_about_an_example(task: str, label: Any, config: dict[str, Any]) -> None:
    model, rows = tiny_model("bert", **config), tiny_rows(5, label=label)
    found, batch = answered(model, rows)
    logits = model(**{k: v for k, v in batch.inputs.items() if k != "labels"}).logits.detach().double().numpy()
    for i, row in enumerate(batch.ids):
        gold = rows[row]["labels"]
        assert float(found.loss[i]) == pytest.approx(loss_by_hand(logits[i], gold, task), rel=1e-5)
        if task == "regression":
            assert found.score[i] == -found.loss[i]
        else:
            right = (logits[i] > 0) == np.asarray(gold) if task == "multi_label" else logits[i].argmax() == gold
            assert float(found.score[i]) == pytest.approx(np.mean(right))


def test_answers_about_tokens() -> None:
    rng = np.random.default_rng(0)
    rows = [{**row, "labels": rng.integers(0, 3, len(row["input_ids"])).tolist()} for row in tiny_rows(5)]
    rows[2]["labels"][0] = -100
    model = tiny_model("bert", auto=AutoModelForTokenClassification)
    found, batch = answered(model, rows)
    for i, row in enumerate(batch.ids):
        alone = model(input_ids=torch.tensor([rows[row]["input_ids"]]), labels=torch.tensor([rows[row]["labels"]]))
        torch.testing.assert_close(found.loss[i], alone.loss.detach())
        gold = np.array(rows[row]["labels"])
        right = alone.logits[0].argmax(-1).numpy()[gold >= 0] == gold[gold >= 0]
        assert float(found.score[i]) == pytest.approx(right.mean())


@pytest.mark.parametrize("labelled", [True, False])
def test_a_language_model_predicts_the_next_token(labelled: bool) -> None:
    rows = [
        {"input_ids": row["input_ids"], **({"labels": row["input_ids"]} if labelled else {})} for row in tiny_rows(5)
    ]
    model = language_model("llama")
    found, batch = answered(model, rows)
    for i, row in enumerate(batch.ids):
        ids = torch.tensor([rows[row]["input_ids"]])
        torch.testing.assert_close(found.loss[i], model(input_ids=ids, labels=ids).loss.detach())


def test_a_class_of_ones_own_derived_from_a_language_model_is_one() -> None:
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny_rows(3)]
    model = language_model("llama")
    expected, _ = answered(model, rows)
    model.__class__ = type("Mine", (type(model),), {})
    found, _ = answered(model, rows)
    assert torch.equal(found.loss, expected.loss)


def test_the_decoder_of_two_stacks_is_given_the_labels() -> None:
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"][:3]} for row in tiny_rows(5)]
    model = tiny_model("bart", auto=AutoModelForSeq2SeqLM)
    found, batch = answered(model, rows)
    for i, row in enumerate(batch.ids):
        alone = {name: torch.tensor([rows[row][name]]) for name in ("input_ids", "labels")}
        torch.testing.assert_close(found.loss[i], model(**alone).loss.detach())


def test_a_span_does_not_depend_on_padding() -> None:
    gold = {"start_positions": 0, "end_positions": 1}
    rows = [{"input_ids": row["input_ids"], **gold} for row in tiny_rows(5)]
    model = tiny_model("bert", auto=AutoModelForQuestionAnswering, num_labels=2)
    found, batch = answered(model, rows)
    for i, row in enumerate(batch.ids):
        alone = {name: torch.tensor([value]) for name, value in rows[row].items()}
        torch.testing.assert_close(found.loss[i], model(**alone).loss.detach())


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_how_far_two_answers_are_apart(kind: Any) -> None:
    torch.manual_seed(0)
    one, other, weights = torch.randn(2, 3, 4), torch.randn(3 * 2, 3, 4), torch.tensor([[0.5, 0.5, 0], [1, 0, 0]])
    found = Answers(kind, one, None, weights).divergence(Answers(kind, other, None, weights.repeat(3, 1)))
    for row, value in enumerate(found):
        p, q, w = one[row % 2], other[row], weights[row % 2]
        if kind == "classes":
            each = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1)
        elif kind == "labels":
            p, q = p.sigmoid(), q.sigmoid()
            each = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(-1)
        else:
            each = (p - q).square().mean(-1) / 2
        torch.testing.assert_close(value, (each * w).sum())
    same = Answers(kind, one, None, weights)
    torch.testing.assert_close(same.divergence(same), torch.zeros(2))


def test_what_has_no_answer_or_no_label() -> None:
    rows = [{"input_ids": row["input_ids"], "labels": -1} for row in tiny_rows(2)]
    found, _ = answered(tiny_model("bert"), rows)
    assert found.loss.isnan().all()
    assert found.score.isnan().all()
    model, inputs = tiny_model("bert"), {"input_ids": torch.tensor([[5]])}
    with pytest.raises(ProbingError, match="no labels; expected a column 'labels'"):
        _ = answers(model, inputs).loss
    with pytest.raises(ProbingError, match="returns no logits but last_hidden_state"):
        answers_of(model, inputs, {"last_hidden_state": torch.ones(1, 1, 2)})
    with pytest.raises(ProbingError, match="expected a label for each token"):
        answers_of(model, {"labels": torch.ones(1, 4)}, {"logits": torch.ones(1, 3, 2)})
