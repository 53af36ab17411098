"""Probe passes: the model as it is between two steps, in eval mode, with nothing of the training disturbed."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate.utils import is_compiled_module
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from t3vis.callbacks.example_ids import check_identity
from t3vis.errors import ConfigurationError

ProbeAt = Literal["begin", "epoch", "end"]
SPLIT = "probe"


@dataclass(frozen=True)
class Probe:
    """What is probed, and when; see the parameters of ``RecorderCallback``.

    Raises
    ------
    ConfigurationError
        If it is no dataset, or a time is not known.
    """

    dataset: Any
    at: Sequence[ProbeAt]

    def __post_init__(self) -> None:
        is_dataset = isinstance(self.dataset, IterableDataset) or hasattr(self.dataset, "__getitem__")
        if self.dataset != "train" if isinstance(self.dataset, str) else not is_dataset:
            raise ConfigurationError(f"probe={self.dataset!r}: expected a dataset, 'train', or None.")
        times = get_args(ProbeAt)
        if isinstance(self.at, str) or not self.at or not set(self.at) <= set(times):
            raise ConfigurationError(
                f"probe_at={self.at!r}: expected some of {', '.join(map(repr, times))} in a tuple."
            )

    def of(self, train_dataset: Any, id_column: str | None) -> Any:
        """The dataset that is probed in a training on ``train_dataset``.

        Raises
        ------
        ConfigurationError
            If it is a stream that training reads, too, or that does not number its examples.
        """
        if not isinstance(self.dataset, str):
            check_identity(self.dataset, id_column)
            return self.dataset
        if isinstance(train_dataset, IterableDataset):
            raise ConfigurationError(
                "probe='train' reads the training set between two epochs, which may use up a stream or move it on; "
                "give a dataset of its own: probe=dataset."
            )
        return train_dataset

    def n_passes(self, n_epochs: int) -> int:
        """How many there will be in a training of so many epochs."""
        return ("begin" in self.at) + (n_epochs if "epoch" in self.at else int("end" in self.at))

    @property
    def attributes(self) -> dict[str, Any]:
        """What the split says of what is probed: ``"train"``, or ``"dataset"`` for one of its own."""
        return {"probe": "train" if isinstance(self.dataset, str) else "dataset"}


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[nn.Module]:
    """The Trainer's model in eval mode, without gradients; afterwards everything is as it was.

    That is the mode of each module, the random numbers that will be drawn, what has been compiled, what autocast keeps,
    and which loaders accelerate knows. The model is called as it is, not through what spreads it over processes.
    """
    model: Any = trainer.model
    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_random_states_kept())
        stack.enter_context(_loaders_kept(trainer.accelerator))
        stack.enter_context(_casts_kept())
        if any(is_compiled_module(module) or module._compiled_call_impl is not None for module in modes):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        model.eval()
        try:
            yield model
        finally:
            model.train(modes[model])  # a model of one's own may do more than to set the modes
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the states that the training draws from
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def _casts_kept() -> Iterator[None]:
    """Within an autocast of the user's, which keeps casts of weights: leave none, and take no old ones."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextmanager
def _loaders_kept(accelerator: Any) -> Iterator[None]:
    """Have accelerate forget the loaders that it is given in here; their states would go into its checkpoints."""
    state = accelerator.gradient_state
    before, open_now = list(accelerator._dataloaders), state.dataloader_references
    try:
        yield
    finally:
        accelerator._dataloaders[:] = before
        state.dataloader_references = open_now  # one that was left in its middle takes itself for open


def call_arguments(trainer: Trainer, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model is called with: as the Trainer does, without what only its loss takes."""
    given = dict(inputs)
    if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
        given.pop("labels", None)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter of PEFT takes anything
    parameters = inspect.signature(inner.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def what_is_probed(trainer: Trainer, at: ProbeAt) -> tuple[int, dict[str, Any]]:
    """The step whose model the Trainer has now, and what the pass says of it.

    At the end of a training that may be the step of the best model, not the last one.
    """
    state, said = trainer.state, {"at": at}
    if at == "end" and trainer.args.load_best_model_at_end and state.best_global_step:
        return state.best_global_step, {**said, "model_step": state.best_global_step}
    return state.global_step, said


def refusal(error: Exception) -> ConfigurationError:
    """What to say before the first step where the model cannot be probed."""
    if isinstance(error, ConfigurationError):
        return error
    return ConfigurationError(
        f"the probe cannot be recorded: {type(error).__name__}: {error}; give probe= a dataset whose batches the model "
        "takes, or leave it out."
    )


def rows_of_process(trainer: Trainer, n_examples: int | None) -> int:
    """How many of the examples this process is to probe, at least; 0 where it is not known."""
    return len(range(trainer.args.process_index, n_examples or 0, trainer.args.world_size))
