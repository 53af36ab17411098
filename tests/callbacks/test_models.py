"""Models: plain ones, adapted, compiled, checkpointed, in half precision, of ones own; copied and saved meanwhile."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch._dynamo.utils import counters
from transformers import Trainer, TrainerCallback

from t3vis import RecorderCallback, open_run
from tests.callbacks.tiny import (
    LEARNING,
    MODELS,
    OwnModel,
    as_dataset,
    check_pass,
    check_training,
    held_out,
    pad_left,
    recorded,
    refusal,
    tiny_model,
    tiny_rows,
    tiny_trainer,
)


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
    said = "OwnModel: not recorded of train: hidden states (its forward takes no output_hidden_states)."
    assert caplog.text.count(said) == 1


class Copies(TrainerCallback):
    """Keeps a copy of the model, as an exponential moving average does, and calls it in mid-step."""

    def __init__(self) -> None:
        self.copies: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.copies.append(copy.deepcopy(kwargs["model"]))
        self.copies[-1](torch.tensor([[5, 6]]))


class AsksACopy(Trainer):
    """Calls a copy of the model, with gradient, before the model itself."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        copy.deepcopy(model)(input_ids=inputs["input_ids"], attention_mask=torch.ones_like(inputs["input_ids"]))
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_copies_of_the_model_are_not_recorded(tmp_path: Path) -> None:
    model, callback = tiny_model(), Copies()
    recorder = RecorderCallback(tmp_path / "run.zarr")
    tiny_trainer(tmp_path / "out", recorder, model=model, callbacks=[callback], trainer_class=AsksACopy).train()
    assert len(callback.copies) == 22
    check_training(open_run(tmp_path / "run.zarr").train, model, tiny_rows())


class Saves(TrainerCallback):
    """Saves the whole model in mid-training."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            torch.save(kwargs["model"], self.path)


def test_the_model_can_be_saved_whole_during_training_and_after(tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, model=model, callbacks=[Saves(tmp_path / "during.pt")], num_train_epochs=1)
    torch.save(model, tmp_path / "after.pt")
    for name in ("during.pt", "after.pt"):
        saved = torch.load(tmp_path / name, weights_only=False)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in saved.modules())
        check_training(run.train, saved, tiny_rows(), n_epochs=1)
        assert b"t3vis" not in (tmp_path / name).read_bytes()


# Wrapped and adapted


def lora(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, init_lora_weights=False, **settings)
    return get_peft_model(tiny_model(), config)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # peft uses it
def test_peft_lora(tmp_path: Path) -> None:
    model = lora(target_modules=["query", "value"])
    run = recorded(tmp_path, model=model, eval_dataset=held_out(), eval_strategy="epoch")
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
    with model.disable_adapter(), pytest.raises(AssertionError, match="logits of example"):
        check_training(run.train, model, tiny_rows())  # the adapter's outputs are others than those without it


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_peft_prompt_tuning_has_more_states_than_tokens(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    model = get_peft_model(tiny_model(), config)
    message = refusal(tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), model=model, **LEARNING))
    assert "give a pooling function that knows which tokens to pool, or hidden_states=None" in message


class Wrapper(nn.Module):
    """A module of ones own around a model of transformers, which returns a dict without its hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None, **kwargs: Any) -> dict[str, Any]:
        return {**self.inner(input_ids, attention_mask, labels=labels, **kwargs)}


def test_a_module_around_a_model(tmp_path: Path) -> None:
    """It takes any keyword, but nobody can know whether it hands them on: hidden states are not asked for."""
    model = Wrapper()
    run = recorded(tmp_path, model=model)
    check_training(run.train, model.inner, tiny_rows(), layers=None)


CHECKPOINTING: dict[str, dict[str, Any]] = {
    "plain": {},
    "reentrant": {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    "every second layer": {"activation_checkpointing_kwargs": {"every_n_layers": 2}},
}


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_activation_checkpointing(name: str, tmp_path: Path) -> None:
    model = tiny_model()
    run = recorded(tmp_path, model=model, activation_checkpointing=True, **CHECKPOINTING[name])
    check_training(run.train, model, tiny_rows())


# Half precision


class HalfPrecision(Trainer):
    """Autocast to float16, which ``fp16=True`` does on GPUs only."""

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        return torch.autocast("cpu", dtype=torch.float16)


AUTOCAST: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "bf16": ({"bf16": True}, torch.bfloat16),
    "fp16": ({"trainer_class": HalfPrecision}, torch.float16),
}


@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast(name: str, tmp_path: Path) -> None:
    """Rows are those of the pass in half precision; what is recorded of them is float32, and float16 for the states."""
    settings, dtype = AUTOCAST[name]
    model = tiny_model()
    run = recorded(tmp_path, model=model, eval_dataset=held_out(), eval_strategy="epoch", **settings)
    check_training(run.train, model, tiny_rows(), tolerance=5e-2)
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1), tolerance=5e-2)
    logits = run.train.logits[0]
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(torch.tensor(logits).to(dtype).float().numpy(), logits)


def test_a_model_in_bfloat16(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    run = recorded(tmp_path, model=model)
    check_training(run.train, model, tiny_rows(), tolerance=5e-2)


# Compiled


COMPILED: dict[str, dict[str, Any]] = {
    "by the Trainer": {"torch_compile": True, "torch_compile_backend": "eager"},
    "by the user": {},
}


def n_graphs(output_dir: Path, recorder: RecorderCallback | None, model: Any, name: str) -> tuple[int, int]:
    """Graph breaks and graphs of a compiled training with evaluations.

    Frames are not counted: a finalizer that runs while the model does, of an object of another test, is one too.
    """
    torch._dynamo.reset()
    counters.clear()
    if name == "by the user":
        model.compile(backend="eager")
    settings = {"eval_dataset": held_out(), "eval_strategy": "epoch", **COMPILED[name]}
    tiny_trainer(output_dir, recorder, model=model, **settings).train()
    found = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    return found


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_models_have_no_graph_break_added(name: str, tmp_path: Path) -> None:
    plain = n_graphs(tmp_path / "out", None, tiny_model(), name)
    assert plain[1] > 0
    found = n_graphs(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), tiny_model(), name)
    assert all(number <= before for number, before in zip(found, plain, strict=True)), (found, plain)
    run, model = open_run(tmp_path / "run.zarr"), tiny_model()
    check_training(run.train, model, tiny_rows())
    check_pass(run.evals["eval"], 1, model, tiny_rows(9, seed=1))
