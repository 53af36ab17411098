"""What the analyses cost, as ratios measured side by side in one run.

``python benchmarks/bench_analysis.py [--only logits|states] [--quick] [--json FILE]``

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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis import open_run
from t3vis.analysis.data_map import data_map
from t3vis.analysis.drift import cka
from t3vis.analysis.label_quality import suspected_errors
from t3vis.store.seal import seal_pass
from t3vis.store.writer import create_run

N_EPOCHS, N_CLASSES = 10, 20
N_IN_LOOP = 20_000
PARTS = ("softmax", "data_map", "label_quality")
N_LAYERS, HIDDEN = 7, 384


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("logits", "states"), help="what is read from logits, or from hidden states")
    parser.add_argument("--quick", action="store_true", help="a tenth of the examples")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured_part(options.part, options.run)))
        return
    n_examples, n_states = (100_000, 10_000) if options.quick else (1_000_000, 100_000)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    figures: dict[str, dict[str, Any]] = {}
    if options.only != "states":
        figures |= of_logits(n_examples)
    if options.only != "logits":
        figures |= of_states(n_states)
    for name, figure in figures.items():
        target = "" if figure["target"] is None else f", target {figure['target']:g}: {'yes' if figure['ok'] else 'NO'}"
        print(f"{name:<44} {figure['value']:g}{target}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def of_logits(n_examples: int) -> dict[str, dict[str, Any]]:
    """Data map and label quality from a store, against a softmax in memory and a loop over examples."""
    print(f"{n_examples:,} examples x {N_EPOCHS} epochs x {N_CLASSES} classes, float32")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.zarr"
        write_run(run, n_examples)
        parts = {part: in_fresh_process(part, run) for part in PARTS}
        for part, measured in parts.items():
            print(f"  {part:<16} {measured['seconds']:7.2f} s, peak memory {measured['peak_mb']:6.0f} MB")
        loop = seconds_of_loop(run, min(N_IN_LOOP, n_examples)) * n_examples / min(N_IN_LOOP, n_examples)
    print(f"  loop over examples, extrapolated {loop:.0f} s")
    seconds = {part: measured["seconds"] for part, measured in parts.items()}
    return {
        "data_map_over_softmax": at_most(seconds["data_map"] / seconds["softmax"], 3),
        "data_map_peak_mb": at_most(parts["data_map"]["peak_mb"], 500),
        "loop_over_data_map": at_least(loop / seconds["data_map"], 500),
        "label_quality_over_data_map": at_most(seconds["label_quality"] / seconds["data_map"], 3),
    }


def of_states(n_examples: int) -> dict[str, dict[str, Any]]:
    """CKA of all pairs of layers of two passes, against the matrix products that it consists of."""
    print(f"{n_examples:,} examples x {N_LAYERS} layers x {HIDDEN}, float16, two passes")
    rng = np.random.default_rng(0)
    before, after = (
        [rng.standard_normal((n_examples, HIDDEN), dtype=np.float32).astype(np.float16) for _ in range(N_LAYERS)]
        for _ in range(2)
    )
    x, y = (np.concatenate([layer[:256] for layer in layers], axis=1).astype(np.float32) for layers in (before, after))
    assert abs(cka([x], [y])[0, 0] - cka_by_definition(x, y)) < 1e-4, "CKA is not what its definition says"
    found = best_of(lambda: cka(before, after), 2)
    in_float32 = [[layer.astype(np.float32) for layer in layers] for layers in (before, after)]
    products = best_of(lambda: all_products(*in_float32), 2)
    print(f"  cka {found:.2f} s, its matrix products {products:.2f} s")
    return {"cka_over_products": at_most(found / products, 2)}


def cka_by_definition(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Linear CKA by the similarities of the examples."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    k, m = (x @ x.T).astype(np.float64), (y @ y.T).astype(np.float64)
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def all_products(before: list[NDArray[np.float32]], after: list[NDArray[np.float32]]) -> None:
    """Every layer with itself, and every layer of one pass with every layer of the other."""
    for x in before:
        x.T @ x
        for y in after:
            x.T @ y
    for y in after:
        y.T @ y


def at_most(value: float, target: float) -> dict[str, Any]:
    return {"value": round(value, 4), "target": target, "ok": value <= target}


def at_least(value: float, target: float) -> dict[str, Any]:
    return {"value": round(value, 4), "target": target, "ok": value >= target}


def seconds_of_loop(path: Path, n_examples: int) -> float:
    """The same quantities as allenai/cartography computes them: JSON lines read, then a loop over examples and epochs.

    Compared with ours. Reading counts on both sides.
    """
    split = open_run(path).train
    logits, labels = split.logits[:, :n_examples], split.labels[:n_examples]
    logs = [
        [
            json.dumps({"guid": guid, "logits": row, "gold": gold})
            for guid, (row, gold) in enumerate(zip(rows.tolist(), labels.tolist(), strict=True))
        ]
        for rows in logits
    ]
    begin = time.perf_counter()
    found = loop_over_examples(logs)
    seconds = time.perf_counter() - begin
    ours = data_map(logits, labels).as_columns()
    for name, values in found.items():
        assert np.allclose(values, ours[name], atol=1e-5), f"{name} differs from the loop"
    return seconds


def loop_over_examples(logs: list[list[str]]) -> dict[str, list[float]]:
    """Training dynamics from lines of JSON, one list of them for each epoch."""
    import torch

    logits: dict[int, list[list[float]]] = defaultdict(list)
    labels: dict[int, int] = {}
    for lines in logs:
        for line in lines:
            record = json.loads(line)
            logits[record["guid"]].append(record["logits"])
            labels[record["guid"]] = record["gold"]
    found: dict[str, list[float]] = defaultdict(list)
    for guid, of_epochs in logits.items():
        gold, correct = [], []
        for row in of_epochs:
            probs = torch.nn.functional.softmax(torch.Tensor(row), dim=-1)
            gold.append(float(probs[labels[guid]]))
            correct.append(bool(np.argmax(row) == labels[guid]))
        found["confidence"].append(float(np.mean(gold)))
        found["variability"].append(float(np.std(gold)))
        found["threshold_closeness"].append(found["confidence"][-1] * (1 - found["confidence"][-1]))
        found["correctness"].append(sum(correct) / len(correct))
        found["forgetting_events"].append(sum(before and not after for before, after in pairwise(correct)))
    return found


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
        seconds = best_of(lambda: softmax(logits), 3)
    elif part == "data_map":
        seconds = best_of(lambda: data_map(split.logits, labels), 3)
    else:
        seconds = best_of(lambda: suspected_errors(split.logits, labels), 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "peak_mb": peak}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """One softmax over logits in memory, as it is usually written."""
    probs: NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    return probs


def best_of(call: Callable[[], Any], n_calls: int) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(n_calls):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    main()
