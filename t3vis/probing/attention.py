"""Attention weights of a live model, whatever attention implementation it runs with.

The fast implementations never have the weights. For the time of a reading the model's attention is one that is
registered here, which runs the eager function of the model's own architecture (with its scales, caps and biases) and
hands on what that computed; its mask function is registered with it, as without one a model makes no mask at all.
Models that do not ask Transformers for their attention (DeBERTa, Falcon, MPNet, ...) are asked for their attentions
instead. Nothing of this stays: configurations, hooks and modes are as before.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from t3vis.errors import ProbingError
from t3vis.gates import Attention
from t3vis.losses import IGNORED_LABEL
from t3vis.probing.model import device_of, forward, probed, use_attention

NAME = "t3vis_probe"
"""The attention implementation of a model whose weights are being read."""
ORDER: tuple[Attention, ...] = ("self", "encoder", "decoder", "cross")
"""Layers are numbered in this order of kinds, and within a kind in the order of their calls."""

_OUTPUTS: dict[str, Attention] = {
    "attentions": "self",
    "encoder_attentions": "encoder",
    "decoder_attentions": "decoder",
    "cross_attentions": "cross",
}
_IS_ATTENTION = re.compile("atten|attn", re.IGNORECASE)
_reading: ContextVar[_Reading] = ContextVar("reading")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens that one stack of a model was given; ``ids`` is ``None`` if it was given embeddings.

    Shape (n_examples, n_tokens); ``real`` is false of padding.
    """

    ids: Tensor | None
    real: Tensor


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """The weights of one layer for one batch, as they are computed.

    ``weights`` has shape (n_examples, n_heads, n_queries, n_keys) and is the reader's own to change. ``visible``, shape
    (n_examples, n_queries, n_keys), is true of the real pairs that the model's mask lets see each other. ``index`` is
    the number of the layer within its kind.
    """

    kind: Attention
    index: int
    weights: Tensor
    queries: Tokens
    keys: Tokens
    visible: Tensor


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Weights of the chosen heads of one layer, for each example shape (n_heads, n_queries, n_keys), unpadded."""

    layer: int
    attention: Attention
    heads: tuple[int, ...]
    weights: tuple[NDArray[np.float32], ...]


def attention_weights(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[LayerWeights]:
    """Attention weights of the examples of one batch, padding taken off.

    Parameters
    ----------
    model
        Runs in eval mode, and is left as it was.
    batch
        What the model is called with; rows are examples, padded on either side.
    layers
        Which layers, by number; by default all. Of a model of two stacks the self-attentions of the encoder come first,
        then those of the decoder, then the cross-attentions.
    heads
        Which heads of these layers, by default all.

    Returns
    -------
    The layers in the order asked for. Rows of weights sum to one, or to less where the architecture has a sink beside
    the tokens.

    Raises
    ------
    ProbingError
        If there is no such layer or head, or the model does not give its attention weights.
    """
    kept: dict[tuple[int, int], tuple[NDArray[np.float32], ...]] = {}

    def keep(call: AttentionCall) -> None:
        is_first_stack = call.kind in ("self", "encoder")
        if layers is None or not is_first_stack or call.index in layers:
            kept[ORDER.index(call.kind), call.index] = _unpadded(call, heads)
        else:
            kept[ORDER.index(call.kind), call.index] = ()

    with AttentionReader(model) as reader:
        reader.read(batch, keep)
    ordered = [(ORDER[kind], kept[kind, index]) for kind, index in sorted(kept)]
    chosen = range(len(ordered)) if layers is None else layers
    unknown = [layer for layer in chosen if not 0 <= layer < len(ordered)]
    if unknown:
        raise ProbingError(f"there is no attention layer {unknown[0]}; the model has {len(ordered)}, counted from 0.")
    found = []
    for layer in chosen:
        kind, weights = ordered[layer]
        numbers = tuple(range(len(weights[0]))) if heads is None else tuple(heads)
        found.append(LayerWeights(layer, kind, numbers, weights))
    return found


class AttentionReader:
    """Reads the attention weights of a model, batch by batch; as a context, after which the model is as it was."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._stack = ExitStack()
        self._is_probed = True

    def __enter__(self) -> AttentionReader:
        self._stack.enter_context(probed(self._model))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, batch: Mapping[str, Tensor], receive: Callable[[AttentionCall], None]) -> None:
        """Run the model on a batch; ``receive`` is given each attention while the model runs, layer after layer.

        Raises
        ------
        ProbingError
            If the model gives no attention weights.
        """
        device, needs_labels = device_of(self._model), _has_two_stacks(self._model)
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels" or needs_labels}
        reading = _Reading(self._model, inputs, receive)
        with torch.inference_mode(), reading:
            if self._is_probed:
                use_attention(self._model, NAME)
                forward(self._model, inputs)
            if not reading.n_calls:
                self._is_probed = False
                use_attention(self._model, "eager")
                reading.take_outputs(forward(self._model, inputs, output_attentions=True))


class _Reading:
    """One forward pass: what its stacks and attentions are given, and where its attention weights go."""

    def __init__(
        self, model: PreTrainedModel, batch: Mapping[str, Tensor], receive: Callable[[AttentionCall], None]
    ) -> None:
        self._model, self._batch, self._receive = model, batch, receive
        self._calls: Counter[Attention] = Counter()
        self._has_two_stacks = _has_two_stacks(model)
        self._encoder = set(_stacks(model)[0].modules()) if self._has_two_stacks else set()
        self._tokens: dict[str, Tokens] = {}
        self._sources = [batch[name] for name in ("encoder_hidden_states",) if name in batch]
        self._crosses: dict[nn.Module, bool] = {}
        self._masks: list[tuple[Any, Tokens, Tokens, Tensor]] = []
        self._stack = ExitStack()
        if not self._has_two_stacks:
            self._note("self", batch.get("input_ids"), batch.get("attention_mask"))
            self._note("encoder", None, batch.get("encoder_attention_mask"))

    @property
    def n_calls(self) -> int:
        """Attentions read."""
        return self._calls.total()

    def __enter__(self) -> _Reading:
        token = _reading.set(self)
        self._stack.callback(_reading.reset, token)
        for module in self._model.modules():
            if _IS_ATTENTION.search(type(module).__name__):
                self._on(module.register_forward_pre_hook(self._enters, with_kwargs=True))
        if self._has_two_stacks:
            encoder, decoder = _stacks(self._model)
            self._on(encoder.register_forward_pre_hook(self._begins("encoder"), with_kwargs=True))
            self._on(encoder.register_forward_hook(self._encoded))
            self._on(decoder.register_forward_pre_hook(self._begins("decoder"), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _on(self, handle: Any) -> None:
        self._stack.callback(handle.remove)

    def _begins(self, stack: str) -> Callable[..., None]:
        def begins(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
            if mask is None and stack == "decoder" and ids is not None:
                mask = self._decoder_mask(ids)
            self._note(stack, ids, mask)

        return begins

    def _note(self, stack: str, ids: Tensor | None, mask: Tensor | None) -> None:
        if mask is None and ids is not None:
            mask = torch.ones_like(ids)
        if mask is not None and mask.dim() == 2:
            self._tokens[stack] = Tokens(ids, mask.bool())

    def _decoder_mask(self, ids: Tensor) -> Tensor:
        """What of the decoder's tokens is real: as many as there are labels, if they are made of these."""
        labels = self._batch.get("labels")
        if "decoder_input_ids" not in self._batch and labels is not None and labels.shape == ids.shape:
            return _without_end(labels, IGNORED_LABEL)
        return _without_end(ids, self._model.config.pad_token_id)

    def _encoded(self, _: nn.Module, __: Any, outputs: Any) -> None:
        self._sources.append(outputs[0])

    def _enters(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        self._crosses[module] = any(value is source for value in given for source in self._sources)

    def kind_of(self, module: nn.Module) -> Attention:
        """Which attention of the model a module is in the call that it is now in."""
        if self._crosses.get(module, False):
            return "cross"
        if not self._has_two_stacks:
            return "self"
        return "encoder" if module in self._encoder else "decoder"

    def take(self, kind: Attention, weights: Tensor, mask: Tensor | None) -> None:
        """Hand on the weights of one call; ``mask`` is what was added to its scores."""
        index = self._calls[kind]
        self._calls[kind] += 1
        own = "decoder" if kind == "cross" and self._has_two_stacks else "self" if kind == "cross" else kind
        queries = self._of_stack(own, len(weights), weights.shape[2])
        keys = self._of_stack("encoder", len(weights), weights.shape[3]) if kind == "cross" else queries
        self._receive(AttentionCall(kind, index, weights, queries, keys, self._visible(mask, queries, keys)))

    def _of_stack(self, stack: str, n_examples: int, n_tokens: int) -> Tokens:
        """The tokens that a stack was given; all that it makes of an image are real.

        Raises
        ------
        ProbingError
            If its attention is among others than these.
        """
        everything = torch.ones(n_examples, n_tokens, dtype=torch.bool, device=device_of(self._model))
        found = self._tokens.setdefault(stack, Tokens(None, everything))
        if found.real.shape != everything.shape:
            raise ProbingError(
                f"{type(self._model).__name__} attends among {n_examples} x {n_tokens} tokens where it was given "
                f"{' x '.join(map(str, found.real.shape))}; which of them are real is not known."
            )
        return found

    def take_outputs(self, outputs: Mapping[str, Any]) -> None:
        """Hand on the weights that the model returned.

        Raises
        ------
        ProbingError
            If it returned none.
        """
        for name, kind in _OUTPUTS.items():
            actual = "decoder" if kind == "self" and self._has_two_stacks else kind
            for weights in outputs.get(name) or ():
                if weights is not None:
                    self.take(actual, weights.clone(), _future(weights) if kind != "cross" else None)
        if not self.n_calls:
            raise ProbingError(
                f"{type(self._model).__name__} returned no attention weights, though it was asked for them and for "
                'eager attention; load it with attn_implementation="eager".'
            )

    def _visible(self, mask: Tensor | None, queries: Tokens, keys: Tokens) -> Tensor:
        """The real pairs that a mask leaves; layers that share a mask share the answer."""
        for known, its_queries, its_keys, visible in self._masks:
            if queries is its_queries and keys is its_keys and _is_same(known, mask):
                return visible
        pairs = queries.real[:, :, None] & keys.real[:, None, :]
        if mask is not None:
            n_keys = pairs.shape[-1]
            mask = mask[:, 0, :, :n_keys] if mask.dim() == 4 else mask
            seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            pairs = pairs & seen
        self._masks.append((mask, queries, keys, pairs))
        return pairs


def _probe(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """An attention as the architecture computes it eagerly, its weights handed to the reading that is going on."""
    outputs, weights = _eager(type(module))(module, query, key, value, attention_mask, **kwargs)
    reading = _reading.get()
    reading.take(reading.kind_of(module), weights, attention_mask)
    return outputs, None


AttentionInterface.register(NAME, _probe)
AttentionMaskInterface.register(NAME, eager_mask)


def _eager(attention: type[nn.Module]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager function that stands beside the class of an attention, or beside the one that it inherits from."""
    for ancestor in attention.__mro__:
        found = getattr(sys.modules[ancestor.__module__], "eager_attention_forward", None)
        if found is not None:
            function: Callable[..., tuple[Tensor, Tensor]] = found
            return function
    raise ProbingError(
        f"{attention.__name__} has no eager attention: there is no eager_attention_forward in {attention.__module__}."
    )


def _stacks(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.get_encoder(), model.get_decoder()


def _has_two_stacks(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _without_end(ids: Tensor, pad: int | None) -> Tensor:
    """Up to the last one that is not padding; the first is always real, also where it is the padding token."""
    real = torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad
    real[:, 0] = True
    return real.flip(1).cummax(1).values.flip(1)


def _future(weights: Tensor) -> Tensor | None:
    """A causal mask if no query looks ahead in any head, else none."""
    n_queries, n_keys = weights.shape[-2:]
    past = torch.ones(n_queries, n_keys, dtype=torch.bool, device=weights.device).tril()
    return past[None] if n_keys > 1 and not bool((weights * ~past).any()) else None


def _is_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _unpadded(call: AttentionCall, heads: Sequence[int] | None) -> tuple[NDArray[np.float32], ...]:
    n_heads = call.weights.shape[1]
    for head in heads or ():
        if not 0 <= head < n_heads:
            raise ProbingError(f"there is no head {head}; {call.kind}-attention {call.index} has {n_heads}, from 0.")
    chosen = call.weights if heads is None else call.weights[:, list(heads)]
    real = zip(chosen, call.queries.real, call.keys.real, strict=True)
    return tuple(weights[:, rows][:, :, columns].float().cpu().numpy() for weights, rows, columns in real)
