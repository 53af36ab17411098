"""Tasks timed side by side: every round runs each of them once, in another order, and a ratio is one of a round.

The host of a virtual machine takes back memory that is free, and asking for it again costs many times the writing
of a file into it; so each task begins with as much memory just set free as it will use. ext4 looks at every inode
that was deleted in the last minutes before it makes a new one; so files that were used are emptied, and deleted at
the end.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MB = 1e6


class Timing(NamedTuple):
    """Seconds of one task in one round; CPU time is that of all its threads."""

    wall: float
    cpu: float


Timings = dict[str, list[Timing]]


@dataclass(frozen=True)
class Task:
    """What is timed is ``run``, given what ``prepare`` made of a fresh folder; then ``check`` looks at the folder."""

    run: Callable[[Any], Any]
    prepare: Callable[[Path], Any] = lambda folder: folder
    check: Callable[[Path], None] = lambda _: None


class Scratch:
    """Fresh folders below one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used = 0

    def fresh(self) -> Path:
        """An empty folder."""
        self._used += 1
        folder = self.folder / str(self._used)
        folder.mkdir()
        return folder

    @staticmethod
    def empty(folder: Path) -> None:
        """Give back what the files in a folder occupy."""
        for file in folder.rglob("*"):
            if file.is_file():
                os.truncate(file, 0)


def interleaved(tasks: Mapping[str, Task], n_rounds: int, scratch: Scratch, reserve: int) -> Timings:
    """Time every task in every round in a fresh folder; a round before the first only warms up.

    ``reserve`` is how many bytes of memory a task may use, files included.
    """
    timings: Timings = {name: [] for name in tasks}
    order = np.random.default_rng(0)
    os.sync()  # what was written before is not written back while something is timed
    for number in range(-1, n_rounds):
        for name in order.permutation(list(tasks)):
            folder = scratch.fresh()
            timing = timed(tasks[name], folder, reserve)
            tasks[name].check(folder)
            scratch.empty(folder)
            if number >= 0:
                timings[name].append(timing)
    return timings


def timed(task: Task, folder: Path, reserve: int) -> Timing:
    """Seconds of a task that begins with ``reserve`` bytes just set free."""
    prepared = task.prepare(folder)
    gc.collect()
    memory = np.ones(reserve, np.uint8)
    del memory
    wall, cpu = time.perf_counter(), cpu_seconds()
    task.run(prepared)
    return Timing(time.perf_counter() - wall, cpu_seconds() - cpu)


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """CPU time of this process, all its threads; or of the children it has waited for."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def peak_megabytes() -> float:
    """The most memory that this process has had; ``ru_maxrss`` would be that of its parent too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB


def wall_ratio(timings: Timings, name: str, to: str) -> float:
    """Median over the rounds of one task's seconds in those of another."""
    return statistics.median(one.wall / other.wall for one, other in zip(timings[name], timings[to], strict=True))


def cpu_ratio(timings: Timings, name: str, to: str) -> float:
    """The same of the CPU time."""
    return statistics.median(one.cpu / other.cpu for one, other in zip(timings[name], timings[to], strict=True))


def equal(found: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    """Stop unless two arrays are the same bit by bit."""
    one, other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (found, expected))
    if found.shape != expected.shape or found.dtype != expected.dtype or not np.array_equal(one, other):
        raise SystemExit(f"{what} does not hold what was written")


class Report:
    """Prints each figure and keeps it, with what it was to reach."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, Any]] = {}

    def table(self, title: str, key: str, timings: Timings, to: str, n_bytes: float) -> None:
        """Best throughput of each task, and its speed and CPU time in those of the task ``to``."""
        print(f"\n{title}\n{'':34}{'best':>12}{'speed':>9}{'CPU':>9}   of {to}")
        for name in timings:
            best = n_bytes / min(timing.wall for timing in timings[name]) / MB
            speed, cpu = 1 / wall_ratio(timings, name, to), cpu_ratio(timings, name, to)
            print(f"  {name:<32}{best:7,.0f} MB/s{speed:8.2f}x{cpu:8.2f}x", flush=True)
            self.figures[f"{key}: {name}, speed of {to}"] = {"value": round(speed, 4), "target": None, "ok": None}
            self.figures[f"{key}: {name}, CPU of {to}"] = {"value": round(cpu, 4), "target": None, "ok": None}

    def target(self, text: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        """Keep a figure of the issue's table, printed at the end."""
        bound = at_most if at_least is None else at_least
        if bound is None:
            raise ValueError(f"{text} has no target")
        ok = value <= bound if at_least is None else value >= bound
        self.figures[text] = {"value": round(value, 4), "target": bound, "ok": ok}

    def printed(self, text: str, value: float) -> None:
        """Keep a figure without a target."""
        self.figures[text] = {"value": round(value, 4), "target": None, "ok": None}

    def summary(self) -> None:
        """All targets, and whether they hold."""
        print("\nTargets (what was timed in rounds: their median)")
        for text, figure in self.figures.items():
            value, bound, ok = figure["value"], figure["target"], figure["ok"]
            if bound is not None:
                sign = "<=" if (value <= bound) == ok else ">="
                print(f"  {text:<70}{value:9.3f}   {sign} {bound:<5g} {'holds' if ok else 'DOES NOT HOLD'}")


def machine(folder: Path, packages: Sequence[str]) -> str:
    """What the figures were measured on."""
    shown = subprocess.run(["df", "--output=fstype", str(folder)], capture_output=True, text=True, check=False)
    file_system = shown.stdout.split()[-1] if shown.returncode == 0 else "unknown file system"
    versions = [f"{package} {version(package)}" for package in packages]
    return (
        f"{platform.machine()}{_cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"{file_system}, load {os.getloadavg()[0]:.1f}\nPython {platform.python_version()}, {', '.join(versions)}"
    )


def version(package: str) -> str:
    """The version installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((f" ({line.partition(':')[2].strip()})" for line in lines if line.startswith("model name")), "")


def environment() -> dict[str, str]:
    """For a subprocess that imports the same package as this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
