"""The processes as their parent sees them: started with a disk that is slow at random moments, and killed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .folder import Folder, Start
from .plan import Plan

PATIENCE = 120.0  # seconds after which a process that was not killed hangs

SLOW_DISK = """
import os, random, sys, time
_run, _often = os.environ.get("T3VIS_STRESS_RUN", "/nowhere"), float(os.environ.get("T3VIS_STRESS_SLOW", 0))
_events = {"open", "os.scandir", "os.listdir", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_seals = "t3vis.store.seal" in sys.orig_argv
def _wait(event, args):
    global _seals
    if _seals and event == "os.mkdir" and str(args[0]).startswith(_run):
        _seals = False
        open(f"{_run}.sealing_{os.getpid()}", "w").close()
    if event in _events and (str(args[0]).startswith(_run) or event in ("os.remove", "os.rmdir")):
        if random.random() < _often:
            time.sleep(random.expovariate(500))
sys.addaudithook(_wait)
"""
"""Every process waits now and then before it touches a file: there is more time between any two of its steps.

A sealer says when it begins to change the run, for much of its life goes by before that.
"""


def start(
    module: str, folder: Folder, plan: Plan, *arguments: str, slow: float, **popen: Any
) -> subprocess.Popen[bytes]:
    """One of the processes; it waits before that share of its operations on files."""
    hook = folder.path / "slow_disk"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(SLOW_DISK)
    root = Path(__file__).parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{hook}{os.pathsep}{root}",
        "T3VIS_STRESS_RUN": str(folder.run),
        "T3VIS_STRESS_SLOW": str(slow),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", f"tests.store.stress.{module}", str(folder.path)]
    command += [json.dumps(dataclasses.asdict(plan)), *arguments]
    with (folder.path / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=root, **popen)


class Reader:
    """The process that reads all the time."""

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self._folder = folder
        self._process = start("onlooker", folder, plan, slow=0.02)

    @property
    def has_stopped(self) -> bool:
        """Whether it found something wrong."""
        return self._process.poll() is not None

    def stop(self) -> dict[str, int]:
        """What it has read, in numbers; raises what was wrong."""
        (self._folder.path / "stop").touch()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
        said = self._folder.read("reader")
        assert said["failure"] is None, said["failure"]
        counts: dict[str, int] = said["counts"]
        return counts


class Attempt:
    """The two processes of one start of the training, in a process group of their own."""

    def __init__(self, folder: Folder, plan: Plan, start_at: Start, *, alone: bool = False, dies_at: int = -1) -> None:
        self.folder = folder
        self.ranks: list[subprocess.Popen[bytes]] = []
        for rank, end in enumerate(ends := socket.socketpair()):
            options = {"rank": rank, "start": start_at, "descriptor": end.fileno(), "alone": alone}
            options["dies_at"] = dies_at if rank == 1 else -1
            group = self.ranks[0].pid if self.ranks else 0
            kept = {"pass_fds": (end.fileno(),), "process_group": group}
            self.ranks.append(start("training", folder, plan, json.dumps(options), slow=0.15, **kept))
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

    def kill_one(self, rank: int) -> None:
        self.ranks[rank].kill()
        self.ranks[rank].wait()

    def sealers(self) -> list[int]:
        """Subprocesses of the first rank: it has no others."""
        pid = self.ranks[0].pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []


class Sealers:
    """The sealing subprocesses of a run; some of them are killed at a random moment of their work."""

    def __init__(self, run: Path, rng: random.Random) -> None:
        self._run, self._random = run, rng
        self._known: dict[int, float] = {}  # how much of its work each one is let do
        self._begun: dict[int, float] = {}  # when it began to change the run
        self._work = 0.1  # seconds that it takes, as far as is known
        self.n_killed = 0

    def watch(self, pids: list[int], *, n_wanted: int) -> None:
        """Kill those whose moment has come; of the new ones, choose some as long as more kills are wanted."""
        now = time.monotonic()
        for pid in pids:
            if pid not in self._known and self._lives(pid):
                dies = self.n_killed < n_wanted and self._random.random() < 0.6
                self._known[pid] = self._random.random() if dies else float("inf")
        for pid, share in list(self._known.items()):
            if pid not in self._begun and Path(f"{self._run}.sealing_{pid}").exists():
                self._begun[pid] = now
            begun = self._begun.get(pid, float("inf"))
            if not self._lives(pid):
                self._work = 0.7 * self._work + 0.3 * (now - begun) if begun < now else self._work
                self._forget(pid)
            elif now >= begun + share * self._work:
                os.kill(pid, signal.SIGKILL)
                self._forget(pid)
                self.n_killed += 1

    def _forget(self, pid: int) -> None:
        del self._known[pid]
        self._begun.pop(pid, None)
        Path(f"{self._run}.sealing_{pid}").unlink(missing_ok=True)

    def _lives(self, pid: int) -> bool:
        try:  # of a zombie it is empty
            return os.fsencode(self._run) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False
