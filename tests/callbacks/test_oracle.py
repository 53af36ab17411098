"""THE oracle: with learning rate 0 and dropout 0, every recorded row equals a fresh pass on its example alone.

Whatever shuffles, shards, prefetches, pads, accumulates or wraps must not move a row to another example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from t3vis import RecorderCallback, Run, open_run
from tests.callbacks.tiny import (
    MODELS,
    N_CLASSES,
    NumberedStream,
    OwnModel,
    PlainDataset,
    alone,
    as_dataset,
    check_pass,
    check_training,
    pad,
    pad_left,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)


def recorded(tmp_path: Path, *, recorder: dict[str, Any] | None = None, **trainer: Any) -> Run:
    """Train with the recorder, and open what it recorded."""
    tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr", **(recorder or {})), **trainer).train()
    return open_run(tmp_path / "run.zarr")


# Sampling, loading, accumulating

SETTINGS: dict[str, tuple[dict[str, Any], int]] = {  # arguments of the Trainer, optimizer steps per epoch
    "shuffled, ragged last batch": ({}, 11),
    "sequential": ({"train_sampling_strategy": "sequential"}, 11),
    "group_by_length": ({"train_sampling_strategy": "group_by_length"}, 11),
    "one batch": ({"per_device_train_batch_size": 64}, 1),
    "batches of one": ({"per_device_train_batch_size": 1, "num_train_epochs": 2}, 41),
    "accumulation 4, ragged": ({"gradient_accumulation_steps": 4}, 3),
    "accumulation 11, even": ({"gradient_accumulation_steps": 11}, 1),
    "2 workers": ({"dataloader_num_workers": 2}, 11),
    "2 persistent workers": ({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, 11),
    "2 workers and accumulation": ({"dataloader_num_workers": 2, "gradient_accumulation_steps": 4}, 3),
    "all columns kept": ({"remove_unused_columns": False}, 11),
    "activation checkpointing": ({"activation_checkpointing": True}, 11),
    "max_steps": ({"max_steps": 22}, 11),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_loop(name: str, tmp_path: Path) -> None:
    settings, n_steps = SETTINGS[name]
    model = tiny_model()
    run = recorded(tmp_path, model=model, **settings)
    check_training(run.train, model, tiny_rows(), n_steps=n_steps)


def test_sequential_steps_are_those_of_the_batches(tmp_path: Path) -> None:
    settings = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": 4}
    run = recorded(tmp_path, **settings)
    np.testing.assert_array_equal(run.train.step[0], np.arange(41) // 16)
    np.testing.assert_array_equal(run.train.step[1], 3 + np.arange(41) // 16)
    assert [(p.step, p.last_step) for p in run.epochs] == [(0, 2), (3, 5)]


def test_drop_last_leaves_the_rest_unseen(tmp_path: Path) -> None:
    model, rows = tiny_model(), tiny_rows()
    settings = {"dataloader_drop_last": True, "train_sampling_strategy": "sequential"}
    run = recorded(tmp_path, model=model, **settings)
    check_training(run.train, model, rows, seen=range(40), n_steps=10)


class WithReplacement(Trainer):
    """Draws each example as often as chance has it."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        weights = torch.ones(len(self.train_dataset))
        generator = torch.Generator().manual_seed(3)
        return torch.utils.data.WeightedRandomSampler(weights, 60, generator=generator)


def test_sampling_with_replacement_counts_every_visit(tmp_path: Path) -> None:
    model, rows = tiny_model(), tiny_rows()
    run = recorded(tmp_path, model=model, trainer_class=WithReplacement, num_train_epochs=1)
    drawn = list(WithReplacement._get_train_sampler(type("Self", (), {"train_dataset": rows})()))  # type: ignore[arg-type]
    np.testing.assert_array_equal(run.train.visits[0], np.bincount(drawn, minlength=len(rows)))
    check_pass(run.train, 0, model, rows, seen=set(drawn))
    first = {example: position // 4 for position, example in reversed(list(enumerate(drawn)))}
    assert {i: int(run.train.step[0, i]) for i in first} == first


# Datasets


def shuffled() -> tuple[Any, list[dict[str, Any]]]:
    order = np.random.default_rng(5).permutation(41).tolist()
    return as_dataset(tiny_rows()).select(order), [tiny_rows()[i] for i in order]


def selected() -> tuple[Any, list[dict[str, Any]]]:
    return as_dataset(tiny_rows()).select(range(3, 30)), tiny_rows()[3:30]


def shuffled_by_datasets() -> tuple[Any, list[dict[str, Any]]]:
    dataset = as_dataset(tiny_rows()).shuffle(seed=1)
    position = {row["text"]: i for i, row in enumerate(tiny_rows())}
    return dataset, [tiny_rows()[position[text]] for text in dataset["text"]]


def torch_format() -> tuple[Any, list[dict[str, Any]]]:
    columns = ["input_ids", "attention_mask", "labels"]
    return as_dataset(tiny_rows()).with_format("torch", columns=columns, output_all_columns=True), tiny_rows()


def transformed() -> tuple[Any, list[dict[str, Any]]]:
    """The model sees other tokens than the columns hold: nothing static may be told of its labels."""
    dataset = as_dataset(tiny_rows())
    dataset.set_transform(lambda batch: {key: batch[key] for key in ("input_ids", "attention_mask", "labels")})
    return dataset, tiny_rows()


DATASETS = {
    "datasets.Dataset": lambda: (as_dataset(tiny_rows()), tiny_rows()),
    "put in another order": shuffled,
    "shuffled": shuffled_by_datasets,
    "selected": selected,
    "with_format torch": torch_format,
    "torch Dataset": lambda: (PlainDataset(tiny_rows()), tiny_rows()),
    "list of dicts": lambda: (tiny_rows(), tiny_rows()),
}


@pytest.mark.parametrize("remove_unused_columns", [True, False])
@pytest.mark.parametrize("name", DATASETS)
def test_datasets(name: str, remove_unused_columns: bool, tmp_path: Path) -> None:
    train, rows = DATASETS[name]()
    model = tiny_model()
    run = recorded(tmp_path, model=model, train=train, remove_unused_columns=remove_unused_columns)
    check_training(run.train, model, rows)
    if isinstance(train, datasets.Dataset):
        assert run.train.text["text"][:] == [row["text"] for row in rows]
        ids = run.train.token_ids
        assert ids is not None
        assert [ids[i].tolist() for i in range(len(rows))] == [row["input_ids"] for row in rows]


def test_a_dataset_with_a_transform(tmp_path: Path) -> None:
    train, rows = transformed()
    model = tiny_model()
    run = recorded(tmp_path, model=model, train=train, remove_unused_columns=False)
    check_training(run.train, model, rows)
    assert run.train.text["text"][7] == rows[7]["text"]


class OwnLoader(Trainer):
    """Trains on its dataset in reverse: the row numbers are not those of ``train_dataset``."""

    def get_train_dataloader(self) -> Any:
        backwards = self.train_dataset.select(range(len(self.train_dataset) - 1, -1, -1))
        loader = torch.utils.data.DataLoader(backwards, batch_size=4, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


def test_a_loader_over_another_dataset_is_taken_at_its_word(tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, model=model, trainer_class=OwnLoader)
    check_training(run.train, model, tiny_rows()[::-1])
    assert run.train.text["text"][0] == tiny_rows()[-1]["text"]


ORDER = np.random.default_rng(9).permutation(41).tolist()


def stream_of_datasets() -> Any:
    numbered = as_dataset(tiny_rows()).map(lambda row, i: {"number": i}, with_indices=True)
    return numbered.select(ORDER).to_iterable_dataset(num_shards=2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["datasets", "torch"])
def test_streams_with_an_id_column(kind: str, workers: int, tmp_path: Path) -> None:
    if kind == "torch" and workers:
        workers = 1  # each worker would go through all of it
    train = stream_of_datasets() if kind == "datasets" else NumberedStream(tiny_rows(), ORDER)
    model = tiny_model()
    settings = {"max_steps": 22, "dataloader_num_workers": workers}
    run = recorded(tmp_path, recorder={"id_column": "number"}, model=model, train=train, **settings)
    check_training(run.train, model, tiny_rows())
    assert run.train.n_examples == 41


# Losses


class KeywordLoss(Trainer):
    """Pops the labels and calls the model by keyword, as many custom losses do."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


class TeacherFirst(Trainer):
    """Asks the model without gradient, for other rows, before the pass that is trained."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            model(input_ids=inputs["input_ids"].flip(0), attention_mask=inputs["attention_mask"].flip(0))
        return super().compute_loss(model, inputs, *args, **kwargs)


class AskedTwice(Trainer):
    """Two passes with gradient: the first one counts."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        second = model(input_ids=inputs["input_ids"].flip(0), attention_mask=inputs["attention_mask"].flip(0))
        return loss + 0 * second.logits.sum() if isinstance(loss, Tensor) else loss


def focal(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    log_probs = F.log_softmax(outputs.logits, -1)[torch.arange(len(labels)), labels]
    return (-((1 - log_probs.exp()) ** 2) * log_probs).mean()


LOSSES: dict[str, tuple[dict[str, Any], str | None]] = {  # settings, what the store says is trained instead
    "of the model": ({}, None),
    "label smoothing": ({"label_smoothing_factor": 0.1}, "cross-entropy with label smoothing 0.1"),
    "compute_loss_func": ({"options": {"compute_loss_func": focal}}, "the function focal"),
    "overridden compute_loss": ({"trainer_class": KeywordLoss}, "the compute_loss of KeywordLoss"),
    "no-grad pass before": ({"trainer_class": TeacherFirst}, "the compute_loss of TeacherFirst"),
    "second pass after": ({"trainer_class": AskedTwice}, "the compute_loss of AskedTwice"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, tmp_path: Path) -> None:
    settings, objective = LOSSES[name]
    model = tiny_model()
    eval_dataset = as_dataset(tiny_rows(9, seed=1))
    run = recorded(tmp_path, model=model, eval_dataset=eval_dataset, eval_strategy="epoch", **settings)
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
    said = run.train.loss.attributes
    assert said["differs_from_trained"] == (objective is not None)
    assert objective is None or said["trained_objective"] == objective
    assert said["loss"] == "cross-entropy, nats"


def test_a_compute_loss_put_on_the_instance_differs_too(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), num_train_epochs=1)
    own = trainer.compute_loss
    trainer.compute_loss = lambda *args, **kwargs: 2 * own(*args, **kwargs)  # type: ignore[method-assign]
    trainer.train()
    assert open_run(tmp_path / "run.zarr").train.loss.attributes["differs_from_trained"]


# Models


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    run = recorded(tmp_path, model=model)
    check_training(run.train, model, tiny_rows())


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_on_the_left(pooling: str, tmp_path: Path) -> None:
    model = tiny_model("llama")  # its positions are relative: padding on the left changes nothing
    run = recorded(tmp_path, recorder={"pooling": pooling}, model=model, options={"data_collator": pad_left})
    check_training(run.train, model, tiny_rows(), pooling=pooling)


@pytest.mark.parametrize("hidden_states", ["all", None])
def test_a_model_that_returns_tuples(hidden_states: Any, tmp_path: Path) -> None:
    model = tiny_model(return_dict=False)
    eval_dataset = as_dataset(tiny_rows(9, seed=1))
    recorder = {"hidden_states": hidden_states}
    run = recorded(tmp_path, recorder=recorder, model=model, eval_dataset=eval_dataset, eval_strategy="epoch")
    layers = None if hidden_states is None else (0, 1, 2)
    check_training(run.train, model, tiny_rows(), layers=layers)
    check_pass(run.evals["eval"], 0, model, tiny_rows(9, seed=1), layers=layers)


def test_a_module_of_ones_own_has_no_hidden_states(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = OwnModel()
    run = recorded(tmp_path, model=model)
    assert run.train.arrays == ["logits", "loss", "step", "visits"]
    for i, row in enumerate(tiny_rows()):
        own = model(torch.tensor([row["input_ids"]]), torch.tensor([row["attention_mask"]]))["logits"][0]
        np.testing.assert_allclose(run.train.logits[1, i], own.detach().numpy(), rtol=1e-5, atol=1e-6)
        own_loss = torch.logsumexp(own, 0) - own[row["labels"]]
        np.testing.assert_allclose(run.train.loss[1, i], own_loss.item(), rtol=1e-5, atol=1e-6)
    assert "OwnModel returns no hidden states (its forward takes no output_hidden_states)" in caplog.text


# Pooling and layers


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_pooling(pooling: str, tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, recorder={"pooling": pooling}, model=model)
    check_training(run.train, model, tiny_rows(), pooling=pooling)
    assert run.train.hidden_states.attributes["pooling"] == pooling


def spread(states: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the tokens, beside the number of them."""
    highest = states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    return torch.cat([highest, mask.sum(1, keepdim=True)], 1)


def test_a_pooling_of_ones_own(tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, recorder={"pooling": spread}, model=model, num_train_epochs=1)
    assert run.train.hidden_states.shape == (1, 3, 41, 17)
    for i, row in enumerate(tiny_rows()):
        _, states = alone(model, row)
        np.testing.assert_allclose(run.train.hidden_states[0, :, i, :-1], states.max(1), rtol=2e-3, atol=2e-3)
        assert (run.train.hidden_states[0, :, i, -1] == len(row["input_ids"])).all()
    assert run.train.hidden_states.attributes["pooling"] == "spread"


@pytest.mark.parametrize(
    ("hidden_states", "layers"), [("all", (0, 1, 2)), ("last", (2,)), ([0, -1], (0, 2)), ((1,), (1,)), (None, None)]
)
def test_layers(hidden_states: Any, layers: Any, tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, recorder={"hidden_states": hidden_states}, model=model)
    check_training(run.train, model, tiny_rows(), layers=layers)


# Tasks


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression(outputs: int, tmp_path: Path) -> None:
    def values(rng: np.random.Generator) -> Any:
        drawn = rng.normal(size=outputs).astype(np.float32).tolist()
        return drawn[0] if outputs == 1 else drawn

    model, rows = tiny_model(num_labels=outputs, problem_type="regression"), tiny_rows(label=values)
    run = recorded(tmp_path, model=model, train=as_dataset(rows))
    check_training(run.train, model, rows, task="regression")
    assert run.train.attributes["task"] == "regression"


@pytest.mark.parametrize("train", [as_dataset, PlainDataset], ids=["datasets.Dataset", "torch Dataset"])
def test_multi_label(train: Any, tmp_path: Path) -> None:
    def classes(rng: np.random.Generator) -> list[float]:
        return rng.integers(0, 2, N_CLASSES).astype(float).tolist()

    model, rows = tiny_model(), tiny_rows(label=classes)
    run = recorded(tmp_path, model=model, train=train(rows))
    check_training(run.train, model, rows, task="multi_label")
    assert run.train.attributes["task"] == "multi_label"


# Evaluations


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_by_epoch(workers: int, tmp_path: Path) -> None:
    model, rows, held_out = tiny_model(), tiny_rows(), tiny_rows(10, seed=1)
    settings = {"dataloader_num_workers": workers, "dataloader_persistent_workers": bool(workers)}
    run = recorded(tmp_path, model=model, eval_dataset=as_dataset(held_out), eval_strategy="epoch", **settings)
    check_training(run.train, model, rows, n_steps=11)
    evaluations = run.evals["eval"]
    assert [(p.epoch, p.step, p.n_seen, p.sealed) for p in evaluations.passes] == [(1, 11, 10, True), (2, 22, 10, True)]
    for index in (0, 1):
        check_pass(evaluations, index, model, held_out)
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
    model, held_out = tiny_model(), tiny_rows(10, seed=1)
    stream = NumberedStream(held_out, [3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    run = recorded(tmp_path, recorder={"id_column": "number"}, model=model, eval_dataset=stream, eval_strategy="epoch")
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, held_out)


def test_evaluation_without_labels(tmp_path: Path) -> None:
    model, held_out = tiny_model(), tiny_rows(10, seed=1)
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), model=model)
    unlabelled = as_dataset([{k: v for k, v in row.items() if k != "labels"} for row in held_out])
    trainer.predict(unlabelled)
    split = open_run(tmp_path / "run.zarr").evals["test"]
    check_pass(split, 0, model, held_out, has_labels=False)
    assert "loss" not in split.arrays
    assert (split.labels == -1).all()


class ReadsTheLoader(TrainerCallback):
    """Goes through the training loader itself, and gives the model what comes out of it."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        batch: dict[str, Tensor] = next(iter(kwargs["train_dataloader"]))
        kwargs["model"](**batch)


def test_another_callback_may_read_the_training_loader(tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, model=model, callbacks=[ReadsTheLoader()])
    check_training(run.train, model, tiny_rows())


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


# By hand


class Constant(nn.Module):
    """Hidden states and logits known beforehand: token t of the input becomes the vector (t, -t)."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> dict[str, Any]:
        vectors = torch.stack([input_ids, -input_ids], -1).float() + 0 * self.weight
        logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(len(input_ids), 1) + 0 * self.weight
        outputs: dict[str, Any] = {"loss": logits.mean(), "logits": logits}
        return {**outputs, "hidden_states": (vectors, 10 * vectors)} if output_hidden_states else outputs

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


HAND_ROWS = [
    {"input_ids": [1, 2, 6], "attention_mask": [1, 1, 1], "labels": 2},
    {"input_ids": [4], "attention_mask": [1], "labels": 0},
]
BY_HAND: dict[str, list[float]] = {"mean": [3.0, 4.0], "first": [1.0, 4.0], "last": [6.0, 4.0]}


@pytest.mark.parametrize("pooling", BY_HAND)
def test_values_worked_out_by_hand(pooling: str, tmp_path: Path) -> None:
    run = recorded(
        tmp_path, recorder={"pooling": pooling}, model=Constant(), train=as_dataset(HAND_ROWS), num_train_epochs=1
    )
    first: NDArray[np.float16] = run.train.hidden_states[0, 0]
    np.testing.assert_array_equal(first, [[value, -value] for value in BY_HAND[pooling]])
    np.testing.assert_array_equal(run.train.hidden_states[0, 1], 10 * first)
    np.testing.assert_array_equal(run.train.logits[0], [[0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(run.train.loss[0], [0.40760596, 2.40760596], rtol=1e-6)  # log(1 + e + e^2) - logit
    assert run.train.length.tolist() == [3, 1]
    assert run.train.labels.tolist() == [2, 0]


def test_pad_is_what_it_says() -> None:
    batch = pad([{"input_ids": [5], "attention_mask": [1]}, {"input_ids": [7, 8], "attention_mask": [1, 1]}])
    assert batch["input_ids"].tolist() == [[5, 0], [7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
