"""The life of a recorder: trainings, evaluations, resumptions, interruptions, and what the store says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
import zarr
from transformers import PreTrainedTokenizerFast, TrainerCallback

from t3vis import ConfigurationError, RecorderCallback, StoreError, open_run
from tests.callbacks.tiny import (
    PlainDataset,
    as_dataset,
    check_pass,
    check_training,
    held_out,
    pad,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

# Trainings and evaluations one after another


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


# How it is stored


def test_compression_and_durability_are_those_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    recorder = RecorderCallback(tmp_path / "run.zarr", compression="bitround", durability="fsync")
    tiny_trainer(tmp_path / "out", recorder, model=model, num_train_epochs=1).train()
    run = open_run(tmp_path / "run.zarr")
    assert run.attributes["storage"] == {"compression": "bitround", "durability": "fsync", "keep_epochs": None}
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
