"""What the store says of a split: its name, its dataset, and the objective that was trained."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import has_length

from t3vis.callbacks.examples import class_names, label_column
from t3vis.store.schema import SplitKind

RESERVED_NAMES = ("train", "analysis", "attempts", "tokenizer")


def split_name(prefix: str) -> str:
    """Name of an evaluation set's group: the prefix of its metrics, made safe for a file system.

    Examples
    --------
    >>> split_name("eval_matched"), split_name("train"), split_name("eval_en/de")
    ('eval_matched', 'eval_train', 'eval_en_de')
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", prefix).strip("._") or "eval"
    return f"eval_{name}" if name in RESERVED_NAMES else name


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or the first of ``name-2``, ``name-3``, ... that is not taken.

    Examples
    --------
    >>> free_name("eval", []), free_name("eval", ["eval", "eval-2"])
    ('eval', 'eval-3')
    """
    candidates = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(candidate for candidate in candidates if candidate not in taken)


def size_of(dataset: Any) -> int | None:
    """Number of examples, ``None`` where the dataset does not say."""
    return len(dataset) if has_length(dataset) else None


def split_attributes(trainer: Trainer, kind: SplitKind, dataset: Any, fingerprint: str) -> dict[str, Any]:
    """What is known of a split before the first batch."""
    labels = trainer.label_names
    return {
        "kind": kind,
        "mode": kind,
        "n_examples": size_of(dataset),
        "fingerprint": fingerprint,
        "dataset_type": type(dataset).__name__,
        "dataset_fingerprint": getattr(dataset, "_fingerprint", None),
        "columns": list(getattr(dataset, "column_names", None) or []),
        "label_column": label_column(dataset, labels),
        "class_names": class_names(dataset, labels, getattr(trainer.model, "config", None)),
    }


def label_smoothing(trainer: Trainer) -> float:
    """How much of the target the Trainer spreads over all classes."""
    smoother = trainer.label_smoother if trainer.compute_loss_func is None else None
    return 0.0 if smoother is None else float(smoother.epsilon)


def trained_objective(trainer: Any) -> dict[str, Any]:
    """Whether what is trained is the loss that is recorded, and if not, what it is."""
    if not isinstance(trainer, Trainer):
        return {"trained_objective": "that of the loop", "differs_from_trained": None}
    if getattr(trainer.compute_loss, "__func__", None) is not Trainer.compute_loss:
        objective = f"the compute_loss of {trainer.__class__.__name__}"
    elif trainer.compute_loss_func is not None:
        objective = f"the function {getattr(trainer.compute_loss_func, '__name__', 'compute_loss_func')}"
    elif trainer.label_smoother is not None:
        objective = f"cross-entropy with label smoothing {trainer.args.label_smoothing_factor:g}"
    else:
        return {"trained_objective": "the model's own loss", "differs_from_trained": False}
    return {"trained_objective": objective, "differs_from_trained": True}
