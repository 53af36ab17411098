"""The model that is probed: taken from a checkpoint or from memory, called in eval mode, left as it was."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from t3vis.errors import ProbingError

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_CAPTURING = "_output_capturing_hooks_installed"  # how transformers marks a model that has its hooks
_IMPLEMENTATION = "_attn_implementation_internal"


@contextmanager
def probed(model: Any) -> Iterator[Any]:
    """The model in eval mode, no parameter of which asks for a gradient; afterwards everything is as it was.

    That is the mode of each module, what each parameter asks for and the gradient it holds (within, it holds none),
    hooks, the attention implementation, and the random numbers that will be drawn. Weights are nobody's to change.
    """
    with ExitStack() as stack:
        for kept in (_modes, _gradients, _hooks, _implementations):
            stack.enter_context(kept(model))
        stack.enter_context(torch.random.fork_rng(_devices(model)))
        model.eval()
        yield model


@contextmanager
def _modes(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        model.train(modes[model])  # a model of one's own may do more than to set the modes
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in before:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, asks, gradient in before:
            parameter.requires_grad_(asks)
            parameter.grad = gradient


@contextmanager
def _hooks(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    before = [[getattr(module, name).copy() for name in _HOOKS] for module in modules]
    marks = [vars(module).get(_CAPTURING) for module in modules]
    try:
        yield
    finally:
        for module, kept, mark in zip(modules, before, marks, strict=True):
            for name, hooks in zip(_HOOKS, kept, strict=True):
                now = getattr(module, name)
                now.clear()
                now.update(hooks)
            if mark is None:
                vars(module).pop(_CAPTURING, None)


@contextmanager
def _implementations(model: nn.Module) -> Iterator[None]:
    before = [(config, getattr(config, _IMPLEMENTATION, None)) for config in _configs(model)]
    try:
        yield
    finally:
        for config, implementation in before:
            setattr(config, _IMPLEMENTATION, implementation)


def use_attention(model: nn.Module, implementation: str) -> None:
    """Another attention implementation in all parts of a model, until the end of ``probed``."""
    for config in _configs(model):
        setattr(config, _IMPLEMENTATION, implementation)


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """The configs of the model and its parts, each once."""
    found: dict[int, PreTrainedConfig] = {}
    waiting = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


def _devices(model: nn.Module) -> list[int]:
    """Indices of the CUDA devices that the model is on, whose random numbers are kept beside those of the CPU."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    return sorted(device.index for device in devices)


def load_model(path: str | Path) -> Any:
    """The model of a checkpoint, in eval mode, as the class that it was saved as.

    Parameters
    ----------
    path
        A folder that ``save_pretrained`` or a Trainer wrote.

    Raises
    ------
    ProbingError
        If there is none, or its class is none of transformers'.
    """
    folder = Path(path)
    if (folder / "adapter_config.json").is_file():
        raise ProbingError(f"{folder} holds an adapter only; merge it into its model (merge_and_unload) and save that.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ProbingError(f"{folder} is no checkpoint of a model: {error}; give a folder with config.json.") from error
    names = config.get("architectures") or []
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None:
        raise ProbingError(
            f"{folder} holds a model of class {names[0] if names else 'unknown'}, which transformers does not have; "
            "load it yourself and pass the model."
        )
    return kind.from_pretrained(folder, local_files_only=True).eval()


def forward(model: Any, inputs: Mapping[str, Any], **more: Any) -> Any:
    """What the model returns for a batch, as a mapping; it fills no cache, where it has one."""
    wanted = {"return_dict": True, "use_cache": False}
    known = accepted(model)
    return model(**inputs, **{name: value for name, value in wanted.items() if name in known}, **more)


def accepted(model: Any) -> set[str]:
    """The keywords that a model's forward takes: by name, or, where it takes any, as its config knows them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter of PEFT takes anything
    parameters = inspect.signature(inner.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    said = {name for name in ("return_dict", "use_cache") if anything and hasattr(getattr(model, "config", None), name)}
    return {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD} | said


def example_inputs(model: Any) -> dict[str, Tensor]:
    """A few made-up examples that the model can be called with: five tokens each, the last the end, or empty pictures.

    Raises
    ------
    ProbingError
        If it takes neither tokens nor pictures.
    """
    config: Any = getattr(model, "config", None)
    main = getattr(model, "main_input_name", "input_ids")
    device = device_of(model)
    if main == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        return {main: torch.zeros(3, getattr(config, "num_channels", 3), size, size, device=device)}
    if main != "input_ids" or config is None:
        raise ProbingError(
            f"cannot make up inputs of {type(model).__name__}; find its heads with heads_of(model, inputs)."
        )
    text = config.get_text_config()
    end = text.eos_token_id if isinstance(text.eos_token_id, int) else None
    plain = [number for number in range(min(text.vocab_size, 20)) if number not in (end, text.pad_token_id)]
    ids = torch.tensor([[plain[(row + place) % len(plain)] for place in range(5)] for row in range(3)], device=device)
    if end is not None:
        ids[:, -1] = end
    return {"input_ids": ids, **({"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {})}


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def rows_of(inputs: Mapping[str, Any]) -> int:
    """How many examples a batch has."""
    return next(len(value) for value in inputs.values() if isinstance(value, Tensor))
