"""Samplers and datasets: whichever example comes when, its row is its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Sampler, WeightedRandomSampler
from transformers import Trainer

from t3vis import ConfigurationError, RecorderCallback
from tests.callbacks.tiny import (
    NumberedStream,
    PlainDataset,
    as_dataset,
    check_pass,
    check_training,
    recorded,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)

# Samplers


class EvensFirst(Sampler[int]):
    """Even row numbers downwards, then the odd ones upwards."""

    def __iter__(self) -> Iterator[int]:
        yield from [*range(40, -1, -2), *range(1, 41, 2)]

    def __len__(self) -> int:
        return 41


class OwnSampler(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return EvensFirst()


SAMPLING: dict[str, tuple[dict[str, Any], int]] = {  # arguments of the Trainer, optimizer steps per epoch
    "random": ({}, 11),
    "sequential": ({"train_sampling_strategy": "sequential"}, 11),
    "group_by_length": ({"train_sampling_strategy": "group_by_length"}, 11),
    "batch_rebalance": ({"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2}, 6),
    "a sampler of ones own": ({"trainer_class": OwnSampler}, 11),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_samplers(name: str, tmp_path: Path) -> None:
    settings, n_steps = SAMPLING[name]
    model = tiny_model()
    run = recorded(tmp_path, model=model, **settings)
    if name == "batch_rebalance":  # it fills up the last step with examples that it has drawn before
        for epoch in (0, 1):
            check_pass(run.train, epoch, model, tiny_rows())
        assert run.train.visits[:].sum() > 2 * 41
        return
    check_training(run.train, model, tiny_rows(), n_steps=n_steps)
    if name == "a sampler of ones own":
        assert run.train.step[0, [40, 34, 32, 1, 39]].tolist() == [0, 0, 1, 5, 10]


class WithReplacement(Trainer):
    """Draws each example as often as chance has it."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        weights = torch.ones(len(self.train_dataset))
        generator = torch.Generator().manual_seed(3)
        return WeightedRandomSampler(weights, 60, generator=generator)


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


@pytest.mark.parametrize("largest", [2**24, 3_000_000_000])
def test_a_stream_whose_ids_are_no_row_numbers(largest: int, tmp_path: Path) -> None:
    """Arrays are as long as the largest id: a hash in its place would take all memory."""
    rows = tiny_rows()
    rows[2]["number"] = largest
    stream = as_dataset([{"number": i, **row} for i, row in enumerate(rows)]).to_iterable_dataset()
    recorder = RecorderCallback(tmp_path / "run.zarr", id_column="number")
    trainer = tiny_trainer(tmp_path / "out", recorder, train=stream, max_steps=11)
    with pytest.raises(ConfigurationError, match=rf"expected example ids from 0 to 16777215, found {largest}"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not recorder.path.exists()


def test_the_ids_of_a_stream_may_have_gaps(tmp_path: Path) -> None:
    model, rows = tiny_model(), tiny_rows()
    stream = NumberedStream(rows, range(0, 41, 3))
    run = recorded(tmp_path, recorder={"id_column": "number"}, model=model, train=stream, max_steps=4)
    check_pass(run.train, 0, model, rows, seen=range(0, 41, 3))
    assert run.epochs[0].n_never == 41 - 14 - 1  # the largest id that was seen is 39
