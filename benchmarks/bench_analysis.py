"""What the analyses cost, as ratios measured side by side in one run.

``python benchmarks/bench_analysis.py [--quick] [--json FILE]``

The data map and the label quality are read from a run on disk, in a fresh process each, so that their peak memory is
their own; beside them one softmax over the same logits in memory, and the loop over examples in which
allenai/cartography computes the same quantities, extrapolated. CKA stands beside the matrix products it consists of.
Results are compared with a direct computation before anything is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis import open_run
from t3vis.analysis.data_map import data_map
from t3vis.store.seal import seal_pass
from t3vis.store.writer import create_run

N_EPOCHS, N_CLASSES = 10, 20
N_IN_LOOP = 20_000
PARTS = ("softmax", "data_map", "label_quality")


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the examples")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured_part(options.part, options.run)))
        return
    n_examples = 100_000 if options.quick else 1_000_000
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.zarr"
        write_run(run, n_examples)
        parts = {part: in_fresh_process(part, run) for part in PARTS}


def write_run(path: Path, n_examples: int) -> None:
    """A run of random logits that drift towards the labels, sealed."""
    writer = create_run(path, {"model": {"class": "Random"}})
    of_split = {"kind": "train", "mode": "train", "n_examples": n_examples, "fingerprint": "random"}
    writer.add_split("train", of_split)
    writer.describe("train", {"task": "single_label", "class_names": None})
    rng = np.random.default_rng(0)
    labels = rng.integers(0, N_CLASSES, n_examples)
    speed = rng.normal(0.4, 0.3, n_examples).astype(np.float32)
    for epoch in range(N_EPOCHS):
        writer.begin_pass("train", epoch, {"epoch": epoch, "step": epoch})
        for ids in np.array_split(np.arange(n_examples), max(n_examples // 50_000, 1)):
            logits = rng.standard_normal((len(ids), N_CLASSES), dtype=np.float32)
            logits[np.arange(len(ids)), labels[ids]] += (epoch + 1) * speed[ids]
            rows = {"example": ids, "step": np.full(len(ids), epoch), "logits": logits, "labels": labels[ids]}
            writer.log("train", rows)
        writer.flush()
        seal_pass(path, "train", epoch)
    writer.close()


def in_fresh_process(part: str, run: Path) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--run", str(run)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def measured_part(part: str, path: Path) -> dict[str, Any]:
    """Seconds, the best of three, and the peak memory of the process in MB."""
    split = open_run(path).train
    labels = split.labels
    if part == "softmax":
        logits = split.logits[:]
        call: Callable[[], Any] = lambda: softmax(logits)
    elif part == "data_map":
        call = lambda: data_map(split.logits, labels)
    seconds = best_of_three(call)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "peak_mb": peak}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """One softmax over logits in memory, as it is usually written."""
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    return probs


def best_of_three(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of three calls."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    main()
