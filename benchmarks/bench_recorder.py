"""What the recorder costs: the same training with it, without it, and with what a user would do otherwise.

``python benchmarks/bench_recorder.py [--quick] [--json FILE] [--data ../shared/data]``

Rounds of trainings of one seed, each in a fresh process, in another order every time; CPU time is that of the process
and of the sealing subprocess. Weights must be equal bit by bit with and without the recorder, and every example must
have been recorded in every epoch, else nothing is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rounds import MB, Report, machine

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAINING = Path(__file__).with_name("recorder_trainings.py")
PACKAGES = ("torch", "transformers", "accelerate", "zarr")
MOST = {"recorder": 1.02, "heads": 1.05}
SAID = {
    "recorder": "logits, loss and all hidden states",
    "heads": "the same with heads",
    "second forward": "a second forward pass in each step",
    "zarr": "each batch straight into Zarr arrays",
}
MODELS = {"minilm": "MiniLM, 6 layers of 384", "base": "12 layers of 768"}
Cost = dict[str, Any]


def main() -> None:
    """Measure, print tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and examples")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA if DEFAULT_DATA.exists() else None)
    options = parser.parse_args()
    report = Report()
    print(machine(Path(tempfile.gettempdir()), PACKAGES))
    print("BANKING77" if options.data else "random sentences")
    minilm = training(options, "minilm", 256 if options.quick else 1024)
    base = training(options, "base", 64 if options.quick else 192)
    n_rounds = 3 if options.quick else 7
    compared(minilm, ("none", "recorder", "heads"), n_rounds, report)
    compared(minilm, ("none", "second forward", "zarr"), 1 if options.quick else 2, report)
    compared(base, ("none", "recorder", "heads"), 1 if options.quick else 3, report)
    device_memory(training(options, "minilm", 32), report)
    resident_memory((10_000, 100_000 if options.quick else 1_000_000), report)
    report.summary()
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=1))


def training(options: argparse.Namespace, model: str, n_examples: int) -> list[str]:
    """The command that trains a model, but for the way it is recorded."""
    data = ["--data", str(options.data)] if options.data else []
    return [model, str(n_examples), *data]


def trained(command: Sequence[str], way: str, *more: str) -> Cost:
    """One training in a process of its own."""
    model, *rest = command
    line = [sys.executable, str(TRAINING), model, way, *rest, *more]
    finished = subprocess.run(line, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    cost: Cost = json.loads(finished.stdout.splitlines()[-1])
    return cost


def compared(command: list[str], ways: Sequence[str], n_rounds: int, report: Report) -> None:
    """The ways side by side in every round; ratios of CPU and wall time to the first way."""
    order = np.random.default_rng(0)
    rounds: list[dict[str, Cost]] = []
    for _ in range(n_rounds):
        rounds.append({way: trained(command, way) for way in order.permutation(ways).tolist()})
        for way in ways:
            if way in MOST and rounds[-1][way]["weights"] != rounds[-1]["none"]["weights"]:
                raise SystemExit(f"{way} changed the weights")
    model = MODELS[command[0]]
    plain = statistics.median(one["none"]["cpu"] for one in rounds)
    print(f"\n{model}: {command[1]} examples, 2 epochs, {n_rounds} rounds; {plain:.1f} s of CPU time without")
    for way in ways[1:]:
        ratios = {what: sorted(one[way][what] / one["none"][what] for one in rounds) for what in ("cpu", "wall")}
        spread = {what: f"{statistics.median(r):.3f} ({r[0]:.3f} to {r[-1]:.3f})" for what, r in ratios.items()}
        print(f"  {SAID[way]:<40} CPU {spread['cpu']:<26} wall {spread['wall']}", flush=True)
        middle = statistics.median(ratios["cpu"])
        if way in MOST:
            report.target(f"{model}: {SAID[way]}, CPU time", middle, at_most=MOST[way])
        else:
            report.printed(f"{model}: {SAID[way]}, CPU time", middle)
        report.printed(f"{model}: {SAID[way]}, wall time", statistics.median(ratios["wall"]))
        if "bytes" in rounds[0][way]:
            per_row = rounds[0][way]["bytes"] / (2 * int(command[1]))
            print(f"    on disk {per_row:,.0f} bytes for each example and epoch")


def device_memory(command: list[str], report: Report) -> None:
    """Most bytes of tensors alive at once in a step, with the recorder and without."""
    with_it, without = (
        trained(command, way, "--device-memory", "--epochs", "1")["peak"] for way in ("recorder", "none")
    )
    rows = 7 * 384 * 4 * 32
    print(f"\npeak of tensors on the device: {without / MB:.2f} MB without, {(with_it - without) / MB:+.2f} MB with it")
    report.target(
        "extra device memory, pooled float32 rows of all layers of a batch", (with_it - without) / rows, at_most=1
    )


def resident_memory(sizes: tuple[int, int], report: Report) -> None:
    """Peak resident memory of the training process at two sizes of the dataset."""
    peaks = {
        way: [trained(["features", str(size)], way, "--epochs", "1")["resident"] for size in sizes]
        for way in ("none", "recorder")
    }
    for way, (small, large) in peaks.items():
        what = "without" if way == "none" else "with the recorder"
        print(
            f"peak resident memory {what}: {small / MB:,.0f} MB at {sizes[0]:,}, {large / MB:,.0f} MB at {sizes[1]:,}"
        )
    grown = {way: large - small for way, (small, large) in peaks.items()}
    text = f"MB by which the process grows more than without the recorder, {sizes[0]:,} to {sizes[1]:,} examples"
    report.target(text, (grown["recorder"] - grown["none"]) / MB, at_most=50)
    report.printed("MB by which the process grows with the recorder", grown["recorder"] / MB)


if __name__ == "__main__":
    main()
