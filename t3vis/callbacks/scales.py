"""What each example's own loss was multiplied by in the loss that was trained: read off the gradients at the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.tasks import SEQUENCE_TASKS, Task, unreduced_loss
from t3vis.losses import IGNORED_LABEL, gold_classes

N_TOKENS = 4  # tokens of an example at which its gradients are compared
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 2e-2  # part of its size by which a gradient may be off a multiple of another,
_ROUNDING = 1e-6  # and part of the size that the loss gives it: what is left of 1 when a probability is close to it


@dataclass(frozen=True)
class OwnLoss:
    """Gradient of each example's own loss at its logits, or at those of some of its tokens.

    ``gradient`` has shape (n, n_classes), or (n, N_TOKENS, n_classes) with the positions ``at``, shape (n, N_TOKENS).
    It is zero where an example has no label.
    """

    gradient: Tensor
    at: Tensor | None = None

    def rows_of(self, whole: Tensor) -> Tensor:
        """Of a gradient at all logits the part that is compared."""
        if self.at is None:
            return whole
        return whole[torch.arange(len(whole), device=whole.device)[:, None], self.at]


def own_loss(task: Task, batch: Batch, outputs: Mapping[str, Any], label_smoothing: float = 0.0) -> OwnLoss | None:
    """The gradient of each example's own loss, ``None`` where the logits do not tell of the loss of each example."""
    logits, labels = outputs.get("logits"), batch.labels
    if not isinstance(logits, Tensor) or labels is None or batch.paired or len(logits) != len(batch.ids):
        return None
    logits, labels = logits.detach(), labels.to(logits.device)
    with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
        if task in SEQUENCE_TASKS:
            return OwnLoss(sequence_gradient(task, logits, labels, label_smoothing))
        if logits.dim() == 3 and labels.shape == logits.shape[:2]:
            return token_gradient(logits, gold_classes(labels, logits.shape[2], shifted=batch.shifted), label_smoothing)
    return None


@torch.enable_grad()
def sequence_gradient(task: Task, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Gradient of each example's own loss at its logits, of their shape, float32.

    Parameters
    ----------
    logits, labels, label_smoothing
        As for ``unreduced_loss``.
    """
    leaf = logits.detach().float().requires_grad_()
    loss = unreduced_loss(task, leaf, labels, label_smoothing).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


@torch.enable_grad()
def token_gradient(logits: Tensor, gold: Tensor, label_smoothing: float = 0.0) -> OwnLoss:
    """Gradient of each example's mean loss over its tokens, at some of them, evenly spaced among those with a label.

    Parameters
    ----------
    logits
        Shape (n, n_tokens, n_classes).
    gold
        Class that each position is to predict, shape (n, n_tokens); ``IGNORED_LABEL`` where there is none.
    """
    is_labelled = gold != IGNORED_LABEL
    n_labelled = is_labelled.sum(1, keepdim=True)
    places = (torch.arange(N_TOKENS, device=gold.device) + 0.5) / N_TOKENS * n_labelled
    at = is_labelled.int().argsort(dim=1, descending=True, stable=True).gather(1, places.long())
    leaf = OwnLoss(logits, at).rows_of(logits.detach()).float().requires_grad_()
    losses = F.cross_entropy(
        leaf.flatten(0, 1), gold.gather(1, at).flatten(), reduction="none", label_smoothing=label_smoothing
    )
    loss = (losses.view_as(at) / n_labelled.clamp(min=1)).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return OwnLoss(gradient, at)


def loss_scales(arrived: Tensor, own: Tensor) -> Tensor:
    """What each example's own loss was multiplied by in the loss that was trained.

    Means, sums, accumulation and loss scaling multiply all examples of a batch by one number, class weights and the
    like each by its own; both are found by comparing gradients at the logits, from where on back they are linear.

    Parameters
    ----------
    arrived, own
        Gradients of the trained loss, and of each example's own loss, at the logits; shape (n, ...).

    Returns
    -------
    Shape (n,), float32. NaN where the one gradient is not a multiple of the other.

    Examples
    --------
    >>> own = torch.tensor([[0.5, -0.5, 0.0], [0.1, 0.2, -0.3]])
    >>> loss_scales(own / 8, own)
    tensor([0.1250, 0.1250])
    >>> loss_scales(torch.stack([own[0] / 4, own[1].flip(0)]), own)
    tensor([0.2500,    nan])
    """
    a, b = arrived.flatten(1), own.flatten(1).float()
    common, each = _factors(a.reshape(1, -1), b.reshape(1, -1)), _factors(a, b)
    scales = torch.where(_explains(common, a, b), common, each.where(_explains(each, a, b), torch.nan))
    return scales.where(scales != 0, torch.nan)


def _factors(a: Tensor, b: Tensor) -> Tensor:
    """For each row the factor that brings ``b`` closest to ``a``."""
    size = b.abs().amax(1, keepdim=True).clamp(min=torch.finfo(b.dtype).tiny)  # squares of small numbers are zero
    b = b / size
    return (a.float() * b).sum(1) / (b * b).sum(1) / size[:, 0]


def _explains(factor: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Whether each row of ``b`` times the factor is that of ``a``, within the precision of ``a``."""
    tolerance = _TOLERANCE if torch.finfo(a.dtype).bits >= 32 else _HALF_TOLERANCE
    rounding = _ROUNDING * b.shape[1] ** 0.5 * factor.abs()
    is_close: Tensor = (a.float() - factor[:, None] * b).norm(dim=1) <= tolerance * a.float().norm(dim=1) + rounding
    return is_close
