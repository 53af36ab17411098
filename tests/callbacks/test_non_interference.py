"""With the recorder and without it, a training is the same: weights, history, outputs, random numbers, files."""

from __future__ import annotations

import gc
import json
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, set_seed
from transformers.trainer_callback import ExportableState

from t3vis import RecorderCallback, open_run
from tests.callbacks.tiny import OwnModel, as_dataset, pad, tiny_model, tiny_rows, tiny_trainer

LEARNING = {
    "learning_rate": 1e-2,
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "logging_steps": 1,
}


def with_dropout(kind: str = "bert") -> Any:
    names = {"gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"), "llama": ("attention_dropout",)}
    return tiny_model(
        kind, **dict.fromkeys(names.get(kind, ("hidden_dropout_prob", "attention_probs_dropout_prob")), 0.3)
    )


def accuracy(prediction: Any) -> dict[str, float]:
    """Fails if anything but logits was gathered."""
    assert isinstance(prediction.predictions, np.ndarray)
    assert prediction.predictions.shape == (len(prediction.label_ids), 3)
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def held_out() -> Any:
    return as_dataset(tiny_rows(9, seed=1))


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def trained(
    output_dir: Path, recorder: RecorderCallback | None, model: Any = None, **settings: Any
) -> tuple[Trainer, tuple[Any, ...]]:
    """A Trainer after training, and the states of the random number generators then."""
    settings = {"eval_dataset": held_out(), **LEARNING, **settings}
    set_seed(7)
    trainer = tiny_trainer(output_dir, recorder, model=with_dropout() if model is None else model, **settings)
    trainer.train()
    return trainer, random_states()


def both(tmp_path: Path, **settings: Any) -> tuple[Trainer, Trainer]:
    """The same training without and with the recorder; the random numbers drawn are compared here."""
    model, heads = settings.pop("model", with_dropout), settings.pop("heads", False)
    plain, plain_states = trained(tmp_path / "out", None, model(), **settings)
    recorder = RecorderCallback(tmp_path / "run.zarr", heads=heads)
    watched, watched_states = trained(tmp_path / "out", recorder, model(), **settings)
    assert plain_states == watched_states
    return plain, watched


def assert_same_weights(plain: Any, watched: Any) -> None:
    expected, found = plain.state_dict(), watched.state_dict()
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    def timed(key: str) -> bool:
        return key.endswith(("_runtime", "_per_second", "_preparation_time"))

    return [{key: value for key, value in entry.items() if not timed(key)} for entry in history]


def next_tokens(rows: Any) -> Any:
    """Collate: the labels of a language model are its inputs."""
    batch = pad(rows)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def language_model() -> Any:
    return tiny_model("gpt2", auto=AutoModelForCausalLM, resid_pdrop=0.3)


TRAININGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "gpt2": {"model": lambda: with_dropout("gpt2")},
    "llama": {"model": lambda: with_dropout("llama")},
    "heads": {"heads": True},
    "heads of layers that share a module": {"heads": True, "model": lambda: with_dropout("albert")},
    "heads and activation checkpointing": {"heads": True, "activation_checkpointing": True},
    "tuples": {"model": lambda: tiny_model(hidden_dropout_prob=0.3, return_dict=False)},
    "scores of tokens": {"model": language_model, "options": {"data_collator": next_tokens}},
    "workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "num_train_epochs": 2},
    "activation checkpointing": {"activation_checkpointing": True, "num_train_epochs": 2},
    "label smoothing and metrics": {"label_smoothing_factor": 0.1, "options": {"compute_metrics": accuracy}},
}


@pytest.mark.parametrize("name", TRAININGS)
def test_weights_and_history_are_the_same(name: str, tmp_path: Path) -> None:
    plain, watched = both(tmp_path, **TRAININGS[name])
    assert_same_weights(plain.model, watched.model)
    before = with_dropout() if name == "bert" else None
    assert before is None or not torch.equal(before.classifier.weight, plain.model.classifier.weight)
    history = without_times(plain.state.log_history)
    assert history == without_times(watched.state.log_history)
    assert len(history) > 10
    run = open_run(tmp_path / "run.zarr")
    assert [p.n_seen for p in run.epochs] == [41] * len(run.epochs)
    assert run.train.hidden_states.shape[1] == 3


def test_training_rows_are_those_of_the_training_pass(tmp_path: Path) -> None:
    """Dropout was on: the loss that the Trainer logs is the mean of those recorded, not that of a pass without it."""
    trainer, _ = trained(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), gradient_accumulation_steps=1)
    run = open_run(tmp_path / "run.zarr")
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    steps, loss = run.train.step[:], run.train.loss[:]
    np.testing.assert_allclose([loss[steps == step].mean() for step in range(len(logged))], logged, rtol=1e-4)


def test_evaluate_and_predict_return_the_same(tmp_path: Path) -> None:
    plain, watched = both(tmp_path, num_train_epochs=1, options={"compute_metrics": accuracy})
    expected, found = plain.evaluate(), watched.evaluate()
    assert without_times([expected]) == without_times([found])
    expected, found = plain.predict(held_out()), watched.predict(held_out())
    np.testing.assert_array_equal(expected.predictions, found.predictions)
    np.testing.assert_array_equal(expected.label_ids, found.label_ids)
    assert without_times([expected.metrics]) == without_times([found.metrics])


def test_who_asks_for_hidden_states_gets_them(tmp_path: Path) -> None:
    def model() -> Any:
        return tiny_model(output_hidden_states=True)

    plain, watched = both(tmp_path, model=model, num_train_epochs=1, eval_strategy="no")
    expected, found = plain.predict(as_dataset(tiny_rows(4, seed=1))), watched.predict(as_dataset(tiny_rows(4, seed=1)))
    assert [np.shape(part) for part in found.predictions] == [(4, 3), (3, 4, 12, 16)] or len(found.predictions) == 2
    for mine, theirs in zip(found.predictions[1], expected.predictions[1], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert open_run(tmp_path / "run.zarr").train.hidden_states.shape == (1, 3, 41, 16)


def test_the_model_is_as_it_was(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr", heads=True)
    trainer, _ = trained(tmp_path / "out", recorder, num_train_epochs=1)
    trainer.evaluate()
    for module in trainer.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not [name for name in vars(module) if "hooks_installed" in name]
    torch.save(trainer.model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_same_weights(trainer.model, loaded)


def test_hooks_that_were_there_stay(tmp_path: Path) -> None:
    model, calls = with_dropout(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    model(torch.tensor([[5, 6]]), output_hidden_states=True)  # transformers puts its own hooks on now
    before = {id(module): list(module._forward_hooks) for module in model.modules()}
    trained(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), model, num_train_epochs=1)
    assert {id(module): list(module._forward_hooks) for module in model.modules()} == before
    assert len(calls) > 1


def test_checkpoints_hold_nothing_of_ours(tmp_path: Path) -> None:
    recorder = RecorderCallback(tmp_path / "run.zarr")
    assert not isinstance(recorder, ExportableState)
    trained(tmp_path / "out", recorder, num_train_epochs=1, save_strategy="epoch")
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    state = (checkpoint / "trainer_state.json").read_text()
    assert "stateful_callbacks" in json.loads(state)
    assert "t3vis" not in state
    assert "Recorder" not in state
    trained(tmp_path / "plain", None, num_train_epochs=1, save_strategy="epoch")
    plain = tmp_path / "plain" / checkpoint.name
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in plain.iterdir()}


def test_only_this_trainer_is_wrapped(tmp_path: Path) -> None:
    before = {name: getattr(Trainer, name) for name in dir(Trainer) if callable(getattr(Trainer, name))}
    recorder = RecorderCallback(tmp_path / "run.zarr")
    trainer, _ = trained(tmp_path / "out", recorder, num_train_epochs=1)
    assert {name: getattr(Trainer, name) for name in before} == before
    recorder.detach()
    assert not [name for name, value in vars(trainer).items() if callable(value) and name in before]


def test_loaders_asked_for_carry_no_ids(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), eval_dataset=held_out())
    loaders = (
        trainer.get_train_dataloader,
        trainer.get_eval_dataloader,
        lambda: trainer.get_test_dataloader(held_out()),
    )
    for loader in loaders:
        assert set(next(iter(loader()))) == {"input_ids", "attention_mask", "labels"}


class Ends(TrainerCallback):
    """Has the recorder stop after five steps."""

    def __init__(self, recorder: RecorderCallback, how: str) -> None:
        self.recorder, self.how = recorder, how
        self.trainer: Any = None  # a weak reference: a circle would let the workers wait for each other at the end

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5 and self.how == "remove":
            self.trainer.remove_callback(self.recorder)
        elif state.global_step == 5:
            self.recorder.detach()


@pytest.mark.parametrize("how", ["remove", "detach"])
def test_who_stops_in_the_middle_disturbs_nothing(how: str, tmp_path: Path) -> None:
    """Batches that are under way carry ids still; a model that takes no more than it knows must not see them."""
    settings = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "num_train_epochs": 2}
    settings |= {"gradient_accumulation_steps": 1}
    plain, _ = trained(tmp_path / "out", None, OwnModel(), **settings)
    recorder = RecorderCallback(tmp_path / "run.zarr")
    ends = Ends(recorder, how)
    set_seed(7)
    options = {**LEARNING, **settings, "eval_dataset": held_out(), "callbacks": [ends]}
    trainer = tiny_trainer(tmp_path / "out", recorder, model=OwnModel(), **options)
    ends.trainer = weakref.proxy(trainer)
    trainer.train()
    assert_same_weights(plain.model, trainer.model)
    assert without_times([plain.evaluate()]) == without_times([trainer.evaluate()])
    run = open_run(tmp_path / "run.zarr")
    assert (run.train.visits[0] > 0).sum() == 20
    assert [p.step for p in run.evals["eval"].passes] == [2, 4]
    assert run.missing_rows == 0
    assert not any(module._forward_hooks for module in trainer.model.modules())


@pytest.mark.parametrize("use", [Trainer.train, Trainer.evaluate], ids=["train", "evaluate"])
def test_the_trainer_is_freed_when_it_is_let_go(use: Callable[[Trainer], Any], tmp_path: Path) -> None:
    """A circle of references would keep model and loaders until the next garbage collection."""
    recorder = RecorderCallback(tmp_path / "run.zarr")
    gc.collect()
    gc.disable()
    try:
        trainer = tiny_trainer(tmp_path / "out", recorder, eval_dataset=held_out(), num_train_epochs=1)
        use(trainer)
        alive = weakref.ref(trainer.model), weakref.ref(trainer)
        del trainer
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()
    recorder.detach()
