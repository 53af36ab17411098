"""What goes to the trackers of a Trainer after each epoch, and that the training is the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, set_seed
from transformers.integrations import MLflowCallback, TrackioCallback, WandbCallback

from t3vis import ConfigurationError, RecorderCallback, RecordingError, open_run
from t3vis.analyze import analyzed_data_map
from tests.callbacks.tiny import LEARNING, tiny_model, tiny_trainer

NAMES = ("confidence", "variability", "correctness", "forgetting_events", "never_learned")


class Tracker(TrainerCallback):
    """Stands in for an integration: keeps what it is given; fails where it is told to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.logged: list[dict[str, Any]] = []
        self.fails = fails

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logged.append({**logs, "step": state.global_step})
        if self.fails and "t3vis/loss" in logs:
            raise OSError("the tracker is away")


def trained(tmp_path: Any, tracker: Any = None, *, name: str = "run", **settings: Any) -> Any:
    recorder = RecorderCallback(tmp_path / f"{name}.zarr", **{"log_to_trackers": True, **settings.pop("recorder", {})})
    set_seed(7)
    trainer = tiny_trainer(
        tmp_path / "out",
        recorder,
        model=tiny_model(hidden_dropout_prob=0.3),
        callbacks=[] if tracker is None else [tracker],
        **{**LEARNING, "num_train_epochs": 3, **settings},
    )
    trainer.train()
    return trainer


def test_each_epoch_is_logged_through_the_trainer(tmp_path):
    tracker = Tracker()
    trainer = trained(tmp_path, tracker)
    train = open_run(tmp_path / "run.zarr").train
    ours = [entry for entry in tracker.logged if "t3vis/loss" in entry]
    assert ours == [entry for entry in trainer.state.log_history if "t3vis/loss" in entry]
    assert [entry["step"] for entry in ours] == [11, 22, 33]
    assert [entry["epoch"] for entry in ours] == [1, 2, 3]
    np.testing.assert_allclose([entry["t3vis/loss"] for entry in ours], train.loss[:].mean(1), rtol=1e-6)
    mapped = analyzed_data_map(open_run(tmp_path / "run.zarr"), train)
    for name in NAMES:
        assert ours[-1][f"t3vis/{name}"] == pytest.approx(getattr(mapped, name).mean()), name
    assert ours[0]["t3vis/variability"] == 0  # of a single epoch


def test_tensorboard_has_the_numbers_and_the_data_map(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trained(tmp_path, report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    train = open_run(tmp_path / "run.zarr").train
    found = events.Scalars("train/t3vis/loss")
    assert [event.step for event in found] == [11, 22, 33]
    np.testing.assert_allclose([event.value for event in found], train.loss[:].mean(1), rtol=1e-6)
    pictures = events.Images("t3vis/data_map")
    assert [picture.step for picture in pictures] == [22, 33]  # one epoch has no variability to draw
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string
    assert (pictures[0].width, pictures[0].height) > (500, 500)


def integration(kind: type[Any], name: str, given: list[Any]) -> Any:
    """An integration of the Trainer's whose library is not installed, but for what it would send."""
    library = SimpleNamespace(
        log=lambda values: given.append(values),
        Image=lambda pixels: pixels,
        log_image=lambda pixels, file: given.append({file: pixels}),
    )
    silent = dict.fromkeys(
        ("on_init_end", "on_train_begin", "on_train_end", "on_log", "__del__"), lambda *_, **__: None
    )
    made = object.__new__(type(kind.__name__, (kind,), silent))
    setattr(made, name, library)
    return made


@pytest.mark.parametrize(
    ("kind", "name", "keys"),
    [
        (WandbCallback, "_wandb", ["t3vis/data_map", "train/global_step"]),
        (TrackioCallback, "_trackio", ["t3vis/data_map", "train/global_step"]),
        (MLflowCallback, "_ml_flow", ["t3vis/data_map_step_000022.png"]),
    ],
)
def test_the_data_map_goes_through_the_integrations(kind, name, keys, tmp_path):
    given: list[Any] = []
    trained(tmp_path, integration(kind, name, given), num_train_epochs=2)
    (values,) = given
    assert list(values) == keys
    assert values[keys[0]].shape[-1] == 3
    assert values[keys[0]].dtype == np.uint8
    assert 0 < values[keys[0]].mean() < 255


def test_weights_and_other_logs_are_those_without(tmp_path):
    states = []
    for name, recorder in (("with", {}), ("without", {"log_to_trackers": False})):
        trainer = trained(tmp_path, name=name, recorder=recorder, logging_steps=1)
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        states.append((trainer.model.state_dict(), history, torch.get_rng_state()))
    (weights, history, random), (expected, expected_history, expected_random) = states
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert history == expected_history
    assert len(history) == 33
    assert torch.equal(random, expected_random)


def test_a_tracker_that_fails_is_reported_once_and_training_goes_on(tmp_path, caplog):
    trainer = trained(tmp_path, Tracker(fails=True))
    assert trainer.state.global_step == 33
    assert open_run(tmp_path / "run.zarr").missing_rows == 0
    said = [record.message for record in caplog.records if record.name.startswith("t3vis")]
    assert len(said) == 2
    assert "could not log to the trackers: OSError: the tracker is away." in said[0]
    assert "could not log 3 epochs" in said[1]


def test_a_tracker_that_fails_stops_the_training_if_asked(tmp_path):
    with pytest.raises(RecordingError, match=r"logging of .*run\.zarr to the trackers failed: the tracker is away"):
        trained(tmp_path, Tracker(fails=True), recorder={"on_error": "raise"})


def test_nothing_is_logged_unless_it_is_asked_for(tmp_path):
    tracker = Tracker()
    trained(tmp_path, tracker, recorder={"log_to_trackers": False}, num_train_epochs=1)
    assert not [entry for entry in tracker.logged if any(name.startswith("t3vis/") for name in entry)]
    with pytest.raises(ConfigurationError, match="log_to_trackers='yes': expected True or False"):
        RecorderCallback(tmp_path / "other.zarr", log_to_trackers="yes")
