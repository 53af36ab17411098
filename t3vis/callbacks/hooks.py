"""Hooks on a model, for the time of a step: they ask it for hidden states and hand on what it returned."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.capture import hidden_states_of
from t3vis.callbacks.gates import GateGradients, Gates

_CAPTURING = "_output_capturing_hooks_installed"  # how transformers marks a model that has its hooks


class Capture:
    """Hooks on one model that turn the forward pass of an armed micro-batch into rows.

    A step may call the model several times (a teacher, another view of the batch, a generation). Its own pass is the
    first one that is given the batch's main input, else the first one; in training, of those that build a graph, and
    in evaluation, of those that do not go on from a cache. The hooks are on the model only while a micro-batch is
    armed: between the steps it can be copied, pickled and called as if there were none. With ``heads``, ``receive``
    also gets what the backward pass of a training step is going to leave.
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
        self._receive = receive
        self._armed: Batch | None = None
        self._in_doubt: tuple[Batch, Any, GateGradients | None] | None = None  # unless the batch's own pass follows
        self._gates = Gates(model) if heads else None
        self._state_hooks = StateHooks(model) if hidden_states else None
        self._backbone = backbone(model) if hidden_states else None
        self._hooks: dict[nn.Module, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {}
        self._handles: list[RemovableHandle] = []
        wanted = ["return_dict", *(["output_hidden_states"] if hidden_states else [])]
        self._wanted = [name for name in wanted if accepts(model, name)]
        self._main_input = getattr(model, "main_input_name", "input_ids")

    def arm(self, batch: Batch, called: nn.Module | None = None) -> None:
        """Take forward calls as those of this micro-batch until ``disarm``.

        ``called`` is the module that is called in place of the model, such as a compiled one.
        """
        self._armed, self._in_doubt = batch, None
        if self._gates is not None and batch.training:
            self._gates.put_on()
        module = self.model if called is None else called
        if module not in self._hooks:
            self._hooks[module] = self._made_for(module)
        before, after, seen = self._hooks[module]
        if self._state_hooks is not None:
            self._state_hooks.put_on()
        if self._backbone is not None:
            self._handles.append(self._backbone.register_forward_hook(seen))
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True))

    def disarm(self, *, failed: bool = False) -> bool:
        """End the micro-batch and take the hooks off; True if a forward call was taken as its own."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._gates is not None:
            self._gates.take_off()
        if self._state_hooks is not None:
            self._state_hooks.take_off()
        in_doubt, taken = self._in_doubt, self._armed is None
        self._armed = self._in_doubt = None
        if in_doubt is not None and not failed:
            self._receive(*in_doubt)
        return taken or in_doubt is not None

    def _made_for(self, called: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
        """What is done before and after each call of the model, and after each call of its backbone."""
        capture = weakref.proxy(self)  # no circle of references: with the capture, the model is let go of at once
        added: list[str] = []  # keyword arguments that this call was given by the first hook
        states: list[Any] = []  # hidden states that the backbone returned in this call

        def due(module: nn.Module, kwargs: Mapping[str, Any]) -> Batch | None:
            batch: Batch | None = capture._armed
            if module is not called or batch is None:
                return None
            goes_on = torch.is_grad_enabled() if batch.training else kwargs.get("past_key_values") is None
            return batch if goes_on else None

        def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            batch = due(module, kwargs)
            if capture._gates is not None and module is called and torch.is_grad_enabled():
                capture._gates.begin(batch)
            wanted = capture._wanted if batch is not None else []
            added[:] = [name for name in wanted if not is_asked(capture.model, name, kwargs)]
            states.clear()
            return args, kwargs | dict.fromkeys(added, True)

        def seen(*call: Any) -> None:
            outputs = call[-1]
            if not torch.compiler.is_compiling() and isinstance(outputs, Mapping):
                states[:] = outputs.get("hidden_states") or ()

        def after(module: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
            batch = due(module, kwargs)
            if batch is None:
                return None
            given = kwargs.get(capture._main_input, args[0] if args else None)
            own = batch.main is None or given is batch.main
            taken = outputs
            if isinstance(outputs, Mapping) and states and not hidden_states_of(outputs):
                taken = {**outputs, "hidden_states": tuple(states)}  # a head that does not hand them on
            states.clear()
            gradients = capture._gates.end(outputs) if capture._gates is not None and batch.training else None
            if own:
                capture._armed = capture._in_doubt = None
                capture._receive(batch, taken, gradients)
            elif capture._in_doubt is None:
                capture._in_doubt = batch, taken, gradients
            return without_added(outputs, added) if isinstance(outputs, Mapping) else None

        if called._compiled_call_impl is not None:  # ``model.compile()``: dynamo would trace the hooks
            before, after = (torch.compiler.disable(hook) for hook in (before, after))  # type: ignore[no-untyped-call]
        return before, after, seen


class StateHooks:
    """The hooks by which transformers returns hidden states, on the model for the time of a step only.

    Transformers puts them on when hidden states are first asked for, and leaves them there. With them on, a model
    cannot be pickled (``torch.save(model)``), and putting them on while the model is being compiled breaks its graph.
    Where somebody else has asked before, all is left to transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
        self._hooks: list[tuple[nn.Module, int, Any]] = []
        self._is_made = self._is_on = False

    def put_on(self) -> None:
        """Let the model return hidden states when it is asked for them."""
        if any(_CAPTURING in vars(model) for model in self._models):
            return
        self._is_on = True
        if not self._is_made:
            self._make()
        for module, number, hook in self._hooks:
            module._forward_hooks[number] = hook
        for model in self._models:
            setattr(model, _CAPTURING, True)

    def take_off(self) -> None:
        """Leave the model as it was."""
        if not self._is_on:
            return
        self._is_on = False
        for module, number, _ in self._hooks:
            module._forward_hooks.pop(number, None)
        for model in self._models:
            vars(model).pop(_CAPTURING, None)

    def _make(self) -> None:
        modules = {module for model in self._models for module in model.modules()}
        before = {module: set(module._forward_hooks) for module in modules}
        for model in self._models:
            output_capturing.maybe_install_capturing_hooks(model)
        self._hooks = [
            (module, number, hook)
            for module in modules
            for number, hook in module._forward_hooks.items()
            if number not in before[module]
        ]
        self._is_made = True


def called_module(given: nn.Module, model: nn.Module) -> nn.Module:
    """The module of ``given``, the model as a Trainer calls it, whose call is that of the model.

    Hooks on a compiled model go on the outside, where dynamo does not trace them.
    """
    return given if is_compiled_module(given) or "_orig_mod" in vars(given) else model


def backbone(model: nn.Module) -> nn.Module | None:
    """The part of a model of transformers that makes its hidden states, where it is another module."""
    adapted: Any = model
    inner = adapted.get_base_model() if hasattr(adapted, "get_base_model") else adapted  # an adapter of PEFT
    found = inner.base_model if isinstance(inner, PreTrainedModel) else None
    return found if isinstance(found, nn.Module) and found is not inner else None


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
