"""What is kept of outputs that a model returns for each token: a few numbers of those that have a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.tasks import LANGUAGE_TASKS, Task
from t3vis.callbacks.token_scores import token_scores
from t3vis.losses import IGNORED_LABEL, gold_classes
from t3vis.store.ragged import Ragged

Rows = dict[str, NDArray[Any] | Ragged]

_INTEGERS, _FLOATS = ("position", "label", "prediction", "rank"), ("logprob", "entropy")
_OF_LANGUAGE = ("rank", "entropy")


@dataclass(frozen=True)
class Scored:
    """The scored tokens of a batch, example after example; every array has shape (n_scored,) and is on the host.

    ``example`` is the row of the batch that a token belongs to, ``values`` holds what is known of it: ``position``,
    ``label``, ``prediction`` and ``rank`` (int32), ``logprob`` and ``entropy`` (float32), ``is_right`` (bool).
    """

    example: NDArray[np.int64]
    values: dict[str, NDArray[Any]]

    def sums(self, name: str, n_examples: int) -> NDArray[np.float64]:
        """Sum over the tokens of each example."""
        return np.asarray(np.bincount(self.example, self.values[name], n_examples), np.float64)


def token_rows(task: Task, batch: Batch, outputs: Mapping[str, Any]) -> tuple[Rows, tuple[str, ...]]:
    """What is recorded of the examples, and in words what is not.

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
    scored = scored_tokens(batch, outputs)
    if batch.paired:
        left_out.append("the loss, which compares with another model")
        return _pair_logits(batch, scored), tuple(left_out)
    if scored is None:
        left_out.append("the loss of each example")
        return {}, tuple(left_out)
    names = [name for name in scored.values if name not in _OF_LANGUAGE or task in LANGUAGE_TASKS]
    return example_rows(scored, names, len(batch.ids)), tuple(left_out)


def example_rows(scored: Scored, names: list[str], n_examples: int) -> Rows:
    """Mean loss, fraction right and number of tokens of each example, and its values of each of these ``names``."""
    lengths = np.bincount(scored.example, minlength=n_examples)
    rows: Rows = {"n_tokens": lengths.astype(np.int32)}
    with np.errstate(invalid="ignore"):  # the mean of no tokens is NaN
        rows["loss"] = (-scored.sums("logprob", n_examples) / lengths).astype(np.float32)
        if "is_right" in scored.values:
            rows["token_accuracy"] = (scored.sums("is_right", n_examples) / lengths).astype(np.float32)
    ragged = {name: scored.values[name] for name in names if name != "is_right"}
    return rows | {f"token_{name}": Ragged.with_lengths(values, lengths) for name, values in ragged.items()}


def scored_tokens(batch: Batch, outputs: Mapping[str, Any]) -> Scored | None:
    """The tokens that have a label, and what was predicted there; ``None`` where outputs and labels do not tell."""
    log_probs, is_labelled, logits = (outputs.get(name) for name in ("log_probs", "label_mask", "logits"))
    if isinstance(log_probs, Tensor) and isinstance(is_labelled, Tensor):
        return _of_fused_head(batch, outputs)
    labels = batch.labels
    if not isinstance(logits, Tensor) or logits.dim() != 3 or labels is None or labels.shape != logits.shape[:2]:
        return None
    batch.check_rows(logits, "outputs")
    labels = labels.to(logits.device)
    is_class = gold_classes(labels, logits.shape[2]) != IGNORED_LABEL
    rows, columns = is_class.nonzero(as_tuple=True)
    example, position = batch.places(rows, columns)
    if batch.shifted:  # the first token of an example is not predicted from one before it
        follows = position > 0
        rows, columns, example, position = (each[follows] for each in (rows, columns, example, position))
    label = labels[rows, columns]
    found = token_scores(logits, rows, columns - int(batch.shifted), label)
    values = {"position": position, "label": label, **vars(found), "is_right": found.prediction == label}
    return _on_host(example, values)


def _of_fused_head(batch: Batch, outputs: Mapping[str, Any]) -> Scored:
    """What a head says that never makes the logits: of each position but the first."""
    log_probs = outputs["log_probs"]
    batch.check_rows(log_probs, "outputs")
    rows, before = outputs["label_mask"].nonzero(as_tuple=True)
    columns = before + 1
    example, position = batch.places(rows, columns)
    values = {"position": position}
    if batch.labels is not None and batch.labels.shape == (len(log_probs), log_probs.shape[1] + 1):
        values["label"] = batch.labels.to(rows.device)[rows, columns]
    of_each = {"logprob": log_probs, "entropy": outputs.get("entropy"), "is_right": outputs.get("is_top1")}
    return _on_host(example, values | {k: v[rows, before] for k, v in of_each.items() if isinstance(v, Tensor)})


def _on_host(example: Tensor, values: Mapping[str, Tensor]) -> Scored:
    """Copied to the host in two parts: whole numbers, and the rest."""
    integers, floats = ([name for name in names if name in values] for names in (_INTEGERS, _FLOATS))
    is_right = [values["is_right"]] if "is_right" in values else []
    whole = torch.stack([part.int() for part in (example, *(values[name] for name in integers), *is_right)])
    found = dict(zip(("example", *integers, "is_right"), whole.cpu().numpy(), strict=False))
    found |= dict(zip(floats, torch.stack([values[name].float() for name in floats]).cpu().numpy(), strict=True))
    return Scored(found.pop("example"), found)


def _pair_logits(batch: Batch, scored: Scored | None) -> Rows:
    """Log-probability of the chosen and of the rejected completion, shape (n, 2)."""
    if scored is None:
        return {}
    n = len(batch.ids)
    return {"logits": scored.sums("logprob", 2 * n).reshape(2, n).T.astype(np.float32)}
