"""Writes tests/data/format-1.zarr.tar.xz, a small run in format version 1. Made once: a later t3vis must still read it.

The run was killed in its second epoch and resumed: it holds a sealed epoch, and segments of two attempts.

    PYTHONPATH=. python tests/data/make_format_1.py
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.writer import RunWriter, create_run

TEXTS = ["good", "bad", "naïve", "", "so-so"]
ORDERS = {0: [[4, 2], [0, 1], [3, 4]], 1: [[1, 3], [0, 2], [4]]}  # example 4 is seen twice in epoch 0


def value(index: int, example: int, attempt: int = 0) -> float:
    """The loss that attempt recorded of an example in an epoch; exact in float16."""
    return 100 * index + 10 * attempt + example


def rows(index: int, ids: list[int], step: int, attempt: int) -> dict[str, np.ndarray]:
    loss = np.array([value(index, example, attempt) for example in ids], np.float32)
    return {
        "example": np.array(ids),
        "step": np.full(len(ids), step),
        "loss": loss,
        "logits": np.stack([loss, -loss], axis=1),
        "hidden_states": np.stack([np.stack([loss + layer, loss / 2], axis=1) for layer in (0, 6)]).astype(np.float16),
    }


def record(writer: RunWriter, index: int, from_step: int = 0) -> None:
    writer.begin_pass("train", index, {"epoch": index, "step": 3 * index})
    for step, ids in enumerate(ORDERS[index], start=3 * index):
        if step >= from_step:
            writer.log("train", rows(index, ids, step, writer.attempt))
            writer.flush()


def write_run(path: Path) -> None:
    writer = create_run(path, {"model": {"class": "TinyForSequenceClassification"}})
    examples = ExamplesWriter(path / "train" / "examples", 5)
    examples.add(
        Columns(
            labels=np.array([1, 0, 0, -1, 1]),
            length=np.array([1, 1, 2, 0, 3], np.int32),
            token_ids=np.array([3, 4, 5, 6, 7, 8, 7], np.int32),
            n_token_ids=np.array([1, 1, 2, 0, 3]),
            texts={"text": TEXTS},
        )
    )
    fingerprint = examples.close()
    tokenizer = ExamplesWriter(path / "tokenizer", 2)
    tokenizer.add(Columns(texts={"token": ["[PAD]", "good"]}))
    tokenizer.close()
    split = {
        "kind": "train",
        "mode": "train",
        "n_examples": 5,
        "fingerprint": fingerprint,
        "class_names": ["neg", "pos"],
    }
    writer.add_split("train", split)
    writer.describe(
        "train", {"task": "single_label", "arrays": {"hidden_states": {"layers": [0, 6], "pooling": "mean"}}}
    )
    record(writer, 0)
    seal_pass(path, "train", 0)
    remove_sealed_segments(path, "train")
    record(writer, 1)
    record(create_run(path, {}, start_step=4, resume=True), 1, from_step=4)


if __name__ == "__main__":
    target = Path(__file__).with_name("format-1.zarr")
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run.zarr")
        shutil.make_archive(str(target), "xztar", folder)
