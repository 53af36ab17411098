"""How time and memory grow with the examples: 10,000 to 1,000,000 with hidden states, to 10,000,000 without.

Run with ``python benchmarks/bench_scale.py [--quick] [--json OUT] [--data FOLDER]``. Each figure is taken in a fresh
process: seconds, and the most memory the process had beyond what it had when it began. A slope is that of the least
squares line through the logarithms: 0 where nothing grows, 1 where all grows with the examples. Opening a run, one
example and a page of the table must not grow; recording, sealing, the data map and a filter may, as the examples do.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hidden_states import hidden_states
from numpy.typing import NDArray
from rounds import Report, environment, machine, peak_megabytes

from t3vis import open_run
from t3vis.analyze import analyzed_data_map
from t3vis.example_columns import columns_of
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.writer import create_run
from t3vis.viewer.texts import rows

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZES = {"with hidden states": (10_000, 100_000, 1_000_000), "without": (10_000, 100_000, 1_000_000, 10_000_000)}
QUICK = {"with hidden states": (2_000, 20_000), "without": (2_000, 20_000, 200_000)}
N_EPOCHS, N_CLASSES, BATCH, PAGE = 2, 6, 512, 50
N_BASE = 8_192  # rows of real states, which are repeated with noise
CONSTANT, LINEAR = 0.1, 1.05
WORDS = ("the", "new", "old", "city", "team", "market", "study", "doctor", "road", "match", "price", "cell", "trial")
STRIDE = 1_000_003  # a prime: its multiples are an order of examples that takes no memory


# What is measured, each in a process of its own


def record(path: Path, n_examples: int, states: Path | None) -> float:
    """Seconds that recording two epochs takes: of the writer alone, not of making what is recorded."""
    base = None if states is None else np.load(states, mmap_mode="r")
    writer = create_run(path, {"model": {"class": "Synthetic"}})
    examples = ExamplesWriter(path / "train" / "examples", n_examples)
    for start in range(0, n_examples, 50_000):
        numbers = np.arange(start, min(start + 50_000, n_examples))
        texts = [f"{WORDS[i % 13]} {WORDS[i // 13 % 13]} {WORDS[i // 169 % 13]} number {i}" for i in numbers.tolist()]
        examples.add(Columns(labels=numbers % N_CLASSES, texts={"text": texts}))
    of_split = {"kind": "train", "mode": "train", "n_examples": n_examples, "fingerprint": examples.close()}
    writer.add_split("train", of_split)
    arrays = {} if base is None else {"hidden_states": {"layers": [0, 6]}}
    writer.describe("train", {"task": "single_label", "class_names": list("abcdef"), "arrays": arrays})
    noise = np.random.default_rng(0).normal(0, 0.02, (2 * N_BASE, 384)).astype(np.float16)
    seconds = 0.0
    for epoch in range(N_EPOCHS):
        rng = np.random.default_rng(epoch)
        writer.begin_pass("train", epoch, {"epoch": epoch, "step": epoch})
        for start in range(0, n_examples, BATCH):
            ids = np.arange(start, min(start + BATCH, n_examples)) * STRIDE % n_examples
            logits = rng.standard_normal((len(ids), N_CLASSES), np.float32)
            logits[np.arange(len(ids)), ids % N_CLASSES] += epoch + 1
            batch: dict[str, NDArray[Any]] = {
                "example": ids,
                "step": np.full(len(ids), epoch),
                "logits": logits,
                "loss": logits[:, 0],
            }
            if base is not None:
                shift = start % N_BASE
                batch["hidden_states"] = base[:, ids % N_BASE] + noise[shift : shift + len(ids)]
            began = time.perf_counter()
            writer.log("train", batch)
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        writer.flush()
        seconds += time.perf_counter() - began
    return seconds


def seal(path: Path, _: int, __: Path | None) -> float:
    """Seconds of sealing both epochs, until they are on the disk, and removing their segments.

    At every size the disk is waited for: else small runs would be timed in memory, and large ones on the disk.
    """
    os.sync()  # what the recording wrote
    began = time.perf_counter()
    for epoch in range(N_EPOCHS):
        seal_pass(path, "train", epoch)
    os.sync()
    remove_sealed_segments(path, "train")
    return time.perf_counter() - began


def raw_files(path: Path, _: int, __: Path | None) -> float:
    """Seconds of writing as many bytes as the sealed run has to plain files, until they are on the disk."""
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    block = np.random.default_rng(0).bytes(1 << 20)
    folder = path.with_name("raw")
    folder.mkdir()
    os.sync()
    began = time.perf_counter()
    for number, start in enumerate(range(0, n_bytes, 32 << 20)):
        with (folder / str(number)).open("wb", buffering=0) as file:
            for place in range(start, min(start + (32 << 20), n_bytes), len(block)):
                file.write(block[: n_bytes - place])
    os.sync()
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def opening(path: Path, _: int, __: Path | None) -> float:
    """Seconds until a run is open and says what it holds."""
    return _median(lambda: open_run(path).summary(), 51)


def mapping(path: Path, n_examples: int, _: Path | None) -> float:
    """Seconds of the data map, from the store and back into it."""
    run = open_run(path)
    began = time.perf_counter()
    found = analyzed_data_map(run, run.train)
    seconds = time.perf_counter() - began
    assert found.n_examples == n_examples
    assert not found.n_never_seen
    return seconds


def filtering(path: Path, n_examples: int, _: Path | None) -> float:
    """Seconds of the examples above a confidence: the column as the viewer's server sends it, and a comparison."""
    run = open_run(path)

    def filtered() -> None:
        column = next(column for column in columns_of(run, run.train) if column.id == "confidence")
        passing = np.flatnonzero(np.frombuffer(column.to_bytes(), "<f4") >= 0.5)
        assert 0 < len(passing) < n_examples

    return _median(filtered, 5)


def paging(path: Path, n_examples: int, _: Path | None) -> float:
    """Seconds of a page of the viewer's table: the texts of 50 examples, in whatever order it is sorted."""
    run, rng = open_run(path), np.random.default_rng(0)

    def page() -> None:
        ids = rng.integers(n_examples, size=PAGE).tolist()
        assert rows(run.train, ids)[0]["text"].endswith(f"number {ids[0]}")

    return _median(page, 51)


def example(path: Path, n_examples: int, _: Path | None) -> float:
    """Seconds of one example with its whole trajectory."""
    run, rng = open_run(path), np.random.default_rng(0)

    def one() -> None:
        number = int(rng.integers(n_examples))
        found = run.train.example(number)
        assert found.label == number % N_CLASSES
        assert np.isfinite(found.loss).all()

    return _median(one, 51)


def _median(work: Callable[[], Any], n_times: int) -> float:
    """The median after a first time that is not counted: it imports modules."""
    work()
    seconds = []
    for _ in range(n_times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


MEASURES: dict[str, tuple[Callable[[Path, int, Path | None], float], float | None, bool]] = {
    "recording": (record, LINEAR, True),
    "sealing": (seal, LINEAR, False),
    "raw files as large": (raw_files, None, False),
    "opening": (opening, CONSTANT, True),
    "data map": (mapping, LINEAR, False),
    "filter": (filtering, LINEAR, False),
    "page of the table": (paging, CONSTANT, True),
    "one example": (example, CONSTANT, True),
}
"""What is measured, the largest slope of its seconds (if it has one), and whether its memory must not grow."""


# How it is measured


def measured(name: str, path: Path, n_examples: int, states: Path | None) -> tuple[float, float]:
    """Seconds and megabytes of one measure in a fresh process."""
    command = [sys.executable, __file__, "--measure", name, str(path), str(n_examples), str(states or "")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise SystemExit(f"{name} of {n_examples:,} examples failed:\n{done.stderr}")
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


def measure(name: str, path: str, n_examples: str, states: str) -> None:
    """Measure in this process and print what was found."""
    gc.collect()
    before = peak_megabytes()
    seconds = MEASURES[name][0](Path(path), int(n_examples), Path(states) if states else None)
    print(json.dumps([seconds, peak_megabytes() - before]))


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """Slope of the line through the logarithms; nothing counts as less than a hundredth of a millisecond or 8 MB."""
    return float(np.polyfit(np.log10(sizes), np.log10(values), 1)[0])


def grown(title: str, sizes: tuple[int, ...], states: Path | None, folder: Path, report: Report) -> None:
    """Measure everything at every size, and print the table."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in MEASURES}
    for n_examples in sizes:
        path = folder / f"{n_examples}.zarr"
        for name in MEASURES:
            found[name].append(measured(name, path, n_examples, states))
        shutil.rmtree(path)
    print(f"\n{title}: seconds and megabytes\n{'':20}" + "".join(f"{size:>20,}" for size in sizes) + f"{'slopes':>16}")
    for name, figures in found.items():
        seconds, megabytes = [s for s, _ in figures], [max(m, 8.0) for _, m in figures]
        slopes = slope(sizes, seconds), slope(sizes, megabytes)
        cells = "".join(f"{s:>10.4g} s{m:>5.0f} MB" for s, m in figures)
        print(f"{name:20}{cells}{slopes[0]:>8.2f}{slopes[1]:>8.2f}", flush=True)
        _, largest, is_flat = MEASURES[name]
        if largest is None:
            report.printed(f"{name}, {title}: slope of the seconds", slopes[0])
        else:
            report.target(f"{name}, {title}: slope of the seconds", slopes[0], at_most=largest)
        if is_flat:
            report.target(f"{name}, {title}: slope of the memory", slopes[1], at_most=CONSTANT)
        else:
            report.printed(f"{name}, {title}: slope of the memory", slopes[1])
        for size, (s, m) in zip(sizes, figures, strict=True):
            report.printed(f"{name}, {title}, {size:,}: seconds", s)
            report.printed(f"{name}, {title}, {size:,}: MB", m)
    raw = [
        sealed / written
        for (sealed, _), (written, _) in zip(found["sealing"], found["raw files as large"], strict=True)
    ]
    print(f"{'sealing / raw files':20}" + "".join(f"{ratio:>20.2f}" for ratio in raw) + f"{slope(sizes, raw):>8.2f}")
    report.target(f"sealing in raw files as large, {title}: slope", slope(sizes, raw), at_most=CONSTANT)


def main() -> None:
    """Measure, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 to 200,000 examples")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA if DEFAULT_DATA.exists() else None)
    parser.add_argument("--folder", type=Path, help="where the runs are written for a while; 8 GB")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    sizes, report = QUICK if options.quick else SIZES, Report()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(machine(folder, ["numpy", "zarr"]))
        states, source = _base_states(options.data)
        print(f"{source}, repeated with noise; 2 layers of 384, {N_CLASSES} classes, {N_EPOCHS} epochs")
        np.save(folder / "states.npy", states)
        for title, series in sizes.items():
            of_series = folder / "states.npy" if title == "with hidden states" else None
            grown(title, series, of_series, folder, report)
    report.summary()
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=1))


def _base_states(data: Path | None) -> tuple[NDArray[np.float16], str]:
    states, source = hidden_states(data, N_BASE)
    return np.ascontiguousarray(states[[0, -1]]), source


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "2")
        main()
