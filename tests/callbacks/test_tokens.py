"""The loss of an example from what its tokens were given, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.tokens import scored_tokens, token_rows

LOGITS = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.25, 0.25, 0.5], [0.4, 0.4, 0.2]]]))
LABELS = torch.tensor([[0, 1], [2, -100]])


def batch(labels: Tensor | None, **kind: Any) -> Batch:
    return Batch(torch.tensor([7, 3]), labels, None, None, training=True, **kind)


def test_the_mean_over_tokens_with_a_label() -> None:
    rows, left_out = token_rows("token_classification", batch(LABELS), {"logits": LOGITS})
    np.testing.assert_allclose(rows["loss"], [-(np.log(0.5) + np.log(0.8)) / 2, -np.log(0.5)], rtol=1e-6)
    assert [row.tolist() for row in rows["token_position"]] == [[0, 1], [0]]
    assert [row.tolist() for row in rows["token_label"]] == [[0, 1], [2]]
    assert [row.tolist() for row in rows["token_prediction"]] == [[0, 1], [2]]
    assert rows["token_accuracy"].tolist() == [1, 1]
    assert rows["n_tokens"].tolist() == [2, 1]
    assert "token_rank" not in rows
    assert left_out == ("logits of shape (2, 2, 3)",)


def test_labels_that_follow_their_position() -> None:
    rows, _ = token_rows("causal_lm", batch(LABELS, shifted=True), {"logits": LOGITS})
    np.testing.assert_allclose(rows["loss"], [-np.log(0.25), np.nan], rtol=1e-6)  # the second has none to follow
    assert [row.tolist() for row in rows["token_position"]] == [[1], []]
    assert [row.tolist() for row in rows["token_rank"]] == [[1], []]
    np.testing.assert_allclose(rows["token_entropy"].values, [1.5 * np.log(2)], rtol=1e-6)
    assert rows["n_tokens"].tolist() == [1, 0]


def test_fused_heads_tell_the_same() -> None:
    log_probs, is_labelled = torch.tensor([[-1.0, -3.0], [-5.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    outputs = {"log_probs": log_probs, "label_mask": is_labelled}
    rows, left_out = token_rows("causal_lm", batch(None), outputs)
    assert rows["loss"].tolist() == [2, 5]
    assert [row.tolist() for row in rows["token_position"]] == [[1, 2], [1]]
    assert "token_accuracy" not in rows
    more = {"entropy": -log_probs, "is_top1": log_probs == -1}
    rows, _ = token_rows("causal_lm", batch(torch.tensor([[4, 5, 6], [7, 8, 9]])), outputs | more)
    assert rows["token_accuracy"].tolist() == [0.5, 0]
    assert [row.tolist() for row in rows["token_entropy"]] == [[1, 3], [5]]
    assert [row.tolist() for row in rows["token_label"]] == [[5, 6], [8]]
    assert left_out == ()


def test_pairs_have_the_log_probability_of_each_side() -> None:
    log_probs = torch.tensor([[-1.0, -3.0], [-5.0, 0.0], [-2.0, -2.5], [-7.0, -8.0]])
    outputs = {"log_probs": log_probs, "label_mask": log_probs < 0}
    rows, left_out = token_rows("preference", batch(None, paired=True), outputs)
    assert rows["logits"].tolist() == [[-4, -4.5], [-5, -15]]
    assert "the loss, which compares with another model" in left_out
    assert token_rows("preference", batch(None, paired=True), {"logits": None})[0] == {}


def test_what_tells_nothing_of_the_loss() -> None:
    for labels in (None, LABELS[:, :1], LABELS[0]):
        assert scored_tokens(batch(labels), {"logits": LOGITS}) is None
    assert token_rows("other", batch(LABELS), {"logits": None}) == ({}, ("the loss of each example",))


def test_examples_in_one_row() -> None:
    """The first token of an example is not predicted from the last of the one before it."""
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 0, 1]])
    flat = batch(labels, shifted=True, lengths=[2, 3])
    rows, _ = token_rows("causal_lm", flat, {"logits": logits})
    assert [row.tolist() for row in rows["token_position"]] == [[1], [1, 2]]
    expected = logits[0].log_softmax(1)[[0, 2, 3], [1, 0, 1]]
    np.testing.assert_allclose(rows["token_logprob"].values, expected, rtol=1e-5)
    aligned, _ = token_rows("masked_lm", batch(labels, lengths=[2, 3]), {"logits": logits})
    assert [row.tolist() for row in aligned["token_position"]] == [[0, 1], [0, 1, 2]]
