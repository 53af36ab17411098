"""Gates on the attention heads of a live model: found, checked against its weights, and set.

A gate multiplies a head's part of the input of its attention's output projection. Gate 0 removes the head, exactly as
if the columns of the projection that read it were zero.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from t3vis.errors import ProbingError
from t3vis.gates import Projection, Trace, listed
from t3vis.probing.model import accepted, forward, probed, rows_of

logger = logging.getLogger(__name__)

Head = tuple[int, int]
"""Layer and head, both from 0; layers as in ``Heads.projections``."""


@dataclass(frozen=True, eq=False)
class Heads:
    """The attention heads of a model, layer by layer: of two stacks first the encoder, then the decoder, then cross.

    A module that several layers share stands there once for each call.
    """

    model: Any
    projections: tuple[Projection, ...]

    @property
    def n_layers(self) -> int:
        """Attentions, not blocks: a decoder block with cross-attention has two."""
        return len(self.projections)

    @property
    def n_heads(self) -> list[int]:
        """Heads of each layer."""
        return [projection.n_heads for projection in self.projections]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and the most heads that one of them has; tables of heads are NaN where a layer has fewer."""
        return self.n_layers, max(self.n_heads)

    def __iter__(self) -> Iterator[Head]:
        return ((layer, head) for layer, n_heads in enumerate(self.n_heads) for head in range(n_heads))

    def __len__(self) -> int:
        return sum(self.n_heads)

    def open(self) -> Tensor:
        """Gates that change nothing, shape (n_layers, most heads)."""
        return torch.ones(self.shape)

    def without(self, heads: Iterable[Head]) -> Tensor:
        """Gates that remove these heads, shape (n_layers, most heads).

        Raises
        ------
        ProbingError
            If the model has no such head.
        """
        gates = self.open()
        for layer, head in heads:
            if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads[layer]):
                known = ", ".join(map(str, sorted(set(self.n_heads))))
                raise ProbingError(
                    f"there is no head ({layer}, {head}): {type(self.model).__name__} has {self.n_layers} attentions "
                    f"of {known} heads, both counted from 0."
                )
            gates[layer, head] = 0
        return gates


def heads_of(model: Any, inputs: Mapping[str, Any]) -> Heads:
    """The heads that a forward pass over a batch goes through, their gates checked against the model's weights.

    Parameters
    ----------
    inputs
        Keywords of the model's forward; the values of a batch, one row for each example.

    Raises
    ------
    ProbingError
        If no projection is found in whose input the heads stand side by side, or a gate of 0 is not the same as
        columns of zeros.
    """
    name = type(model).__name__
    if any(isinstance(getattr(module, "base_layer", None), nn.Module) for module in model.modules()):
        raise ProbingError(
            f"{name} has adapters beside its layers, which gates would pass by; probe what merge_and_unload() returns."
        )
    with probed(model), torch.no_grad():
        trace = Trace(model)
        try:
            forward(model, inputs)
            found, _ = trace.found(rows_of(inputs))
        finally:
            trace.remove()
        if not found.projections:
            missed = f" in {listed(found.missed)}" if found.missed else ""
            raise ProbingError(
                f"{name} cannot be probed by gates: no linear layer{missed} whose input is the heads side by side, one "
                "row for each example."
            )
        if found.missed:
            logger.warning(
                "the heads of %s in %s are left out: no output projection found.", name, listed(found.missed)
            )
        heads = Heads(model, found.projections)
        _check_gates(heads, inputs)
    return heads


@contextmanager
def gated(heads: Heads, gates: Tensor, *, skipped: Mapping[nn.Module, int] | None = None) -> Iterator[None]:
    """Multiply what each head hands on by its gate, in every forward pass within.

    Parameters
    ----------
    gates
        Shape (n_layers, most heads), for all rows of a batch, or (n_layers, n_rows, most heads).
    skipped
        Calls at the beginning of each forward pass that are not made, by module.
    """
    calls: Counter[nn.Module] = Counter()
    layers: dict[nn.Module, list[int]] = {}
    for layer, projection in enumerate(heads.projections):
        layers.setdefault(projection.module, []).append(layer)

    def begin(*_: Any) -> None:
        calls.clear()
        calls.update(skipped or {})

    def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        number = calls[module]
        calls[module] += 1
        layer = layers[module][min(number, len(layers[module]) - 1)]
        own = gates[layer, ..., : heads.n_heads[layer]]
        return None if bool((own == 1).all()) else (scaled(args[0], own), *args[1:])

    handles = [heads.model.register_forward_pre_hook(begin)]
    handles += [module.register_forward_pre_hook(scale) for module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def scaled(x: Tensor, gates: Tensor) -> Tensor:
    """The input of a projection with each head's part multiplied by its gate.

    Parameters
    ----------
    x
        Shape (n_rows, ..., n_heads * width).
    gates
        Shape (n_heads,), or (n_rows, n_heads).

    Examples
    --------
    >>> scaled(torch.ones(1, 2, 4), torch.tensor([0.5, 0]))
    tensor([[[0.5000, 0.5000, 0.0000, 0.0000],
             [0.5000, 0.5000, 0.0000, 0.0000]]])
    """
    width = x.shape[-1] // gates.shape[-1]
    wide = gates.to(x.device, x.dtype).repeat_interleave(width, dim=-1)
    return x * (wide if gates.dim() == 1 else wide.reshape(len(x), *(1,) * (x.dim() - 2), -1))


def columns_of(projection: Projection, head: int) -> slice:
    """The values of the projection's input that a head wrote."""
    width = n_inputs(projection.module) // projection.n_heads
    return slice(head * width, (head + 1) * width)


def n_inputs(module: Any) -> int:
    """Size of a linear layer's input."""
    return int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])


def n_outputs(module: Any) -> int:
    """Size of what a linear layer returns."""
    return int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])


def answer(outputs: Mapping[str, Any]) -> Tensor:
    """What the model answers: its logits (of a span, those of the start), else the first numbers that it returns."""
    for name in ("logits", "start_logits"):
        found = outputs.get(name)
        if isinstance(found, Tensor):
            return found
    return next(v for v in outputs.values() if isinstance(v, Tensor) and v.is_floating_point() and v.dim())


def _check_gates(heads: Heads, inputs: Mapping[str, Any]) -> None:
    """One head of each module is removed, all at once, by its gate and by its weights."""
    chosen = {p.module: number % p.n_heads for number, p in enumerate(heads.projections)}
    removed = [(layer, chosen[p.module]) for layer, p in enumerate(heads.projections)]
    with gated(heads, heads.without(removed)):
        by_gates = answer(forward(heads.model, inputs))
    by_weights = without_columns(heads, removed, inputs)
    size = by_weights.abs().max().clamp(min=torch.finfo(by_weights.dtype).tiny)
    error = float((by_gates - by_weights).abs().max() / size)
    if not error <= (1e-4 if torch.finfo(by_weights.dtype).bits >= 32 else 2e-2):
        raise ProbingError(
            f"the gates of {type(heads.model).__name__} do not do what they should: with one head of each layer at 0 "
            f"the answer is off by {error:.1e} of its size from that with the columns of their weights at 0."
        )


def without_columns(heads: Heads, removed: Iterable[Head], inputs: Mapping[str, Any]) -> Tensor:
    """The model's answer with the columns of the projections that read these heads at zero; the weights stay."""
    names = {id(parameter): name for name, parameter in heads.model.named_parameters()}
    weights: dict[str, Tensor] = {}
    for layer, head in removed:
        projection = heads.projections[layer]
        parameter: Any = projection.module.weight
        name = names[id(parameter)]
        weights.setdefault(name, parameter.detach().clone())
        columns = columns_of(projection, head)
        (weights[name] if isinstance(projection.module, Conv1D) else weights[name].T)[columns] = 0
    call = {"return_dict": True} if "return_dict" in accepted(heads.model) else {}
    return answer(functional_call(heads.model, weights, (), {**inputs, **call}))
