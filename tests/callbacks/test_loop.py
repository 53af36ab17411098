"""The loop around the steps: accumulation, evaluations, stops, resumptions, restarts, searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from t3vis import ConfigurationError, RecorderCallback, Run, StoreError, open_run
from tests.callbacks.tiny import (
    NumberedStream,
    Stops,
    as_dataset,
    check_pass,
    check_training,
    held_out,
    recorded,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

# Accumulation


ACCUMULATION: dict[str, tuple[dict[str, Any], int]] = {  # arguments of the Trainer, optimizer steps per epoch
    "1, ragged last batch": ({}, 11),
    "4, ragged": ({"gradient_accumulation_steps": 4}, 3),
    "4 of batches of one": ({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}, 11),
    "11, even": ({"gradient_accumulation_steps": 11}, 1),
    "max_steps": ({"max_steps": 22}, 11),
}


@pytest.mark.parametrize("name", ACCUMULATION)
def test_accumulation(name: str, tmp_path: Path) -> None:
    settings, n_steps = ACCUMULATION[name]
    model = tiny_model()
    run = recorded(tmp_path, model=model, **settings)
    check_training(run.train, model, tiny_rows(), n_steps=n_steps)


def test_sequential_steps_are_those_of_the_batches(tmp_path: Path) -> None:
    settings = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 4}
    run = recorded(tmp_path, **settings)
    np.testing.assert_array_equal(run.train.step[0], np.arange(41) // 16)
    np.testing.assert_array_equal(run.train.step[1], 3 + np.arange(41) // 16)
    assert [(p.step, p.last_step) for p in run.epochs] == [(0, 2), (3, 5)]


# Evaluations


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_by_epoch(workers: int, tmp_path: Path) -> None:
    model, rows, others = tiny_model(), tiny_rows(), tiny_rows(10, seed=1)
    settings = {"dataloader_num_workers": workers, "dataloader_persistent_workers": bool(workers)}
    run = recorded(tmp_path, model=model, eval_dataset=as_dataset(others), eval_strategy="epoch", **settings)
    check_training(run.train, model, rows, n_steps=11)
    evaluations = run.evals["eval"]
    assert [(p.epoch, p.step, p.n_seen, p.sealed) for p in evaluations.passes] == [(1, 11, 10, True), (2, 22, 10, True)]
    for index in (0, 1):
        check_pass(evaluations, index, model, others)
        assert (evaluations.step[index] == 11 * (index + 1)).all()
    assert evaluations.attributes["mode"] == "eval"
    assert run.train.attributes["mode"] == "train"


def test_evaluation_by_steps_on_a_dict_and_on_start(tmp_path: Path) -> None:
    model = tiny_model()
    sets = {"short": tiny_rows(5, seed=1), "long": tiny_rows(13, seed=2)}
    run = recorded(
        tmp_path,
        model=model,
        eval_dataset={name: as_dataset(rows) for name, rows in sets.items()},
        eval_strategy="steps",
        eval_steps=4,
        eval_on_start=True,
        gradient_accumulation_steps=2,
    )
    check_training(run.train, model, tiny_rows(), n_steps=6)
    assert sorted(run.evals) == ["eval_long", "eval_short"]
    for name, rows in sets.items():
        split = run.evals[f"eval_{name}"]
        assert [p.step for p in split.passes] == [0, 4, 8, 12]
        for index in range(4):
            check_pass(split, index, model, rows)


def test_evaluation_on_a_stream(tmp_path: Path) -> None:
    model, others = tiny_model(), tiny_rows(10, seed=1)
    stream = NumberedStream(others, [3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    run = recorded(tmp_path, recorder={"id_column": "number"}, model=model, eval_dataset=stream, eval_strategy="epoch")
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, others)


def test_evaluation_without_labels(tmp_path: Path) -> None:
    model, others = tiny_model(), tiny_rows(10, seed=1)
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), model=model)
    unlabelled = as_dataset([{k: v for k, v in row.items() if k != "labels"} for row in others])
    trainer.predict(unlabelled)
    split = open_run(tmp_path / "run.zarr").evals["test"]
    check_pass(split, 0, model, others, has_labels=False)
    assert "loss" not in split.arrays
    assert (split.labels == -1).all()


def test_evaluations_around_a_training_belong_to_its_run(tmp_path: Path) -> None:
    model = tiny_model()
    trainer = tiny_trainer(
        tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), model=model, eval_dataset=held_out()
    )
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    trainer.predict(held_out(5, seed=2))
    trainer.predict(held_out(5, seed=3), metric_key_prefix="in the wild")
    run = open_run(tmp_path / "run.zarr")
    check_training(run.train, model, tiny_rows())
    assert [p.step for p in run.evals["eval"].passes] == [0, 22]
    assert sorted(run.evals) == ["eval", "in_the_wild", "test"]
    for name, rows in {"eval": (9, 1), "test": (5, 2), "in_the_wild": (5, 3)}.items():
        check_pass(run.evals[name], -1, model, tiny_rows(rows[0], seed=rows[1]))


def test_evaluations_without_a_training(tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", recorder, model=model, eval_dataset=held_out())
    trainer.evaluate()
    trainer.evaluate()
    run = open_run(tmp_path / "run.zarr")
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
    with pytest.raises(StoreError, match="no training pass"):
        _ = run.train


def test_an_evaluation_after_a_late_add_callback(tmp_path: Path) -> None:
    """The Trainer says nothing of itself to a callback that comes late: it is refused until it is attached."""
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", None, model=model, eval_dataset=held_out())
    trainer.add_callback(recorder)
    with pytest.raises(ConfigurationError, match=r"call recorder\.attach\(trainer\) first"):
        trainer.evaluate()
    assert not recorder.path.exists()
    recorder.attach(trainer)
    trainer.evaluate()
    check_pass(open_run(tmp_path / "run.zarr").evals["eval"], 0, model, tiny_rows(9, seed=1))
    recorder.detach()
    trainer.evaluate()  # not recorded, as was asked for
    assert len(open_run(tmp_path / "run.zarr").evals["eval"].passes) == 1


def test_an_evaluation_by_a_recorder_that_another_trainer_has(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr")
    first = tiny_trainer(tmp_path / "out", recorder, eval_dataset=held_out())
    tiny_trainer(tmp_path / "out", recorder)
    with pytest.raises(ConfigurationError, match="another Trainer has been given since"):
        first.evaluate()


@pytest.mark.parametrize("how", ["add_callback", "attach"])
def test_a_callback_that_comes_late_records_the_training(how: str, tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", None, model=model, eval_dataset=held_out(), eval_strategy="epoch")
    trainer.add_callback(recorder) if how == "add_callback" else recorder.attach(trainer)
    trainer.train()
    run = open_run(tmp_path / "run.zarr")
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))


# One training after another


def test_each_further_training_is_recorded_next_to_the_first(tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", recorder, model=model, num_train_epochs=1)
    for name in ("run.zarr", "run-2.zarr", "run-3.zarr"):
        trainer.train()
        assert recorder.path == tmp_path / name
        check_training(open_run(tmp_path / name).train, model, tiny_rows(), n_epochs=1)


# Interruptions, resumptions, restarts


def resumed(tmp_path: Path, checkpoint: int, **settings: Any) -> tuple[Run, Any]:
    """Another process, as it were, goes on from a checkpoint."""
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr", resume=True)
    trainer = tiny_trainer(tmp_path / "out", recorder, model=model, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{checkpoint}"))
    return open_run(tmp_path / "run.zarr"), model


def interrupted(tmp_path: Path, *, at: int, save_steps: int, error: Any = KeyboardInterrupt, **settings: Any) -> Run:
    recorder, stops = RecorderCallback(tmp_path / "run.zarr"), Stops(at, error)
    trainer = tiny_trainer(
        tmp_path / "out", recorder, callbacks=[stops], save_strategy="steps", save_steps=save_steps, **settings
    )
    with pytest.raises(error):
        trainer.train()
    assert not any(module._forward_hooks for module in trainer.model.modules())
    return open_run(tmp_path / "run.zarr")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_rows_before_an_interruption_are_kept(error: Any, tmp_path: Path) -> None:
    run = interrupted(tmp_path, at=15, save_steps=100, error=error, train_sampling_strategy="sequential")
    assert [(p.n_seen, p.sealed) for p in run.epochs] == [(41, True), (16, False)]
    check_pass(run.train, 1, tiny_model(), tiny_rows(), seen=range(16))


RESUMPTIONS = {  # where it was interrupted, saved every so many steps, resumed from
    "at an epoch boundary": (15, 11, 11),
    "in the middle of an epoch": (15, 13, 13),
    "in a sealed epoch, which is taken back": (15, 7, 7),
    "at the step it was interrupted": (13, 12, 12),
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("name", RESUMPTIONS)
def test_resumption(name: str, accumulation: int, tmp_path: Path) -> None:
    at, save_steps, checkpoint = RESUMPTIONS[name]
    settings: dict[str, Any] = {"eval_dataset": held_out(), "eval_strategy": "epoch", "num_train_epochs": 3}
    settings |= {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    before = interrupted(tmp_path, at=at, save_steps=save_steps, **settings)
    seen = before.train.step[0]
    assert len(before.evals["eval"].passes) == 1
    run, model = resumed(tmp_path, checkpoint, **settings)
    check_training(run.train, model, tiny_rows(), n_epochs=3, n_steps=11)
    np.testing.assert_array_equal(run.train.step[0], seen)  # the sampler draws the same order again
    assert [(p.epoch, p.step) for p in run.evals["eval"].passes] == [(1, 11), (2, 22), (3, 33)]
    assert [(p.epoch, p.step, p.last_step) for p in run.epochs] == [(0, 0, 10), (1, 11, 21), (2, 22, 32)]
    for index in range(3):
        check_pass(run.evals["eval"], index, model, tiny_rows(9, seed=1))


@pytest.mark.parametrize("step", [22, 33])
def test_an_epoch_that_was_interrupted_after_its_last_step_is_sealed_in_the_end(step: int, tmp_path: Path) -> None:
    """Its last checkpoint is saved before the Trainer says that the epoch is over."""

    class StopsAfterSaving(Stops):
        on_step_end = TrainerCallback.on_step_end

        def on_save(self, *args: Any, **kwargs: Any) -> None:
            Stops.on_step_end(self, *args, **kwargs)

    settings: dict[str, Any] = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 11}
    recorder, stops = RecorderCallback(tmp_path / "run.zarr"), StopsAfterSaving(step)
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path / "out", recorder, callbacks=[stops], **settings).train()
    assert [record.sealed for record in open_run(recorder.path).epochs] == [True] * (step // 11 - 1) + [False]
    run, model = resumed(tmp_path, step, num_train_epochs=3)
    check_training(run.train, model, tiny_rows(), n_epochs=3, n_steps=11)


def test_resumption_in_the_same_process(tmp_path: Path) -> None:
    model, recorder, stops = tiny_model(), RecorderCallback(tmp_path / "run.zarr"), Stops(15)
    trainer = tiny_trainer(
        tmp_path / "out", recorder, model=model, callbacks=[stops], save_strategy="steps", save_steps=13
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    stops.step = -1
    trainer.train(resume_from_checkpoint=True)
    assert recorder.path == tmp_path / "run.zarr"
    check_training(open_run(recorder.path).train, model, tiny_rows(), n_steps=11)


def test_resumption_without_skipping_sees_some_again(tmp_path: Path) -> None:
    interrupted(tmp_path, at=15, save_steps=13, train_sampling_strategy="sequential")
    run, model = resumed(tmp_path, 13, ignore_data_skip=True, train_sampling_strategy="sequential")
    check_pass(run.train, 1, model, tiny_rows(), seen=range(36))
    assert run.train.visits[1].tolist() == [2] * 8 + [1] * 28 + [0] * 5  # two batches before, nine after
    assert run.train.step[1, :12].tolist() == [11] * 4 + [12] * 4 + [15] * 4


class OutOfMemoryOnce(Trainer):
    """Runs out of memory in one step, as accelerate's find_executable_batch_size recognises it."""

    fails_at = 3

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == self.fails_at and self._train_batch_size == 8:
            raise RuntimeError("CUDA out of memory.")
        return super().training_step(*args, **kwargs)


class OutOfMemoryLater(OutOfMemoryOnce):
    fails_at = 8  # the first epoch has been handed to the sealing process by then


@pytest.mark.parametrize("trainer_class", [OutOfMemoryOnce, OutOfMemoryLater])
def test_a_restart_with_a_smaller_batch_begins_anew(trainer_class: Any, tmp_path: Path) -> None:
    model = tiny_model()
    settings = {"auto_find_batch_size": True, "per_device_train_batch_size": 8, "eval_strategy": "epoch"}
    trainer = tiny_trainer(
        tmp_path / "out",
        RecorderCallback(tmp_path / "run.zarr"),
        model=model,
        trainer_class=trainer_class,
        eval_dataset=held_out(),
        **settings,
    )
    trainer.train()
    n_steps = -(-41 // trainer._train_batch_size)
    assert trainer._train_batch_size < 8
    run = open_run(tmp_path / "run.zarr")
    check_training(run.train, model, tiny_rows(), n_steps=n_steps)
    assert [p.step for p in run.evals["eval"].passes] == [n_steps, 2 * n_steps]


def test_max_steps_stop_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    settings = {"max_steps": 15, "train_sampling_strategy": "sequential"}
    tiny_trainer(tmp_path / "out", recorder, model=model, **settings).train()
    run = open_run(tmp_path / "run.zarr")
    assert [(p.n_seen, p.n_never, p.sealed) for p in run.epochs] == [(41, 0, True), (16, 25, True)]
    check_pass(run.train, 1, model, tiny_rows(), seen=range(16))


def test_early_stopping(tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    settings = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "num_train_epochs": 3}
    callbacks = [EarlyStoppingCallback(early_stopping_patience=3)]
    tiny_trainer(
        tmp_path / "out", recorder, model=model, eval_dataset=held_out(), callbacks=callbacks, **settings
    ).train()
    run = open_run(tmp_path / "run.zarr")
    assert [(p.n_seen, p.sealed) for p in run.epochs] == [(41, True), (20, True)]
    assert [p.step for p in run.evals["eval"].passes] == [4, 8, 12, 16]


class EndsEpochs(TrainerCallback):
    """Ends every epoch after so many steps."""

    def __init__(self, after: int) -> None:
        self.after, self.began = after, 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step - self.began == self.after


def test_epochs_that_end_early(tmp_path: Path) -> None:
    model = tiny_model()
    settings: dict[str, Any] = {"train_sampling_strategy": "sequential", "num_train_epochs": 3}
    run = recorded(tmp_path, model=model, callbacks=[EndsEpochs(after=4)], **settings)
    assert [(p.epoch, p.step, p.last_step, p.n_seen) for p in run.epochs] == [
        (e, 4 * e, 4 * e + 3, 16) for e in range(3)
    ]
    for epoch in range(3):
        check_pass(run.train, epoch, model, tiny_rows(), seen=range(16))


# Models made anew


def test_model_init(tmp_path: Path) -> None:
    options = {"model_init": lambda: tiny_model(seed=4)}
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), options=options, model=False)
    for name in ("run.zarr", "run-2.zarr"):
        trainer.train()
        check_training(open_run(tmp_path / name).train, tiny_model(seed=4), tiny_rows())


def test_a_hyperparameter_search_has_one_store_per_trial(tmp_path: Path) -> None:
    """The second trial is pruned in mid-training; what it recorded is kept like that of an interruption."""
    recorder = RecorderCallback(tmp_path / "run.zarr")
    settings = {"eval_dataset": held_out(), "eval_strategy": "epoch"}
    options = {"model_init": lambda trial: tiny_model(seed=0 if trial is None else trial.number)}
    trainer = tiny_trainer(tmp_path / "out", recorder, model=False, options=options, **settings)

    def prunes(trial: Any) -> dict[str, Any]:
        stops.step, stops.error = (15 if trial.number == 1 else -1), optuna.TrialPruned
        return {"per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4])}

    stops = Stops(-1)
    trainer.add_callback(stops)
    trainer.hyperparameter_search(prunes, n_trials=3, backend="optuna")
    for number, name in enumerate(["run.zarr", "run-2.zarr", "run-3.zarr"]):
        run, model = open_run(tmp_path / name), tiny_model(seed=number)
        if number == 1:
            assert [p.n_seen for p in run.epochs] == [41, 16]
            check_pass(run.train, 0, model, tiny_rows())
        else:
            check_training(run.train, model, tiny_rows(), n_steps=11)
        check_pass(run.evals["eval"], 0, model, tiny_rows(9, seed=1))
