"""What one process of a training decides, all of them are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from transformers import Trainer

from t3vis.errors import T3VisError

T = TypeVar("T")


def on_first_process(trainer: Trainer, work: Callable[[], T]) -> T:
    """What ``work`` returns, or raises, on the first process: the same on every process.

    Called by every process; it returns on none before it is done.
    """
    if trainer.args.world_size == 1:
        return work()
    outcome: list[Any] = [None, None]
    if trainer.args.process_index == 0:
        try:
            outcome[0] = work()
        except (T3VisError, OSError) as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    result: T = outcome[0]
    if outcome[1] is not None:
        raise outcome[1]
    return result


def wait_for_all(trainer: Trainer) -> None:
    """Wait until every process has come here."""
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
