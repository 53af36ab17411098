"""What the model returned for one micro-batch, into rows.

Hidden states are pooled on the device, cast to float16, and cross to the host in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3vis.callbacks.batches import Batch, wrong_number_of_rows
from t3vis.callbacks.tasks import Task, sequence_rows
from t3vis.callbacks.tokens import token_rows
from t3vis.errors import ConfigurationError

Pooling = Literal["mean", "first", "last"] | Callable[[Tensor, Tensor], Tensor]
Layers = Literal["all", "last"] | Sequence[int] | None

FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Captured:
    """Rows of one micro-batch on the host, and what they show of the task.

    ``rows`` holds ``example``, ``logits``, ``loss``, ``hidden_states`` and, for a store that has no other source for
    them, ``labels`` or ``targets`` and ``length``, in the dimensions of a segment. ``left_out`` says in words what
    the model returned, or was expected to, that is not among them.
    """

    rows: dict[str, NDArray[Any]]
    task: Task
    layers: list[int] | None
    left_out: tuple[str, ...] = ()


def hidden_states_of(outputs: Mapping[str, Any]) -> Sequence[Tensor] | None:
    """Hidden states among a model's outputs; of an encoder-decoder those of the encoder."""
    return outputs.get("hidden_states") or outputs.get("encoder_hidden_states") or None


@torch.no_grad()
def captured(
    batch: Batch, outputs: Any, *, hidden_states: Layers, pooling: Pooling, problem_type: str | None
) -> Captured:
    """Rows of one micro-batch.

    Parameters
    ----------
    outputs
        What the model returned: a ``ModelOutput`` or dict with ``logits`` of each example, or outputs of each token
        (their logits, or their ``log_probs``), or ``hidden_states`` only.

    Raises
    ------
    ConfigurationError
        If the outputs have none of these, not one row per example, or layers that cannot be stored side by side.
    """
    found: Mapping[str, Any] = outputs if isinstance(outputs, Mapping) else {}
    logits, states, layers = found.get("logits"), hidden_states_of(found), None
    batch = batch.split_up()
    rows: dict[str, NDArray[Any]] = {"example": _host(batch.ids)}
    if isinstance(logits, Tensor) and logits.dim() != 3 and not batch.paired:
        if len(logits) != len(batch.ids):
            raise wrong_number_of_rows(len(logits), "logits", len(batch.ids))
        task, more = sequence_rows(logits, batch.labels, problem_type)
        left_out: tuple[str, ...] = ()
    elif isinstance(logits, Tensor) or states or "log_probs" in found:
        task, more, left_out = token_rows(batch, found)
    else:
        names = ", ".join(found) if found else type(outputs).__name__
        raise ConfigurationError(
            f"expected the model to return an output with logits, found {names}; use a model with a task head "
            "(AutoModelForSequenceClassification), or return a dict with 'logits' from your own."
        )
    rows |= {name: _host(tensor) for name, tensor in more.items()}
    mask = None if batch.mask is None else batch.mask[: len(batch.ids)]
    if mask is not None and mask.dim() == 2:
        rows["length"] = _host(mask.sum(1).int())
    if hidden_states is not None and states:
        layers = chosen_layers(hidden_states, len(states))
        chosen = [batch.own(states[layer], "hidden states") for layer in layers]
        with torch.autocast(chosen[0].device.type, enabled=False):  # the mean over tokens is taken in float32
            rows["hidden_states"] = _host(pooled(chosen, mask, pooling))
    return Captured(rows, task, layers, left_out)


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
