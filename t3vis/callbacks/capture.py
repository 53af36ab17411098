"""One micro-batch and the model's outputs for it, into rows.

Hidden states are pooled on the device, cast to float16, and cross to the host in one copy; they are asked for in
that one forward call and taken out of its output again, so that nobody gathers them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils import output_capturing

from t3vis.callbacks.example_ids import IDS_KEY
from t3vis.callbacks.gates import GateGradients, Gates
from t3vis.callbacks.tasks import Task, sequence_task, unreduced_loss
from t3vis.errors import ConfigurationError

Pooling = Literal["mean", "first", "last"] | Callable[[Tensor, Tensor], Tensor]
Layers = Literal["all", "last"] | Sequence[int] | None

FLOAT16_MAX = 65504.0
_CAPTURING = "_output_capturing_hooks_installed"  # how transformers marks a model that has its hooks


@dataclass(frozen=True)
class Batch:
    """What a micro-batch says before the model sees it.

    ``ids`` has shape (n,), ``labels`` (n, ...), ``mask`` (n, n_tokens) with 1 for tokens that are not padding.
    ``main`` is the model's main input, ``None`` if the batch does not hold it under its usual name.
    """

    ids: Tensor
    labels: Tensor | None
    mask: Tensor | None
    main: Tensor | None
    training: bool

    @property
    def n_rows(self) -> int:
        """Rows that the model sees: of several choices, (n, n_choices, n_tokens), each is one."""
        main = self.main
        is_choices = main is not None and main.dim() == 3 and not main.is_floating_point()
        return main.shape[0] * main.shape[1] if main is not None and is_choices else len(self.ids)


@dataclass(frozen=True)
class Captured:
    """Rows of one micro-batch on the host, and what they show of the task.

    ``rows`` holds ``example``, ``logits``, ``loss``, ``hidden_states`` and, for a store that has no other source for
    them, ``labels`` or ``targets`` and ``length``, in the dimensions of a segment.
    """

    rows: dict[str, NDArray[Any]]
    task: Task
    layers: list[int] | None


class Capture:
    """Hooks on one model that turn the forward pass of an armed micro-batch into rows.

    A step may call the model several times (a teacher, another view of the batch, a generation). Its own pass is the
    first one that is given the batch's main input, else the first one; in training, of those that build a graph.
    The hooks hold no reference that a deep copy of the model would follow, and a copy's calls are not taken for the
    model's own. With ``heads``, ``receive`` also gets what the backward pass of that call is going to leave.
    """

    def __init__(
        self,
        model: nn.Module,
        receive: Callable[[Batch, Any, GateGradients | None], None],
        *,
        hidden_states: bool,
        heads: bool = False,
    ) -> None:
        self.model = model
        self.gates = gates = Gates(model) if heads else None
        self._receive = receive
        self._armed: Batch | None = None
        self._in_doubt: tuple[Batch, Any, GateGradients | None] | None = None  # unless the batch's own pass follows
        self._hooks_before = {number for module in model.modules() for number in module._forward_hooks}
        self._capturing_before = [module for module in model.modules() if _CAPTURING in vars(module)]
        wanted = ["return_dict", *(["output_hidden_states"] if hidden_states else [])]
        wanted = [name for name in wanted if accepts(model, name)]
        main_input = getattr(model, "main_input_name", "input_ids")
        added: list[str] = []  # keyword arguments that this call was given by the first hook

        def due(module: nn.Module) -> Batch | None:
            batch = self._armed
            if module is not self.model or batch is None or (batch.training and not torch.is_grad_enabled()):
                return None
            return batch

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            kwargs = {name: value for name, value in kwargs.items() if name != IDS_KEY}
            batch = due(module)
            added[:] = [] if batch is None else [name for name in wanted if not is_asked(module, name, kwargs)]
            if gates is not None and module is self.model and torch.is_grad_enabled():
                if batch is not None and batch.training:
                    gates.begin(len(batch.ids), batch.n_rows)
                else:
                    gates.skip()
            return args, kwargs | dict.fromkeys(added, True)

        def after(module: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
            batch = due(module)
            if batch is None:
                return None
            given = kwargs.get(main_input, args[0] if args else None)
            gradients = None if gates is None or not batch.training else gates.end(outputs)
            if batch.main is None or given is batch.main:
                self._armed = self._in_doubt = None
                receive(batch, outputs, gradients)
            elif self._in_doubt is None:
                self._in_doubt = batch, outputs, gradients
            return without_added(outputs, added) if isinstance(outputs, Mapping) else None

        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        ]

    def arm(self, batch: Batch | None) -> None:
        """Take forward calls as those of this micro-batch, or none from now on."""
        self._armed, self._in_doubt = batch, None
        if self.gates is not None:
            self.gates.reset()

    def disarm(self) -> bool:
        """End the micro-batch; True if a forward call was taken as its own."""
        in_doubt, taken = self._in_doubt, self._armed is None
        self.arm(None)
        if in_doubt is not None:
            self._receive(*in_doubt)
        return taken or in_doubt is not None

    def remove(self) -> None:
        """Leave the model as it was.

        That includes the hooks that transformers puts on when hidden states are first asked for, and leaves there:
        with them on, the model could not be pickled (``torch.save(model)``).
        """
        for handle in self._handles:
            handle.remove()
        if self.gates is not None:
            self.gates.remove()
        for module in self.model.modules():
            for number, hook in list(module._forward_hooks.items()):
                if number not in self._hooks_before and hook.__module__ == output_capturing.__name__:
                    del module._forward_hooks[number]
            if module not in self._capturing_before:
                vars(module).pop(_CAPTURING, None)


def accepts(model: Any, name: str) -> bool:
    """Whether the model's forward takes this keyword: by name, or, where it takes any, as its config knows it."""
    parameters = inspect.signature(model.forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return name in parameters or (anything and hasattr(getattr(model, "config", None), name))


def is_asked(model: nn.Module, name: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call with these keywords asks for ``output_hidden_states``, or for ``return_dict``, of its own."""
    given = kwargs.get(name)
    if given is None:
        given = getattr(getattr(model, "config", None), name, name == "return_dict")
    return bool(given)


def without_added(outputs: Mapping[str, Any], added: Sequence[str]) -> Any:
    """The outputs as they would have been, had nothing been ``added`` to the keywords of the call."""
    kept = dict(outputs)
    if "output_hidden_states" in added:
        kept = {key: value for key, value in kept.items() if not key.endswith("hidden_states")}
    if "return_dict" in added:
        return tuple(value for value in kept.values() if value is not None)
    return type(outputs)(**kept) if added else outputs


@torch.no_grad()
def captured(
    batch: Batch, outputs: Any, *, hidden_states: Layers, pooling: Pooling, problem_type: str | None
) -> Captured:
    """Rows of one micro-batch.

    Parameters
    ----------
    outputs
        What the model returned: a ``ModelOutput`` or dict with ``logits`` and, if asked for, ``hidden_states``.

    Raises
    ------
    ConfigurationError
        If the outputs have no logits, not one row per example, or layers that cannot be stored side by side.
    """
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits, Tensor):
        found = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ConfigurationError(
            f"expected the model to return an output with logits, found {found}; use a model with a task head "
            "(AutoModelForSequenceClassification), or return a dict with 'logits' from your own."
        )
    task = sequence_task(logits, batch.labels, problem_type)
    n_rows = len(batch.ids)
    if len(logits) != n_rows:
        raise ConfigurationError(
            f"the model returned {len(logits)} rows of logits for {n_rows} examples; a collator or model that "
            "changes the number of rows cannot be recorded, because no row could be tied to its example."
        )
    rows: dict[str, NDArray[Any]] = {"example": _host(batch.ids), "logits": _host(logits.float())}
    if batch.labels is not None:
        labels = batch.labels.to(logits.device)
        rows["loss"] = _host(unreduced_loss(task, logits, labels))
        if task == "single_label":
            rows["labels"] = _host(labels.reshape(-1).long().clamp(min=-1))
        else:
            rows["targets"] = _host(labels.reshape(logits.shape).float())
    if batch.mask is not None and batch.mask.dim() == 2:
        rows["length"] = _host(batch.mask.sum(1).int())
    states, layers = outputs.get("hidden_states") or outputs.get("encoder_hidden_states"), None
    if hidden_states is not None and states:
        layers = chosen_layers(hidden_states, len(states))
        with torch.autocast(logits.device.type, enabled=False):  # the mean over tokens is taken in float32
            rows["hidden_states"] = _host(pooled([states[layer] for layer in layers], batch.mask, pooling))
    return Captured(rows, task, layers)


def chosen_layers(layers: Layers, n_states: int) -> list[int]:
    """Indices into the model's hidden states, 0 being the output of the embeddings.

    Raises
    ------
    ConfigurationError
        If the model has no such layer.

    Examples
    --------
    >>> chosen_layers([0, -1], 7)
    [0, 6]
    """
    if layers == "all":
        return list(range(n_states))
    wanted = [-1] if layers == "last" else [int(layer) for layer in layers or ()]
    beyond = [layer for layer in wanted if not -n_states <= layer < n_states]
    if beyond:
        raise ConfigurationError(
            f"hidden_states names {beyond}, but the model has {n_states} hidden states, 0 to {n_states - 1} "
            "(0 is the output of the embeddings); choose among these."
        )
    return [layer % n_states for layer in wanted]


def pooled(states: Sequence[Tensor], mask: Tensor | None, pooling: Pooling) -> Tensor:
    """Pool each layer over the tokens of an example.

    Parameters
    ----------
    states
        Shape (n, n_tokens, hidden) each.
    mask
        Shape (n, n_tokens), 1 for tokens that are not padding; ``None`` counts all.

    Returns
    -------
    Shape (n_layers, n, hidden), float16, saturated at its range.

    Raises
    ------
    ConfigurationError
        If the mask does not fit, or the layers differ in width.
    """
    n_rows, n_tokens = states[0].shape[:2]
    if mask is None:
        mask = torch.ones(n_rows, n_tokens, device=states[0].device)
    vectors = [pool(state, mask.to(state.device), pooling) for state in states]
    widths = {tuple(vector.shape) for vector in vectors}
    if len(widths) > 1:
        raise ConfigurationError(
            f"pooled hidden states have the shapes {sorted(widths)}; record layers of one width: "
            "RecorderCallback(..., hidden_states=[...])."
        )
    return torch.stack(vectors).clamp(-FLOAT16_MAX, FLOAT16_MAX).half()


def pool(state: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool one layer over the tokens: their mean, the first or the last one, or a user's function of both.

    Parameters
    ----------
    state
        Shape (n, n_tokens, hidden).
    mask
        Shape (n, n_tokens), 1 for tokens that are not padding.

    Returns
    -------
    Shape (n, hidden), float32.
    """
    if callable(pooling):
        vectors = pooling(state, mask)
        if vectors.dim() != 2 or len(vectors) != len(state):
            raise ConfigurationError(
                f"the pooling function returned shape {tuple(vectors.shape)} for hidden states of shape "
                f"{tuple(state.shape)}; return (examples, features)."
            )
        return vectors.float()
    if mask.shape != state.shape[:2]:
        raise ConfigurationError(
            f"the attention mask has shape {tuple(mask.shape)}, the hidden states {tuple(state.shape)}; "
            "give a pooling function that knows which tokens to pool, or hidden_states=None."
        )
    if pooling == "mean":
        weights = mask.float()
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        return torch.bmm(weights[:, None], state.float())[:, 0]
    present = mask.bool().int()
    at = present.argmax(1) if pooling == "first" else mask.shape[1] - 1 - present.flip(1).argmax(1)
    return state[torch.arange(len(state), device=state.device), at].float()


def _host(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return np.ascontiguousarray(array)
