"""A run with the gradients of heads and a checkpoint in every epoch."""

from __future__ import annotations

from pathlib import Path

from t3vis import RecorderCallback, Run, open_run
from tests.callbacks.attention_models import attention_model
from tests.callbacks.tiny import as_dataset, tiny_rows, tiny_trainer

N_EXAMPLES, N_EPOCHS = 24, 2


def run_with_heads(folder: Path) -> Run:
    """Train a tiny BERT with the recorder."""
    tiny_trainer(
        folder / "out",
        RecorderCallback(folder / "tiny.zarr", heads=True),
        model=attention_model("bert"),
        train=as_dataset(tiny_rows(N_EXAMPLES)),
        num_train_epochs=N_EPOCHS,
        learning_rate=1e-3,
        save_strategy="epoch",
    ).train()
    return open_run(folder / "tiny.zarr")
