"""What cannot be recorded is refused before the first step, in words that help; a failing disk stops nobody."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from t3vis import ConfigurationError, RecorderCallback, RecordingError, open_run
from t3vis.store import schema
from tests.callbacks.tiny import (
    LEARNING,
    NumberedStream,
    PlainDataset,
    as_dataset,
    check_pass,
    check_training,
    pad,
    refusal,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

# Datasets


@pytest.mark.parametrize("kind", [as_dataset, PlainDataset], ids=["datasets.Dataset", "torch Dataset"])
def test_no_labels(kind: Any, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "labels"} for row in tiny_rows()]
    message = refusal(tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), train=kind(rows)))
    assert "hold no labels: found input_ids, attention_mask, expected labels" in message
    assert "TrainingArguments(label_names=[...])" in message


@pytest.mark.parametrize("kind", ["torch", "datasets"])
def test_a_stream_without_an_id_column(kind: str, tmp_path: Path) -> None:
    own, other = NumberedStream(tiny_rows(), range(41)), as_dataset(tiny_rows()).to_iterable_dataset()
    stream = own if kind == "torch" else other
    recorder = RecorderCallback(tmp_path / "run.zarr")
    message = refusal(tiny_trainer(tmp_path / "out", recorder, train=stream, max_steps=5))
    assert "IterableDataset" in message
    assert "RecorderCallback(..., id_column='id')" in message
    assert "with_indices=True" in message
    assert not recorder.path.exists()


def test_a_stream_to_evaluate_on_without_an_id_column(tmp_path: Path) -> None:
    """Refused at once, not at the first evaluation."""
    sets = {"rows": as_dataset(tiny_rows(5)), "stream": NumberedStream(tiny_rows(5), range(5))}
    settings = {"eval_dataset": sets, "eval_strategy": "epoch"}
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), **settings)
    assert "id_column='id'" in refusal(trainer)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (-3, "found -3 "),
        (2**40, "found 1099511627776 "),
        (1.5, "no whole number"),
        ("7", "no whole number"),
        (None, "no"),
    ],
)
def test_ids_that_are_no_row_numbers(bad: Any, found: str, tmp_path: Path) -> None:
    class BadStream(NumberedStream):
        def __iter__(self) -> Any:
            for row in super().__iter__():
                yield {**row, "number": bad if row["number"] == 2 else row["number"]}

    recorder = RecorderCallback(tmp_path / "run.zarr", id_column="number")
    trainer = tiny_trainer(tmp_path / "out", recorder, train=BadStream(tiny_rows(), range(41)), max_steps=5)
    message = refusal(trainer)
    assert "expected example ids from 0 to 16777215" in message
    assert found in message
    assert "(1 of 4 in the batch)" in message


def test_a_bad_id_later_on_is_counted_not_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class BadStream(NumberedStream):
        def __iter__(self) -> Any:
            for row in super().__iter__():
                yield {**row, "number": None if row["number"] == 22 else row["number"]}

    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr", id_column="number")
    trainer = tiny_trainer(
        tmp_path / "out", recorder, model=model, train=BadStream(tiny_rows(), range(41)), max_steps=11
    )
    trainer.train()
    run = open_run(recorder.path)
    assert run.missing_rows == 4
    check_pass(run.train, 0, model, tiny_rows(), seen=[*range(20), *range(24, 41)])
    assert "no whole number" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_an_id_column_that_is_not_there(workers: int, tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", id_column="row")
    stream = NumberedStream(tiny_rows(), range(41))
    trainer = tiny_trainer(tmp_path / "out", recorder, train=stream, max_steps=5, dataloader_num_workers=workers)
    message = refusal(trainer)
    assert "the column 'row' that id_column names" in message
    assert "found the columns input_ids, attention_mask, labels, text, number" in message


def test_ids_beyond_the_length_that_a_stream_states(tmp_path: Path) -> None:
    class Sized(NumberedStream):
        def __len__(self) -> int:
            return 20

    recorder = RecorderCallback(tmp_path / "run.zarr", id_column="number")
    trainer = tiny_trainer(tmp_path / "out", recorder, train=Sized(tiny_rows(), range(40, 20, -1)))
    assert "expected example ids from 0 to 19, found 40" in refusal(trainer)


@pytest.mark.parametrize(
    ("text", "found"), [(["body"], "['body']"), (["text", "labels"], "['labels']"), (["input_ids"], "['input_ids']")]
)
def test_text_columns_that_are_not_there(text: list[str], found: str, tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", text=text)
    message = refusal(tiny_trainer(tmp_path / "out", recorder))
    assert f"text names {found}, but the dataset has the text columns ['text']" in message
    assert "text='auto'" in message
    assert not recorder.path.exists()


def test_text_columns_of_a_dataset_without_columns(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", text=["text"])
    message = refusal(tiny_trainer(tmp_path / "out", recorder, train=PlainDataset(tiny_rows())))
    assert "is a PlainDataset without any to read" in message


# Paths


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_run_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    tiny_trainer(tmp_path / "out", RecorderCallback(path), num_train_epochs=1).train()
    before = contents(path)
    for use in (Trainer.train, lambda trainer: trainer.evaluate(as_dataset(tiny_rows(5)))):
        message = refusal(tiny_trainer(tmp_path / "out", RecorderCallback(path)), use)
        assert f"{path} already holds a run" in message
        assert "resume=True" in message
        assert "overwrite=True" in message
    message = refusal(tiny_trainer(tmp_path / "out", RecorderCallback(path, resume=True)))
    assert "starts at step 0" in message
    assert "train(resume_from_checkpoint=...)" in message
    assert contents(path) == before


def test_a_run_that_is_there_is_not_taken_back_after_an_evaluation_either(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    tiny_trainer(tmp_path / "out", RecorderCallback(path), num_train_epochs=1).train()
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(path, resume=True))
    trainer.evaluate(as_dataset(tiny_rows(5)))
    assert "starts at step 0" in refusal(trainer)
    assert open_run(path).epochs[0].n_seen == 41


def test_overwrite_deletes_the_run(tmp_path: Path) -> None:
    path, model = tmp_path / "run.zarr", tiny_model(seed=1)
    tiny_trainer(tmp_path / "out", RecorderCallback(path), num_train_epochs=2).train()
    tiny_trainer(tmp_path / "out", RecorderCallback(path, overwrite=True), model=model, num_train_epochs=1).train()
    check_training(open_run(path).train, model, tiny_rows(), n_epochs=1)


def test_overwrite_deletes_nothing_before_the_settings_are_right(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    tiny_trainer(tmp_path / "out", RecorderCallback(path), num_train_epochs=1).train()
    before = contents(path)
    refusal(tiny_trainer(tmp_path / "out", RecorderCallback(path, overwrite=True, text=["body"])))
    assert contents(path) == before


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_a_directory_that_is_no_run(options: dict[str, bool], tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.mkdir()
    (path / "thesis.txt").write_text("five years")
    message = refusal(tiny_trainer(tmp_path / "out", RecorderCallback(path, **options)))
    assert f"{path} already exists and is not a t3vis run" in message
    assert "choose another path" in message
    assert contents(path) == {"thesis.txt": b"five years"}


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refusal(tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "file" / "run.zarr")))
    assert f"a run cannot be written at {tmp_path / 'file' / 'run.zarr'}" in message
    assert "choose a path" in message


def test_what_was_refused_leaves_the_path_free(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(path, hidden_states=[7]))
    refusal(trainer)
    assert not path.exists()
    model = tiny_model()
    tiny_trainer(tmp_path / "out", RecorderCallback(path), model=model).train()
    check_training(open_run(path).train, model, tiny_rows())


# Resuming something else


def saved(tmp_path: Path, **recorder: Any) -> dict[str, bytes]:
    """A run of two epochs with a checkpoint after the first."""
    settings = {"save_strategy": "steps", "save_steps": 7, "num_train_epochs": 1}
    tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr", **recorder), **settings).train()
    return contents(tmp_path / "run.zarr")


def resume(trainer: Trainer) -> None:
    trainer.train(resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-7"))


@pytest.mark.parametrize("change", ["other labels", "another order", "fewer", "other text", "another type"])
def test_a_dataset_that_has_changed(change: str, tmp_path: Path) -> None:
    """Nothing that was recorded is taken back for a training that does not come about."""
    before = saved(tmp_path)
    rows = tiny_rows()
    if change == "other labels":
        rows[3]["labels"] = (rows[3]["labels"] + 1) % 3
    elif change == "another order":
        rows = rows[::-1]
    elif change == "fewer":
        rows = rows[:-1]
    elif change == "other text":
        rows[40]["text"] += "!"
    recorder = RecorderCallback(tmp_path / "run.zarr", resume=True)
    train: Any = PlainDataset(rows) if change == "another type" else as_dataset(rows)
    trainer = tiny_trainer(tmp_path / "out", recorder, train=train)
    with pytest.raises(ConfigurationError) as caught:
        resume(trainer)
    assert trainer.state.global_step == 7
    kind = "PlainDataset" if change == "another type" else "Dataset"
    assert f"found a {kind} of {len(rows)} examples with fingerprint" in str(caught.value)
    assert "expected a Dataset of 41 with" in str(caught.value)
    assert "same data, in the same order, or record to another path" in str(caught.value)
    assert contents(tmp_path / "run.zarr") == before


@pytest.mark.parametrize("other", [{"hidden_states": "last"}, {"pooling": "first"}, {"text": None}], ids=str)
def test_other_settings_than_the_run_was_recorded_with(other: dict[str, Any], tmp_path: Path) -> None:
    before = saved(tmp_path)
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr", resume=True, **other))
    with pytest.raises(ConfigurationError, match="go on with the same settings"):
        resume(trainer)
    assert contents(tmp_path / "run.zarr") == before


# Models and collators


class Loses(nn.Module):
    """A model that returns what ``outputs`` makes of its logits."""

    def __init__(self, outputs: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.embed, self.outputs = nn.Embedding(60, 3), outputs

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
        return self.outputs(self.embed(input_ids).sum(1))


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "no logits": (lambda logits: {"loss": logits.mean(), "scores": logits}, "found loss, scores"),
    "a tuple": (lambda logits: (logits.mean(), logits), "found tuple"),
    "logits that are no tensor": (lambda logits: {"loss": logits.mean(), "logits": (logits,)}, "found loss, logits"),
    "too few rows": (lambda logits: {"loss": logits.mean(), "logits": logits[1:]}, "3 rows of logits for 4 examples"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_models_whose_output_cannot_be_recorded(name: str, tmp_path: Path) -> None:
    outputs, found = OUTPUTS[name]
    recorder = RecorderCallback(tmp_path / "run.zarr")
    message = refusal(tiny_trainer(tmp_path / "out", recorder, model=Loses(outputs), **LEARNING))
    assert found in message
    assert not recorder.path.exists()


class ReadsTuples(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, {"input_ids": inputs[0], "labels": inputs[1]}, *args, **kwargs)


def test_a_collator_that_returns_no_dict(tmp_path: Path) -> None:
    options = {"data_collator": lambda rows: (pad(rows)["input_ids"], pad(rows)["labels"])}
    trainer = tiny_trainer(
        tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), options=options, trainer_class=ReadsTuples
    )
    message = refusal(trainer)
    assert "the data collator returned a tuple, expected a dict-like batch" in message
    assert "return a dict of tensors" in message


@pytest.mark.parametrize("hidden_states", [[3], [0, -4], [17]])
def test_hidden_states_out_of_range(hidden_states: list[int], tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", hidden_states=hidden_states)
    message = refusal(tiny_trainer(tmp_path / "out", recorder, **LEARNING))
    assert f"hidden_states names [{hidden_states[-1]}], but the model has 3 hidden states, 0 to 2" in message


def broken(states: Tensor, mask: Tensor) -> Tensor:
    raise KeyError("gate")


POOLINGS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "raises": (broken, "KeyError: 'gate'"),
    "three dimensions": (lambda states, mask: states, "returned shape (4, "),
    "a row too few": (lambda states, mask: states[1:, 0], "returned shape (3, 16)"),
    "no tensor": (lambda states, mask: None, "the first batch cannot be recorded"),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_functions_that_do_not_pool(name: str, tmp_path: Path) -> None:
    pooling, found = POOLINGS[name]
    recorder = RecorderCallback(tmp_path / "run.zarr", pooling=pooling)
    message = refusal(tiny_trainer(tmp_path / "out", recorder, **LEARNING))
    assert found in message
    assert "pooling" in message


def test_a_pooling_whose_width_changes_loses_rows_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Vectors of another width could not stand in one array; they are counted as missing."""
    model = tiny_model()
    recorder = RecorderCallback(tmp_path / "run.zarr", pooling=lambda states, mask: states[..., 0])
    rows = [{**row, "input_ids": row["input_ids"][:1] * 6, "attention_mask": [1] * 6} for row in tiny_rows(16)]
    rows[9] = tiny_rows(16)[9] | {"input_ids": [5] * 8, "attention_mask": [1] * 8}
    settings = {"train_sampling_strategy": "sequential", "num_train_epochs": 1}
    tiny_trainer(tmp_path / "out", recorder, model=model, train=as_dataset(rows), **settings).train()
    run = open_run(recorder.path)
    assert run.missing_rows == 4
    assert np.flatnonzero(run.train.visits[0]).tolist() == [*range(8), *range(12, 16)]
    assert "(3, 8)" in caplog.text


# Settings


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"hidden_states": "first"}, "hidden_states='first': expected 'all', 'last', a list of numbers, or None"),
        ({"hidden_states": []}, "hidden_states=[]"),
        ({"hidden_states": [1.5]}, "hidden_states=[1.5]"),
        ({"hidden_states": True}, "hidden_states=True"),
        ({"hidden_states": 3}, "hidden_states=3"),
        ({"pooling": "max"}, "pooling='max': expected 'mean', 'first', 'last', or a function"),
        ({"pooling": None}, "pooling=None"),
        ({"text": "title"}, "text='title': expected 'auto', a list of column names, or None"),
        ({"text": 5}, "text=5"),
        ({"id_column": 5}, "id_column=5: expected the name of a column, or None"),
        ({"on_error": "ignore"}, "on_error='ignore': expected 'warn' or 'raise'"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ],
    ids=str,
)
def test_settings_that_are_none(options: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RecorderCallback(tmp_path / "run.zarr", **options)
    assert found in str(caught.value)


# A failing disk


class BreaksTheDisk(TrainerCallback):
    """Puts regular files where the segments of the second pass are to go, and takes them away again later on."""

    def __init__(self, split: Path, *, broken: tuple[int, int]) -> None:
        folder = split / "segments" / schema.rank_name(0, 0)
        self.blocked = [folder / f"{schema.pass_name(1)}_s{number:06d}" for number in range(10)]
        self.broken = broken

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for path in self.blocked:
            if state.global_step == self.broken[0]:
                path.touch()
            elif state.global_step == self.broken[1]:
                path.unlink()


def disk_breaks(tmp_path: Path, *, split: str, broken: tuple[int, int], **recorder: Any) -> Trainer:
    path = tmp_path / "run.zarr"
    callback = BreaksTheDisk(path / split, broken=broken)
    settings: dict[str, Any] = {"num_train_epochs": 3, "eval_dataset": as_dataset(tiny_rows(9, seed=1))}
    settings |= {"eval_strategy": "epoch", **LEARNING}
    recorders = RecorderCallback(path, **recorder)
    return tiny_trainer(tmp_path / "out", recorders, callbacks=[callback], model=tiny_model(), **settings)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_training_goes_on_without_the_disk(split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = disk_breaks(tmp_path, split=split, broken=(-1, -1))
    plain.pop_callback(RecorderCallback)
    plain.train()
    trainer = disk_breaks(tmp_path, split=split, broken=(15, 25))
    trainer.train()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR and "t3vis" in record.name]
    assert len(errors) == 1
    assert "Training goes on" in errors[0].getMessage()
    assert "on_error='raise'" in errors[0].getMessage()
    run = open_run(tmp_path / "run.zarr")
    lost = 41 if split == "train" else 9
    assert run.missing_rows == lost
    assert f"{lost} rows could not be recorded" in run.summary()
    complete = [(41, 0)] * 3
    if split == "train":
        complete[1] = (0, 41)
        assert np.isnan(run.train.loss[1]).all()
    assert [(p.n_seen, p.n_never) for p in run.epochs] == complete
    evaluations = [(9, 0)] * (3 if split == "train" else 2)
    if split == "eval":
        evaluations.insert(1, (0, 9))
    assert [(p.n_seen, p.n_never) for p in run.evals["eval"].passes] == evaluations


def test_on_error_raise_stops(tmp_path: Path) -> None:
    trainer = disk_breaks(tmp_path, split="train", broken=(15, 100), on_error="raise")
    with pytest.raises(RecordingError, match=r"recording to .*run\.zarr failed: .* rows of train could not be written"):
        trainer.train()
    assert 21 <= trainer.state.global_step <= 22  # when the rows of the epoch go to the disk
    assert not any(module._forward_hooks for module in trainer.model.modules())
    assert open_run(tmp_path / "run.zarr").epochs[0].n_seen == 41


def test_a_file_size_limit(tmp_path: Path) -> None:
    """A limit of the operating system on the size of a file: writes fail as on a full disk."""
    script = Path(__file__).with_name("full_disk.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "error", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["same_weights"]
    assert len(said["errors"]) == 1
    assert "File too large" in said["errors"][0]
    run = open_run(tmp_path / "run.zarr")
    assert run.missing_rows == 41
    assert [(p.n_seen, p.n_never) for p in run.epochs] == [(41, 0), (0, 41), (41, 0)]
    check_pass(run.train, 0, tiny_model(), tiny_rows())
    check_pass(run.train, 2, tiny_model(), tiny_rows())
