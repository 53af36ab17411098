"""Trainings as processes that are killed and resumed again and again, while a reader looks on.

Every value tells by itself whether it is right: it is computed from the pass, the example and its *origin*, which is
the attempt and which of the example's visits in that pass, and its first number gives the origin away. Which origin
a row must have follows from the checkpoints that each attempt started from.

Run as a script it is one of the processes: ``stress.py train FOLDER PLAN ...`` or ``stress.py look FOLDER PLAN ...``.
A folder holds the run, the checkpoints, and notes of what the processes have done so far.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import layout, schema
from t3vis.store.reader import Pass, Split, open_run
from t3vis.store.repair import repair
from t3vis.store.verify import verify
from t3vis.store.writer import RunWriter, create_run, join_run

Ints = NDArray[np.int64]

N_CLASSES = 4
PATIENCE = 60.0  # seconds after which a process that was not killed hangs
SLOW_DISK = """
import os, random, sys, time
_run, _often = os.environ.get("T3VIS_STRESS_RUN", "/nowhere"), float(os.environ.get("T3VIS_STRESS_SLOW", 0))
_events = {"open", "os.scandir", "os.listdir", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
def _wait(event, args):
    if event in _events and (str(args[0]).startswith(_run) or event in ("os.remove", "os.rmdir")):
        if random.random() < _often:
            time.sleep(random.expovariate(500))
sys.addaudithook(_wait)
"""
"""Every process waits now and then before it touches a file: there is more time between any two of its steps."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training does, whoever kills it: sizes, and the order of the examples."""

    seed: int = 0
    n_examples: int = 2003
    n_epochs: int = 6
    batch: int = 64
    n_layers: int = 4
    hidden: int = 16
    n_eval: int = 101
    pace: float = 0.012  # seconds that a step takes beside recording
    segment_bytes: int = 24 << 10  # so that buffers fill up, and go round, between flushes

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_examples // (2 * self.batch))

    @property
    def n_steps(self) -> int:
        return self.n_epochs * self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The visits of one epoch in order; the last batch is filled up with the first examples, as samplers do."""

    example: Ints
    step: Ints
    rank: Ints
    nth: Ints  # which of the example's visits it is

    @property
    def first_visit(self) -> NDArray[np.bool_]:
        first: NDArray[np.bool_] = self.nth == 0
        return first


@cache
def epoch_of(plan: Plan, epoch: int) -> Epoch:
    order = np.random.default_rng([plan.seed, epoch]).permutation(plan.n_examples)
    n_visits = plan.steps_per_epoch * 2 * plan.batch
    at = np.arange(n_visits)
    return Epoch(
        example=np.resize(order, n_visits).astype(np.int64),
        step=epoch * plan.steps_per_epoch + at // (2 * plan.batch),
        rank=at // plan.batch % 2,
        nth=(at >= plan.n_examples).astype(np.int64),
    )


@cache
def visit_steps(plan: Plan, epoch: int) -> Ints:
    """Step of the first and the second visit of each example, shape (2, n_examples); -1 where there is none."""
    visits = epoch_of(plan, epoch)
    steps = np.full((2, plan.n_examples), -1)
    steps[visits.nth, visits.example] = visits.step
    return steps


# Values that tell where they come from


def key(*parts: Any) -> Ints:
    """14 bits that depend on all of the integers."""
    mixed = np.zeros(1, np.uint64)
    for part in parts:
        mixed = (mixed ^ np.asarray(part, np.int64).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed ^ (mixed >> np.uint64(29))
    return (mixed >> np.uint64(50)).astype(np.int64)


def values(plan: Plan, name: str, of: tuple[str, int], example: Ints, origin: Ints, layer: int = 0) -> NDArray[Any]:
    """Rows of one array: of a split and pass, for examples and origins; shape (n, *trailing)."""
    seed = (*map(ord, of[0]), of[1], example, origin)
    if name == "loss":
        return (origin * 2**14 + key(1, *seed)).astype(np.float32)
    if name == "logits":
        columns = [key(2, column, *seed) for column in range(N_CLASSES)]
        columns[0] = columns[0] + origin * 2**14
        return np.stack(columns, -1).astype(np.float32)
    columns = [origin, *(key(3, layer, column, *seed) % 2048 for column in range(1, plan.hidden))]
    return np.stack(columns, -1).astype(np.float16)


def origins(plan: Plan, name: str, of: tuple[str, int], example: Ints, found: NDArray[Any], layer: int = 0) -> Ints:
    """Where rows that were read come from, -1 where they are fill value; they are nothing else."""
    first = (found if name == "loss" else found[:, 0]).astype(np.float64)
    scale = 1 if name == "hidden_states" else 2**14
    origin = np.where(np.isnan(first), -1, np.nan_to_num(first) // scale).astype(np.int64)
    expected = values(plan, name, of, example, origin, layer)
    expected[origin < 0] = np.nan
    wrong = ~((found == expected) | (np.isnan(found) & np.isnan(expected))).reshape(len(found), -1).all(-1)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"{name} of {of}, layer {layer}: {wrong.sum()} of {len(found)} rows are torn or of another example; "
            f"example {example[i]} holds {found[i]}, which is {expected[i]} for origin {origin[i]}"
        )
    return origin


def rows_of(plan: Plan, of: tuple[str, int], example: Ints, step: Ints, origin: Ints) -> dict[str, NDArray[Any]]:
    """A batch as the recorder hands it over."""
    hidden = [values(plan, "hidden_states", of, example, origin, layer) for layer in range(plan.n_layers)]
    return {
        "example": example,
        "step": step,
        "logits": values(plan, "logits", of, example, origin),
        "loss": values(plan, "loss", of, example, origin),
        "hidden_states": np.stack(hidden),
    }


# What the processes tell each other, all of it in files that survive them


class Folder:
    """Where the run lies, and beside it what the processes note."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path / "run.zarr"
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: dict[str, Any]) -> None:
        partial = self.path / f"{name}.writing"
        partial.write_text(json.dumps(content))
        partial.replace(self.path / name)

    def read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / name).read_text())
        return content

    def note(self, rank: int, what: str, **more: int) -> None:
        """One line about something that has just happened."""
        with (self.path / f"notes_{rank}").open("a") as file:
            file.write(json.dumps({"what": what, **more}) + "\n")

    def notes(self, rank: int) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            lines = (self.path / f"notes_{rank}").read_text().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        return []

    def checkpoints(self) -> list[dict[str, Any]]:
        """Those from which training may go on, the one written last at the end."""
        found = sorted((self.path / "checkpoints").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        saved = [json.loads(file.read_text()) for file in found[-6:]]
        return [checkpoint for checkpoint in saved if checkpoint["flushed"]]

    def announce(self, checkpoint: dict[str, Any]) -> None:
        """Say, before an attempt is started, which checkpoint it goes on from."""
        with (self.path / "announced").open("a") as file:
            file.write(json.dumps(checkpoint) + "\n")

    def announced(self) -> list[dict[str, Any]]:
        lines = (self.path / "announced").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def latest(self) -> tuple[int, bool]:
        """Number of the newest attempt, -1 before there is one, and whether it has begun to train."""
        numbers = [int(node.parent.name[1:5]) for node in self.run.glob("attempts/a*_r0000/zarr.json")]
        newest = max(numbers, default=-1)
        return newest, (self.path / f"opened_{newest}").exists()

    def owners(self, plan: Plan, attempt: int) -> Ints:
        """Which attempt took each step on the way to the weights of this one: its own number from its start on."""
        opened = self.read(f"opened_{attempt}")
        return self.owners_from(plan, opened, attempt)

    def owners_from(self, plan: Plan, checkpoint: dict[str, Any], attempt: int) -> Ints:
        """The same for an attempt that starts from a checkpoint."""
        owner = np.full(plan.n_steps, attempt)
        if checkpoint["step"]:
            before = self.owners(plan, checkpoint["attempt"])
            owner[: checkpoint["step"]] = before[: checkpoint["step"]]
        return owner


# A training process


class Meeting:
    """Two processes wait for each other. One whose partner died waits to be killed too, or goes on alone."""

    def __init__(self, descriptor: int, *, alone: bool) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._alone = alone

    def wait(self) -> None:
        met = b""
        with suppress(OSError):
            self._socket.send(b".")
            met = self._socket.recv(1)
        if not met and not self._alone:
            time.sleep(PATIENCE)


class Trainer:
    """One rank of an attempt: what a Trainer and the recorder do, without a model."""

    def __init__(self, folder: Folder, plan: Plan, options: dict[str, Any]) -> None:
        self.folder, self.plan, self.rank, self.start = folder, plan, options["rank"], options["from"]["step"]
        layout.SEGMENT_BYTES = plan.segment_bytes
        self._meeting = Meeting(options["socket"], alone=options["alone"])
        self._dies_at = options["dies_at"]
        self._next_evaluation: int | None = None
        if self.rank == 0:
            folder.note(0, "opening")
            self.writer = self._opened()
            folder.write(f"opened_{self.writer.attempt}", options["from"])
            folder.note(0, "opened", attempt=self.writer.attempt)
        self._meeting.wait()
        if self.rank:
            self.writer = join_run(folder.run, rank=self.rank, n_ranks=2)
        self._random = random.Random(plan.seed * 1000 + self.writer.attempt)  # the same on both ranks

    def _opened(self) -> RunWriter:
        plan = self.plan
        writer = create_run(self.folder.run, {"model": {"class": "Stress"}}, start_step=self.start, resume=True)
        for name, n_examples in (("train", plan.n_examples), ("eval", plan.n_eval)):
            writer.add_split(name, {"kind": name, "mode": name, "n_examples": n_examples, "fingerprint": "f"})
            layers = {"layers": list(range(plan.n_layers))}
            writer.describe(name, {"task": "single_label", "arrays": {"hidden_states": layers}})
        return writer

    def train(self) -> None:
        per_epoch = self.plan.steps_per_epoch
        for step in range(self.start, self.plan.n_steps):
            epoch, within = divmod(step, per_epoch)
            if step == self.start or not within:
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
        self.folder.note(self.rank, "busy")
        self.writer.flush()
        self._flushed(done)

    def _flushed(self, done: int) -> None:
        self.folder.note(self.rank, "flushed", attempt=self.writer.attempt, step=done)

    def _save(self, done: int) -> None:
        """The Trainer writes a checkpoint, over an older one of that step, then the recorder flushes."""
        name, said = f"checkpoints/{done:05d}.json", {"step": done, "attempt": self.writer.attempt}
        if self.rank == 0:
            self.folder.write(name, {**said, "flushed": False})
        self.folder.note(self.rank, "busy")
        self.writer.save_point(done)
        self._flushed(done)
        self._meeting.wait()
        if self.rank == 0:
            self.folder.write(name, {**said, "flushed": True})

    def _end_epoch(self, epoch: int, done: int) -> None:
        self._flush(done)
        self._meeting.wait()
        if self.rank == 0:
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


# The reader that looks on


class Onlooker:
    """Reads all the time, through one ``Run`` that was opened once; anything wrong is an exception."""

    def __init__(self, folder: Folder, plan: Plan, seed: int) -> None:
        self.folder, self.plan = folder, plan
        self.run = open_run(folder.run)
        self.counts: Counter[str] = Counter()
        self._random = np.random.default_rng(seed)
        self._seen: dict[int, tuple[int, Ints]] = {}  # by epoch: attempts announced by then, origins that must stay
        self._owners = cache(lambda attempt: folder.owners(plan, attempt))

    def look(self) -> None:
        """Read something, and check it."""
        readings: list[Callable[[Split, int], None]] = [self.whole, self.part, self.trajectories, self.together]
        split = self.run.train if self._random.random() < 0.8 else self.run.splits.get("eval")
        if split is None or not split.arrays:
            return
        before = self.folder.latest()
        try:
            n_passes = len(split.array("loss"))
            if n_passes:
                reading = readings[self._random.integers(len(readings))]
                reading(split, int(self._random.integers(n_passes)))
                self.counts[reading.__name__] += 1
            if self._random.random() < 0.2:
                self.coverage(split)
        except (IndexError, StoreError) as error:  # a pass may be taken back as a whole, but by a resumption only
            if "holds no" not in str(error) and not isinstance(error, IndexError):
                raise
            if self._settled(before) is not None:
                raise
            self.counts["taken back"] += 1

    def whole(self, split: Split, index: int) -> None:
        before, n_before = self.folder.latest(), len(self.folder.announced())
        name, layer = self._array()
        array = split.array(name)[index, layer] if name == "hidden_states" else split.array(name)[index]
        origin = self._check(split, name, index, np.arange(len(array)), array, layer, before)
        if split.name == "train":
            self._check_nothing_gone(index, n_before, origin)

    def _check_nothing_gone(self, epoch: int, n_before: int, origin: Ints) -> None:
        """Rows stay, at every moment, unless an attempt takes their step again."""
        announced = self.folder.announced()
        n_known, stay = self._seen.get(epoch, (n_before, np.full(len(origin), -1)))
        ids = np.arange(len(origin))
        for checkpoint in announced[n_known:]:
            owners = self.folder.owners_from(self.plan, checkpoint, -1)
            steps = visit_steps(self.plan, epoch)[stay % 2, ids]
            stay = np.where(owners[steps] == stay // 2, stay, -1)
        gone = (stay >= 0) & (origin < 0)
        assert not gone.any(), f"{gone.sum()} rows of epoch {epoch} are gone"
        if n_before == len(announced):
            self._seen[epoch] = n_before, np.where(origin >= 0, origin, stay)
        else:
            self._seen[epoch] = len(announced), stay

    def part(self, split: Split, index: int) -> None:
        before = self.folder.latest()
        name, layer = self._array()
        ids = self._ids(len(split))
        array = split.array(name)
        if name == "hidden_states":
            block = array[index, :, ids]
            parts = [self._check(split, name, index, ids, block[:, i], i, before) for i in range(self.plan.n_layers)]
            assert all(np.array_equal(part, parts[0]) for part in parts), "layers of one row come from different times"
        elif self._random.random() < 0.5:
            self._check(split, name, index, ids, array[index, ids], layer, before)
        else:
            start, stop = sorted(self._random.integers(0, len(split) + 1, 2).tolist())
            self._check(split, name, index, np.arange(start, stop), array[index, start:stop], layer, before)

    def trajectories(self, split: Split, index: int) -> None:
        before = self.folder.latest()
        ids = self._ids(len(split))[:20]
        for name in ("loss", "logits"):
            for index, rows in enumerate(split.array(name)[:, ids]):
                self._check(split, name, index, ids, rows, 0, before)
        example = split.example(int(ids[0]))
        for index, row in enumerate(example.logits):
            self._check(split, "logits", index, ids[:1], row[None], 0, before)
        for index, layers in enumerate(example.hidden_states):
            for layer, row in enumerate(layers):
                self._check(split, "hidden_states", index, ids[:1], row[None], layer, before)

    def together(self, split: Split, index: int) -> None:
        """In a pass that is sealed all of the time the arrays belong together."""
        before, stamp = self.folder.latest(), self._commit(split, index)
        ids = self._ids(len(split))
        loss, logits = split.loss[index, ids], split.logits[index, ids]
        hidden, step = split.hidden_states[index][:, ids], split.step[index, ids]
        visits = split.visits[index, ids]
        first = self._check(split, "loss", index, ids, loss, 0, before)
        others = [self._check(split, "logits", index, ids, logits, 0, before)]
        others += [self._check(split, "hidden_states", index, ids, rows, i, before) for i, rows in enumerate(hidden)]
        if stamp is None or self._commit(split, index) != stamp:
            return
        self.counts["sealed together"] += 1
        assert all(np.array_equal(first, other) for other in others), f"{split.name}, pass {index}: arrays disagree"
        assert np.array_equal(first >= 0, visits > 0), f"{split.name}, pass {index}: visits disagree"
        if split.name == "train":
            steps = visit_steps(self.plan, index)[np.maximum(first, 0) % 2, ids]
            assert np.array_equal(step, np.where(first < 0, -1, steps)), f"train, pass {index}: steps disagree"

    def coverage(self, split: Split) -> None:
        for record in split.passes:
            assert record.n_seen + record.n_never == record.n_examples == len(split), record
            self.counts["passes"] += 1

    def _array(self) -> tuple[str, int]:
        name = ("loss", "logits", "hidden_states")[self._random.integers(3)]
        return name, int(self._random.integers(self.plan.n_layers)) if name == "hidden_states" else 0

    def _ids(self, n_examples: int) -> Ints:
        return self._random.integers(0, n_examples, int(self._random.integers(1, 300)))

    def _check(
        self, split: Split, name: str, index: int, ids: Ints, rows: NDArray[Any], layer: int, before: tuple[int, bool]
    ) -> Ints:
        """Right rows of that pass, and of the right attempt as long as no other one is about to begin."""
        origin = origins(self.plan, name, (split.name, index), ids, rows, layer)
        self.counts["rows"] += len(rows)
        attempt = self._settled(before)
        if attempt is not None and split.name == "train":
            check_owners(self.plan, index, ids, origin, self._owners(attempt))
        elif split.name == "eval":
            assert len(set(origin[origin >= 0].tolist())) <= 1, f"evaluation {index} is of several attempts"
        return origin

    def _settled(self, before: tuple[int, bool]) -> int | None:
        """The attempt that has been training since ``before``; ``None`` if one was just starting."""
        return before[0] if before[1] and self.folder.latest() == before else None

    @staticmethod
    def _commit(split: Split, index: int) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            found = Path(f"{split.path}/commits/{schema.pass_name(index)}/zarr.json").stat()
            return found.st_ino, found.st_mtime_ns
        return None


def check_owners(plan: Plan, epoch: int, ids: Ints, origin: Ints, owners: Ints) -> None:
    """Rows of an epoch are of the attempts that took their steps on the way to the weights."""
    seen = origin >= 0
    steps = visit_steps(plan, epoch)[origin % 2, ids]
    wrong = seen & (owners[steps] != origin // 2)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"epoch {epoch}: {wrong.sum()} rows of {len(ids)} are of attempts that the weights did not come through; "
            f"example {ids[i]}, step {steps[i]}: attempt {origin[i] // 2}, expected {owners[steps[i]]}"
        )


def look_on(folder: Folder, plan: Plan, seed: int) -> None:
    """Read until told to stop; leaves what was read, or what was wrong, in the folder."""
    while not (folder.run / "train" / "zarr.json").exists() and not (folder.path / "stop").exists():
        time.sleep(0.01)
    onlooker = Onlooker(folder, plan, seed)
    failure = None
    try:
        while not (folder.path / "stop").exists():
            onlooker.look()
    except Exception:  # noqa: BLE001  told to the parent, whatever it is
        failure = traceback.format_exc()
    folder.write("reader", {"failure": failure, **onlooker.counts})


# The parent: starts, kills, resumes, and checks


def start(folder: Folder, plan: Plan, role: str, options: dict[str, Any], **popen: Any) -> subprocess.Popen[bytes]:
    """One of the processes."""
    slow = folder.path / "slow_disk"
    slow.mkdir(exist_ok=True)
    (slow / "sitecustomize.py").write_text(SLOW_DISK)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{slow}{os.pathsep}{root}", "T3VIS_STRESS_RUN": str(folder.run)}
    environment["T3VIS_STRESS_SLOW"] = "0.02" if role == "look" else "0.15"
    for threads in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        environment[threads] = "1"
    arguments = [role, str(folder.path), json.dumps(dataclasses.asdict(plan)), json.dumps(options)]
    with (folder.path / "log").open("ab") as log:
        command = [sys.executable, "-m", "tests.store.stress", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=root, **popen)


class Attempt:
    """The two processes of one start of the training, in a process group of their own."""

    def __init__(
        self, folder: Folder, plan: Plan, checkpoint: dict[str, Any], *, alone: bool = False, dies_at: int = -1
    ) -> None:
        self.folder = folder
        folder.announce(checkpoint)
        for rank in (0, 1):
            (folder.path / f"notes_{rank}").unlink(missing_ok=True)
        self.ranks: list[subprocess.Popen[bytes]] = []
        for rank, end in enumerate(ends := socket.socketpair()):
            options = {"rank": rank, "from": checkpoint, "socket": end.fileno(), "alone": alone}
            options["dies_at"] = dies_at if rank == 1 else -1
            group = self.ranks[0].pid if self.ranks else 0
            self.ranks.append(start(folder, plan, "train", options, pass_fds=(end.fileno(),), process_group=group))
        for end in ends:
            end.close()

    @property
    def is_running(self) -> bool:
        return any(rank.poll() is None for rank in self.ranks)

    def kill(self) -> None:
        """Kill the whole group; returns once both are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.ranks[0].pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()

    def sealers(self) -> list[int]:
        """Subprocesses of the first rank: it has no others."""
        pid = self.ranks[0].pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []


class Sealers:
    """The sealing subprocesses of a run; some of them are killed at a random moment of their life."""

    def __init__(self, run: Path, rng: random.Random) -> None:
        self._run, self._random = run, rng
        self._known: dict[int, tuple[float, float]] = {}  # when it was seen first, and when it is to die
        self._life = 0.6
        self.n_killed = 0

    def watch(self, pids: list[int], *, n_wanted: int) -> None:
        now = time.monotonic()
        for pid in pids:
            if pid not in self._known and self._lives(pid):
                dies = self.n_killed < n_wanted and self._random.random() < 0.6
                self._known[pid] = now, now + self._random.uniform(0.2, 1) * self._life if dies else float("inf")
        for pid, (begin, end) in list(self._known.items()):
            if not self._lives(pid):
                self._life = 0.7 * self._life + 0.3 * (now - begin)
                del self._known[pid]
            elif now >= end:
                os.kill(pid, signal.SIGKILL)
                del self._known[pid]
                self.n_killed += 1

    def _lives(self, pid: int) -> bool:
        try:  # of a zombie it is empty
            return os.fsencode(self._run) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False


class Stress:
    """Runs that are killed and resumed until each kind of process was killed often enough.

    ``wanted`` are the numbers of kills of ``trainer`` (both ranks at once), ``writer`` (one of them, the other a
    little later) and ``sealer``.
    """

    def __init__(self, path: Path, seed: int, wanted: dict[str, int], **plan: Any) -> None:
        self.path, self.seed, self.wanted = path, seed, wanted
        self._plan = plan
        self._random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self._killed_before_close = 0

    def run(self) -> dict[str, int]:
        """All of it; what was done, in numbers."""
        while any(self.killed[kind] < wanted for kind, wanted in self.wanted.items()):
            number = self.counts["runs"]
            self.counts["runs"] += 1
            self.one_run(Folder(self.path / f"{number}"), Plan(seed=self.seed * 100 + number, **self._plan))
        return {**self.counts, **{f"{kind} kills": self.killed[kind] for kind in self.wanted}}

    def one_run(self, folder: Folder, plan: Plan) -> None:
        reader = start(folder, plan, "look", {"seed": plan.seed})
        sealers = Sealers(folder.run, self._random)
        evaluations: list[dict[str, Any]] = []
        finished, n_kills = False, 0
        try:
            while not finished:
                checkpoint = self._checkpoint(folder)
                attempt = Attempt(folder, plan, checkpoint)
                self.counts["attempts"] += 1
                missing = [kind for kind in ("trainer", "writer") if self.killed[kind] < self.wanted[kind]]
                kind = self._random.choice(missing) if missing and n_kills < 7 else None
                finished = self._until_killed(attempt, kind, sealers)
                n_kills += not finished
                if reader.poll() is not None:
                    break  # it says why
                notes = folder.notes(0)
                if any(note["what"] == "opened" for note in notes):
                    evaluations = [known for known in evaluations if known["step"] <= checkpoint["step"]]
                evaluations += [note for note in notes if note["what"] == "evaluated"]
                self._check_flushed(folder, plan, checkpoint)
                if not finished and self._random.random() < 0.15:
                    repair(folder.run)  # what one may do between two trainings; waits for a sealer that is left
                    self.counts["repairs"] += 1
                    self._check_flushed(folder, plan, checkpoint)
            self.counts["resumes"] += n_kills
        finally:
            attempt.kill()
            (folder.path / "stop").touch()
            self.killed["sealer"] += sealers.n_killed
            reader.wait(PATIENCE)
        log = (folder.path / "log").read_text()
        assert "Traceback" not in log, log[-4000:]
        self._add(folder.read("reader"))
        check_finished(folder, plan, evaluations, all_sealed=sealers.n_killed == self._killed_before_close)
        assert not verify(folder.run)
        self.counts["leftovers"] += len(repair(folder.run).removed)
        assert not verify(folder.run)
        check_finished(folder, plan, evaluations)
        check_with_zarr(folder.run)

    def _checkpoint(self, folder: Folder) -> dict[str, Any]:
        saved = folder.checkpoints()
        if not saved:
            return {"step": 0, "attempt": None}
        return saved[-1] if self._random.random() < 0.6 else self._random.choice(saved)

    def _until_killed(self, attempt: Attempt, kind: str | None, sealers: Sealers) -> bool:
        """Let the attempt run until its moment has come; whether it finished before."""
        moment = self._moment(attempt)
        deadline = time.monotonic() + PATIENCE
        self._killed_before_close = sealers.n_killed
        while attempt.is_running:
            if not any(note["what"] == "closing" for note in attempt.folder.notes(0)):
                self._killed_before_close = sealers.n_killed
            sealers.watch(attempt.sealers(), n_wanted=self.wanted["sealer"] - self.killed["sealer"])
            if kind is not None and next(moment):
                self._kill(attempt, kind)
                sealers.watch([], n_wanted=0)
                return False
            if time.monotonic() > deadline:
                attempt.kill()
                raise AssertionError(f"an attempt hangs: {(attempt.folder.path / 'log').read_text()[-4000:]}")
            time.sleep(0.004)
        assert [rank.returncode for rank in attempt.ranks] == [0, 0], (attempt.folder.path / "log").read_text()[-4000:]
        return True

    def _moment(self, attempt: Attempt) -> Iterator[bool]:
        """Turns true at a random moment: of the whole training, of its opening, or of some flush."""
        kind = self._random.choice(["any", "opening", "busy", "busy"])
        number = self._random.randrange(8) if kind == "busy" else 0
        delay = {"any": self._random.uniform(0.2, 3), "opening": self._random.uniform(0, 0.25)}.get(
            kind, self._random.expovariate(40)
        )
        rank = self._random.randrange(2) if kind == "busy" else 0
        while kind != "any" and sum(note["what"] == kind for note in attempt.folder.notes(rank)) <= number:
            yield False
        end = time.monotonic() + delay
        while time.monotonic() < end:
            yield False
        while True:
            yield True

    def _kill(self, attempt: Attempt, kind: str) -> None:
        if kind == "writer":
            attempt.ranks[self._random.randrange(2)].kill()
            time.sleep(self._random.uniform(0, 0.2))
        attempt.kill()
        self.killed[kind] += 1

    def _check_flushed(self, folder: Folder, plan: Plan, checkpoint: dict[str, Any]) -> None:
        """Right after a death: what was flushed is there."""
        newest, opened = folder.latest()
        if newest < 0 or not (folder.run / "train" / "zarr.json").exists():
            return
        done = {rank: [note["step"] for note in folder.notes(rank) if note["what"] == "flushed"] for rank in (0, 1)}
        upto = np.array([max([checkpoint["step"], *done[rank]]) for rank in (0, 1)])
        if not opened and not any(note["what"] == "opening" for note in folder.notes(0)):
            return  # it has not come to anything: the attempt before is still the newest
        owners = folder.owners(plan, newest) if opened else None
        train = open_run(folder.run).train
        if "loss" not in train.arrays:
            assert not upto.any()
            return
        for epoch in range(-(-int(upto.max()) // plan.steps_per_epoch)):
            visits, ids = epoch_of(plan, epoch), np.arange(plan.n_examples)
            origin = origins(plan, "loss", ("train", epoch), ids, train.loss[epoch])
            flushed = visits.step < upto[visits.rank]
            lost = flushed & (origin[visits.example] < 0)
            assert not lost.any(), f"{lost.sum()} rows of epoch {epoch} are lost, of steps {set(visits.step[lost])}"
            if owners is not None:
                check_owners(plan, epoch, ids, origin, owners)
            self.counts["flushed rows checked"] += int(flushed.sum())

    def _add(self, report: dict[str, Any]) -> None:
        failure = report.pop("failure")
        assert failure is None, failure
        for what, count in report.items():
            self.counts[f"read: {what}"] += count


def check_finished(folder: Folder, plan: Plan, evaluations: list[dict[str, Any]], *, all_sealed: bool = True) -> None:
    """A run whose last attempt came to its end holds every row of the weights it ended with, and nothing else.

    All of it is sealed, unless the very last sealer was killed.
    """
    run = open_run(folder.run)
    newest, opened = folder.latest()
    assert opened
    owners = folder.owners(plan, newest)
    assert [record.index for record in run.epochs] == list(range(plan.n_epochs))
    sealed = [record.sealed for record in run.epochs]
    assert all(sealed) or not all_sealed, f"epochs are sealed: {sealed}"
    assert run.missing_rows == 0
    for record in run.epochs:
        visits = epoch_of(plan, record.index)
        origin = complete_rows(plan, run.train, record)
        first = visits.first_visit
        expected = np.empty(plan.n_examples, np.int64)
        expected[visits.example[first]] = 2 * owners[visits.step[first]]
        assert np.array_equal(origin, expected)
        assert (run.train.visits[record.index] >= np.bincount(visits.example)).all()
        assert (run.train.step[record.index] == visit_steps(plan, record.index)[0]).all()
    by_index = {record.index: record for record in run.evals["eval"].passes} if evaluations else {}
    for known in evaluations:
        record = by_index[known["index"]]
        assert record.sealed or not all_sealed, f"evaluation {record.index} is not sealed"
        assert record.step == known["step"]
        assert set(complete_rows(plan, run.evals["eval"], record)) == {2 * known["attempt"]}


def complete_rows(plan: Plan, split: Split, record: Pass) -> Ints:
    """Origins of the rows of a pass in which every example was seen, the same in all arrays and layers."""
    ids, index = np.arange(len(split)), record.index
    assert record.n_never == 0
    found = [origins(plan, name, (split.name, index), ids, split.array(name)[index]) for name in ("loss", "logits")]
    for layer in range(plan.n_layers):
        rows = split.hidden_states[index, layer]
        found.append(origins(plan, "hidden_states", (split.name, index), ids, rows, layer))
    assert all(np.array_equal(other, found[0]) for other in found)
    assert (found[0] >= 0).all()
    return found[0]


def check_with_zarr(path: Path) -> None:
    """zarr-python walks the finished store without a warning, and reads in its sealed passes what we read."""
    import zarr

    run = open_run(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_group(path, mode="r", use_consolidated=False)
        nodes = dict(root.members(max_depth=None))
        assert len(nodes) > 20
        for split in run.splits.values():
            sealed = [record.index for record in split.passes if record.sealed]
            for name in split.arrays if sealed else []:
                array = nodes[f"{split.name}/{name}"]
                assert isinstance(array, zarr.Array)
                np.testing.assert_array_equal(
                    np.asarray(array[:])[sealed], split.array(name)[sealed], err_msg=f"{split.name}/{name}"
                )


def main() -> None:
    """One of the processes."""
    logging.basicConfig(level=logging.WARNING)
    role, path, plan, options = sys.argv[1:]
    folder, options = Folder(Path(path)), json.loads(options)
    if role == "train":
        Trainer(folder, Plan(**json.loads(plan)), options).train()
    else:
        look_on(folder, Plan(**json.loads(plan)), options["seed"])


if __name__ == "__main__":
    main()
