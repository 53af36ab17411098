"""Layer-wise relevance propagation through any Transformer, by rules for operations and not for architectures.

While the model runs forward, every operation on a tensor that depends on the embeddings is replaced by one of the same
value whose *backward* pass hands relevance on by a rule. Relevance divided by the value plays the part of the gradient,
so that x times what arrives at the embeddings is the relevance of the tokens. Nothing in the model is touched: the
rules hold for the calls of one forward pass in one thread (a ``TorchFunctionMode``), and activation modules carry a
hook for the time of it.

An operation without a rule is no error as long as no relevance comes back to it; if some does, it is named and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import activations

from t3vis.errors import ProbingError

Rules = Literal["cp_lrp", "attnlrp", "gradient"]

_TINY = 1e-10

_MULTIPLIED = {"mul", "__mul__", "__rmul__", "__imul__", "mul_", "multiply"}
_DIVIDED = {"div", "__truediv__", "__itruediv__", "div_", "true_divide"}
_ADDED = {"add", "__add__", "__radd__", "__iadd__", "add_", "sub", "__sub__", "__isub__", "__rsub__"}
_PRODUCTS = {"matmul", "__matmul__", "bmm"}
_ACTIVATIONS = {"relu", "relu_", "gelu", "silu", "tanh", "tanh_", "mish", "leaky_relu", "elu", "hardtanh"}
_STATISTICS = {"rsqrt", "rsqrt_", "sqrt", "std", "var", "norm"}
"""What a normalisation divides by."""
_WEIGHTS = {"softmax", "sigmoid", "sigmoid_"}
"""What weighs other values."""
_STRUCTURE = {
    "__get__", "__getitem__", "cat", "chunk", "clone", "concat", "contiguous", "cumsum", "diagonal", "dropout",
    "expand", "expand_as", "flatten", "flip", "float", "gather", "half", "bfloat16", "index_select", "masked_fill",
    "mean", "movedim", "narrow", "neg", "__neg__", "pad", "permute", "repeat", "repeat_interleave", "reshape", "roll",
    "select", "split", "split_with_sizes", "squeeze", "stack", "sum", "swapaxes", "t", "take_along_dim",
    "tensor_split", "to", "transpose", "tril", "triu", "type", "type_as", "unbind", "unflatten", "unsqueeze", "view",
    "view_as", "where", "max", "amax", "index_add", "index_add_", "scatter_add",
}  # fmt: skip
"""What only moves values, weighs them by constants, or picks the largest: its own gradient is the rule."""


class _Identity(torch.autograd.Function):
    """An activation whose input takes the whole relevance of its output: y is read as x times a constant, y / x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y / torch.where(x.abs() < _TINY, _TINY, x))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return ratio * gradients[0], None


class _Normalised(torch.autograd.Function):
    """Layer normalisation whose standard deviation counts as a constant (and whose mean does not)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Tensor:
        y, _, rstd = torch.native_layer_norm(x, list(shape), weight, bias, eps)
        ctx.save_for_backward(rstd, weight)
        ctx.n_dims = len(shape)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        rstd, weight = ctx.saved_tensors
        found = gradients[0] * rstd if weight is None else gradients[0] * weight * rstd
        return found - found.mean(tuple(range(-ctx.n_dims, 0)), keepdim=True), None, None, None, None


class _Shared(torch.autograd.Function):
    """The tensor itself, whose relevance is divided by ``share``: what one of several factors is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / ctx.share, None


class Propagation(TorchFunctionMode):
    """The rules, in force while it is entered; afterwards the backward pass of what was computed follows them.

    Parameters
    ----------
    rules
        ``cp_lrp``: attention weights and the gates of gated layers count as constants (Ali et al. 2022), so that
        relevance is conserved. ``attnlrp``: a product of two factors gives each one half, and the softmax is expanded
        to first order (Achtibat et al. 2024). ``gradient``: none, only what constants take is read.
    n
        Examples in the batch, along the first dimension of every tensor.

    References
    ----------
    Ali, Schnake, Eberle, Montavon, Müller and Wolf (2022), "XAI for Transformers: Better Explanations through
    Conservative Propagation", ICML. Achtibat, Hatefi, Dreyer, Jain, Wiegand, Lapuschkin and Samek (2024), "AttnLRP:
    Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML.

    Notes
    -----
    Both papers leave the rule of linear layers open between variants; here it is the epsilon rule with epsilon 0 (what
    AttnLRP uses for language models up to its stabiliser). A gated layer is in neither's main text for CP-LRP: the gate
    counts as a constant, as attention weights do.
    """

    def __init__(self, rules: Rules, n: int) -> None:
        super().__init__()
        self._rules, self._n = rules, n
        self._constants: Tensor | None = None
        self._unruled: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if not torch.is_grad_enabled():
            return func(*args, **named)
        name = getattr(func, "__name__", "")
        if self._rules == "gradient":
            return self._bound(name, args, named, func(*args, **named))
        return self._ruled(name, func, args, named)

    def taken_by_constants(self) -> Tensor | None:
        """What biases, positions and other constants took in the last backward pass, shape (n,); then it is forgotten.

        Raises
        ------
        ProbingError
            If relevance came to an operation that has no rule.
        """
        if self._unruled:
            raise ProbingError(
                f"no rule of {self._rules} for {', '.join(sorted(self._unruled))}, which relevance flows through; "
                "choose another method, such as integrated_gradients or occlusion."
            )
        found, self._constants = self._constants, None
        return found

    # The rules, forward

    def _ruled(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not args or (name in _ADDED | _DIVIDED | _PRODUCTS | _MULTIPLIED and len(args) < 2):
            return self._unknown(name, func(*args, **named))
        if name in _ACTIVATIONS and _depends(args[0]):
            x = args[0]
            return _identity(x, func(x.detach().clone(), *args[1:], **named))
        if name == "layer_norm":
            return self._bound(name, args, named, _layer_norm(*args, **named))
        if name == "rms_norm":
            return _rms_norm(*args, **named)
        if name in _STATISTICS:
            return func(*args, **named).detach()
        if name in _WEIGHTS and self._rules == "cp_lrp":
            return func(*args, **named).detach()
        if name == "scaled_dot_product_attention":
            return func(*self._attended(*args[:3]), *args[3:], **named)
        if name in _DIVIDED:
            args = (args[0], args[1].detach() if isinstance(args[1], Tensor) else args[1], *args[2:])
        elif name in _PRODUCTS | _MULTIPLIED:
            args = (*self._factors(args[0], args[1]), *args[2:])
        return self._bound(name, args, named, func(*args, **named))

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._rules == "cp_lrp":
            return query.detach(), key.detach(), value
        # The values are one of two factors; query and key are the two factors of the other.
        return _share(query, 4), _share(key, 4), _share(value, 2)

    def _factors(self, one: Any, other: Any) -> tuple[Any, Any]:
        if not (_depends(one) and _depends(other)):
            return one, other
        if self._rules == "cp_lrp":
            for gate, rest, is_first in ((one, other, True), (other, one, False)):
                if _is_activated(gate) and not _is_activated(rest):
                    return (gate.detach(), rest) if is_first else (rest, gate.detach())
        return _share(one, 2), _share(other, 2)

    # What constants take, backward

    def _bound(self, name: str, args: tuple[Any, ...], named: Mapping[str, Any], out: Any) -> Any:
        """Put a hook on an output that reads, when relevance comes back, what the constants of the operation take."""
        if not isinstance(out, Tensor) or not out.requires_grad:
            return out
        constant: Any = None
        if name == "linear":
            constant = args[2] if len(args) > 2 else named.get("bias")
        elif name == "layer_norm":
            constant = args[3] if len(args) > 3 else named.get("bias")
        elif name == "addmm":
            constant = args[0]
        elif name in _ADDED and len(args) > 1:
            constant = _constant_of(name, args)
        elif self._rules != "gradient" and not self._is_ruled(name):
            return self._unknown(name, out)
        if constant is not None:
            out.register_hook(lambda gradient: self._take(gradient, constant))  # type: ignore[no-untyped-call]
        return out

    def _unknown(self, name: str, out: Any) -> Any:
        """Remember an operation without a rule if relevance comes back to it."""
        if isinstance(out, Tensor) and out.requires_grad:
            out.register_hook(lambda _: self._unruled.add(name))  # type: ignore[no-untyped-call]
        return out

    def _is_ruled(self, name: str) -> bool:
        ruled = _PRODUCTS | _MULTIPLIED | _DIVIDED | _STRUCTURE
        return name in ruled or (name == "softmax" and self._rules == "attnlrp")

    def _take(self, gradient: Tensor, constant: Tensor | float) -> None:
        if isinstance(constant, Tensor) and constant.shape == gradient.shape[-1:]:
            taken = (gradient @ constant.to(gradient.dtype)).reshape(self._n, -1).sum(1)
        else:
            taken = torch.where(gradient == 0, 0, gradient * constant).reshape(self._n, -1).sum(1)  # masks are infinite
        self._constants = taken if self._constants is None else self._constants + taken


@contextmanager
def propagation(model: nn.Module, rules: Rules, n: int) -> Iterator[Propagation]:
    """The rules in force for forward passes of a model on ``n`` examples.

    Parameters
    ----------
    model
        To be probed (`probed`): its parameters ask for no gradient, so that what does depends on the embeddings.
    rules, n
        As in `Propagation`.
    """
    ruled = [module for module in model.modules() if is_activation(module)] if rules != "gradient" else []
    handles = [module.register_forward_hook(_activated) for module in ruled]
    try:
        with Propagation(rules, n) as running:
            yield running
    finally:
        for handle in handles:
            handle.remove()


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation: of one input, element by element, 0 where that is 0."""
    kind = type(module)
    if isinstance(module, nn.ReLU | nn.GELU | nn.SiLU | nn.Tanh | nn.Mish | nn.LeakyReLU | nn.ELU | nn.ReLU6):
        return True
    return kind.__module__ == activations.__name__ and kind not in _NOT_THROUGH_ZERO


_NOT_THROUGH_ZERO = (activations.SqrtSoftplusActivation, activations.LaplaceActivation)


def _activated(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Any:
    return _identity(args[0], out.detach()) if _depends(args[0]) else out


def _identity(x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = _Identity.apply(x, y)  # type: ignore[no-untyped-call]
    return found


def _layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    found: Tensor = _Normalised.apply(x, normalized_shape, weight, bias, eps)  # type: ignore[no-untyped-call]
    return found


def _rms_norm(x: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
    with torch.no_grad():
        squares = x.float().pow(2).mean(tuple(range(-len(normalized_shape), 0)), keepdim=True)
        scale = (squares + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt().to(x.dtype)
    return x * scale if weight is None else x * scale * weight


def _depends(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _is_activated(x: Tensor) -> bool:
    return x.grad_fn is not None and x.grad_fn.name() == "_IdentityBackward"


def _share(x: Tensor, share: float) -> Tensor:
    found: Tensor = _Shared.apply(x, share)  # type: ignore[no-untyped-call]
    return found


def _constant_of(name: str, args: tuple[Any, ...]) -> Any:
    """The summand that does not depend on the embeddings, with its sign; ``None`` if there is none."""
    first, second = args[0], args[1]
    if _depends(first) and _depends(second):
        return None
    is_subtracted = "sub" in name and name != "__rsub__"
    if _depends(first):
        return -second if is_subtracted else second
    return first
