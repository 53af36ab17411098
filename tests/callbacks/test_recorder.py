"""The life of a recorder: trainings, evaluations, resumptions, interruptions, and what the store says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
import zarr
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import EarlyStoppingCallback, PreTrainedTokenizerFast, Trainer, TrainerCallback

from t3vis import ConfigurationError, RecorderCallback, Run, StoreError, open_run
from tests.callbacks.tiny import (
    PlainDataset,
    as_dataset,
    check_pass,
    check_training,
    pad,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)


def held_out(n_examples: int = 9, seed: int = 1) -> Any:
    return as_dataset(tiny_rows(n_examples, seed=seed))


class Stops(TrainerCallback):
    """Raises once, at the end of a step."""

    def __init__(self, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise self.error


# Trainings and evaluations one after another


def test_each_further_training_is_recorded_next_to_the_first(tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", recorder, model=model, num_train_epochs=1)
    for name in ("run.zarr", "run-2.zarr", "run-3.zarr"):
        trainer.train()
        assert recorder.path == tmp_path / name
        check_training(open_run(tmp_path / name).train, model, tiny_rows(), n_epochs=1)


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
    trainer = tiny_trainer(tmp_path / "out", None, model=model, eval_dataset=held_out())
    trainer.add_callback(recorder)
    trainer.evaluate()
    assert not recorder.path.exists()  # the Trainer says nothing of itself to a callback that comes late
    recorder.attach(trainer)
    trainer.evaluate()
    trainer.evaluate()
    run = open_run(tmp_path / "run.zarr")
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
    with pytest.raises(StoreError, match="no training pass"):
        _ = run.train


@pytest.mark.parametrize("how", ["add_callback", "attach"])
def test_a_callback_that_comes_late_records_the_training(how: str, tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", None, model=model, eval_dataset=held_out(), eval_strategy="epoch")
    trainer.add_callback(recorder) if how == "add_callback" else recorder.attach(trainer)
    trainer.train()
    run = open_run(tmp_path / "run.zarr")
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))


@pytest.mark.parametrize("kind", [as_dataset, PlainDataset], ids=["datasets.Dataset", "torch Dataset"])
def test_another_dataset_under_the_same_prefix_has_a_name_of_its_own(kind: Any, tmp_path: Path) -> None:
    model, recorder = tiny_model(), RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", recorder, model=model)
    sets = {seed: kind(tiny_rows(9, seed=seed)) for seed in (1, 2)}
    for seed in (1, 2, 1):
        trainer.evaluate(sets[seed])
    run = open_run(tmp_path / "run.zarr")
    assert "eval" in run.evals
    (other,) = set(run.evals) - {"eval"}
    assert other.startswith("eval-")
    assert [len(run.evals[name].passes) for name in ("eval", other)] == [2, 1]
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
    check_pass(run.evals[other], 0, model, tiny_rows(9, seed=2))


def test_equal_datasets_are_one(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"))
    for _ in range(3):
        trainer.evaluate(held_out())
    run = open_run(tmp_path / "run.zarr")
    assert list(run.evals) == ["eval"]
    assert len(run.evals["eval"].passes) == 3


# Attaching and detaching


def test_two_recorders_are_one_too_many(tmp_path: Path) -> None:
    one, two = RecorderCallback(tmp_path / "one.zarr"), RecorderCallback(tmp_path / "two.zarr")
    with pytest.raises(ConfigurationError, match="has a RecorderCallback already; give it one only, or detach"):
        tiny_trainer(tmp_path / "out", one, callbacks=[two])


@pytest.mark.parametrize("how", ["detach", "remove"])
def test_a_second_recorder_takes_the_place_of_the_first(how: str, tmp_path: Path) -> None:
    one, two = RecorderCallback(tmp_path / "one.zarr"), RecorderCallback(tmp_path / "two.zarr")
    trainer = tiny_trainer(tmp_path / "out", one, num_train_epochs=1)
    one.detach() if how == "detach" else trainer.remove_callback(one)
    trainer.add_callback(two)
    trainer.train()
    assert not one.path.exists()
    assert len(open_run(two.path).epochs) == 1


def test_a_detached_recorder_rests_until_it_is_attached(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", recorder, num_train_epochs=1)
    recorder.detach()
    trainer.train()
    assert not recorder.path.exists()
    recorder.attach(trainer)
    trainer.train()
    assert len(open_run(recorder.path).epochs) == 1


def test_a_recorder_given_to_two_trainers_records_the_one_that_trains(tmp_path: Path) -> None:
    recorder, model = RecorderCallback(tmp_path / "run.zarr"), tiny_model(seed=1)
    first = tiny_trainer(tmp_path / "out", recorder, model=model)
    tiny_trainer(tmp_path / "out", recorder, model=tiny_model(seed=2), train=held_out())
    first.train()
    check_training(open_run(tmp_path / "run.zarr").train, model, tiny_rows())


def test_a_method_that_somebody_else_wrapped_is_left_to_him(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", recorder, num_train_epochs=1)
    calls, wrapped = [], trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return wrapped(*args, **kwargs)

    trainer.training_step = counted  # type: ignore[method-assign]
    recorder.detach()
    trainer.train()
    assert len(calls) == 11
    assert not recorder.path.exists()


# Interruptions and resumptions


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


def test_a_run_can_be_read_while_it_trains(tmp_path: Path) -> None:
    seen = []

    class Reads(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(open_run(tmp_path / "run.zarr").epochs[-1].n_seen)

    recorder = RecorderCallback(tmp_path / "run.zarr")
    settings = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 1, "save_total_limit": 1}
    tiny_trainer(tmp_path / "out", recorder, callbacks=[Reads()], **settings).train()
    assert seen == [8, 16, 24, 32, 40, 41]


# What the store says


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[UNK]": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 60)}}
    own = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>")


def test_what_is_said_of_the_run(tmp_path: Path) -> None:
    model = tiny_model(id2label={0: "bad", 1: "so so", 2: "good"}, label2id={"bad": 0, "so so": 1, "good": 2})
    recorder = RecorderCallback(tmp_path / "run.zarr", hidden_states=[0, -1])
    tiny_trainer(tmp_path / "out", recorder, model=model, label_smoothing_factor=0.25).train()
    run = open_run(tmp_path / "run.zarr")
    attributes = run.attributes
    assert attributes["model"]["class"] == "BertForSequenceClassification"
    assert attributes["model"]["config"]["hidden_size"] == 16
    assert attributes["training_arguments"]["learning_rate"] == 0
    assert attributes["training_arguments"]["label_smoothing_factor"] == 0.25
    assert attributes["recorder"] == {"hidden_states": [0, -1], "pooling": "mean", "text": "auto"}
    assert attributes["versions"]["torch"] == torch.__version__
    assert attributes["versions"]["transformers"] == transformers.__version__
    train = run.train
    assert train.class_names == ["bad", "so so", "good"]
    assert train.attributes["task"] == "single_label"
    assert train.attributes["label_column"] == "labels"
    assert train.attributes["columns"] == ["input_ids", "attention_mask", "labels", "text"]
    assert train.loss.attributes["differs_from_trained"]
    assert train.loss.attributes["trained_objective"] == "cross-entropy with label smoothing 0.25"
    assert train.hidden_states.attributes["layers"] == [0, 2]
    assert train.text["text"][3] == tiny_rows()[3]["text"]
    assert train.labels.tolist() == [row["labels"] for row in tiny_rows()]
    example = train.example(3)
    assert example.label_name == train.class_names[tiny_rows()[3]["labels"]]
    assert example.logits.shape == (2, 3)
    assert example.token_ids is not None
    assert example.token_ids.tolist() == tiny_rows()[3]["input_ids"]


def test_plain_zarr_reads_a_run(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr")).train()
    run, group = open_run(tmp_path / "run.zarr"), zarr.open_group(tmp_path / "run.zarr", mode="r")
    for name in run.train.arrays:
        array: Any = group[f"train/{name}"]
        np.testing.assert_array_equal(array[:], run.train.array(name)[:])
        assert array.metadata.dimension_names == run.train.array(name).dims
        assert array.attrs["description"]


def test_class_names_from_the_dataset(tmp_path: Path) -> None:
    labels = datasets.ClassLabel(names=["bad", "so so", "good"])
    train = as_dataset(tiny_rows()).cast_column("labels", labels)
    recorder = RecorderCallback(tmp_path / "run.zarr")
    tiny_trainer(tmp_path / "out", recorder, train=train, num_train_epochs=1).train()
    assert open_run(tmp_path / "run.zarr").train.class_names == ["bad", "so so", "good"]


@pytest.mark.parametrize(("text", "kept"), [("auto", ["text", "title"]), (["title"], ["title"]), (None, []), ([], [])])
def test_which_text_is_kept(text: Any, kept: list[str], tmp_path: Path) -> None:
    rows = [{**row, "title": f"Title {i} ü"} for i, row in enumerate(tiny_rows())]
    recorder = RecorderCallback(tmp_path / "run.zarr", text=text)
    trainer = tiny_trainer(
        tmp_path / "out", recorder, train=as_dataset(rows), eval_dataset=held_out(), eval_strategy="epoch"
    )
    trainer.train()
    run = open_run(tmp_path / "run.zarr")
    assert sorted(run.train.text) == kept
    for column in kept:
        assert run.train.text[column][40] == rows[40][column]
    assert sorted(run.evals["eval"].text) == (["text"] if text == "auto" else [])  # it has no titles


def test_tokens_and_decoded_text(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "text"} for row in tiny_rows()]
    recorder = RecorderCallback(tmp_path / "run.zarr")
    trainer = tiny_trainer(
        tmp_path / "out",
        recorder,
        train=as_dataset(rows),
        options={"processing_class": tokenizer, "data_collator": pad},
    )
    trainer.train()
    run = open_run(tmp_path / "run.zarr")
    ids = run.train.token_ids
    assert ids is not None
    assert run.tokens(ids[5]) == [f"w{i}" for i in rows[5]["input_ids"][:-1]] + ["</s>"]
    assert run.train.text["decoded"][5] == " ".join(f"w{i}" for i in rows[5]["input_ids"][:-1])


def test_there_is_no_vocabulary_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), num_train_epochs=1).train()
    with pytest.raises(StoreError, match="processing_class"):
        open_run(tmp_path / "run.zarr").tokens([3])


def test_labels_that_only_the_batches_tell(tmp_path: Path) -> None:
    """A torch Dataset has no columns to read: labels and lengths come from the batches, as the model got them."""
    recorder = RecorderCallback(tmp_path / "run.zarr")
    tiny_trainer(tmp_path / "out", recorder, train=PlainDataset(tiny_rows())).train()
    run = open_run(tmp_path / "run.zarr")
    assert run.train.labels.tolist() == [row["labels"] for row in tiny_rows()]
    assert run.train.length.tolist() == [len(row["input_ids"]) for row in tiny_rows()]
    assert run.train.text == {}
    assert run.train.token_ids is None


# Two processes


def launch(tmp_path: Path, *arguments: str) -> None:
    """Run ``two_processes.py`` as a user would, with torchrun, on this machine's CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path), *arguments], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_two_processes(tmp_path: Path) -> None:
    """41 examples for two: the last batches are filled up with the first examples, which are seen twice then."""
    launch(tmp_path)
    run, model = open_run(tmp_path / "run.zarr"), tiny_model()
    assert [p.epoch for p in run.epochs] == [0, 1]
    for epoch in (0, 1):
        check_pass(run.train, epoch, model, tiny_rows())
        visits = run.train.visits[epoch]
        assert visits.sum() == 48  # 6 batches of 4 for each of the two
        assert set(run.train.step[epoch]) == set(range(6 * epoch, 6 * epoch + 6))
    assert len(run.evals["eval"].passes) == 2
    for index in (0, 1):
        check_pass(run.evals["eval"], index, model, tiny_rows(9, seed=1))
    check_pass(run.evals["test"], 0, model, tiny_rows(9, seed=1))
    names = {path.name for path in (tmp_path / "run.zarr" / "attempts").iterdir() if path.is_dir()}
    assert names == {"a0000_r0000", "a0000_r0001"}
    again = open_run(tmp_path / "run-2.zarr")  # a second training, which both of them record at the same place
    check_pass(again.train, 0, model, tiny_rows())
    assert (tmp_path / "refused").read_text().startswith("2 processes: ")


# How it is stored


def test_compression_and_durability_are_those_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    recorder = RecorderCallback(tmp_path / "run.zarr", compression="bitround", durability="fsync")
    tiny_trainer(tmp_path / "out", recorder, model=model, num_train_epochs=1).train()
    run = open_run(tmp_path / "run.zarr")
    assert run.attributes["storage"] == {"compression": "bitround", "durability": "fsync"}
    states = run.train.hidden_states[0]
    assert (states.view(np.uint16) & 0b111 == 0).all()  # 7 of the 10 mantissa bits are left
    array = zarr.open_group(tmp_path / "run.zarr", mode="r")["train/hidden_states"]
    np.testing.assert_array_equal(array[0], states)
    plain = RecorderCallback(tmp_path / "plain.zarr")
    tiny_trainer(tmp_path / "out", plain, model=model, num_train_epochs=1).train()
    np.testing.assert_allclose(
        states, open_run(tmp_path / "plain.zarr").train.hidden_states[0], rtol=2**-8, atol=2**-14
    )


def test_storage_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="compression='gzip'"):
        RecorderCallback(tmp_path / "run.zarr", compression="gzip")
