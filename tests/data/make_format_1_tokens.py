"""Writes tests/data/format-1-tokens.zarr.tar.xz, a small run in format version 1 with what came to it later.

It was recorded with compression by two processes: ragged arrays, gradients of heads, checksums, whose rows an epoch
holds, an epoch whose hidden states were dropped, and one in segments. Made once: a later t3vis must still read it.

    PYTHONPATH=. python tests/data/make_format_1_tokens.py
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from t3vis.store.options import StorageOptions
from t3vis.store.ragged import Ragged
from t3vis.store.seal import remove_sealed_segments, seal_pass, thin_passes
from t3vis.store.writer import create_run, join_run

N_EXAMPLES = 6
ORDERS = ([[4, 2, 0], [1, 3]], [[1, 3, 5], [0, 2]], [[5], []])  # of each epoch, what either process saw


def tokens(index: int, example: int) -> list[float]:
    """The values of one example in an epoch: as many as its number, none of example 0."""
    return [100 * index + 10 * example + i for i in range(example)]


def rows(index: int, ids: list[int]) -> dict[str, np.ndarray | Ragged]:
    value = np.array([100 * index + example for example in ids], np.float32)
    return {
        "example": np.array(ids, np.int64),
        "step": np.full(len(ids), index),
        "loss": value,
        "hidden_states": np.stack([np.stack([value, -value], axis=1)] * 2).astype(np.float16),
        "head_gradients": np.stack([np.stack([value, value + 1, value + 2], axis=1)] * 2),
        "token_logprob": Ragged.of([tokens(index, example) for example in ids], np.float32),
        "token_prediction": Ragged.of([tokens(index, example) for example in ids], np.int32),
    }


def write_run(path: Path) -> None:
    options = StorageOptions(compression="lz4", keep_epochs=1)
    writers = [create_run(path, {"model": {"class": "TinyForTokenClassification"}}, options=options, n_ranks=2)]
    split = {"kind": "train", "mode": "train", "n_examples": N_EXAMPLES, "fingerprint": "f"}
    writers[0].add_split("train", split)
    writers[0].describe("train", {"arrays": {"hidden_states": {"layers": [0, 1], "pooling": "mean"}}})
    writers.append(join_run(path, rank=1, n_ranks=2))
    for index, order in enumerate(ORDERS):
        for writer, ids in zip(writers, order, strict=True):
            writer.begin_pass("train", index, {"epoch": index, "step": index})
            if ids:
                writer.log("train", rows(index, ids))
            writer.flush()
        if index < 2:
            seal_pass(path, "train", index)
            thin_passes(path, "train", index)
    remove_sealed_segments(path, "train")


if __name__ == "__main__":
    target = Path(__file__).with_name("format-1-tokens.zarr")
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder) / "run.zarr")
        shutil.make_archive(str(target), "xztar", folder)
