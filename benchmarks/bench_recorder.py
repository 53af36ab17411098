"""What the recorder costs, and the gradients of attention heads: the same training with and without, side by side.

``python benchmarks/bench_recorder.py [--quick] [--json FILE] [--data ../shared/data]``

Pairs of trainings of one seed, alternating which comes first; CPU time and wall time of ``Trainer.train`` in a
fresh process each. The weights at the end must be equal bit by bit, and every example must have been recorded in
every epoch, else nothing is printed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CONFIGURATIONS = ("none", "recorder", "heads")
TARGETS = {"recorder": {"cpu": 1.02, "wall": None}, "heads": {"cpu": 1.05, "wall": None}}
LABELS = {"recorder": "recorder", "heads": "the same with heads"}


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer pairs and examples")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA if DEFAULT_DATA.exists() else None)
    parser.add_argument("--one", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    n_examples, n_pairs = (512, 3) if options.quick else (2048, 7)
    if options.one:
        print(json.dumps(train_once(options.one, options.data, n_examples)))
        return
    pairs = []
    for i in range(n_pairs):
        order = CONFIGURATIONS if i % 2 == 0 else CONFIGURATIONS[::-1]
        pair = {name: in_fresh_process(name, options) for name in order}
        for name in TARGETS:
            assert pair["none"]["weights"] == pair[name]["weights"], f"{LABELS[name]} changed the weights"
        pairs.append(pair)
    report(pairs, options, n_examples)


def in_fresh_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One training, in a process of its own."""
    command = [sys.executable, __file__, "--one", name]
    command += ["--data", str(options.data)] if options.data else []
    command += ["--quick"] if options.quick else []
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def train_once(name: str, data: Path | None, n_examples: int) -> dict[str, Any]:
    """Train one epoch and a half of a MiniLM-sized model; CPU and wall seconds, and a hash of the weights."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

    import t3vis

    dataset = tokens(data, n_examples)
    set_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.zarr"
        config.num_labels = 77
        model = BertForSequenceClassification(config)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=2,
                per_device_train_batch_size=32,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                use_cpu=True,
            ),
            train_dataset=dataset,
            data_collator=pad,
            callbacks=[t3vis.RecorderCallback(run, heads=name == "heads")] if name != "none" else [],
        )
        cpu, wall = cpu_seconds(), time.perf_counter()
        trainer.train()
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
        digest = hashlib.blake2b()
        for tensor in model.state_dict().values():
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        if name != "none":
            recorded = t3vis.open_run(run)
            assert [record.n_never for record in recorded.epochs] == [0, 0], "examples are missing"
            assert recorded.missing_rows == 0
        if name == "heads":
            assert not np.isnan(recorded.train.head_gradients[:]).any(), "gradients are missing"
        bytes_on_disk = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    return {"cpu": cpu, "wall": wall, "weights": digest.hexdigest(), "bytes": bytes_on_disk}


def cpu_seconds() -> float:
    """CPU time of this process and of the sealing subprocesses it has waited for."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def tokens(data: Path | None, n_examples: int) -> Any:
    """Word-hashed BANKING77 where it is at hand, else as many random sentences of the same lengths."""
    import datasets
    import numpy as np

    if data is not None:
        with (data / "banking77" / "train.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = sorted({row["category"] for row in rows})
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:n_examples]]
        ids = [[101, *(1000 + hash_of(word) for word in row["text"].split()), 102] for row in rows]
        labels = [names.index(row["category"]) for row in rows]
    else:
        random = np.random.default_rng(0)
        ids = [random.integers(1000, 30000, length).tolist() for length in random.integers(6, 30, n_examples)]
        labels = random.integers(0, 77, n_examples).tolist()
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def hash_of(word: str) -> int:
    """The same token id for the same word in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") % 29000


def pad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch padded to its longest example."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def report(pairs: list[dict[str, dict[str, Any]]], options: argparse.Namespace, n_examples: int) -> None:
    """Print the table and write the figures."""
    import torch
    import transformers

    source = "BANKING77" if options.data else "random sentences"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {n_examples} examples of {source}, 2 epochs, batch 32, "
        f"6 layers of 384, {len(pairs)} pairs"
    )
    figures: dict[str, dict[str, Any]] = {}
    for name, targets in TARGETS.items():
        for what, target in targets.items():
            ratios = [pair[name][what] / pair["none"][what] for pair in pairs]
            plain = statistics.median(pair["none"][what] for pair in pairs)
            middle = statistics.median(ratios)
            print(
                f"{LABELS[name]:<20} {what:<5} without {plain:7.1f} s   with/without: median {middle:.3f}, "
                f"range {min(ratios):.3f} to {max(ratios):.3f}" + (f", target <= {target}" if target else "")
            )
            ok = None if target is None else middle <= target
            figures[f"{name}_{what}_ratio"] = {"value": round(middle, 4), "target": target, "ok": ok}
    for name, what in {"recorder": "7 layers of 384, 77 classes", "heads": "and 6 layers of 12 heads"}.items():
        per_row = pairs[0][name]["bytes"] / (2 * n_examples)
        print(f"bytes on disk per example and epoch, {LABELS[name]}: {per_row:.0f} ({what})")
        prefix = "" if name == "recorder" else f"{name}_"
        figures[f"{prefix}bytes_per_example_epoch"] = {"value": round(per_row), "target": None, "ok": None}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
