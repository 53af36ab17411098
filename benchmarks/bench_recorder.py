"""What the recorder costs: the same training with it, without it, and with what a user would do otherwise.

``python benchmarks/bench_recorder.py [--quick] [--only SECTION...] [--json FILE] [--data ../shared/data]``

Rounds of trainings of one seed, in another order every time, in one process that is warm; a ratio is one of a round.
CPU time is that of the process, all its threads, and of the sealing subprocesses, from the call of ``train`` to its
return, when all is sealed. Weights must be equal bit by bit with and without the recorder, and every example must have
been recorded in every epoch, else nothing is printed. Memory is that of processes of their own.
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

from rounds import MB, Report, environment, machine

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAININGS = Path(__file__).with_name("recorder_trainings.py")
PACKAGES = ("torch", "transformers", "accelerate", "zarr")
SECTIONS = ("minilm", "base", "others", "memory")
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
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA if DEFAULT_DATA.exists() else None)
    options = parser.parse_args()
    report = Report()
    print(machine(Path(tempfile.gettempdir()), PACKAGES))
    print("BANKING77" if options.data else "random sentences")
    quick = options.quick
    if "minilm" in options.only:
        compared(options, "minilm", 256 if quick else 1024, ("none", "recorder", "heads"), 2 if quick else 5, report)
    if "base" in options.only:
        compared(options, "base", 64 if quick else 192, ("none", "recorder", "heads"), 2 if quick else 5, report)
    if "others" in options.only:
        compared(options, "minilm", 256 if quick else 512, ("none", "second forward", "zarr"), 2, report)
    if "memory" in options.only:
        device_memory(options, report)
        resident_memory((10_000, 100_000 if quick else 1_000_000), report)
    report.summary()
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=1))


def trained(options: argparse.Namespace, model: str, n_examples: int, *more: str) -> list[dict[str, Cost]]:
    """Trainings in a process of their own; of each round what each way cost."""
    data = ["--data", str(options.data)] if options.data else []
    line = [sys.executable, str(TRAININGS), model, str(n_examples), *more, *data]
    finished = subprocess.run(line, capture_output=True, text=True, check=False, env=environment())
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return [json.loads(line) for line in finished.stdout.splitlines() if line.startswith('{"')]


def compared(
    options: argparse.Namespace, model: str, n_examples: int, ways: Sequence[str], n_rounds: int, report: Report
) -> None:
    """The ways side by side in every round; ratios of CPU and wall time to the first way."""
    rounds = trained(options, model, n_examples, *ways, "--rounds", str(n_rounds))
    for way in set(ways) & set(MOST):
        if any(one[way]["weights"] != one["none"]["weights"] for one in rounds):
            raise SystemExit(f"{way} changed the weights")
    name = MODELS[model]
    plain = statistics.median(one["none"]["cpu"] for one in rounds)
    print(f"\n{name}: {n_examples:,} examples, {n_rounds} rounds; {plain:.1f} s of CPU time without")
    for way in ways[1:]:
        ratios = {what: sorted(one[way][what] / one["none"][what] for one in rounds) for what in ("cpu", "wall")}
        spread = {what: f"{statistics.median(r):.3f} ({r[0]:.3f} to {r[-1]:.3f})" for what, r in ratios.items()}
        print(f"  {SAID[way]:<40} CPU {spread['cpu']:<26} wall {spread['wall']}", flush=True)
        middle = statistics.median(ratios["cpu"])
        if way in MOST:
            report.target(f"{name}: {SAID[way]}, CPU time", middle, at_most=MOST[way])
        else:
            report.printed(f"{name}: {SAID[way]}, CPU time", middle)
        report.printed(f"{name}: {SAID[way]}, wall time", statistics.median(ratios["wall"]))
        if "bytes" in rounds[0][way]:
            per_row = rounds[0][way]["bytes"] / n_examples
            print(f"    on disk {per_row:,.0f} bytes for each example and epoch")


def device_memory(options: argparse.Namespace, report: Report) -> None:
    """Most bytes of tensors alive at once in a step, with the recorder and without."""
    (found,) = trained(options, "minilm", 32, "none", "recorder", "--device-memory")
    without, with_it = found["none"]["peak"], found["recorder"]["peak"]
    rows = 7 * 384 * 4 * 32
    print(f"\npeak of tensors on the device: {without / MB:.2f} MB without, {(with_it - without) / MB:+.2f} MB with it")
    report.target(
        "extra device memory, pooled float32 rows of all layers of a batch", (with_it - without) / rows, at_most=1
    )


def resident_memory(sizes: tuple[int, int], report: Report) -> None:
    """Peak resident memory of the training process at two sizes of the dataset."""
    nothing = argparse.Namespace(data=None)
    peaks = {
        way: [trained(nothing, "features", size, way)[0][way]["resident"] for size in sizes]
        for way in ("none", "recorder")
    }
    for way, (small, large) in peaks.items():
        what = "without" if way == "none" else "with the recorder"
        print(f"peak resident memory {what}: {small:,.0f} MB at {sizes[0]:,}, {large:,.0f} MB at {sizes[1]:,}")
    grown = {way: large - small for way, (small, large) in peaks.items()}
    text = f"MB by which the process grows with the recorder, {sizes[0]:,} to {sizes[1]:,} examples"
    report.target(text, grown["recorder"], at_most=50)
    report.printed("MB by which the process grows without the recorder", grown["none"])


if __name__ == "__main__":
    main()
