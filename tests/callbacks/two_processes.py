"""Run by torchrun in ``test_recorder.py``: each of two processes trains the same tiny model."""

import sys
from pathlib import Path

import torch
from torch.distributed import all_gather_object

from t3vis import ConfigurationError, RecorderCallback
from tests.callbacks.tiny import as_dataset, tiny_model, tiny_rows, tiny_trainer


def main(directory: Path) -> None:
    held_out = as_dataset(tiny_rows(9, seed=1))
    trainer = tiny_trainer(
        directory / "out",
        RecorderCallback(directory / "run.zarr"),
        model=tiny_model(),
        eval_dataset=held_out,
        eval_strategy="epoch",
        ddp_backend="gloo",
    )
    trainer.train()
    trainer.predict(held_out)
    trainer.args.num_train_epochs = 1
    trainer.train()

    refused = tiny_trainer(directory / "out", RecorderCallback(directory / "run.zarr"), ddp_backend="gloo")
    messages = [None, None]
    try:
        refused.train()
    except ConfigurationError as error:  # by the first process, and the second does not wait for it in vain
        all_gather_object(messages, str(error))
    if refused.args.process_index == 0:
        equal = len(set(messages)) == 1 and messages[0] is not None
        (directory / "refused").write_text(f"{len(messages) if equal else 0} processes: {messages[0]}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
