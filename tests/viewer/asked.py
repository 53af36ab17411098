"""A run whose model can be asked: gradients of heads recorded, a checkpoint and its tokenizer saved in every epoch."""

from __future__ import annotations

from pathlib import Path

import datasets
from transformers import DataCollatorWithPadding

from t3vis import RecorderCallback
from tests.callbacks.attention_models import attention_model
from tests.callbacks.tiny import tiny_trainer
from tests.probing.examples import word_tokenizer

N_EXAMPLES, N_EPOCHS = 48, 2
NAMES = ("negative", "positive", "neither")
JUDGEMENTS = (("bad", 0), ("good", 1), ("plot", 2))


def texts_and_labels() -> tuple[list[str], list[int]]:
    """Texts of five to nine words whose class one of them tells."""
    texts, labels = [], []
    for i in range(N_EXAMPLES):
        word, label = JUDGEMENTS[i % 3]
        texts.append(" ".join(["it was a", *["very"] * (i // 3 % 3), word, *["film a"] * (i // 9 % 3), "film"]))
        labels.append(label)
    return texts, labels


def asked_run(folder: Path) -> Path:
    """Train a tiny BERT of two layers of four heads with the recorder."""
    tokenizer = word_tokenizer()
    texts, labels = texts_and_labels()
    train = datasets.Dataset.from_dict({"text": texts, "labels": labels, **tokenizer(texts)})
    model = attention_model("bert")
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: i for i, name in enumerate(NAMES)}
    trainer = tiny_trainer(
        folder / "out",
        RecorderCallback(folder / "asked.zarr", heads=True, text=["text"]),
        model=model,
        train=train,
        options={"processing_class": tokenizer, "data_collator": DataCollatorWithPadding(tokenizer)},
        num_train_epochs=N_EPOCHS,
        learning_rate=3e-3,
        save_strategy="epoch",
    )
    trainer.train()
    return folder / "asked.zarr"
