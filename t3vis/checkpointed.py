"""Passes of a run whose model was saved, and what is computed of such a model."""

from __future__ import annotations

from typing import Any

from t3vis.code_version import code_version
from t3vis.errors import ProbingError
from t3vis.store.checkpoints import Checkpoint
from t3vis.store.passes import Pass
from t3vis.store.reader import Split


def pass_with_checkpoint(split: Split, index: int | None = None) -> tuple[Pass, Checkpoint]:
    """A pass by its number and the checkpoint that it names; by default the last that names one.

    Raises
    ------
    ProbingError
        If there is none that is still there.
    """
    known = [(record, record.checkpoint) for record in split.passes]
    having = [(record, checkpoint) for record, checkpoint in known if checkpoint is not None]
    wanted = having[-1:] if index is None else [pair for pair in having if pair[0].index == index]
    if not wanted:
        others = ", ".join(str(record.index) for record, _ in having) or "none"
        asked = "" if index is None else f" of pass {index}"
        raise ProbingError(
            f"{split.path} has no checkpoint{asked} that is still there; passes with one: {others}. Train with "
            "save_strategy='epoch', or name the folder of a model with --model."
        )
    return wanted[0]


def provenance(split: Split, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a result of a checkpoint's model on a split depends on, beside its own parameters.

    Models are looked at in eval mode, whatever the split was recorded in.
    """
    return {
        "t3vis": code_version(),
        "mode": "eval",
        "fingerprint": split.attributes.get("fingerprint"),
        "step": checkpoint.step,
        "checkpoint": checkpoint.crc32c,
    }
