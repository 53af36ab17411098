"""The parent: starts trainings, kills, resumes, and checks."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from t3vis.store.repair import repair
from t3vis.store.verify import verify

from .finished import check_finished, check_flushed, check_with_zarr
from .folder import Checkpoint, Folder
from .plan import Plan
from .processes import PATIENCE, Attempt, Reader, Sealers

Kind = Literal["trainer", "writer"]

KILLS_OF_A_RUN = 7  # then it is let through to its end


class Stress:
    """Runs that are killed and resumed until each kind of process was killed often enough.

    ``wanted`` are the numbers of kills of ``trainer``, ``writer`` and ``sealer``.
    """

    def __init__(self, path: Path, seed: int, wanted: dict[str, int]) -> None:
        self.path, self.seed, self.wanted = path, seed, wanted
        self.counts: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self._random = random.Random(seed)

    def run(self) -> None:
        """All of it; anything wrong is an ``AssertionError``. ``counts`` and ``killed`` say what was done."""
        while any(self.killed[kind] < wanted for kind, wanted in self.wanted.items()):
            number = self.counts["runs"]
            self.counts["runs"] += 1
            _Run(self, Folder(self.path / f"{number}"), Plan(seed=self.seed * 100 + number)).live()

    def choose(self) -> Kind | None:
        """Who is to be killed next, if anybody."""
        missing: list[Kind] = [kind for kind in ("trainer", "writer") if self.killed[kind] < self.wanted[kind]]
        return self._random.choice(missing) if missing else None


class _Run:
    """The life of one run."""

    def __init__(self, stress: Stress, folder: Folder, plan: Plan) -> None:
        self.stress, self.folder, self.plan = stress, folder, plan
        self._random = random.Random(plan.seed)
        self._sealers = Sealers(folder.run, self._random)
        self._sealers_killed_early = 0  # before the writer closed: it has sealed those passes itself
        self._evaluations: list[dict[str, Any]] = []

    def live(self) -> None:
        """From its first attempt to its end, with a reader all the while."""
        reader = Reader(self.folder, self.plan)
        try:
            finished, n_killed = False, 0
            while not finished and not reader.has_stopped:
                kind = self.stress.choose() if n_killed < KILLS_OF_A_RUN else None
                finished = self._attempt(kind)
                n_killed += not finished
        finally:
            read = reader.stop()
        assert "Traceback" not in self.folder.log, self.folder.log
        self.stress.counts.update({f"read: {what}": count for what, count in read.items()})
        self.stress.killed["sealer"] += self._sealers.n_killed
        self._check_end()

    def _attempt(self, kind: Kind | None) -> bool:
        """Start, kill, and look at what is left; whether it came to its end."""
        checkpoint = self._checkpoint()
        attempt = Attempt(self.folder, self.plan, self.folder.announce(checkpoint))
        self.stress.counts["attempts"] += 1
        try:
            finished = self._until_killed(attempt, kind)
        finally:
            attempt.kill()
        if self.folder.notes(0, "opened"):  # evaluations later than the checkpoint were taken back
            self._evaluations = [known for known in self._evaluations if known["step"] <= checkpoint.step]
        self._evaluations += self.folder.notes(0, "evaluated")
        self._check_flushed(checkpoint)
        if not finished and self._random.random() < 0.15:
            repair(self.folder.run)  # what one may do between two trainings; waits for a sealer that is left
            self.stress.counts["repairs"] += 1
            self._check_flushed(checkpoint)
        return finished

    def _checkpoint(self) -> Checkpoint:
        saved = self.folder.checkpoints()
        if not saved:
            return Checkpoint()
        return saved[-1] if self._random.random() < 0.6 else self._random.choice(saved)

    def _until_killed(self, attempt: Attempt, kind: Kind | None) -> bool:
        """Let the attempt run until it was killed; whether it came to its end before."""
        kill: Callable[[Attempt], bool] = _nobody
        if kind is not None:
            kill = self._trainer_killer() if kind == "trainer" else self._writer_killer()
        deadline = time.monotonic() + PATIENCE
        self._sealers_killed_early = self._sealers.n_killed
        while attempt.is_running:
            if not self.folder.notes(0, "closing"):
                self._sealers_killed_early = self._sealers.n_killed
            n_wanted = self.stress.wanted["sealer"] - self.stress.killed["sealer"]
            self._sealers.watch(attempt.sealers(), n_wanted=n_wanted)
            if kill(attempt):
                self._sealers.watch([], n_wanted=0)
                return False
            assert time.monotonic() < deadline, f"an attempt hangs: {self.folder.log}"
            time.sleep(0.002)
        assert [rank.returncode for rank in attempt.ranks] == [0, 0], self.folder.log
        return True

    def _trainer_killer(self) -> Callable[[Attempt], bool]:
        """Kills both processes, some time after they were started, after the run is being opened, or after a flush."""
        after = self._random.choice([None, "opening", "flushing", "flushing"])
        rank, number = (self._random.randrange(2), self._random.randrange(8)) if after == "flushing" else (0, 0)
        longest = {None: 3, "opening": 0.25, "flushing": 0.05}[after]
        delay, end = self._random.uniform(0, longest), float("inf")

        def kill(attempt: Attempt) -> bool:
            nonlocal end
            if end == float("inf") and (after is None or len(self.folder.notes(rank, after)) > number):
                end = time.monotonic() + delay
            if time.monotonic() < end:
                return False
            attempt.kill()
            self.stress.killed["trainer"] += 1
            return True

        return kill

    def _writer_killer(self) -> Callable[[Attempt], bool]:
        """Kills one process inside the writing of a segment, which is noticed, and the other one a little later."""
        rank, n_writes = self._random.randrange(2), self._random.randrange(12)
        was_writing, delay = False, self._random.expovariate(100)

        def kill(attempt: Attempt) -> bool:
            nonlocal was_writing, n_writes
            is_writing = self.folder.is_writing(rank)
            n_writes -= is_writing and not was_writing
            was_writing = is_writing
            if n_writes >= 0 or not is_writing:
                return False
            time.sleep(delay)
            attempt.kill_one(rank)
            inside = self.folder.is_writing(rank)
            time.sleep(self._random.uniform(0, 0.2))
            attempt.kill()
            self.stress.killed["writer"] += inside
            self.stress.counts["killed just after a write"] += not inside
            return True

        return kill

    def _check_flushed(self, checkpoint: Checkpoint) -> None:
        n_rows = check_flushed(self.folder, self.plan, checkpoint, self._random)
        self.stress.counts["flushed rows checked"] += n_rows

    def _check_end(self) -> None:
        all_sealed = self._sealers.n_killed == self._sealers_killed_early
        check_finished(self.folder, self.plan, self._evaluations, all_sealed=all_sealed)
        assert not verify(self.folder.run)
        self.stress.counts["leftovers"] += len(repair(self.folder.run).removed)
        assert not verify(self.folder.run)
        check_finished(self.folder, self.plan, self._evaluations)
        check_with_zarr(self.folder.run)
        self.stress.counts["stores verified"] += 1


def _nobody(attempt: Attempt) -> bool:
    return False
