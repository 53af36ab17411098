"""Answers that are a span of the input, by hand."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from t3vis.callbacks.spans import best_span, span_rows

LOGITS = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.6, 0.2], [0.7, 0.1, 0.2]]]))


def test_by_hand() -> None:
    rows = span_rows(LOGITS, torch.tensor([[0, 1], [1, 2]]), None)
    np.testing.assert_allclose(rows["span_logprob"], np.log([[0.5, 0.8], [0.6, 0.2]]), rtol=1e-6)
    np.testing.assert_allclose(rows["loss"], -np.log([0.5 * 0.8, 0.6 * 0.2]) / 2, rtol=1e-6)
    assert rows["span_prediction"].tolist() == [[0, 1], [0, 0]]  # of the second 0.2 * 0.7 is more than 0.6 * 0.2
    assert rows["span_label"].tolist() == [[0, 1], [1, 2]]


def test_padding_has_no_part_in_it() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    rows = span_rows(LOGITS.bfloat16().float(), torch.tensor([[0, 1], [1, 2]]), mask)
    np.testing.assert_allclose(rows["span_logprob"], np.log([[2 / 3, 8 / 9], [3 / 4, 2 / 3]]), rtol=1e-2)
    assert rows["span_prediction"].tolist() == [[0, 1], [1, 2]]


def test_answers_that_are_not_there() -> None:
    rows = span_rows(LOGITS, torch.tensor([[3, 3], [-1, 0]]), torch.ones(2, 3))
    assert rows["span_label"].tolist() == [[-1, -1], [-1, 0]]
    assert rows["loss"].isnan().all()
    assert rows["span_logprob"].isnan().tolist() == [[True, True], [True, False]]
    cut_off = span_rows(LOGITS, torch.tensor([[0, 2], [0, 1]]), torch.tensor([[1, 1, 0], [1, 1, 0]]))
    assert cut_off["span_label"].tolist() == [[0, -1], [0, 1]]


def test_without_a_gold_answer_there_is_a_prediction() -> None:
    assert list(span_rows(LOGITS, None, None)) == ["span_prediction"]


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=9))
def test_no_other_span_is_better(pairs: list[tuple[int, int]]) -> None:
    start, end = torch.tensor(pairs, dtype=torch.float32).T[:, None]
    first, last = best_span(start, end)[0].tolist()
    assert first <= last
    spans = itertools.combinations_with_replacement(range(len(pairs)), 2)
    assert start[0, first] + end[0, last] == max(start[0, i] + end[0, j] for i, j in spans)
