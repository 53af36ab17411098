"""What the first micro-batch of a split shows of it: its task, its arrays, and what is not among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from t3vis.callbacks.capture import Captured
from t3vis.callbacks.gates import GateGradients
from t3vis.callbacks.hooks import accepts
from t3vis.callbacks.scales import OwnLoss
from t3vis.callbacks.settings import Settings
from t3vis.callbacks.splits import label_smoothing, trained_objective
from t3vis.callbacks.tasks import LOSS_NAME, PAIR_LOGITS
from t3vis.gates import Projection, layer_attributes
from t3vis.store import schema


def known_of_dataset(examples: Path) -> tuple[str, ...]:
    """Names of rows that the store has from the dataset itself, so that they are not logged."""
    known = [name for name in ("labels", "targets", "length") if schema.node_exists(examples / name)]
    if "labels" in known or "targets" in known:
        known += ["labels", "targets"]  # one of them is known, the other does not apply
    return tuple(known)


def not_recorded(
    model: Any, taken: Captured, settings: Settings, gradients: GateGradients | None, own: OwnLoss | None
) -> list[str]:
    """What was asked for, or returned, and is not among the rows, in words."""
    missed = list(taken.left_out)
    if settings.hidden_states is not None and taken.layers is None:
        takes = accepts(model, "output_hidden_states")
        missed.append(f"hidden states{'' if takes else ' (its forward takes no output_hidden_states)'}")
    if gradients is not None and own is None:
        missed.append("head gradients (the outputs do not tell how the loss of each example was scaled)")
    return missed


def described(
    trainer: Trainer,
    taken: Captured,
    rows: Collection[str],
    settings: Settings,
    projections: Sequence[Projection] | None,
) -> dict[str, Any]:
    """What the store says of a split and its arrays.

    Parameters
    ----------
    rows
        Names of what was taken.
    projections
        Those whose heads are recorded, ``None`` if none are.
    """
    arrays: dict[str, Any] = {}
    if "loss" in rows:
        arrays["loss"] = {"loss": LOSS_NAME[taken.task], **trained_objective(trainer)}
    if taken.layers is not None:
        arrays["hidden_states"] = {"layers": taken.layers, "pooling": settings.pooling_name}
    if taken.decoder_layers is not None:
        arrays["decoder_hidden_states"] = {"layers": taken.decoder_layers, "pooling": settings.pooling_name}
    if projections is not None:
        smoothing = label_smoothing(trainer)
        loss = LOSS_NAME[taken.task] + (f", with label smoothing {smoothing:g}" if smoothing else "")
        arrays["head_gradients"] = {**layer_attributes(projections), "loss": loss}
    said: dict[str, Any] = {"task": taken.task, "arrays": arrays}
    if taken.task == "preference":
        arrays["logits"] = {"logits": PAIR_LOGITS}
        said["class_names"] = ["chosen", "rejected"]
    return said
