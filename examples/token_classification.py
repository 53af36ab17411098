"""Parts of speech of a UD treebank: a per-token data map, and which annotations it doubts.

    python examples/token_classification.py --data path/to/dev.conllu --out runs/ud.zarr

Any CoNLL-U file will do (https://universaldependencies.org). A small BERT is trained from nothing, word by word.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments, set_seed

from t3vis import RecorderCallback, Run, open_run

PAD, UNKNOWN = 0, 1
N_SHOWN = 30


def sentences(path: Path) -> list[list[tuple[str, str]]]:
    """Words and parts of speech of each sentence; tokens of several words, and empty ones, are left out."""
    found = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        fields = [line.split("\t") for line in block.splitlines() if not line.startswith("#")]
        found.append([(field[1], field[3]) for field in fields if field[0].isdigit()])
    return found


def encoded(corpus: list[list[tuple[str, str]]], tags: list[str]) -> tuple[Dataset, int]:
    """The examples, and the size of their vocabulary: words that occur once are unknown ones."""
    counts = Counter(word.lower() for sentence in corpus for word, _ in sentence)
    ids = {word: number for number, word in enumerate((w for w, n in counts.items() if n > 1), UNKNOWN + 1)}
    rows = [
        {
            "input_ids": [ids.get(word.lower(), UNKNOWN) for word, _ in sentence],
            "labels": [tags.index(tag) for _, tag in sentence],
            "text": " ".join(word for word, _ in sentence),
        }
        for sentence in corpus
    ]
    return Dataset.from_list(rows), len(ids) + UNKNOWN + 1


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad to the longest sentence."""
    ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    padded = pad_sequence(ids, batch_first=True, padding_value=PAD)
    return {
        "input_ids": padded,
        "attention_mask": (padded != PAD).long(),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def train(path: Path, out: Path, n_epochs: int) -> tuple[Run, list[list[tuple[str, str]]], list[str]]:
    """Train with the recorder."""
    set_seed(0)
    corpus = [sentence[:128] for sentence in sentences(path)]
    tags = sorted({tag for sentence in corpus for _, tag in sentence})
    dataset, n_words = encoded(corpus, tags)
    config = BertConfig(
        vocab_size=n_words,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        id2label=dict(enumerate(tags)),
    )
    arguments = TrainingArguments(
        str(out.with_suffix(".checkpoints")),
        num_train_epochs=n_epochs,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    recorder = RecorderCallback(out, overwrite=True)
    model = BertForTokenClassification(config)
    Trainer(model, arguments, train_dataset=dataset, data_collator=collate, callbacks=[recorder]).train()
    return open_run(out), corpus, tags


def doubted(run: Run, corpus: list[list[tuple[str, str]]], tags: list[str]) -> list[str]:
    """The annotations that the model believed least, on average over the epochs, in a word each."""
    log_probs, predictions = run.train.ragged("token_logprob"), run.train.ragged("token_prediction")[-1]
    confidence = np.mean([np.exp(epoch.values) for epoch in log_probs[:]], axis=0)
    examples = np.repeat(np.arange(len(corpus)), predictions.lengths)
    positions = run.train.ragged("token_position")[-1].values
    lines = []
    for at in np.argsort(confidence)[:N_SHOWN]:
        sentence, position = corpus[examples[at]], int(positions[at])
        word, tag = sentence[position]
        around = " ".join(each for each, _ in sentence[max(position - 4, 0) : position + 5])
        lines.append(f"{confidence[at]:.4f}  {word}: {tag}, not {tags[predictions.values[at]]}?  ({around})")
    return lines


def main() -> None:
    """Train, and print what is doubted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a CoNLL-U file")
    parser.add_argument("--out", type=Path, default=Path("runs/ud.zarr"), help="where to record")
    parser.add_argument("--epochs", type=int, default=6)
    asked = parser.parse_args()
    run, corpus, tags = train(asked.data, asked.out, asked.epochs)
    accuracy = run.train.array("token_accuracy")[-1]
    weights = run.train.array("n_tokens")[-1]
    print(f"fraction right in the last epoch: {np.average(accuracy, weights=weights):.3f}")
    print(f"the {N_SHOWN} annotations that were believed least:", *doubted(run, corpus, tags), sep="\n")


if __name__ == "__main__":
    main()
