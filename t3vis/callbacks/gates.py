"""The gradient of a gate on each attention head, read as the training backward pass comes by.

Multiply what a head hands on by a gate g = 1: the loss of an example then has the gradient dL/dg = sum of x * dL/dx
over the example's tokens and the head's values, with x the input of the output projection. The backward pass computes
dL/dx anyway; nothing is added to it, and nothing in it is changed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_compiled_module
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.scales import OwnLoss, loss_scales
from t3vis.errors import ConfigurationError
from t3vis.gates import Found, Projection, Trace, gate_gradients, listed

logger = logging.getLogger(__name__)

_CAST = "ToCopyBackward0"  # autograd's name for a copy in another type


class GateGradients:
    """What the backward pass of one forward pass is to leave: for each layer the gate gradients of its heads.

    ``own``, where it is known before the backward pass, says which part of the gradient at the logits is to be kept.
    ``error`` is what went wrong in reading them.
    """

    def __init__(self, projections: tuple[Projection, ...], n_examples: int, n_rows: int) -> None:
        self.projections = projections
        self._n_examples, self._n_rows = n_examples, n_rows
        self._layers: list[Tensor | None] = [None] * len(projections)
        self._watched: set[int] = set()
        self._at_logits: Tensor | None = None
        self._is_whole = False
        self.own: OwnLoss | None = None
        self.error: Exception | None = None

    def watch(self, layer: int, x: Tensor) -> None:
        """Read the gradient that comes back to ``x``, the input of a layer's projection; the first that has one."""
        if layer in self._watched or not x.requires_grad or len(x) != self._n_rows:
            return
        self._watched.add(layer)
        value, n_heads = x.detach(), self.projections[layer].n_heads  # x itself would hold on to the graph

        def read(gradient: Tensor) -> None:
            try:
                found = gate_gradients(value, gradient, self._n_examples, n_heads)
                before = self._layers[layer]
                self._layers[layer] = found if before is None else before + found
            except Exception as error:  # noqa: BLE001  whatever it is, the backward pass is not to suffer from it
                self.error = error

        x.register_hook(read)  # type: ignore[no-untyped-call]

    def watch_logits(self, logits: Tensor) -> None:
        """Read the gradient that comes back to the logits: it tells how the loss that is trained was scaled."""
        node, output = logits.grad_fn, logits.output_nr
        while node is not None and node.name() == _CAST:  # autocast hands out a copy that the loss may not know of
            node, output = node.next_functions[0]
        if node is None:
            return

        def read(gradients: tuple[Any, ...]) -> None:
            try:
                if gradients[output] is not None:
                    self._add_at_logits(gradients[output].detach())
            except Exception as error:  # noqa: BLE001  as above
                self.error = error

        node.register_prehook(read)

    def _add_at_logits(self, gradient: Tensor) -> None:
        self._is_whole = self.own is None
        found = gradient if self.own is None else self.own.rows_of(gradient)
        self._at_logits = found if self._at_logits is None else self._at_logits + found

    @property
    def unread(self) -> list[str]:
        """Modules of the layers that no gradient has come back to."""
        return [p.name for p, layer in zip(self.projections, self._layers, strict=True) if layer is None]

    def per_example(self, own: OwnLoss) -> Tensor:
        """Gate gradients of each example's own loss, that of ``own``.

        Returns
        -------
        Shape (n_layers, n, n_heads), float32. NaN where it is not known: no gradient came back to the layer, the layer
        has fewer heads, or what came back to the logits is not a multiple of the gradient of the own loss.
        """
        most = max(projection.n_heads for projection in self.projections)
        size = len(self._layers), self._n_examples, most
        values = torch.full(size, torch.nan, device=own.gradient.device)
        if self._at_logits is None:
            return values
        for number, layer in enumerate(self._layers):
            if layer is not None:
                values[number, :, : layer.shape[1]] = layer.to(values.device)
        arrived = own.rows_of(self._at_logits) if self._is_whole else self._at_logits
        return values / loss_scales(arrived, own.gradient)[:, None]


class Gates:
    """Hooks in front of the attention output projections of one model; the first pass shows which these are.

    A step may call the model several times, and activation checkpointing runs parts of it again in the backward pass:
    between ``begin`` and ``end`` is the pass that counts. The hooks are on the model only for the time of a step, and
    the calls of a copy that is made in a step are not taken for the model's own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: Found | None = None
        self._model = model
        self._trace: Trace | None = None
        self._handles: list[RemovableHandle] = []
        self._layers: dict[nn.Module, list[int]] = {}
        self._running: GateGradients | None = None
        self._ended: GateGradients | None = None
        self._n_passes = 0
        self._n_calls: Counter[nn.Module] = Counter()
        self._size = 0, 0
        self._is_on = False

    def put_on(self) -> None:
        """Beginning of a step."""

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if module in self._layers and args and isinstance(args[0], Tensor):
                self._reached(module, args[0])

        self._is_on = True
        self._handles = [module.register_forward_pre_hook(before) for module in self._layers]

    def take_off(self) -> None:
        """End of a step: leave the model as it was."""
        self._leave()
        self._n_passes, self._ended, self._is_on = 0, None, False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, batch: Batch | None) -> None:
        """A pass for a gradient begins: of this micro-batch, or one that does not count."""
        self._leave()
        self._n_passes += 1
        if batch is None or not self._is_on:
            return
        self._size = len(batch.ids), batch.n_rows
        if self.found is None:
            self._trace = Trace(self._model)
        elif self.found.projections:
            self._running = GateGradients(self.found.projections, *self._size)

    def end(self, outputs: Any) -> GateGradients | None:
        """The pass is over: what its backward pass is going to leave, ``None`` for a model without heads."""
        if self._trace is not None:
            self._learn(self._trace)
        ended = self._running
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        if ended is not None and isinstance(logits, Tensor):
            ended.watch_logits(logits)
        self._leave()
        self._ended = ended
        return ended

    def _learn(self, trace: Trace) -> None:
        self.found, inputs = trace.found(self._size[1])
        warn_of_missed(self._model, self.found)
        if not self.found.projections:
            return
        for layer, projection in enumerate(self.found.projections):
            self._layers.setdefault(projection.module, []).append(layer)
        self._running = GateGradients(self.found.projections, *self._size)
        for projection, x in zip(self.found.projections, inputs, strict=True):
            self._reached(projection.module, x)
        self.put_on()

    def _leave(self) -> None:
        if self._trace is not None:
            self._trace.remove()
        self._trace = self._running = None
        self._n_calls.clear()

    def _reached(self, module: nn.Module, x: Tensor) -> None:
        layers = self._layers[module]
        if self._running is not None:
            number = self._n_calls[module]
            self._n_calls[module] += 1
            if number < len(layers):
                self._running.watch(layers[number], x)
        elif self._ended is not None and self._n_passes == 1 and len(layers) == 1:  # run again, now with a gradient
            self._ended.watch(layers[0], x)


def warn_of_missed(model: nn.Module, found: Found) -> None:
    """Say which attentions of a model are not recorded."""
    name = type(model).__name__
    if found.missed:
        logger.warning(
            "head_gradients is recorded for %d attentions of %s, not for %s: found no linear layer there whose "
            "input is the heads side by side, one row for each example, or it was not called in the first pass.",
            len(found.projections),
            name,
            listed(found.missed),
        )
    elif not found.projections:
        logger.warning("%s has no attention that says how many heads it has; head_gradients is not recorded.", name)


def shortcomings(
    values: NDArray[np.float32], loss: NDArray[np.float32], unread: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Why gate gradients of a batch are not known: a word for the kind, and what to tell the user.

    Parameters
    ----------
    values
        Shape (n_layers, n_examples, n_heads).
    loss
        Shape (n_examples,), NaN where an example has none.
    unread
        Modules of the layers that no gradient has come back to.
    """
    if unread:
        message = (
            f"no gradient came back to the heads in front of {listed(unread)}: head_gradients is NaN there. Nothing "
            "that is trained lies below them, or they did not take part in the loss of this batch."
        )
        yield "unread", message
    n_unknown = int((np.isnan(values).all((0, 2)) & ~np.isnan(loss)).sum())
    if n_unknown and len(unread) < len(values):
        message = (
            f"head_gradients is NaN for {n_unknown} of {len(loss)} examples of a batch: the gradient at their logits "
            "is not a multiple of that of their own loss, so that it cannot be scaled back. What is trained is another "
            "loss, the logits returned are not those it was computed from, or the gradient overflowed."
        )
        yield "scale", message


def check_not_compiled(model: nn.Module, torch_compile: bool) -> None:
    """Refuse a compiled model: its hooks would cut its graph at every layer.

    Raises
    ------
    ConfigurationError
        If it is compiled, or going to be.
    """
    compiled = any(is_compiled_module(module) or module._compiled_call_impl is not None for module in model.modules())
    if torch_compile or compiled:
        raise ConfigurationError(
            "heads=True cannot be recorded of a compiled model: reading a gradient in front of every output projection "
            "would cut the compiled graph there; train without torch_compile, or leave out heads=True."
        )
