"""What the store costs: raw files, other formats and t3vis on the same real hidden states, side by side in one run.

``python benchmarks/bench_store.py [--quick] [--only SECTION...] [--json FILE] [--data ../shared/data]``

What was written or read is compared with the original bit by bit, outside the timed part. Files stay in the page
cache, as they do while training; nothing is forced to the disk. Put the run on the disk that you want to know about
with ``TMPDIR``. Each section runs in a process of its own: what one leaves behind, pieces of free memory and threads of
other formats, is not the next one's.
"""

# ruff: noqa: E402  threads are pinned before NumPy is imported

from __future__ import annotations

import os

N_THREADS = 2
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(N_THREADS)

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from formats import Format, Opened, available
from hidden_states import HIDDEN, hidden_states
from numpy.typing import NDArray
from rounds import (
    MB,
    Report,
    Scratch,
    Task,
    cpu_ratio,
    environment,
    equal,
    interleaved,
    machine,
    peak_megabytes,
    wall_ratio,
)

from t3vis.store import seal
from t3vis.store.codecs import bitrounded, encoder
from t3vis.store.commits import drop_commit
from t3vis.store.layout import RowLayout, row_layout
from t3vis.store.reader import open_run
from t3vis.store.sealed import SealedArray
from t3vis.store.sealer import Sealer
from t3vis.store.shard import Codec, write_rows
from t3vis.store.writer import RunWriter, create_run

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PACKAGES = ("numpy", "zarr", "numcodecs", "torch", "h5py", "pyarrow", "zarrs", "tensorstore", "pylance")
N_CLASSES, BATCH = 77, 32
LAYER = 3  # the one that is read, and compressed
N_LAYERS_WRITTEN = 2
N_CHOSEN = 1000
SECTIONS = ("logging", "writing", "compression", "reading", "memory", "training")
Rows = dict[str, NDArray[Any]]


def main() -> None:
    """Measure, print tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds, fewer rows")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections to measure")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA if DEFAULT_DATA.exists() else None)
    parser.add_argument("--peak-of", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--states", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak_of(*options.peak_of))
        return
    report = Report()
    if options.states:
        section(options, report)
    else:
        sections(options, report)
        report.summary()
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=1))


def sections(options: argparse.Namespace, report: Report) -> None:
    """Each section in a process of its own, with the same states."""
    n_rounds, n_rows = sizes(quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="t3vis_bench_") as name:
        folder = Path(name)
        states, source = hidden_states(options.data, n_rows)
        np.save(folder / "states.npy", states)
        print(machine(folder, PACKAGES))
        print(f"{source}: {states.shape[0]} layers x {n_rows:,} rows x {states.shape[2]} float16")
        print(f"{n_rounds} rounds, {N_THREADS} threads; best is the fastest round, the rest are medians")
        missing = available()[1]
        print(f"missing, so not timed: {', '.join(missing)}" if missing else "every format is there", flush=True)
        del states
        for section_name in options.only:
            figures = folder / f"{section_name}.json"
            more = ["--quick"] if options.quick else []
            line = ["--only", section_name, "--states", str(folder / "states.npy"), "--json", str(figures), *more]
            subprocess.run([sys.executable, __file__, *line], check=True, env=environment())
            report.figures |= json.loads(figures.read_text())


def section(options: argparse.Namespace, report: Report) -> None:
    """Measure one section."""
    n_rounds, n_rows = sizes(quick=options.quick)
    (name,) = options.only
    with tempfile.TemporaryDirectory(prefix="t3vis_bench_") as folder:
        scratch = Scratch(Path(folder))
        if name == "memory":
            memory(scratch, (10_000, 100_000 if options.quick else 1_000_000), report)
            return
        states = np.load(options.states)
        if name == "logging":
            logging(scratch, states, n_rounds, report)
        elif name == "writing":
            writing(scratch, states[:N_LAYERS_WRITTEN], available()[0], n_rounds, report)
        elif name == "compression":
            compression(scratch, states[LAYER], n_rounds, report)
        else:
            run = recorded(scratch.fresh(), batches_of(states), n_rows)
            seal.seal_pass(run, "train", 0)
            if name == "reading":
                reading(scratch, run, states, available()[0], n_rounds, report)
            else:
                del states
                training_step(run, min(n_rounds, 3), report)  # a round takes a minute: the seal gives way to all else


def sizes(*, quick: bool) -> tuple[int, int]:
    """Rounds, and rows of a layer."""
    return (3, 20_000) if quick else (15, 100_000)


# Runs to be timed


def batches_of(states: NDArray[np.float16]) -> list[Rows]:
    """What the recorder hands over in one epoch: shuffled examples in batches."""
    n_rows = states.shape[1]
    rng = np.random.default_rng(0)
    order, logits = rng.permutation(n_rows), rng.normal(size=(n_rows, N_CLASSES)).astype(np.float32)
    return [
        {
            "example": ids,
            "step": np.full(len(ids), step, np.int64),
            "logits": logits[ids],
            "loss": logits[ids, 0],
            "hidden_states": np.ascontiguousarray(states[:, ids]),
        }
        for step, ids in enumerate(np.array_split(order, range(BATCH, n_rows, BATCH)))
    ]


def new_writer(folder: Path, n_rows: int) -> RunWriter:
    writer = create_run(folder / "run.zarr", {})
    writer.add_split("train", {"kind": "train", "mode": "train", "n_examples": n_rows, "fingerprint": "benchmark"})
    writer.begin_pass("train", 0, {"epoch": 0, "step": 0})
    return writer


def log(batches: Iterable[Rows], writer: RunWriter) -> None:
    for rows in batches:
        writer.log("train", rows)
    writer.flush()


def recorded(folder: Path, batches: Iterable[Rows], n_rows: int) -> Path:
    """A run that is logged and not sealed."""
    writer = new_writer(folder, n_rows)
    log(batches, writer)
    return writer.path


# Writing


def logging(scratch: Scratch, states: NDArray[np.float16], n_rounds: int, report: Report) -> None:
    """Rows in order of arrival, then sealed."""
    batches = batches_of(states)
    n_rows, n_bytes = states.shape[1], sum(array.nbytes for rows in batches for array in rows.values())
    whole = np.ones(n_bytes, np.uint8)

    def raw(folder: Path) -> None:
        with (folder / "raw").open("wb", buffering=0) as file:
            written = 0
            while written < n_bytes:
                written += file.write(whole[written:].data)

    def appended(folder: Path) -> None:
        with (folder / "raw").open("wb", buffering=0) as file:
            for rows in batches:
                for array in rows.values():
                    file.write(array.data)

    def check(folder: Path) -> None:
        found = open_run(folder / "run.zarr").train
        for layer, expected in enumerate(states):
            equal(found.hidden_states[0, layer], expected, "the run")
        for rows in batches[::100]:
            equal(found.logits[0, rows["example"]], rows["logits"], "the run")

    tasks = {
        "raw": Task(raw),
        "batches appended to a file": Task(appended),
        "log": Task(partial(log, batches), partial(new_writer, n_rows=n_rows), check),
        "seal": Task(
            lambda run: seal.seal_pass(run, "train", 0), partial(recorded, batches=batches, n_rows=n_rows), check
        ),
    }
    timings = interleaved(tasks, n_rounds, scratch, 2 * n_bytes)
    report.table(f"Logging in batches of {BATCH}, and sealing, {n_bytes / MB:.0f} MB", "log", timings, "raw", n_bytes)
    print(f"  logged at best {n_rows / min(timing.wall for timing in timings['log']):,.0f} rows/s")
    report.target("logging: CPU of a raw write", cpu_ratio(timings, "log", "raw"), at_most=1.5)
    both = statistics.median(
        (logged.cpu + sealed.cpu) / alone.cpu
        for logged, sealed, alone in zip(timings["log"], timings["seal"], timings["raw"], strict=True)
    )
    report.target("logging and sealing: CPU of a raw write", both, at_most=4)


def writing(
    scratch: Scratch, states: NDArray[np.float16], others: dict[str, Format], n_rounds: int, report: Report
) -> None:
    """Layers as the sealer writes them, as ``np.save`` does, and as other formats do."""
    layout = row_layout(HIDDEN * 2, states.shape[1])

    def save(folder: Path) -> None:
        np.save(folder / "states.npy", states)

    def write(folder: Path) -> None:
        for layer, rows in enumerate(states):
            write_rows(folder / "states", (0, layer), rows, layout, np.nan)

    def check(folder: Path) -> None:
        array = sealed_array(folder / "states", states.shape, layout)
        for layer, rows in enumerate(states):
            equal(array.read_all((0, layer)), rows, "the sealed array")

    def write_other(other: Format, folder: Path) -> None:
        other.write(folder, states)

    tasks = {"np.save": Task(save), "t3vis": Task(write, check=check)}
    timings = interleaved(tasks, n_rounds, scratch, 2 * states.nbytes)
    title = f"Writing {len(states)} layers without a codec, {states.nbytes / MB:.0f} MB"
    report.table(title, "write", timings, "np.save", states.nbytes)
    report.target("sealed write: speed of np.save", 1 / wall_ratio(timings, "t3vis", "np.save"), at_least=0.8)
    report.target("sealed write: CPU of np.save", cpu_ratio(timings, "t3vis", "np.save"), at_most=1.5)

    # by themselves, since threads that some of them leave behind go on for a while; `reading` compares what they wrote
    tasks = {"np.save": Task(save), **{name: Task(partial(write_other, other)) for name, other in others.items()}}
    timings = interleaved(tasks, n_rounds, scratch, 2 * states.nbytes)
    report.table("The same by other formats", "write", timings, "np.save", states.nbytes)


def sealed_array(path: Path, shape: tuple[int, ...], layout: RowLayout, decode: Codec | None = None) -> SealedArray:
    """Shards without the metadata of their array."""
    return SealedArray(
        path=path,
        shape=(1, *shape),
        dtype=np.dtype(np.float16),
        fill=np.nan,
        dims=("epoch", "layer", "example", "hidden"),
        attributes={},
        layout=layout,
        row_axis=2,
        decode=decode,
    )


def compression(scratch: Scratch, layer: NDArray[np.float16], n_rounds: int, report: Report) -> None:
    """One layer written with a codec, against the codec in memory on as many threads."""
    from numcodecs.blosc import Blosc, set_nthreads

    set_nthreads(N_THREADS)
    layout = row_layout(HIDDEN * 2, len(layer))
    encode = encoder("lz4", layer.dtype)
    if encode is None:
        raise SystemExit("lz4 has no encoder")
    with ThreadPoolExecutor(N_THREADS) as pool:
        for name, rows in (("lz4", layer), ("bitround", bitrounded(layer))):
            chunks = [rows[start : start + layout.chunk_rows].data for start in range(0, len(rows), layout.chunk_rows)]

            def write(folder: Path, rows: NDArray[Any] = rows) -> None:
                write_rows(folder / "states", (0, 0), rows, layout, np.nan, encode)

            def check(folder: Path, rows: NDArray[Any] = rows) -> None:
                array = sealed_array(
                    folder / "states", (1, *rows.shape), layout, lambda data: bytes(Blosc().decode(data))
                )
                equal(array.read_all((0, 0)), rows, "the encoded array")

            def in_memory(_: Path, chunks: list[memoryview] = chunks) -> list[bytes]:
                return list(pool.map(encode, chunks))

            def with_own_threads(_: Path, chunks: list[memoryview] = chunks) -> list[bytes]:
                return [encode(chunk) for chunk in chunks]

            def append(path: Path, chunks: list[memoryview]) -> None:
                with path.open("wb", buffering=0) as file:
                    for chunk in chunks:
                        file.write(encode(chunk))

            def to_raw_files(folder: Path, chunks: list[memoryview] = chunks) -> None:
                paths = [folder / str(number) for number in range(N_THREADS)]
                list(pool.map(append, paths, [chunks[number::N_THREADS] for number in range(N_THREADS)]))

            tasks = {
                "in memory": Task(in_memory),
                "in memory, blosc's own threads": Task(with_own_threads),
                "a raw file for each thread": Task(to_raw_files),  # whoever writes a file has this to pay
                "t3vis": Task(write, check=check),
            }
            timings = interleaved(tasks, n_rounds, scratch, 4 * rows.nbytes)
            smaller = rows.nbytes / sum(len(encode(chunk)) for chunk in chunks)
            title = f"Writing one layer with {name}, {rows.nbytes / MB:.0f} MB, {smaller:.2f} times smaller"
            report.table(title, name, timings, "in memory", rows.nbytes)
            speed = 1 / wall_ratio(timings, "t3vis", "in memory, blosc's own threads")
            report.target(f"{name}: speed of the codec in memory on its own {N_THREADS} threads", speed, at_least=0.8)


# Reading


def read_layer(opened: Opened, _: Any) -> NDArray[Any]:
    return opened.layer(LAYER)


def reading(
    scratch: Scratch, run: Path, states: NDArray[np.float16], others: dict[str, Format], n_rounds: int, report: Report
) -> None:
    """One layer in full, single rows and many rows, of a run that is sealed."""
    found, layer = open_run(run).train.hidden_states, states[LAYER]
    folder = scratch.fresh()
    np.save(folder / "layer.npy", layer)
    mapped = np.load(folder / "layer.npy", mmap_mode="r")
    opened = {}
    for name, other in others.items():
        (folder / name).mkdir()
        other.write(folder / name, states[: LAYER + 1])
        opened[name] = other.open(folder / name)
    load: dict[str, Callable[[Any], Any]] = {"np.load": lambda _: np.load(folder / "layer.npy")}
    ours: dict[str, Callable[[Any], Any]] = {"t3vis": lambda _: found[0, LAYER]}
    theirs: dict[str, Callable[[Any], Any]] = {name: partial(read_layer, other) for name, other in opened.items()}
    many: dict[str, Callable[[Any], Any]] = {
        "npy memmap": lambda ids: mapped[ids],
        "t3vis": lambda ids: found[0, LAYER, ids],
        **{name: partial(other.rows, LAYER) for name, other in opened.items() if name != "npy memmap"},
    }
    one: dict[str, Callable[[Any], Any]] = {
        "npy memmap": lambda ids: [np.array(mapped[number]) for number in ids],
        "t3vis": lambda ids: [found[0, LAYER, number] for number in ids],
    }
    random = np.random.default_rng(0)
    chosen = random.integers(0, len(layer), N_CHOSEN)
    for name, read in (load | ours | theirs).items():
        equal(read(folder), layer, f"{name}, read in full")
    for name, take in (many | one).items():
        equal(np.asarray(take(chosen)), layer[chosen], f"{name}, chosen rows")

    timings = interleaved(
        {name: Task(read) for name, read in (load | ours).items()}, n_rounds, scratch, 2 * layer.nbytes
    )
    report.table(f"Reading one layer in full, {layer.nbytes / MB:.0f} MB", "read", timings, "np.load", layer.nbytes)
    report.target("full read: speed of np.load", 1 / wall_ratio(timings, "t3vis", "np.load"), at_least=0.9)
    timings = interleaved(
        {name: Task(read) for name, read in (load | theirs).items()}, n_rounds, scratch, 2 * layer.nbytes
    )
    report.table("The same by other formats", "read", timings, "np.load", layer.nbytes)

    n_bytes = N_CHOSEN * layer[0].nbytes
    tasks = {
        name: Task(take, lambda _: random.integers(0, len(layer), N_CHOSEN).tolist()) for name, take in one.items()
    }
    timings = interleaved(tasks, n_rounds, scratch, 2 * layer.nbytes)
    report.table(f"Reading {N_CHOSEN} random rows of one layer one by one", "row", timings, "npy memmap", n_bytes)
    print(f"  one row takes t3vis {min(timing.wall for timing in timings['t3vis']) / N_CHOSEN * 1e6:.1f} us at best")
    report.target("one random row: time of an npy memmap", wall_ratio(timings, "t3vis", "npy memmap"), at_most=3)
    tasks = {name: Task(take, lambda _: random.integers(0, len(layer), N_CHOSEN)) for name, take in many.items()}
    timings = interleaved(tasks, n_rounds, scratch, 2 * layer.nbytes)
    report.table(f"Reading {N_CHOSEN} random rows of one layer at once", "rows", timings, "npy memmap", n_bytes)
    text = f"{N_CHOSEN} random rows: time of an npy memmap"
    report.target(text, wall_ratio(timings, "t3vis", "npy memmap"), at_most=10)


# Beside the training


def training_step(run: Path, n_rounds: int, report: Report) -> None:
    """A small Transformer trained while a pass is sealed in the background, and while none is."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(N_THREADS)
    layer = torch.nn.TransformerEncoderLayer(HIDDEN, 12, 4 * HIDDEN, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(8, 24, HIDDEN)
    sealer = Sealer(run)

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - began

    for _ in range(5):
        step()
    ratios, alone, n_steps = [], [], []
    for _ in range(n_rounds):
        drop_commit(run / "train", 0)
        without = [step() for _ in range(5)]
        sealer.start(["train:0"])
        during = [step()]
        while sealer.is_busy:
            during.append(step())
        sealer.wait()
        without += [step() for _ in range(5)]
        ratios.append(statistics.mean(during) / statistics.mean(without))
        alone += without
        n_steps.append(len(during))
    print(
        f"\nA training step of {statistics.median(alone) * 1e3:.0f} ms; sealing all layers takes "
        f"{statistics.median(n_steps):.0f} of them, whose mean is {min(ratios):.2f} to {max(ratios):.2f} times that of "
        f"10 steps around them (median {statistics.median(ratios):.2f}, mean {statistics.mean(ratios):.2f})"
    )
    report.target("training step while sealing: mean, of one without", statistics.mean(ratios), at_most=1.08)


def memory(scratch: Scratch, sizes: tuple[int, int], report: Report) -> None:
    """Peak resident memory of a writer and of a sealer, above that of a process that only imported them."""
    print("\nPeak memory with one layer, MB above that of a process that only imported the package")
    for n_rows in sizes:
        folder = str(scratch.fresh())
        payload = n_rows * HIDDEN * 2 / MB
        writer = measured_peak("writer", folder, str(n_rows)) - measured_peak("import")
        sealer = measured_peak("sealer", folder) - measured_peak("import")
        scratch.empty(Path(folder))
        print(f"  {n_rows:>9,} examples: writer {writer:.0f}, sealer {sealer:.0f}, of which one layer {payload:.0f}")
        report.target(f"peak memory with {n_rows:,} examples, MB: writer", writer, at_most=150)
        text = f"peak memory with {n_rows:,} examples, MB: sealer, above one layer"
        report.target(text, sealer - payload, at_most=150)


def measured_peak(*task: str) -> float:
    """``peak_of`` in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", *task]
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return float(finished.stdout.split()[-1])


def peak_of(task: str, folder: str = "", n_rows: str = "0") -> float:
    """Do one thing; the peak of this process in MB."""
    if task == "writer":
        log(few_batches(int(n_rows)), new_writer(Path(folder), int(n_rows)))
    elif task == "sealer":
        seal.main([str(Path(folder) / "run.zarr"), "train:0"])
    return peak_megabytes()


def few_batches(n_rows: int) -> Iterator[Rows]:
    """An epoch of one layer that takes no memory to make."""
    rng = np.random.default_rng(0)
    order = rng.permutation(n_rows).astype(np.int32)
    hidden = rng.normal(size=(1, BATCH, HIDDEN)).astype(np.float16)
    for step, start in enumerate(range(0, n_rows, BATCH)):
        ids = order[start : start + BATCH].astype(np.int64)
        rows = {"example": ids, "step": np.full(len(ids), step), "loss": np.ones(len(ids), np.float32)}
        yield {**rows, "hidden_states": hidden[:, : len(ids)]}


if __name__ == "__main__":
    main()
