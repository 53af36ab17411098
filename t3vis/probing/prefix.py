"""One forward pass of a batch whose beginning serves many: what lies before a layer is computed once.

The blocks of a model, which stand in a ``ModuleList``, are called one after another. When they are called again, those
before the layer that is changed return what they returned the first time, repeated for each of the changes; the
attention of that layer returns its heads, and its output projection is linear: removing a head subtracts what the
projection makes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from t3vis.gates import Projection
from t3vis.probing.gating import Heads, columns_of, gated
from t3vis.probing.model import rows_of


@dataclass
class _Seen:
    """What a layer's projection was given and returned, its attention returned, and in which call of a block."""

    x: Tensor
    y: Tensor
    block: int
    returned: Any = None

    @property
    def is_handed_on(self) -> bool:
        """Whether the attention returns its heads, and another module projects them."""
        return _first(self.returned) is self.x

    @property
    def is_returned(self) -> bool:
        """Whether the attention returns what the projection made of its heads."""
        first = _first(self.returned)
        return isinstance(first, Tensor) and first.shape == self.y.shape and first.data_ptr() == self.y.data_ptr()

    def returned_with(self, first: Tensor, n: int, n_rows: int) -> Any:
        """What the attention returned, ``n`` times over, but for its first part."""
        if not isinstance(self.returned, tuple):
            return first
        return (first, *repeated(self.returned[1:], n, n_rows))


@dataclass
class Prefix:
    """The first pass over a batch, and passes that begin where a head is removed.

    Used within ``probed``, without gradients.
    """

    heads: Heads
    inputs: Mapping[str, Tensor]
    _outputs: list[Any] = field(default_factory=list)
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def first_pass(self, call: Callable[[Mapping[str, Tensor]], Any], gates: Tensor | None = None) -> Any:
        """Call the model on the batch, with these gates throughout, and keep what the later passes need."""
        self._outputs.clear()
        self._seen.clear()
        with ExitStack() as stack:
            if gates is not None:
                stack.enter_context(gated(self.heads, gates))
            stack.enter_context(self._recording())
            return call(self.inputs)

    def removed(
        self,
        call: Callable[[Mapping[str, Tensor]], Any],
        layer: int,
        heads: Sequence[int],
        gates: Tensor | None = None,
    ) -> Any:
        """Call the model with each of these heads of a layer removed by itself.

        Parameters
        ----------
        call
            Is given the batch, repeated for each head: all examples without the first head, then all without the
            second, and so on.
        gates
            Those of the first pass; layers above are gated as they say.
        """
        with ExitStack() as stack:
            seen, n = self._seen[layer], len(heads)
            without = _without(self.heads.projections[layer], seen, heads)
            if gates is not None:
                before = [known for known, other in self._seen.items() if other.block < seen.block]
                skipped = Counter(self.heads.projections[known].module for known in before)
                stack.enter_context(gated(self.heads, gates, skipped=skipped))
            stack.enter_context(self._replayed(seen.block, n))
            stack.enter_context(self._replaced_at(layer, seen, without, n))
            return call({name: repeated(value, n, rows_of(self.inputs)) for name, value in self.inputs.items()})

    # The first pass

    @contextmanager
    def _recording(self) -> Iterator[None]:
        layers: dict[nn.Module, list[int]] = {}
        callers: dict[nn.Module, list[int]] = {}
        for layer, projection in enumerate(self.heads.projections):
            layers.setdefault(projection.module, []).append(layer)
            callers.setdefault(projection.caller, []).append(layer)
        waiting = {module: iter(numbers) for module, numbers in (*layers.items(), *callers.items())}
        returned: dict[int, Any] = {}

        def block_done(_: nn.Module, __: Any, output: Any) -> None:
            self._outputs.append(output)

        def projected(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._seen[next(waiting[module])] = _Seen(args[0], output, len(self._outputs))

        def attended(module: nn.Module, _: Any, output: Any) -> None:
            returned[next(waiting[module])] = output

        with ExitStack() as stack:
            for modules, hook in ((self.blocks, block_done), (layers, projected), (callers, attended)):
                for module in modules:
                    stack.enter_context(_handle(module.register_forward_hook(hook)))
            yield
        for layer, seen in self._seen.items():
            seen.returned = returned[layer]

    @property
    def blocks(self) -> list[nn.Module]:
        """The outermost modules in a ``ModuleList`` that hold the projections, each once."""
        model = self.heads.model
        stacked = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
        found: dict[nn.Module, None] = {}
        for projection in self.heads.projections:
            parts = projection.name.split(".")
            paths = (".".join(parts[:n]) for n in range(1, len(parts)))
            path = next((path for path in paths if path.rpartition(".")[0] in stacked), None)
            if path is not None:
                found[model.get_submodule(path)] = None
        return list(found)

    # Later passes

    @contextmanager
    def _replayed(self, first: int, n: int) -> Iterator[None]:
        """Blocks before the call number ``first`` return what they returned, ``n`` times over."""
        n_rows, number = rows_of(self.inputs), 0

        def forward_of(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal number
                number += 1
                if number <= first:
                    return repeated(self._outputs[number - 1], n, n_rows)
                return original(*args, **kwargs)

            return forward

        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(_calling(block, forward_of(block.forward)))
            yield

    @contextmanager
    def _replaced_at(self, layer: int, seen: _Seen, without: Tensor, n: int) -> Iterator[None]:
        """The next call of the layer's projection returns ``without``; its attention is not computed anew."""
        projection, n_rows = self.heads.projections[layer], rows_of(self.inputs)
        replaced = {projection.module: without}
        if seen.is_returned:
            replaced = {projection.caller: seen.returned_with(without, n, n_rows)}
        elif seen.is_handed_on:
            nothing = without.new_empty(()).expand(len(without), *seen.x.shape[1:])
            replaced[projection.caller] = seen.returned_with(nothing, n, n_rows)
        with ExitStack() as stack:
            for module, value in replaced.items():
                stack.enter_context(_calling(module, _once(value, module.forward)))
            yield


def _once(value: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the value the first time that it is called, and then what ``forward`` does."""
    waiting = [value]
    return lambda *args, **kwargs: waiting.pop() if waiting else forward(*args, **kwargs)


def _without(projection: Projection, seen: _Seen, heads: Sequence[int]) -> Tensor:
    """What the projection returns without each of these heads, shape (n_heads * n_rows, ...)."""
    weight: Any = projection.module.weight
    by_input = weight if isinstance(projection.module, Conv1D) else weight.T
    columns = [columns_of(projection, head) for head in heads]
    parts = torch.stack([seen.x[..., each] for each in columns])
    weights = torch.stack([by_input[each] for each in columns])
    n, *rows, width = parts.shape
    made = torch.bmm(parts.reshape(n, -1, width), weights).view(n, *rows, -1)
    return (seen.y - made).flatten(0, 1)


def _first(returned: Any) -> Any:
    return returned[0] if isinstance(returned, tuple) else returned


def repeated(value: Any, n: int, n_rows: int) -> Any:
    """Tensors with one row for each example, ``n`` times over; other things as they are."""
    if isinstance(value, Tensor):
        return value.expand(n, *value.shape).flatten(0, 1) if value.dim() and len(value) == n_rows else value
    if isinstance(value, tuple | list):
        return type(value)(repeated(each, n, n_rows) for each in value)
    return value


@contextmanager
def _calling(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within, a call of the module is one of ``forward``."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _handle(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
