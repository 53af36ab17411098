"""One process of a training: what a Trainer and the recorder do, without a model.

``python -m tests.store.stress.training FOLDER PLAN OPTIONS``
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t3vis.store import layout
from t3vis.store.open_segment import OpenSegment
from t3vis.store.writer import RunWriter, create_run, join_run

from .folder import Checkpoint, Folder, Start
from .plan import Plan, epoch_of, rows_of
from .processes import PATIENCE


@dataclass(frozen=True)
class Options:
    """Of one of the two: its socket to the other one, and at which step it kills itself, -1 for none."""

    rank: int
    start: Start
    descriptor: int
    alone: bool  # whether it goes on if the other one has died, rather than wait to be killed too
    dies_at: int


class Meeting:
    """Two processes wait for each other."""

    def __init__(self, options: Options) -> None:
        self._socket = socket.socket(fileno=options.descriptor)
        self._alone = options.alone

    def wait(self) -> None:
        met = b""
        with suppress(OSError):
            self._socket.send(b".")
            met = self._socket.recv(1)
        if not met and not self._alone:
            time.sleep(PATIENCE)


class Training:
    """One rank of an attempt."""

    def __init__(self, folder: Folder, plan: Plan, options: Options) -> None:
        self.folder, self.plan, self.rank = folder, plan, options.rank
        self._first_step, self._dies_at = options.start.checkpoint.step, options.dies_at
        self._meeting = Meeting(options)
        self._next_evaluation: int | None = None
        if self.rank == 0:
            folder.note(0, "opening")
            self.writer = self._opened()
            folder.write(f"opened_{self.writer.attempt}", options.start)
            folder.note(0, "opened", attempt=self.writer.attempt)
        self._meeting.wait()
        if self.rank:
            self.writer = join_run(folder.run, rank=self.rank, n_ranks=2)
        else:
            self.writer.seal_before("train", self._first_step // plan.steps_per_epoch)
        self._random = random.Random(plan.seed * 1000 + self.writer.attempt)  # the same on both ranks

    def _opened(self) -> RunWriter:
        plan = self.plan
        attributes = {"model": {"class": "Stress"}}
        writer = create_run(self.folder.run, attributes, start_step=self._first_step, resume=True, n_ranks=2)
        for name, n_examples in (("train", plan.n_examples), ("eval", plan.n_eval)):
            writer.add_split(name, {"kind": name, "mode": name, "n_examples": n_examples, "fingerprint": "f"})
            layers = {"layers": list(range(plan.n_layers))}
            writer.describe(name, {"task": "single_label", "arrays": {"hidden_states": layers}})
        return writer

    def train(self) -> None:
        per_epoch = self.plan.steps_per_epoch
        for step in range(self._first_step, self.plan.n_steps):
            epoch, within = divmod(step, per_epoch)
            if step == self._first_step or not within:
                self.writer.begin_pass("train", epoch, {"epoch": epoch})
            if step == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self._log(epoch, step)
            time.sleep(self.plan.pace * random.uniform(0.5, 1.5))
            chance = self._random.random()
            if chance < 0.06:
                self._flush(step + 1)
            if chance > 0.93:
                self._evaluate(step + 1)
            if chance > 0.88 or (within + 1 == per_epoch and chance < 0.5):
                self._save(step + 1)
            if within + 1 == per_epoch:
                self._end_epoch(epoch, step + 1)
        self.folder.note(self.rank, "closing")
        self._meeting.wait()
        self.writer.close()

    def _log(self, epoch: int, step: int) -> None:
        visits = epoch_of(self.plan, epoch)
        mine = (visits.step == step) & (visits.rank == self.rank)
        origin = 2 * self.writer.attempt + visits.nth[mine]
        self.writer.log("train", rows_of(self.plan, ("train", epoch), visits.example[mine], visits.step[mine], origin))

    def _flush(self, done: int) -> None:
        self.folder.note(self.rank, "flushing")
        self.writer.flush()
        self._flushed(done)

    def _flushed(self, done: int) -> None:
        self.folder.note(self.rank, "flushed", step=done)

    def _save(self, done: int) -> None:
        """The Trainer writes a checkpoint, over an older one of that step, then the recorder flushes."""
        checkpoint = Checkpoint(done, self.writer.attempt)
        if self.rank == 0:
            self.folder.save(checkpoint, flushed=False)
        self.folder.note(self.rank, "flushing")
        self.writer.save_point(done)
        self._flushed(done)
        self._meeting.wait()
        if self.rank == 0:
            self.folder.save(checkpoint, flushed=True)

    def _end_epoch(self, epoch: int, done: int) -> None:
        self._flush(done)
        self._meeting.wait()
        self.writer.seal("train", epoch)

    def _evaluate(self, done: int) -> None:
        if self._next_evaluation is None:
            self._next_evaluation = self.writer.next_pass("eval")
            self._meeting.wait()  # before the other's first segment is there to be counted
        index = self._next_evaluation
        self._next_evaluation += 1
        self.writer.begin_pass("eval", index, {"epoch": done / self.plan.steps_per_epoch, "step": done})
        half = -(-self.plan.n_eval // 2)
        example = np.arange(self.rank * half, (self.rank + 1) * half) % self.plan.n_eval
        step, origin = np.full(half, done), np.full(half, 2 * self.writer.attempt)
        self.writer.log("eval", rows_of(self.plan, ("eval", index), example, step, origin))
        self._flush(done)
        self._meeting.wait()
        if self.rank == 0:
            self.folder.note(0, "evaluated", attempt=self.writer.attempt, index=index, step=done)
        self.writer.seal("eval", index)


def main(path: str, plan_json: str, options_json: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    folder, plan, said = Folder(Path(path)), Plan(**json.loads(plan_json)), json.loads(options_json)
    checkpoint, number = said.pop("start")
    options = Options(start=Start(Checkpoint(*checkpoint), number), **said)
    layout.SEGMENT_BYTES = plan.segment_bytes
    for name in ("put", "commit"):
        setattr(OpenSegment, name, folder.marked(options.rank, getattr(OpenSegment, name)))
    Training(folder, plan, options).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
