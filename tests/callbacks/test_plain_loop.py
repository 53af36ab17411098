"""A loop without a Trainer: each row is that of its example, and what comes in the wrong order is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from t3vis import ConfigurationError, Recorder, RecordingError, open_run
from tests.callbacks.test_non_interference import assert_same_weights, with_dropout
from tests.callbacks.tiny import (
    NumberedStream,
    OwnModel,
    PlainDataset,
    as_dataset,
    check_pass,
    check_training,
    held_out,
    pad,
    tiny_model,
    tiny_rows,
)

ROWS = tiny_rows()


def batches(rows: Any, seed: int | None = None, size: int = 4) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Ids and batch, in order or shuffled."""
    order = list(range(len(rows)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    for start in range(0, len(order), size):
        ids = order[start : start + size]
        yield ids, pad([rows[i] for i in ids])


def trains(path: Path, model: Any, *, n_epochs: int = 2, dataset: Any = None, **settings: Any) -> None:
    """A loop as its users write it."""
    model.train()
    with Recorder(path, model, dataset=as_dataset(ROWS) if dataset is None else dataset, **settings) as recorder:
        for epoch in range(n_epochs):
            with recorder.epoch(epoch):
                for ids, batch in batches(ROWS, seed=epoch):
                    with recorder.step(ids, labels=batch["labels"]):
                        model(**batch)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bart"])
def test_each_row_is_that_of_its_example(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    trains(tmp_path / "run.zarr", model)
    run = open_run(tmp_path / "run.zarr")
    check_training(run.train, model, ROWS, n_steps=11)
    assert run.train.attributes["arrays"]["loss"]["trained_objective"] == "that of the loop"
    assert run.missing_rows == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_causal_language_model(kind: str, tmp_path: Path) -> None:
    """The label of a token is the one that follows it, as the model's own loss has it."""

    def own_tokens(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    model = tiny_model(kind, auto=AutoModelForCausalLM).train()
    with Recorder(tmp_path / "run.zarr", model, dataset=PlainDataset(ROWS)) as recorder, recorder.epoch(0):
        for ids, batch in batches(ROWS, seed=0):
            with recorder.step(ids):
                model(**own_tokens(batch))
    loss = open_run(tmp_path / "run.zarr").train.loss[0]
    model.eval()
    with torch.no_grad():
        expected = [float(model(**own_tokens(pad([row]))).loss) for row in ROWS]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def positional(model: Any, batch: dict[str, Tensor]) -> Any:
    return model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"])


def logits_only(model: Any, batch: dict[str, Tensor]) -> Any:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def teacher_first(model: Any, batch: dict[str, Tensor]) -> Any:
    with torch.no_grad():
        model(**pad(tiny_rows(len(batch["labels"]), seed=9)))
    return model(**batch)


@pytest.mark.parametrize("call", [positional, logits_only, teacher_first])
@pytest.mark.parametrize("as_ids", [list, np.array, torch.tensor])
def test_however_the_model_is_called(call: Callable[..., Any], as_ids: Any, tmp_path: Path) -> None:
    model = tiny_model().train()
    with Recorder(tmp_path / "run.zarr", model, dataset=PlainDataset(ROWS)) as recorder, recorder.epoch(0):
        for ids, batch in batches(ROWS, seed=0):
            with recorder.step(as_ids(ids), labels=batch["labels"]):
                call(model, batch)
    check_pass(open_run(tmp_path / "run.zarr").train, 0, model, ROWS)


def test_labels_and_mask_may_be_given_where_the_model_is_called_without(tmp_path: Path) -> None:
    """A model that knows its inputs by other names."""

    class Renamed(OwnModel):
        def forward(self, tokens: Tensor, present: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return super().forward(tokens, present)

    model = Renamed().train()
    with Recorder(tmp_path / "run.zarr", model, dataset=as_dataset(ROWS)) as recorder, recorder.epoch(0):
        for ids, batch in batches(ROWS):
            with recorder.step(ids, labels=batch["labels"], attention_mask=batch["attention_mask"]):
                model(batch["input_ids"], batch["attention_mask"])
    run = open_run(tmp_path / "run.zarr")
    same = OwnModel()
    with torch.no_grad():
        expected = same(**{name: value for name, value in pad(ROWS).items() if name != "labels"})["logits"]
    np.testing.assert_allclose(run.train.logits[0], expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(run.train.loss[0]).all()


@pytest.mark.parametrize("how", ["module", "in place"])
def test_a_compiled_model(how: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = tiny_model(num_hidden_layers=1)
    called: Any = torch.compile(model, backend="eager") if how == "module" else model
    if how == "in place":
        model.compile(backend="eager")
    trains(tmp_path / "run.zarr", called, n_epochs=1)
    torch._dynamo.reset()
    check_pass(open_run(tmp_path / "run.zarr").train, 0, tiny_model(num_hidden_layers=1), ROWS, layers=(0, 1))


def test_weights_are_the_same_with_and_without(tmp_path: Path) -> None:
    models = []
    for watched in (False, True):
        model = with_dropout().train()
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        recorder = Recorder(tmp_path / "run.zarr", model, dataset=as_dataset(ROWS)) if watched else None
        for epoch in range(2):
            opened = recorder.epoch(epoch) if recorder else torch.enable_grad()
            with opened:
                for ids, batch in batches(ROWS, seed=epoch):
                    with recorder.step(ids, labels=batch["labels"]) if recorder else torch.enable_grad():
                        model(**batch).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        if recorder:
            recorder.close()
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        models.append(model)
    assert_same_weights(*models)
    assert not torch.equal(models[0].classifier.weight, with_dropout().classifier.weight)


def test_evaluations_stand_between_epochs_or_within_one(tmp_path: Path) -> None:
    model, rows = tiny_model().train(), tiny_rows(9, seed=1)
    with Recorder(tmp_path / "run.zarr", model, dataset=as_dataset(ROWS)) as recorder:

        def evaluate(name: str) -> None:
            model.eval()
            with recorder.evaluation(name, held_out()), torch.no_grad():
                for ids, batch in batches(rows):
                    with recorder.step(ids):
                        model(**batch)
            model.train()

        evaluate("before")
        for epoch in range(2):
            with recorder.epoch(epoch):
                for number, (ids, batch) in enumerate(batches(ROWS, seed=epoch)):
                    with recorder.step(ids):
                        model(**batch)
                    if number == 4:
                        evaluate("within")
    run = open_run(tmp_path / "run.zarr")
    check_training(run.train, model, ROWS, n_steps=11)
    assert [p.step for p in run.evals["before"].passes] == [0]
    assert [p.step for p in run.evals["within"].passes] == [5, 16]
    for split in run.evals.values():
        assert (split.kind, split.attributes["mode"]) == ("eval", "eval")
        check_pass(split, len(split.passes) - 1, model, rows)


def test_micro_batches_of_one_optimizer_step(tmp_path: Path) -> None:
    model = tiny_model().train()
    with Recorder(tmp_path / "run.zarr", model, dataset=as_dataset(ROWS)) as recorder, recorder.epoch(0):
        for number, (ids, batch) in enumerate(batches(ROWS)):
            with recorder.step(ids, global_step=number // 4):
                model(**batch)
    assert open_run(tmp_path / "run.zarr").train.step[0].tolist() == [i // 16 for i in range(41)]


def test_resumption_and_save_points(tmp_path: Path) -> None:
    """The loop dies in mid-epoch, and goes on from what it saved after eight steps."""
    model, path, saved = tiny_model().train(), tmp_path / "run.zarr", tmp_path / "model.pt"
    recorder = Recorder(path, model, dataset=as_dataset(ROWS))

    def is_interrupted() -> None:
        with recorder, recorder.epoch(0):
            for number, (ids, batch) in enumerate(batches(ROWS)):
                if number == 8:
                    torch.save(model.state_dict(), saved)
                    recorder.save_point(saved)
                if number == 10:
                    raise KeyboardInterrupt
                with recorder.step(ids):
                    model(**batch)

    with pytest.raises(KeyboardInterrupt):
        is_interrupted()
    run = open_run(path)
    assert (run.train.visits[0] > 0).sum() == 40
    found = run.epochs[0].checkpoint
    assert found is not None
    assert (found.step, found.path) == (8, saved)
    with Recorder(path, model, dataset=as_dataset(ROWS), resume=True, global_step=8) as again, again.epoch(0):
        for ids, batch in list(batches(ROWS))[8:]:
            with again.step(ids):
                model(**batch)
    run = open_run(path)
    check_training(run.train, model, ROWS, n_epochs=1, n_steps=11)
    assert {int(step) for step in run.train.step[0][32:]} == {8, 9, 10}
    assert run.epochs[0].checkpoint == found


# What is refused


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[Recorder, Any]]:
    model = tiny_model().train()
    with Recorder(tmp_path / "run.zarr", model, dataset=as_dataset(ROWS), on_error="raise") as recorder:
        yield recorder, model


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 41], "ids from 0 to 41, but train has 41 examples"),
        ([-1, 3], "ids from -1 to 3, but train has 41 examples"),
        ([0.0, 1.0], "expected a whole number for each example"),
        ([[0], [1]], "ids of shape .2, 1. and type"),
        ([True, False], "expected a whole number"),
        ([], "expected a whole number"),
    ],
    ids=str,
)
def test_ids_that_are_none(ids: Any, message: str, begun: tuple[Recorder, Any]) -> None:
    recorder, model = begun
    with recorder.epoch(0):
        for good, batch in [*batches(ROWS)][:3]:  # also when all has gone well so far
            with recorder.step(good):
                model(**batch)
        with pytest.raises(ConfigurationError, match=message), recorder.step(ids):
            pass
    recorder.close()
    assert open_run(recorder.path).epochs[0].n_seen == 12


def test_more_rows_than_ids(begun: tuple[Recorder, Any]) -> None:
    recorder, model = begun
    four_for_three = pytest.raises(ConfigurationError, match="4 rows of logits for 3 examples")
    with recorder.epoch(0), four_for_three, recorder.step([0, 1, 2]):
        model(**pad(ROWS[:4]))
    assert not recorder.path.exists()


ORDERS: dict[str, tuple[Callable[[Recorder], Any], str]] = {
    "a step by itself": (lambda r: r.step([0]).__enter__(), "no epoch or evaluation is going on"),
    "an epoch that was": (lambda r: [enter(r.epoch(1)), r.epoch(1).__enter__()], r"epoch\(1\) after epoch\(1\)"),
    "an earlier epoch": (lambda r: [enter(r.epoch(1)), r.epoch(0).__enter__()], r"epoch\(0\) after epoch\(1\)"),
    "two epochs": (lambda r: nested(r.epoch(0), r.epoch(1)), r"epoch\(1\) within epoch 0: end that one first"),
    "two steps": (lambda r: nested(r.epoch(0), r.step([0]), r.step([1])), r"step\(\) within a step"),
    "two evaluations": (
        lambda r: nested(r.evaluation("a", held_out()), r.evaluation("b", held_out())),
        "evaluation.'b'. within the evaluation 'a'",
    ),
    "an epoch in an evaluation": (
        lambda r: nested(r.evaluation("a", held_out()), r.epoch(0)),
        r"epoch\(0\) within the evaluation 'a'",
    ),
    "an evaluation in a step": (
        lambda r: nested(r.epoch(0), r.step([0]), r.evaluation("a", held_out())),
        "evaluation.'a'. within a step",
    ),
    "train mode in an evaluation": (
        lambda r: nested(r.evaluation("a", held_out()), r.step([0])),
        r"the model is in train mode in an evaluation; call model.eval\(\) first",
    ),
    "a step after the end": (lambda r: [r.close(), r.step([0]).__enter__()], "the recorder is closed"),
    "an epoch after the end": (lambda r: [r.close(), r.epoch(0).__enter__()], "the recorder is closed"),
    "a save point after the end": (lambda r: [r.close(), r.save_point()], "the recorder is closed"),
    "an evaluation named train": (lambda r: enter(r.evaluation("train", held_out())), "choose another one"),
    "an evaluation of a stream": (
        lambda r: enter(r.evaluation("a", NumberedStream(ROWS, range(41)))),
        "NumberedStream has no length",
    ),
}


def enter(manager: Any) -> None:
    with manager:
        pass


def nested(first: Any, *others: Any) -> None:
    with first:
        if others:
            nested(*others)


@pytest.mark.parametrize("name", ORDERS)
def test_calls_in_the_wrong_order(name: str, begun: tuple[Recorder, Any]) -> None:
    recorder, _ = begun
    act, message = ORDERS[name]
    with pytest.raises(ConfigurationError, match=message):
        act(recorder)


def test_a_model_in_eval_mode_is_not_trained(begun: tuple[Recorder, Any]) -> None:
    recorder, model = begun
    model.eval()
    with recorder.epoch(0), pytest.raises(ConfigurationError, match="eval mode in an epoch"), recorder.step([0]):
        pass


def test_a_step_in_which_the_model_is_not_called(begun: tuple[Recorder, Any]) -> None:
    recorder, model = begun
    with recorder.epoch(0):
        with recorder.step([0, 1, 2, 3]):
            model(**pad(ROWS[:4]))
        refused = pytest.raises(RecordingError, match="the model was not called for a gradient")
        with refused, recorder.step([4]), torch.no_grad():
            model(**pad(ROWS[4:5]))
    recorder.close()
    assert open_run(recorder.path).missing_rows == 1


def test_training_without_labels(begun: tuple[Recorder, Any]) -> None:
    recorder, model = begun
    with recorder.epoch(0), pytest.raises(ConfigurationError, match="called without labels"), recorder.step([0]):
        logits_only(model, pad(ROWS[:1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": NumberedStream(ROWS, range(41))}, "NumberedStream has no length"),
        ({"resume": True}, "do not go together"),
        ({"global_step": 5}, "do not go together"),
        ({"hidden_states": "first"}, "hidden_states='first'"),
        ({"pooling": "max"}, "pooling='max'"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Recorder(tmp_path / "run.zarr", tiny_model(), **{"dataset": as_dataset(ROWS), **settings})
    assert not (tmp_path / "run.zarr").exists()
