"""Finding the attention heads of any model, for the recorder and for probing alike, and the gradient of their gates.

A head is found by the output projection in whose input the heads stand side by side; a gate is a number that the
head's part of that input is multiplied by.

No table of architectures: one forward pass is followed. An attention is a module that is named so and says how many
heads it has, or how wide they are. Its output projection is the last linear layer that it calls, if that is given what
the attention has computed itself, else the one that is given what it returns. What does not fit is named, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

Attention = Literal["self", "encoder", "decoder", "cross"]

_ORDER: dict[Attention, int] = {"self": 0, "encoder": 0, "decoder": 1, "cross": 2}
_IS_ATTENTION = re.compile("atten|attn", re.IGNORECASE)
_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
_WIDTHS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")


@dataclass(frozen=True)
class Projection:
    """The output projection of one attention: its input (..., n_heads * width) holds the heads one after another.

    ``attention`` is ``self``, or in a model of two stacks ``encoder``, ``decoder`` or ``cross``; ``caller`` is the
    module that computed the heads, which may or may not call the projection itself.
    """

    name: str
    module: nn.Module
    attention: Attention
    n_heads: int
    caller: nn.Module


@dataclass(frozen=True)
class Found:
    """The projections that a forward pass went through, in order of layers, and attentions whose heads it did not show.

    A module that several layers share stands there as often as it was called. ``missed`` are names of modules.
    """

    projections: tuple[Projection, ...]
    missed: tuple[str, ...]


@dataclass
class _Call:
    """One call of an attention; the linear layers called ``within`` it, and ``next`` with what it returned."""

    attention: nn.Module
    given: list[Tensor]
    within: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    returned: list[Tensor] = field(default_factory=list)
    next: tuple[nn.Module, Tensor] | None = None

    @property
    def projection(self) -> tuple[nn.Module, Tensor] | None:
        """The output projection and its input; ``None`` if there is none."""
        if not self.within:  # what goes on from an attention without linear layers is projected already (XLNet)
            return None
        *others, (module, x) = self.within
        taken = [*self.given, *(other for _, other in others)]
        rows = [tensor.shape[:-1] for tensor in self.given]
        if not _holds(taken, x) and module not in dict(others) and x.shape[:-1] in rows:
            return module, x
        return self.next

    @property
    def n_sources(self) -> int:
        """How many of the tensors that it was given go straight into a linear layer; keys may have another source."""
        return len({id(x) for _, x in self.within if _holds(self.given, x)})


class Trace:
    """Hooks that follow one forward pass through the attentions of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._attentions = attentions(model)
        self._calls: list[_Call] = []
        self._running: list[_Call] = []

        def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(_Call(module, _tensors((*args, *kwargs.values()))))

        def leaves(_: nn.Module, __: Any, outputs: Any) -> None:
            call = self._running.pop()
            call.returned = _tensors(outputs if isinstance(outputs, tuple | list) else (outputs,))
            self._calls.append(call)

        def projects(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                self._project(module, args[0])

        self._handles: list[RemovableHandle] = []
        for attention in self._attentions:
            self._handles.append(attention.register_forward_pre_hook(enters, with_kwargs=True))
            self._handles.append(attention.register_forward_hook(leaves))
        self._handles += [module.register_forward_pre_hook(projects) for module in linear_layers(model)]

    def _project(self, module: nn.Module, x: Tensor) -> None:
        if self._running:
            self._running[-1].within.append((module, x))
            return
        for call in reversed(self._calls):
            if call.next is None and _holds(call.returned, x):
                call.next = module, x
                return

    def found(self, n_rows: int) -> tuple[Found, list[Tensor]]:
        """What the pass showed, whose batch had ``n_rows`` rows, and the input of each projection."""
        config, found = getattr(self._model, "config", None), set()
        encoder = _encoder(self._model) if getattr(config, "is_encoder_decoder", False) else None
        has_cross = encoder is not None or getattr(config, "add_cross_attention", False)
        pairs: list[tuple[Projection, Tensor]] = []
        for call in self._calls:
            if call.projection is None:
                continue
            module, x = call.projection
            heads = n_heads(call.attention, x.shape[-1])
            if heads is not None and len(x) == n_rows:
                kind: Attention = "self" if encoder is None else "encoder" if call.attention in encoder else "decoder"
                kind = "cross" if has_cross and call.n_sources > 1 else kind
                pairs.append((Projection(self._names[module], module, kind, heads, call.attention), x))
                found.add(call.attention)
        pairs.sort(key=lambda pair: _ORDER[pair[0].attention])
        missed = tuple(self._names[attention] for attention in self._attentions if attention not in found)
        return Found(tuple(projection for projection, _ in pairs), missed), [x for _, x in pairs]

    def remove(self) -> None:
        """Take the hooks off the model, and let go of the pass."""
        for handle in self._handles:
            handle.remove()
        self._calls, self._running = [], []


def attentions(model: nn.Module) -> list[nn.Module]:
    """Modules that are an attention by name, and say how many heads they have or how wide these are; the innermost."""
    named = [module for module in model.modules() if _IS_ATTENTION.search(type(module).__name__) and _knows(module)]
    return [module for module in named if not any(inner in named for inner in module.modules() if inner is not module)]


def linear_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Linear layers; of those that an adapter (PEFT) wraps only the layer itself."""
    added = set()
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, nn.Module):
            added |= set(module.modules()) - set(base.modules())
    return (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module not in added)


def n_heads(attention: nn.Module, width: int) -> int | None:
    """Number of heads that share ``width`` values, by what the attention says of itself; ``None`` if that disagrees.

    Examples
    --------
    >>> attention = nn.Module()
    >>> attention.head_dim = 8
    >>> n_heads(attention, 32)
    4
    >>> attention.num_heads = 2
    >>> n_heads(attention, 32) is None, n_heads(attention, 16)
    (True, 2)
    """
    number, each = _number(attention, _HEADS), _number(attention, _WIDTHS)
    if number is None and each is not None and width % each == 0:
        return width // each
    if number is None or width % number or (each is not None and number * each != width):
        return None
    return number


def layer_attributes(projections: Sequence[Projection]) -> dict[str, list[Any]]:
    """What the store says of the axis ``layer``: the module, kind and number of heads of each."""
    return {
        "modules": [projection.name for projection in projections],
        "attention": [projection.attention for projection in projections],
        "n_heads": [projection.n_heads for projection in projections],
    }


def gate_gradients(x: Tensor, gradient: Tensor, n_examples: int, n_heads: int) -> Tensor:
    """Gradient of a gate on each head, of each example.

    Parameters
    ----------
    x, gradient
        The input of an output projection and the loss's gradient there, shape (n_rows, ..., n_heads * width); the rows
        of an example stand together.

    Returns
    -------
    Shape (n_examples, n_heads), float32.

    References
    ----------
    Michel et al. (2019), "Are Sixteen Heads Really Better than One?", equation 2, there in absolute value and summed
    over examples; Molchanov et al. (2019), "Importance Estimation for Neural Network Pruning", section 3.

    Examples
    --------
    >>> import torch
    >>> x, gradient = torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([[[1.0, 1, 0, -1]]])
    >>> gate_gradients(x, gradient, 1, 2)
    tensor([[ 3., -4.]])
    """
    products = x.float() * gradient.detach().float()
    return products.reshape(n_examples, -1, n_heads, x.shape[-1] // n_heads).sum((1, 3))


def listed(names: Sequence[str]) -> str:
    """The names, or the first of many.

    Examples
    --------
    >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b, c and 2 more')
    """
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _encoder(model: Any) -> set[nn.Module]:
    """Modules of the encoder of a model that has two stacks."""
    return set(model.get_encoder().modules())


def _knows(module: nn.Module) -> bool:
    return _number(module, _HEADS) is not None or _number(module, _WIDTHS) is not None


def _number(module: nn.Module, names: Sequence[str]) -> int | None:
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]


def _holds(tensors: Sequence[Tensor], x: Tensor) -> bool:
    return any(tensor is x for tensor in tensors)
