"""What is logged of each epoch to the trackers that the Trainer reports to: numbers, and the data map as a picture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import Trainer
from transformers.integrations import integration_utils

from t3vis.epoch_summary import EpochSummary, can_draw

logger = logging.getLogger(__name__)

PICTURE = "t3vis/data_map"
Pixels = NDArray[np.uint8]


def log_scalars(trainer: Trainer, scalars: dict[str, float]) -> None:
    """Log numbers as the Trainer logs its own: they go to all of its callbacks and to ``state.log_history``."""
    trainer.log({f"t3vis/{name}": value for name, value in scalars.items()})


def log_picture(trainer: Trainer, pixels: Pixels) -> None:
    """Hand a picture to each tracker that takes pictures, through the integration that the Trainer has of it."""
    for callback in trainer.callback_handler.callbacks:
        for kind, log in PICTURES.items():
            if isinstance(callback, getattr(integration_utils, kind)):
                log(callback, pixels, trainer.state.global_step)


def check_pictures(trainer: Trainer) -> bool:
    """Whether pictures are drawn: there is a tracker that takes them, and matplotlib is installed."""
    kinds = tuple(getattr(integration_utils, kind) for kind in PICTURES)
    if not any(isinstance(callback, kinds) for callback in trainer.callback_handler.callbacks):
        return False
    if not can_draw():
        logger.warning("numbers are logged to the trackers, but no data map; pip install 't3vis[plots]'.")
    return can_draw()


def _to_tensorboard(callback: Any, pixels: Pixels, step: int) -> None:
    if callback.tb_writer is not None:
        callback.tb_writer.add_image(PICTURE, pixels, step, dataformats="HWC")
        callback.tb_writer.flush()


def _to_wandb(callback: Any, pixels: Pixels, step: int) -> None:
    callback._wandb.log({PICTURE: callback._wandb.Image(pixels), "train/global_step": step})


def _to_trackio(callback: Any, pixels: Pixels, step: int) -> None:
    callback._trackio.log({PICTURE: callback._trackio.Image(pixels), "train/global_step": step})


def _to_mlflow(callback: Any, pixels: Pixels, step: int) -> None:
    callback._ml_flow.log_image(pixels, f"{PICTURE}_step_{step:06d}.png")


PICTURES: dict[str, Callable[[Any, Pixels, int], None]] = {
    "TensorBoardCallback": _to_tensorboard,
    "WandbCallback": _to_wandb,
    "TrackioCallback": _to_trackio,
    "MLflowCallback": _to_mlflow,
}
"""By the Trainer's integration of each tracker that takes pictures."""


class EpochLogs:
    """Logs each epoch of one training on its first process; a failure is reported once, and counted.

    Parameters
    ----------
    on_error
        Is told of the first failure; raises where failures are to be raised.
    """

    def __init__(self, trainer: Trainer, path: Path, on_error: Callable[[Exception], None]) -> None:
        self._trainer = trainer
        self._path = path
        self._on_error = on_error
        self._with_picture = trainer.is_world_process_zero() and check_pictures(trainer)
        self.n_failed = 0

    def log(self, epoch: int) -> None:
        """Log an epoch that has been recorded to its end."""
        if not self._trainer.is_world_process_zero():
            return
        try:
            found = EpochSummary(self._path, epoch)
            log_scalars(self._trainer, found.scalars())
            pixels = found.picture(f"{self._path.stem}, {epoch + 1} epochs") if self._with_picture else None
            if pixels is not None:
                log_picture(self._trainer, pixels)
        except Exception as error:  # noqa: BLE001  whatever a tracker raises, training is not to suffer from it
            self.n_failed += 1
            if self.n_failed == 1:
                self._on_error(error)

    def close(self) -> None:
        """Say how many epochs could not be logged, if any more than the one that was reported."""
        if self.n_failed > 1:
            logger.error("t3vis could not log %d epochs of %s to the trackers.", self.n_failed, self._path)
