"""Probe passes: what they record, and that nothing of the training is disturbed by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import Trainer, TrainerCallback

from t3vis import ConfigurationError, RecorderCallback, RecordingError, open_run
from tests.callbacks.test_non_interference import (
    accuracy,
    assert_same_weights,
    random_states,
    trained,
    with_dropout,
    without_times,
)
from tests.callbacks.tiny import (
    LEARNING,
    NumberedStream,
    OwnModel,
    PlainDataset,
    Stops,
    alone,
    as_dataset,
    check_pass,
    held_out,
    pad,
    recorded,
    refusal,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

ORDER = (5, 2, 8, 0, 1, 7, 3, 4, 6)

# What is recorded


@pytest.mark.parametrize(
    ("probe", "rows"),
    [
        ("train", tiny_rows()),
        (held_out(), tiny_rows(9, seed=1)),
        (PlainDataset(tiny_rows(9, seed=1)), tiny_rows(9, seed=1)),
        (NumberedStream(tiny_rows(9, seed=1), ORDER), tiny_rows(9, seed=1)),
    ],
    ids=["train", "datasets.Dataset", "torch Dataset", "stream"],
)
def test_each_probe_is_a_pass_over_its_dataset(probe: Any, rows: Any, tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, model=model, recorder={"probe": probe, "id_column": "number"})
    split = run.evals["probe"]
    assert [(p.step, p.epoch, p.attributes["at"]) for p in split.passes] == [
        (0, 0.0, "begin"),
        (11, 1.0, "epoch"),
        (22, 2.0, "epoch"),
    ]
    assert (split.kind, split.attributes["mode"]) == ("eval", "eval")
    assert split.attributes["probe"] == ("train" if isinstance(probe, str) else "dataset")
    assert (split.attributes["fingerprint"] == run.train.attributes["fingerprint"]) == isinstance(probe, str)
    assert all(p.sealed for p in split.passes)
    for index in range(3):
        check_pass(split, index, model, rows)
    assert len(run.epochs) == 2
    assert run.missing_rows == 0


class Snapshots(TrainerCallback):
    """What the model says of one example alone, whenever it may be probed."""

    def __init__(self) -> None:
        self.logits: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logits.append(alone(kwargs["model"], tiny_rows()[17])[0])

    on_epoch_end = on_train_begin


def test_a_probe_sees_the_model_as_it_is_then_without_dropout(tmp_path: Path) -> None:
    snapshots = Snapshots()
    settings = {**LEARNING, "model": with_dropout(), "callbacks": [snapshots]}
    run = recorded(tmp_path, recorder={"probe": "train"}, **settings)
    found = run.evals["probe"].logits[:, 17]
    np.testing.assert_allclose(found, snapshots.logits, rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-3  # it has learned


@pytest.mark.parametrize(
    ("at", "expected"),
    [(("begin",), [0]), (("epoch",), [11, 22]), (("end",), [22]), (("begin", "end"), [0, 22])],
    ids=str,
)
def test_probes_are_made_when_asked_for(at: Any, expected: list[int], tmp_path: Path) -> None:
    run = recorded(tmp_path, recorder={"probe": held_out(), "probe_at": at})
    assert [p.step for p in run.evals["probe"].passes] == expected


def test_the_last_probe_is_of_the_best_model_where_that_is_loaded(tmp_path: Path) -> None:
    model = tiny_model()
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "eval_dataset": held_out(), **LEARNING, **best}
    trainer = tiny_trainer(
        tmp_path / "out",
        RecorderCallback(tmp_path / "run.zarr", probe=held_out(), probe_at=("epoch", "end")),
        model=model,
        num_train_epochs=3,
        **settings,
    )
    trainer.train()
    assert trainer.state.best_global_step == 11
    split = open_run(tmp_path / "run.zarr").evals["probe"]
    steps = [(p.step, p.attributes.get("model_step")) for p in split.passes]
    assert steps == [(11, None), (22, None), (33, None), (33, 11)]
    check_pass(split, 3, model, tiny_rows(9, seed=1))
    np.testing.assert_array_equal(split.logits[3], split.logits[0])


def test_a_resumed_training_probes_from_there_on(tmp_path: Path) -> None:
    """What was probed after the checkpoint is taken back, and the pretrained model is not there any more."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 8, **LEARNING}
    first = RecorderCallback(tmp_path / "run.zarr", probe=held_out())
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path / "out", first, callbacks=[Stops(13)], **settings).train()
    before = open_run(tmp_path / "run.zarr").evals["probe"]
    assert [p.step for p in before.passes] == [0, 11]
    again = RecorderCallback(tmp_path / "run.zarr", probe=held_out(), resume=True)
    trainer = tiny_trainer(tmp_path / "out", again, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    split = open_run(tmp_path / "run.zarr").evals["probe"]
    assert [p.step for p in split.passes] == [0, 11, 22]
    check_pass(split, 2, trainer.model, tiny_rows(9, seed=1))


def test_the_second_training_is_probed_in_its_own_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr", probe=held_out()))
    for _ in range(2):
        trainer.train()
    for name in ("run", "run-2"):
        assert [p.step for p in open_run(tmp_path / f"{name}.zarr").evals["probe"].passes] == [0, 11, 22]


# What is not disturbed

TRAININGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "gpt2": {"model": lambda: with_dropout("gpt2")},
    "workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "num_train_epochs": 2},
    "ragged accumulation, group_by_length, metrics": {
        "gradient_accumulation_steps": 4,
        "eval_strategy": "epoch",
        "train_sampling_strategy": "group_by_length",
        "label_smoothing_factor": 0.1,
        "options": {"compute_metrics": accuracy},
    },
    "heads, activation checkpointing": {"heads": True, "activation_checkpointing": True, "num_train_epochs": 2},
}


def both(tmp_path: Path, **settings: Any) -> tuple[Trainer, Trainer]:
    """The same training without a recorder, and with one that probes; the random numbers drawn are compared here."""
    model, heads = settings.pop("model", with_dropout), settings.pop("heads", False)
    plain, plain_states = trained(tmp_path / "out", None, model(), **settings)
    recorder = RecorderCallback(tmp_path / "run.zarr", heads=heads, probe="train")
    watched, watched_states = trained(tmp_path / "out", recorder, model(), **settings)
    assert plain_states == watched_states
    return plain, watched


@pytest.mark.parametrize("name", TRAININGS)
def test_weights_and_history_are_the_same(name: str, tmp_path: Path) -> None:
    plain, watched = both(tmp_path, **TRAININGS[name])
    assert_same_weights(plain.model, watched.model)
    assert not torch.equal(with_dropout().get_input_embeddings().weight, plain.model.get_input_embeddings().weight)
    assert without_times(plain.state.log_history) == without_times(watched.state.log_history)
    assert len(open_run(tmp_path / "run.zarr").evals["probe"].passes) == watched.args.num_train_epochs + 1
    assert len(watched.accelerator._dataloaders) == len(plain.accelerator._dataloaders)


class Notes(TrainerCallback):
    """What can be seen of a training at each of its steps, and which events there were."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.events: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        modes = [module.training for module in kwargs["model"].modules()]
        gradients = [parameter.grad is None for parameter in kwargs["model"].parameters()]
        self.seen.append((modes, gradients, torch.is_grad_enabled(), random_states()))
        self.events.append("step")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("prediction step")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("evaluate")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("log")


class PartlyFrozen(OwnModel):
    """Trains with one of its modules in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.frozen = nn.Dropout(0.3), nn.Dropout(0.3)

    def train(self, mode: bool = True) -> PartlyFrozen:
        super().train(mode)
        self.frozen.training = not mode  # the other way round: whoever restores one mode for all gets it wrong
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        outputs = super().forward(input_ids, attention_mask, labels)
        return (
            {**outputs, "loss": self.drop(self.frozen(outputs["loss"])[None]).sum()} if labels is not None else outputs
        )


@pytest.mark.parametrize("make", [with_dropout, PartlyFrozen])
def test_each_step_finds_everything_as_it_was(make: Any, tmp_path: Path) -> None:
    notes = []
    for name in ("plain", "probed"):
        note = Notes()
        recorder = RecorderCallback(tmp_path / "run.zarr", probe="train") if name == "probed" else None
        trained(tmp_path / "out", recorder, make(), callbacks=[note])
        notes.append(note)
    plain, probed = notes
    assert plain.seen == probed.seen
    assert plain.events == probed.events
    assert {"step", "prediction step", "evaluate", "log"} == set(plain.events)


def test_a_resumed_training_is_not_disturbed(tmp_path: Path) -> None:
    found = []
    for name in ("plain", "probed"):
        for resume in (False, True):
            probes = {"probe": "train", "resume": resume}
            recorder = RecorderCallback(tmp_path / "run.zarr", **probes) if name == "probed" else None
            stop = {"callbacks": [] if resume else [Stops(14)], "save_strategy": "steps", "save_steps": 6}
            trainer = tiny_trainer(tmp_path / name, recorder, model=with_dropout(), **LEARNING, **stop)
            if resume:
                trainer.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-12"))
            else:
                with pytest.raises(KeyboardInterrupt):
                    trainer.train()
        found.append((trainer, random_states()))
    (plain, states), (probed, probed_states) = found
    assert states == probed_states
    assert_same_weights(plain.model, probed.model)
    assert without_times(plain.state.log_history) == without_times(probed.state.log_history)


def test_a_training_within_autocast_of_the_users_own(tmp_path: Path) -> None:
    """Casts of weights are kept as long as it lasts: a probe leaves none behind, and sees the weights as they are."""
    weights = []
    for recorder in (None, RecorderCallback(tmp_path / "run.zarr", probe="train")):
        trainer = tiny_trainer(tmp_path / "out", recorder, model=with_dropout(), **LEARNING)
        with torch.autocast("cpu", torch.bfloat16):
            trainer.train()
        weights.append(trainer.model)
    assert_same_weights(*weights)
    logits, model = open_run(tmp_path / "run.zarr").evals["probe"].logits, weights[1].eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        now = model(**pad(tiny_rows())).logits.float()
    assert np.abs(logits[0] - now.numpy()).max() > 0.5
    np.testing.assert_allclose(logits[2], now, atol=0.1)


@pytest.mark.parametrize("how", ["by the Trainer", "by the user"])
def test_nothing_is_compiled_for_a_probe(how: str, tmp_path: Path) -> None:
    counts = []
    for recorder in (RecorderCallback(tmp_path / "plain.zarr"), RecorderCallback(tmp_path / "run.zarr", probe="train")):
        torch._dynamo.reset()
        counters.clear()
        model, compiled = tiny_model(num_hidden_layers=1), {"torch_compile": True, "torch_compile_backend": "eager"}
        if how == "by the user":
            model.compile(backend="eager")
            compiled = {}
        tiny_trainer(tmp_path / "out", recorder, model=model, train=as_dataset(tiny_rows(8)), **compiled).train()
        counts.append({name: dict(counters[name]) for name in ("graph_break", "stats")})
    assert counts[0] == counts[1]
    assert counts[0]["stats"]["unique_graphs"]
    model = tiny_model(num_hidden_layers=1)
    check_pass(open_run(tmp_path / "run.zarr").evals["probe"], 2, model, tiny_rows(8), layers=(0, 1))


# What goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": "test"}, "probe='test': expected a dataset, 'train', or None"),
        ({"probe": 3}, "probe=3: expected a dataset"),
        (
            {"probe": "train", "probe_at": "begin"},
            "probe_at='begin': expected some of 'begin', 'epoch', 'end' in a tup",
        ),
        ({"probe": "train", "probe_at": ("step",)}, "probe_at=.*: expected some of"),
        ({"probe": "train", "probe_at": ()}, "probe_at=.*: expected some of"),
    ],
)
def test_settings_that_are_none(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RecorderCallback(tmp_path / "run.zarr", **options)


def test_the_stream_that_is_trained_on_is_not_probed(tmp_path: Path) -> None:
    stream = NumberedStream(tiny_rows(), range(41))
    recorder = RecorderCallback(tmp_path / "run.zarr", probe="train", id_column="number")
    assert "probe='train' reads the training set between two epochs" in refusal(
        tiny_trainer(tmp_path / "out", recorder, train=stream, max_steps=5)
    )


def test_a_stream_without_ids_is_refused_before_the_first_step(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", probe=NumberedStream(tiny_rows(), range(41)), probe_at=("end",))
    assert "an IterableDataset has no row numbers" in refusal(tiny_trainer(tmp_path / "out", recorder))


def without_input_ids() -> Any:
    return as_dataset([{"labels": 0, "attention_mask": [1, 1]} for _ in range(4)])


def test_a_probe_that_the_model_does_not_take_is_refused_before_the_first_step(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", probe=without_input_ids())
    message = refusal(tiny_trainer(tmp_path / "out", recorder, model=with_dropout()))
    assert message.startswith("the probe cannot be recorded: KeyError: 'input_ids'")
    assert not recorder.path.exists()


def test_one_that_is_found_out_later_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"probe": without_input_ids(), "probe_at": ("epoch",)}
    run = recorded(tmp_path, recorder=settings)
    assert "t3vis could not record" in caplog.text
    assert [p.n_seen for p in run.epochs] == [41, 41]
    assert run.missing_rows == 2 * 4  # of two probes
    assert "KeyError: 'input_ids'" in run.summary()
    again = RecorderCallback(tmp_path / "again.zarr", on_error="raise", **settings)
    with pytest.raises(RecordingError, match=r"failed: .input_ids."):
        tiny_trainer(tmp_path / "out", again).train()
