"""What logits, labels and loss mean for each task head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from t3vis.errors import ConfigurationError

Task = Literal["single_label", "multi_label", "regression", "preference", "other"]

SEQUENCE_TASKS: tuple[Task, ...] = ("single_label", "multi_label", "regression")
IGNORED_LABEL = -100
LOSS_NAME: Mapping[Task, str] = {
    "single_label": "cross-entropy, nats",
    "multi_label": "mean binary cross-entropy over classes, nats",
    "regression": "mean squared error over outputs",
    "other": "mean negative log-likelihood over the tokens that have a label, nats",
}
PAIR_LOGITS = "log-probability of the chosen and of the rejected completion, summed over their tokens, nats"


def sequence_rows(logits: Tensor, labels: Tensor | None, problem_type: str | None) -> tuple[Task, dict[str, Tensor]]:
    """The task of a sequence classification head, and what is recorded of its examples."""
    task = sequence_task(logits, labels, problem_type)
    rows = {"logits": logits.float()}
    if labels is not None:
        labels = labels.to(logits.device)
        rows["loss"] = unreduced_loss(task, logits, labels)
        if task == "single_label":
            rows["labels"] = labels.reshape(-1).long().clamp(min=-1)
        else:
            rows["targets"] = labels.reshape(logits.shape).float()
    return task, rows


def sequence_task(logits: Tensor, labels: Tensor | None, problem_type: str | None) -> Task:
    """The task of a sequence classification head, by the rule of transformers' ``ForSequenceClassification``.

    Parameters
    ----------
    logits
        Shape (n, n_classes).
    labels
        Whole numbers of shape (n,), or values of shape (n, n_classes), or ``None`` where the batch has none.
    problem_type
        ``config.problem_type``; decides where it is set.

    Raises
    ------
    ConfigurationError
        If the logits are not one row per example.
    """
    if logits.dim() != 2:
        raise ConfigurationError(
            f"expected logits of shape (examples, classes) or (examples, tokens, classes), found {tuple(logits.shape)}."
        )
    named: dict[str, Task] = {
        "single_label_classification": "single_label",
        "multi_label_classification": "multi_label",
        "regression": "regression",
    }
    if problem_type in named:
        return named[problem_type]
    if logits.shape[1] == 1:
        return "regression"
    if labels is None or not (labels.is_floating_point() or labels.dtype == torch.bool):
        return "single_label"
    return "multi_label"


def unreduced_loss(task: Task, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The task's loss of each example, shape (n,), float32; NaN where the label is no class, such as ``-100``.

    Parameters
    ----------
    logits
        Shape (n, n_classes).
    labels
        Shape (n,) of classes for ``"single_label"``, else values of the shape of the logits.
    label_smoothing
        Part of the target that is spread over all classes, for ``"single_label"``.
    """
    logits = logits.float()
    if task == "single_label":
        labels = labels.reshape(-1).long()
        is_class = (labels >= 0) & (labels < logits.shape[1])
        labels = labels.where(is_class, IGNORED_LABEL)
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return loss.where(is_class, torch.nan)
    values = labels.reshape(logits.shape).float()
    if task == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(1)
    return F.mse_loss(logits, values, reduction="none").mean(1)
