"""What one process of a training decides, all are told, or all that write the same directory."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from accelerate.utils import gather_object
from transformers import Trainer

from t3vis.errors import T3VisError

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A directory, and the processes of the training that write it, of which this is one."""

    ranks: tuple[int, ...]
    """Their numbers in the training, in increasing order."""
    own: int
    """That of this process."""
    n_processes: int
    """Of the training."""
    training: str
    """A name of the training that no other has, where its processes write several directories; else empty."""

    @property
    def rank(self) -> int:
        """Which of those processes this is."""
        return self.ranks.index(self.own)

    @property
    def n_ranks(self) -> int:
        """How many they are."""
        return len(self.ranks)

    def attributes(self) -> dict[str, Any]:
        """What the run says of being a part of a training."""
        if not self.training:
            return {}
        return {"part": {"training": self.training, "ranks": list(self.ranks), "of": self.n_processes}}


ALONE = Place((0,), 0, 1, "")
"""Of a training in one process."""


def place_of(trainer: Trainer, path: Path, *, shared: bool) -> Place:
    """Who writes the directory of this process: all processes, or if it is not shared those of this machine.

    Called by every process.
    """
    own, n_processes = trainer.args.process_index, trainer.args.world_size
    if shared or n_processes == 1:
        return Place(tuple(range(n_processes)), own, n_processes, "")
    here = socket.gethostname(), str(path.absolute())
    said: list[tuple[tuple[str, str], str]] = gather_object([(here, uuid4().hex)])
    ranks = tuple(rank for rank, (where, _) in enumerate(said) if where == here)
    return Place(ranks, own, n_processes, training=said[0][1])


def on_first_process(trainer: Trainer, work: Callable[[], T], place: Place | None = None) -> T:
    """What ``work`` returns on the first process of this directory; what it raises on any of them, all processes raise.

    Called by every process; it returns on none before it is done.
    """
    if trainer.args.world_size == 1:
        return work()
    first = 0 if place is None else place.ranks[0]
    outcome: tuple[Any, Exception | None] = None, None
    if trainer.args.process_index == first:
        try:
            outcome = work(), None
        except (T3VisError, OSError) as error:
            outcome = None, error
    outcomes: list[tuple[Any, Exception | None]] = gather_object([outcome])
    errors = [error for _, error in outcomes if error is not None]
    if errors:
        raise errors[0]
    result: T = outcomes[first][0]
    return result


def wait_for_all(trainer: Trainer) -> None:
    """Wait until every process has come here."""
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
