"""What the processes tell each other, all of it in files that survive them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .plan import Ints, Plan


class Checkpoint(NamedTuple):
    """Where an attempt starts: steps completed, and the attempt that wrote the weights; 0 and -1 at the beginning."""

    step: int = 0
    attempt: int = -1


class Start(NamedTuple):
    """A checkpoint that an attempt was started from, and how many attempts had been announced before it."""

    checkpoint: Checkpoint
    number: int


class Folder:
    """Where the run lies, and beside it what the processes note."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run.zarr"
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: Any) -> None:
        partial = self.path / f"{name}.writing"
        partial.write_text(json.dumps(content))
        partial.replace(self.path / name)

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    @property
    def log(self) -> str:
        """The end of what the processes said."""
        return (self.path / "log").read_text()[-4000:]

    # What a training process has done

    def note(self, rank: int, what: str, **more: int) -> None:
        """One line about something that has just happened."""
        _append(self.path / f"notes_{rank}", {"what": what, **more})

    def notes(self, rank: int, what: str) -> list[dict[str, Any]]:
        """Those of one kind, of the attempt that was announced last."""
        return [note for note in _lines(self.path / f"notes_{rank}") if note["what"] == what]

    def marked(self, rank: int, write: Callable[..., None]) -> Callable[..., None]:
        """The same function, which says as long as the process lives whether it is at work."""
        descriptor = os.open(self.path / f"writing_{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        @wraps(write)
        def says_so(*args: Any, **kwargs: Any) -> None:
            os.pwrite(descriptor, b"1", 0)
            write(*args, **kwargs)
            os.pwrite(descriptor, b"0", 0)

        return says_so

    def is_writing(self, rank: int) -> bool:
        """Whether that process is inside the writing of a segment, or was when it died."""
        with suppress(FileNotFoundError):
            return (self.path / f"writing_{rank}").read_bytes() == b"1"
        return False

    # Checkpoints and attempts

    def save(self, checkpoint: Checkpoint, *, flushed: bool) -> None:
        """Write a checkpoint over an older one of that step; training may go on from it once rows are flushed."""
        self.write(f"checkpoints/{checkpoint.step:05d}.json", [*checkpoint, flushed])

    def checkpoints(self) -> list[Checkpoint]:
        """Those from which training may go on, the one written last at the end."""
        found = sorted((self.path / "checkpoints").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        saved = [json.loads(file.read_text()) for file in found[-6:]]
        return [Checkpoint(step, attempt) for step, attempt, flushed in saved if flushed]

    def announce(self, checkpoint: Checkpoint) -> Start:
        """Say, before an attempt is started, which checkpoint it goes on from."""
        start = Start(checkpoint, len(self.announced()))
        for rank in (0, 1):
            (self.path / f"notes_{rank}").unlink(missing_ok=True)
            (self.path / f"writing_{rank}").unlink(missing_ok=True)
        _append(self.path / "announced", checkpoint)
        return start

    def announced(self) -> list[Checkpoint]:
        return [Checkpoint(*line) for line in _lines(self.path / "announced")]

    def opened(self, attempt: int) -> Start:
        """What an attempt that has begun to train was started from."""
        checkpoint, number = self.read(f"opened_{attempt}")
        return Start(Checkpoint(*checkpoint), number)

    def latest(self) -> tuple[int, bool]:
        """Number of the newest attempt, -1 before there is one, and whether it has begun to train."""
        numbers = [int(node.parent.name[1:5]) for node in self.run.glob("attempts/a*_r0000/zarr.json")]
        newest = max(numbers, default=-1)
        return newest, (self.path / f"opened_{newest}").exists()

    def owners(self, plan: Plan, attempt: int) -> Ints:
        """Which attempt took each step on the way to the weights of this one: its own number from its start on."""
        return self.owners_from(plan, self.opened(attempt).checkpoint, attempt)

    def owners_from(self, plan: Plan, checkpoint: Checkpoint, attempt: int) -> Ints:
        """The same for an attempt that starts from a checkpoint."""
        owner = np.full(plan.n_steps, attempt)
        if checkpoint.step:
            owner[: checkpoint.step] = self.owners(plan, checkpoint.attempt)[: checkpoint.step]
        return owner


def _append(file: Path, content: Any) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(content) + "\n")


def _lines(file: Path) -> list[Any]:
    """The lines of a file that are complete."""
    with suppress(FileNotFoundError):
        lines = file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    return []
