"""What a Trainer gives a model, and what cannot be recorded of it: some Trainers are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from t3vis.callbacks.batches import Batch, batch_of
from t3vis.callbacks.example_ids import check_identity
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


def check_devices(trainer: Trainer) -> None:
    """Refuse a model that is copied for every step.

    Raises
    ------
    ConfigurationError
        If the Trainer spreads it over several GPUs of one process.
    """
    if trainer.args.n_gpu > 1:
        raise ConfigurationError(
            f"torch.nn.DataParallel over {trainer.args.n_gpu} GPUs cannot be recorded: it copies the model for every "
            "step; launch with torchrun (one process per GPU), or set CUDA_VISIBLE_DEVICES to one."
        )


def check_evaluation_sets(trainer: Trainer, id_column: str | None) -> None:
    """Refuse before the first step what the first evaluation could not be recorded for; see ``check_identity``."""
    if trainer.args.eval_strategy != IntervalStrategy.NO or trainer.args.eval_on_start:
        sets = trainer.eval_dataset
        for dataset in sets.values() if isinstance(sets, dict) else [sets]:
            check_identity(dataset, id_column)


def check_labels(trainer: Trainer, batch: Batch, inputs: Mapping[str, Any]) -> None:
    """Refuse a training whose batches have no labels.

    Raises
    ------
    ConfigurationError
        If there are none under the names that the Trainer knows.
    """
    if batch.labels is None and not batch.paired:
        names = " or ".join(dict.fromkeys((*trainer.label_names, "labels")))
        raise ConfigurationError(
            f"the training batches hold no labels: found {', '.join(inputs)}, expected {names}; "
            "add a column of labels to the dataset, or name it in TrainingArguments(label_names=[...])."
        )


def batch_given(trainer: Trainer, task: Task | None, ids: Tensor, inputs: Any, *, training: bool) -> Batch:
    """What a micro-batch of the Trainer says before the model sees it."""
    return batch_of(
        ids,
        inputs,
        trainer.model,
        (*trainer.label_names, "labels"),
        training=training,
        paired=pairs_examples(trainer),
        shifted=shifts_labels(trainer, task),
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
