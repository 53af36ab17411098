"""Run by ``test_bad_input.py``: trains while the operating system refuses every larger write for one epoch."""

import json
import logging
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from t3vis import RecorderCallback
from tests.callbacks.tiny import tiny_model, tiny_trainer

SMALL = 1000  # bytes; less than a segment, and more than the metadata that says what is missing


class FullDisk(TrainerCallback):
    """No file may grow beyond a small size from step 12 until the second epoch has ended."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (12, 23):
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL if state.global_step == 12 else -1, -1))


class Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def main(directory: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, as on a full disk
    torch.set_num_threads(1)
    errors = Errors()
    logging.getLogger("t3vis").addHandler(errors)
    settings: dict[str, Any] = {"num_train_epochs": 3}
    plain = tiny_trainer(directory / "out", None, model=tiny_model(), **settings)
    plain.train()
    recorder = RecorderCallback(directory / "run.zarr")
    trainer = tiny_trainer(directory / "out", recorder, model=tiny_model(), callbacks=[FullDisk()], **settings)
    trainer.train()
    weights = trainer.model.state_dict()
    same = all(torch.equal(tensor, weights[name]) for name, tensor in plain.model.state_dict().items())
    (directory / "said.json").write_text(json.dumps({"same_weights": same, "errors": errors.messages}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
