"""A run of any size that looks like a recorded one: clusters that come apart, some labels wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.seal import seal_pass
from t3vis.store.writer import create_run

CLASSES = ["world", "sports", "business", "science", "health", "travel"]
N_EPOCHS, HIDDEN, BATCH = 3, 16, 50_000
WRONG = 0.03
WORDS = [
    "the",
    "new",
    "old",
    "city",
    "team",
    "market",
    "study",
    "doctor",
    "road",
    "match",
    "price",
    "cell",
    "trial",
    "flight",
    "coach",
    "bank",
    "star",
    "nurse",
    "train",
    "wins",
    "opens",
    "says",
]


def write_run(path: Path, n_examples: int, seed: int = 0) -> NDArray[np.int64]:
    """Write a sealed run of three epochs, with texts, labels, logits, losses and the hidden states of one layer.

    Returns
    -------
    The ids of the examples with a wrong label.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CLASSES), n_examples)
    labels = truth.copy()
    wrong = np.flatnonzero(rng.random(n_examples) < WRONG)
    labels[wrong] = (truth[wrong] + rng.integers(1, len(CLASSES), len(wrong))) % len(CLASSES)
    ease = rng.gamma(2.0, 0.6, n_examples).astype(np.float32)
    centres = rng.standard_normal((len(CLASSES), HIDDEN), dtype=np.float32)
    writer = create_run(path, {"model": {"class": "Synthetic"}})
    examples = ExamplesWriter(path / "train" / "examples", n_examples)
    for ids in _batches(n_examples):
        texts = rng.choice(WORDS, (len(ids), 12)).tolist()
        sentences = [f"{CLASSES[label]} {' '.join(words)}" for label, words in zip(truth[ids], texts, strict=True)]
        examples.add(Columns(labels=labels[ids], length=np.full(len(ids), 13, np.int32), texts={"text": sentences}))
    of_split = {"kind": "train", "mode": "train", "n_examples": n_examples, "fingerprint": examples.close()}
    writer.add_split("train", of_split)
    arrays = {"hidden_states": {"layers": [1]}}
    writer.describe("train", {"task": "single_label", "class_names": CLASSES, "arrays": arrays})
    for epoch in range(N_EPOCHS):
        writer.begin_pass("train", epoch, {"epoch": epoch, "step": epoch})
        for ids in _batches(n_examples):
            noise = rng.standard_normal((len(ids), HIDDEN), dtype=np.float32)
            states = noise + (epoch + 1) * np.minimum(ease[ids], 2)[:, None] * centres[truth[ids]]
            logits = rng.standard_normal((len(ids), len(CLASSES)), dtype=np.float32)
            logits[np.arange(len(ids)), truth[ids]] += (epoch + 1) * ease[ids]
            shifted = logits - logits.max(axis=1, keepdims=True)
            loss = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(ids)), labels[ids]]
            writer.log(
                "train",
                {
                    "example": ids,
                    "step": np.full(len(ids), epoch),
                    "logits": logits,
                    "loss": loss,
                    "labels": labels[ids],
                    "hidden_states": states[None].astype(np.float16),
                },
            )
        writer.flush()
        seal_pass(path, "train", epoch)
    writer.close()
    return wrong


def _batches(n: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.arange(n), max(n // BATCH, 1))
