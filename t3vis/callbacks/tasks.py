"""What logits, labels and loss mean for each task head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers.models.auto import modeling_auto

from t3vis.errors import ConfigurationError
from t3vis.losses import IGNORED_LABEL as IGNORED_LABEL
from t3vis.losses import Kind, gold_classes, kind_of, unreduced

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
_KINDS: Mapping[Task, Kind] = {
    "single_label": "classes",
    "multiple_choice": "classes",
    "multi_label": "labels",
    "regression": "numbers",
}
_TASKS: Mapping[Kind, Task] = {"classes": "single_label", "labels": "multi_label", "numbers": "regression"}
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
        if _KINDS[task] == "classes":
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
    return _TASKS[kind_of(logits.shape[1], labels, problem_type)]


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
    logits, kind = logits.float(), _KINDS[task]
    if kind != "classes":
        return unreduced(kind, logits, labels.reshape(logits.shape).float())
    gold = gold_classes(labels.reshape(-1).long(), logits.shape[1])
    return unreduced(kind, logits, gold, label_smoothing).where(gold != IGNORED_LABEL, torch.nan)
