"""What logits and labels mean and what loss they make, for the recorder and for probing alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100
Kind = Literal["classes", "labels", "numbers"]
"""One class of several is right, each class by itself is right or wrong, or the outputs are numbers."""
_NAMED: Mapping[Any, Kind] = {
    "single_label_classification": "classes",
    "multi_label_classification": "labels",
    "regression": "numbers",
}


def kind_of(n_classes: int, labels: Tensor | None, problem_type: str | None) -> Kind:
    """What the outputs of a sequence classification head are, by the rule of ``ForSequenceClassification``.

    Parameters
    ----------
    labels
        Whole numbers, or values of the shape of the logits, or ``None`` where there are none.
    problem_type
        ``config.problem_type``; decides where it is set.
    """
    if problem_type in _NAMED:
        return _NAMED[problem_type]
    if n_classes == 1:
        return "numbers"
    is_whole = labels is None or not (labels.is_floating_point() or labels.dtype == torch.bool)
    return "classes" if is_whole else "labels"


def unreduced(kind: Kind, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each answer, shape (...): nats, or squared distance; 0 where the class is ``IGNORED_LABEL``.

    Parameters
    ----------
    logits
        Shape (..., n_classes), float32.
    targets
        Classes of shape (...), else values of the shape of the logits.
    label_smoothing
        Part of the target that is spread over all classes, where one is right.
    """
    if kind == "classes":
        flat = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none", label_smoothing=label_smoothing
        )
        return flat.view(targets.shape)
    if kind == "labels":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
    return F.mse_loss(logits, targets, reduction="none").mean(-1)


def gold_classes(labels: Tensor, n_classes: int, *, shifted: bool = False) -> Tensor:
    """The class that is right in each place, ``IGNORED_LABEL`` where there is none; the shape of ``labels``.

    Parameters
    ----------
    labels
        Whole numbers; with ``shifted`` of shape (n, n_tokens).
    shifted
        Whether each position is to predict the label of the one after it.

    Examples
    --------
    >>> gold_classes(torch.tensor([[2, 0, -1, 7]]), 3)
    tensor([[   2,    0, -100, -100]])
    >>> gold_classes(torch.tensor([[2, 0, -1, 7]]), 3, shifted=True)
    tensor([[   0, -100, -100, -100]])
    """
    gold = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL) if shifted else labels
    return gold.where((gold >= 0) & (gold < n_classes), IGNORED_LABEL)
