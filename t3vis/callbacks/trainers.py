"""Trainers whose batches are not rows of their dataset: some are known, some are refused by name."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from t3vis.callbacks.tasks import Task
from t3vis.errors import ConfigurationError

_GENERATES = "it trains on completions that it generates anew in every step, several for each prompt"
_REFUSED = {"GRPOTrainer": _GENERATES, "RLOOTrainer": _GENERATES}


def check_trainer(trainer: Trainer) -> None:
    """Refuse what cannot be recorded.

    Raises
    ------
    ConfigurationError
        If the Trainer makes its own examples, or packs several of the dataset into one.
    """
    for name, reason in _REFUSED.items():
        if _is_of_trl(trainer, name):
            raise ConfigurationError(
                f"{name} cannot be recorded: {reason}, so no row belongs to an example of the dataset; remove the "
                "recorder."
            )
    if getattr(trainer.args, "packing", False):
        raise ConfigurationError(
            "packing=True cannot be recorded: each row of the packed dataset is made of parts of several examples; "
            "pass packing=False, with padding_free=True for batches without padding."
        )


def checkpoint_of(trainer: Trainer) -> Path:
    """Where the Trainer saves its model at this step."""
    folder = trainer._get_output_dir(trial=getattr(trainer, "_trial", None))
    return Path(folder, f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}")


def pairs_examples(trainer: Trainer) -> bool:
    """Whether a batch holds a chosen completion of each example, then a rejected one of each."""
    return _is_of_trl(trainer, "DPOTrainer")


def shifts_labels(trainer: Trainer, task: Task | None) -> bool:
    """Whether the label of a position is the token that follows it: by the task, else by what the Trainer says."""
    return bool(trainer._loss_shifts_labels) if task is None else task == "causal_lm"


def _is_of_trl(trainer: Trainer, name: str) -> bool:
    return any(kind.__name__ == name and kind.__module__.startswith("trl.") for kind in type(trainer).__mro__)
