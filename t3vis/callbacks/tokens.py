"""What is kept of outputs that a model returns for each token: the loss of an example, never a score per word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.tasks import IGNORED_LABEL, Task

CHUNK_TOKENS = 512  # logits that are widened to float32 at a time


def token_rows(batch: Batch, outputs: Mapping[str, Any]) -> tuple[Task, dict[str, Tensor], tuple[str, ...]]:
    """The task, what is recorded of the examples, and in words what is not.

    Parameters
    ----------
    outputs
        With ``logits`` of shape (n, n_tokens, n_classes), or ``log_probs`` of the gold tokens and ``label_mask``, both
        of shape (n, n_tokens - 1), as the fused heads of TRL return them; other outputs tell nothing of the loss.

    Raises
    ------
    ConfigurationError
        If they are not one row for each example.
    """
    logits = outputs.get("logits")
    left_out = [] if logits is None else [f"logits of shape {tuple(getattr(logits, 'shape', ()))}"]
    losses = token_losses(outputs, batch.labels, shifted=batch.shifted)
    if batch.paired:
        left_out.append("the loss, which compares with another model")
        return "preference", _pair_logits(batch, losses), tuple(left_out)
    if losses is None:
        left_out.append("the loss of each example")
        return "other", {}, tuple(left_out)
    nll, is_labelled = (batch.own(part, "outputs") for part in losses)
    return "other", {"loss": (nll * is_labelled).sum(1) / is_labelled.sum(1)}, tuple(left_out)


def token_losses(outputs: Mapping[str, Any], labels: Tensor | None, *, shifted: bool) -> tuple[Tensor, Tensor] | None:
    """Negative log-likelihood of the gold token of each position, and whether there is one: shape (n, n_tokens) each.

    ``None`` where the outputs and labels do not tell.
    """
    log_probs, is_labelled, logits = (outputs.get(name) for name in ("log_probs", "label_mask", "logits"))
    if isinstance(log_probs, Tensor) and isinstance(is_labelled, Tensor):
        return F.pad(-log_probs.float(), (0, 1)), F.pad(is_labelled, (0, 1))
    if not isinstance(logits, Tensor) or logits.dim() != 3 or labels is None or labels.shape != logits.shape[:2]:
        return None
    gold = gold_tokens(labels.to(logits.device), logits.shape[2], shifted=shifted)
    scores, wanted = torch.split(logits.flatten(0, 1), CHUNK_TOKENS), torch.split(gold.flatten(), CHUNK_TOKENS)
    losses = [F.cross_entropy(s.float(), w, reduction="none") for s, w in zip(scores, wanted, strict=True)]
    return torch.cat(losses).view_as(gold), gold != IGNORED_LABEL


def gold_tokens(labels: Tensor, n_classes: int, *, shifted: bool) -> Tensor:
    """The class that each position is to predict, ``IGNORED_LABEL`` where there is none; shape (n, n_tokens)."""
    gold = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL) if shifted else labels
    return gold.where((gold >= 0) & (gold < n_classes), IGNORED_LABEL)


def _pair_logits(batch: Batch, losses: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """Log-probability of the chosen and of the rejected completion, shape (n, 2)."""
    if losses is None:
        return {}
    nll, is_labelled = losses
    batch.own(nll, "outputs")
    return {"logits": -(nll * is_labelled).sum(1).view(2, len(batch.ids)).T}
