"""Run by ``test_disks.py`` in a mount namespace of its own: trains while the disk of the run fails in mid-epoch.

For each case a small disk is mounted; what became of the run is copied from it, and what was said is noted. Beside
them lies ``good.zarr``, a recording of the same training to a disk that did not fail.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from t3vis import RecorderCallback, RecordingError, open_run
from t3vis.store.verify import verify
from tests.callbacks.tiny import tiny_model, tiny_trainer

PAGE = 4096
SAVES_EVERY, FAILS_AT, RECOVERS_AT = 12, 14, 23  # of 33 steps in 3 epochs; 4 rows of the second one are flushed


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


class Full:
    """Something else takes all the room that is left, but for some pages; ``end`` gives it back."""

    def __init__(self, disk: Path, pages_left: int) -> None:
        self._ballast = disk / "ballast"
        self._pages_left = pages_left

    def begin(self) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            os.truncate(self._ballast, file.tell() - self._pages_left * PAGE)

    def end(self) -> None:
        self._ballast.unlink()


class ReadOnly:
    """The disk takes no more changes, as after an error of the hardware; ``end`` lets it take them again."""

    def __init__(self, disk: Path) -> None:
        self._disk = str(disk)

    def begin(self) -> None:
        for _ in range(600):  # busy as long as the first epoch is being sealed
            done = subprocess.run(["mount", "-o", "remount,ro", self._disk], check=False, capture_output=True)
            if not done.returncode:
                return
            time.sleep(0.1)
        raise AssertionError(done.stderr)

    def end(self) -> None:
        mount("-o", "remount,rw", self._disk)


class Failing(TrainerCallback):
    """The disk fails in the second epoch, and recovers in the third if it does at all."""

    def __init__(self, failure: Full | ReadOnly, *, recovers: bool) -> None:
        self._failure, self._recovers = failure, recovers

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == FAILS_AT:
            self._failure.begin()
        elif state.global_step == RECOVERS_AT and self._recovers:
            self._failure.end()


class Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def trained(out: Path, recorder: RecorderCallback | None, *callbacks: TrainerCallback) -> tuple[Trainer, str | None]:
    """A Trainer that has trained, and the error that it stopped with."""
    settings = {"num_train_epochs": 3, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": SAVES_EVERY}
    trainer = tiny_trainer(out, recorder, model=tiny_model(), callbacks=callbacks, **settings)
    try:
        trainer.train()
    except RecordingError as error:
        return trainer, str(error)
    return trainer, None


def record(disk: Path, failure: Full | ReadOnly, *, recovers: bool, on_error: Any) -> dict[str, Any]:
    """What happens to a run on the disk that fails; it is copied beside the disk as it was left."""
    heard = Errors()
    logging.getLogger("t3vis").addHandler(heard)
    recorder = RecorderCallback(disk / "run.zarr", on_error=on_error)
    trainer, raised = trained(disk.with_name("out"), recorder, Failing(failure, recovers=recovers))
    logging.getLogger("t3vis").removeHandler(heard)
    shutil.copytree(recorder.path, disk.with_name("run.zarr"))
    return {
        "steps": trainer.state.global_step,
        "weights": weights(trainer),
        "raised": raised,
        "errors": heard.messages,
        "n_seen": [record.n_seen for record in open_run(recorder.path).epochs],
        "problems": [str(problem) for problem in verify(recorder.path)],
    }


def weights(trainer: Trainer) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in trainer.model.state_dict().items()}


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    expected = weights(trained(directory / "out", None)[0])
    trained(directory / "out", RecorderCallback(directory / "good.zarr"))
    for failure in ("full", "read-only"):
        for case in ("recovers", "stays", "raises"):
            folder = directory / f"{failure} {case}"
            disk = folder / "disk"
            disk.mkdir(parents=True)
            mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk))
            fails = ReadOnly(disk) if failure == "read-only" else Full(disk, pages_left=0 if case == "stays" else 5)
            said = record(disk, fails, recovers=case == "recovers", on_error="raise" if case == "raises" else "warn")
            said["same_weights"] = said.pop("weights") == expected
            (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
