"""Loaders and collators: whatever fetches and forms the batches, a row stays with its example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from t3vis import RecorderCallback, open_run
from tests.callbacks.tiny import (
    LEARNING,
    check_pass,
    check_training,
    held_out,
    pad,
    recorded,
    refusal,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

LOADERS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "2 workers": {"dataloader_num_workers": 2},
    "2 persistent workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "2 workers, in_order=False": {"dataloader_num_workers": 2, "dataloader_in_order": False},
    "2 workers and accumulation": {"dataloader_num_workers": 2, "gradient_accumulation_steps": 4},
    "one batch": {"per_device_train_batch_size": 64},
    "batches of one": {"per_device_train_batch_size": 1},
    "remove_unused_columns=False": {"remove_unused_columns": False},
    "split_batches": {"accelerator_config": {"split_batches": True}},
    "dispatch_batches": {"accelerator_config": {"dispatch_batches": True}},
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name: str, tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, model=model, **LOADERS[name])
    check_training(run.train, model, tiny_rows())


def test_drop_last_leaves_the_rest_unseen(tmp_path: Path) -> None:
    model, rows = tiny_model(), tiny_rows()
    settings = {"dataloader_drop_last": True, "train_sampling_strategy": "sequential"}
    run = recorded(tmp_path, model=model, **settings)
    check_training(run.train, model, rows, seen=range(40), n_steps=10)


class OwnLoader(Trainer):
    """Trains on its dataset in reverse: the row numbers are not those of ``train_dataset``."""

    def get_train_dataloader(self) -> Any:
        backwards = self.train_dataset.select(range(len(self.train_dataset) - 1, -1, -1))
        loader = DataLoader(backwards, batch_size=4, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


def test_a_loader_over_another_dataset_is_taken_at_its_word(tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, model=model, trainer_class=OwnLoader)
    check_training(run.train, model, tiny_rows()[::-1])
    assert run.train.text["text"][0] == tiny_rows()[-1]["text"]


class ReadsTheLoaders(TrainerCallback):
    """Goes through the loaders itself, and gives the model what comes out of them."""

    n_read = 0

    def read(self, loader: Any, model: Any) -> None:
        assert isinstance(loader, DataLoader)
        assert len(list(loader)) == len(loader)
        batch: dict[str, Tensor] = next(iter(loader))
        model(**batch)
        self.n_read += 1

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.read(kwargs["train_dataloader"], kwargs["model"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.read(kwargs["eval_dataloader"], kwargs["model"])


@pytest.mark.parametrize("workers", [0, 2])
def test_other_callbacks_may_read_the_loaders(workers: int, tmp_path: Path) -> None:
    model, reads = tiny_model(), ReadsTheLoaders()
    settings = {"dataloader_num_workers": workers, "dataloader_persistent_workers": bool(workers)}
    settings |= {"eval_dataset": held_out(), "eval_strategy": "epoch"}
    run = recorded(tmp_path, model=model, callbacks=[reads], **settings)
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
    assert reads.n_read == 4


class EvaluatesTraining(TrainerCallback):
    """Evaluates, in the middle of an epoch, on the very loader that is trained on: its batches carry ids."""

    trainer: Trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            self.trainer.evaluation_loop(kwargs["train_dataloader"], "train accuracy")


def test_an_evaluation_of_the_training_loader_is_no_training(tmp_path: Path) -> None:
    model, callback = tiny_model(), EvaluatesTraining()
    recorder = RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", recorder, model=model, callbacks=[callback])
    callback.trainer = trainer
    trainer.train()
    check_training(open_run(tmp_path / "run.zarr").train, model, tiny_rows())


@pytest.mark.parametrize("name", ["fewer", "more"])
def test_a_collator_that_changes_the_number_of_rows(name: str, tmp_path: Path) -> None:
    options = {"data_collator": lambda rows: pad(rows[1:] if name == "fewer" else [*rows, rows[0]])}
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), options=options, **LEARNING)
    message = refusal(trainer)
    assert f"{3 if name == 'fewer' else 5} rows of logits for 4 examples" in message
    assert "a collator or model that changes the number of rows cannot be recorded" in message


class DropsLater:
    """A collator that is one example short in its third batch."""

    n_batches = 0

    def __call__(self, rows: Any) -> Any:
        self.n_batches += 1
        return pad(rows[1:] if self.n_batches == 3 else rows)


def test_rows_of_a_collator_that_drops_some_later_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"num_train_epochs": 1, "train_sampling_strategy": "sequential"}
    run = recorded(tmp_path, model=model, options={"data_collator": DropsLater()}, **settings)
    assert run.missing_rows == 4
    check_pass(run.train, 0, model, tiny_rows(), seen=[*range(8), *range(12, 41)])
    assert "3 rows of logits for 4 examples" in caplog.text
