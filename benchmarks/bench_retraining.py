"""What retraining on chosen examples brings: held-out accuracy beside that of training on all of the noisy data.

``python benchmarks/bench_retraining.py [--quick] [--json FILE] [--wrong-labels 0.05 0.2]``

For each seed the demo's classifier is trained from scratch on the demo's docstrings, of which some get a wrong label,
with the recorder; then on what `Run.select` and `Run.drop_suspects` leave of the same data, on as many examples drawn
at random, and on the data without the labels that were made wrong, which nobody knows in earnest. The held-out tenth
has the labels it was given. The vocabulary is made anew of the texts that are trained on. Every training is of six
epochs, or of as many steps as those six epochs of all examples take.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rounds import Report, machine

from t3vis import RecorderCallback, Run, open_run
from t3vis.analysis.selection import dropped
from t3vis.commands.output import table
from t3vis.demo.corpus import docstring_corpus
from t3vis.demo.train import TrainedDemo, fine_tune, train_demo

BASELINE = "all examples, noisy"
EPOCHS = 6
THIRD = 0.33


def variants(run: Run, trained: TrainedDemo, seed: int) -> Iterator[tuple[str, Dataset, int]]:
    """What is trained on, and for how many epochs."""
    noisy = trained.train_dataset
    as_many_steps = round(EPOCHS / THIRD)
    ambiguous = run.select("ambiguous", noisy, fraction=THIRD)
    yield "select('ambiguous', fraction=0.33), 6 epochs", ambiguous, EPOCHS
    yield "select('ambiguous', fraction=0.33), as many steps", ambiguous, as_many_steps
    random = run.select("random", noisy, fraction=THIRD, seed=seed)
    yield "a third at random, as many steps", random, as_many_steps
    clean = run.drop_suspects(noisy)
    yield "drop_suspects()", clean, EPOCHS
    yield "as many dropped at random", run.select("random", noisy, fraction=len(clean) / len(noisy), seed=seed), EPOCHS
    yield "without the labels made wrong", noisy.select(dropped(len(noisy), trained.wrong_label_ids)), EPOCHS


def accuracies(corpus: Dataset, wrong_labels: float, seed: int, folder: Path) -> dict[str, tuple[int, float]]:
    """Number of training examples and held-out accuracy of each variant."""
    recorder = RecorderCallback(folder / "run.zarr")
    trained = train_demo(
        recorder,
        output_dir=folder / "noisy",
        dataset=corpus,
        wrong_labels=wrong_labels,
        epochs=EPOCHS,
        seed=seed,
        keep_checkpoints=False,
    )
    found = {BASELINE: (len(trained.train_dataset), trained.eval_accuracy)}
    run = open_run(folder / "run.zarr")
    for name, dataset, epochs in variants(run, trained, seed):
        accuracy = fine_tune(
            dataset, trained.eval_dataset, output_dir=folder / "again", epochs=epochs, seed=seed, keep_checkpoints=False
        )
        found[name] = len(dataset), accuracy
        print(f"  seed {seed}: {name}: {accuracy:.3f} ({len(dataset):,} examples)", flush=True)
    return found


def rows(found: list[dict[str, tuple[int, float]]]) -> list[dict[str, str]]:
    """Mean and spread over the seeds, and the difference to the baseline of the same seed."""
    baseline = np.array([of_seed[BASELINE][1] for of_seed in found])
    shown = []
    for name in found[0]:
        accuracy = np.array([of_seed[name][1] for of_seed in found])
        gain = accuracy - baseline
        shown.append(
            {
                "trained on": name,
                "examples": f"{np.mean([of_seed[name][0] for of_seed in found]):,.0f}",
                "accuracy": f"{accuracy.mean():.3f} ± {accuracy.std(ddof=len(found) > 1):.3f}",
                "gain": "" if name == BASELINE else f"{gain.mean():+.3f} ± {gain.std(ddof=len(found) > 1):.3f}",
                "of each seed": " ".join(f"{value:.3f}" for value in accuracy),
            }
        )
    return shown


def main() -> None:
    """Train, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 examples, one seed")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument(
        "--wrong-labels", type=float, nargs="+", default=[0.05], metavar="SHARE", help="0.05, as in the demo"
    )
    options = parser.parse_args()
    print(machine(Path.cwd(), ["torch", "transformers", "datasets"]))
    report = Report()
    for wrong_labels in options.wrong_labels:
        began = time.perf_counter()
        found: list[dict[str, Any]] = []
        for seed in range(1 if options.quick else options.seeds):
            corpus = docstring_corpus(seed=seed)
            corpus = corpus.select(range(600)) if options.quick else corpus
            with tempfile.TemporaryDirectory() as folder:
                found.append(accuracies(corpus, wrong_labels, seed, Path(folder)))
        seconds = time.perf_counter() - began
        print(f"\n{wrong_labels:.0%} of the labels made wrong; {len(found)} seeds, {seconds:.0f} s")
        print(table(rows(found), 140), flush=True)
        for name in found[0]:
            mean = float(np.mean([of_seed[name][1] for of_seed in found]))
            report.printed(f"{wrong_labels:.0%} wrong: {name}: held-out accuracy", mean)
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=1))


if __name__ == "__main__":
    main()
