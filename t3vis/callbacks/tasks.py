"""What logits, labels and loss mean for each task head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.auto import modeling_auto

from t3vis.errors import ConfigurationError

NamedTask = Literal[
    "single_label",
    "multi_label",
    "regression",
    "multiple_choice",
    "question_answering",
    "token_classification",
    "masked_lm",
    "causal_lm",
    "seq2seq_lm",
]
Task = NamedTask | Literal["preference", "other"]

NAMED_TASKS: tuple[NamedTask, ...] = get_args(NamedTask)
SEQUENCE_TASKS: tuple[Task, ...] = ("single_label", "multi_label", "regression", "multiple_choice")
LANGUAGE_TASKS: tuple[Task, ...] = ("masked_lm", "causal_lm", "seq2seq_lm")
TOKEN_TASKS: tuple[Task, ...] = ("token_classification", *LANGUAGE_TASKS)
_OF_ONE_CLASS: tuple[Task, ...] = ("single_label", "multiple_choice")
IGNORED_LABEL = -100
_OF_TOKENS = "mean negative log-likelihood over the tokens that have a label, nats"
LOSS_NAME: Mapping[Task, str] = {
    "single_label": "cross-entropy, nats",
    "multiple_choice": "cross-entropy over the choices, nats",
    "question_answering": "mean of the cross-entropies of start and end over the tokens that are not padding, nats",
    "multi_label": "mean binary cross-entropy over classes, nats",
    "regression": "mean squared error over outputs",
    **dict.fromkeys((*TOKEN_TASKS, "other"), _OF_TOKENS),
}
PAIR_LOGITS = "log-probability of the chosen and of the rejected completion, summed over their tokens, nats"
_MODELS: Mapping[Task, Mapping[Any, Any]] = {
    "multiple_choice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "question_answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "token_classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "masked_lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}


def task_of_model(model: Any) -> Task | None:
    """The task that transformers knows a model's class by, or that of a class it derives from.

    ``None`` where it knows none, or several, or where labels are needed to tell (sequence classification).
    """
    model = getattr(model, "_orig_mod", model)  # compiled
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter of PEFT
    two_stacks = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    for kind in type(model).__mro__:
        found = [task for task, models in _MODELS.items() if any(kind.__name__ in _names(m) for m in models.values())]
        found = [task for task in found if (task == "seq2seq_lm") == two_stacks] if len(found) > 1 else found
        if len(found) == 1:
            return found[0]
    return None


def _names(models: str | tuple[str, ...]) -> tuple[str, ...]:
    return (models,) if isinstance(models, str) else tuple(models)


def sequence_rows(task: Task, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """What is recorded of the examples of a head that returns one row of logits for each."""
    rows = {"logits": logits.float()}
    if labels is not None:
        labels = labels.to(logits.device)
        rows["loss"] = unreduced_loss(task, logits, labels)
        if task in _OF_ONE_CLASS:
            rows["labels"] = labels.reshape(-1).long().clamp(min=-1)
        else:
            rows["targets"] = labels.reshape(logits.shape).float()
    return rows


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
        Shape (n,) of classes, or of choices, where one is right, else values of the shape of the logits.
    label_smoothing
        Part of the target that is spread over all classes, where one is right.
    """
    logits = logits.float()
    if task in _OF_ONE_CLASS:
        labels = labels.reshape(-1).long()
        is_class = (labels >= 0) & (labels < logits.shape[1])
        labels = labels.where(is_class, IGNORED_LABEL)
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return loss.where(is_class, torch.nan)
    values = labels.reshape(logits.shape).float()
    if task == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(1)
    return F.mse_loss(logits, values, reduction="none").mean(1)
