"""The loss of an example from what its tokens were given, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from t3vis.callbacks import tokens
from t3vis.callbacks.batches import Batch
from t3vis.callbacks.tokens import token_losses, token_rows

LOGITS = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.25, 0.25, 0.5], [0.4, 0.4, 0.2]]]))
LABELS = torch.tensor([[0, 1], [2, -100]])


def batch(labels: Tensor | None, **kind: Any) -> Batch:
    return Batch(torch.tensor([7, 3]), labels, None, None, training=True, **kind)


def test_the_mean_over_tokens_with_a_label() -> None:
    task, rows, left_out = token_rows(batch(LABELS), {"logits": LOGITS})
    assert task == "other"
    np.testing.assert_allclose(rows["loss"], [-(np.log(0.5) + np.log(0.8)) / 2, -np.log(0.5)], rtol=1e-6)
    assert left_out == ("logits of shape (2, 2, 3)",)


def test_labels_that_follow_their_position() -> None:
    _, rows, _ = token_rows(batch(LABELS, shifted=True), {"logits": LOGITS})
    np.testing.assert_allclose(rows["loss"], [-np.log(0.25), np.nan], rtol=1e-6)  # the second has none to follow


def test_fused_heads_tell_the_same() -> None:
    log_probs, is_labelled = torch.tensor([[-1.0, -3.0], [-5.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    _, rows, left_out = token_rows(batch(None), {"log_probs": log_probs, "label_mask": is_labelled})
    assert rows["loss"].tolist() == [2, 5]
    assert left_out == ()


def test_pairs_have_the_log_probability_of_each_side() -> None:
    log_probs = torch.tensor([[-1.0, -3.0], [-5.0, 0.0], [-2.0, -2.5], [-7.0, -8.0]])
    outputs = {"log_probs": log_probs, "label_mask": log_probs < 0}
    task, rows, left_out = token_rows(batch(None, paired=True), outputs)
    assert task == "preference"
    assert rows["logits"].tolist() == [[-4, -4.5], [-5, -15]]
    assert "the loss, which compares with another model" in left_out
    assert token_rows(batch(None, paired=True), {"logits": None})[1] == {}


def test_what_tells_nothing_of_the_loss() -> None:
    for labels in (None, LABELS[:, :1], LABELS[0]):
        assert token_losses({"logits": LOGITS}, labels, shifted=False) is None
    assert token_rows(batch(LABELS), {"logits": None}) == ("other", {}, ("the loss of each example",))


def test_logits_are_widened_a_piece_at_a_time() -> None:
    torch.manual_seed(0)
    logits, labels = (
        torch.randn(3, tokens.CHUNK_TOKENS - 1, 4).bfloat16(),
        torch.randint(4, (3, tokens.CHUNK_TOKENS - 1)),
    )
    found = token_losses({"logits": logits}, labels, shifted=False)
    assert found is not None
    own = -logits.float().log_softmax(-1).gather(2, labels[..., None])[..., 0]
    torch.testing.assert_close(found[0], own)
