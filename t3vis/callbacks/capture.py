"""What the model returned for one micro-batch, into rows.

Hidden states are pooled on the device, cast to float16, and cross to the host in one copy. Nothing in here waits for
the device, but for what is recorded of each token: how many tokens have a label, and how long the examples of a row
without padding are, the host must know before it can go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from t3vis.callbacks.batches import Batch, wrong_number_of_rows
from t3vis.callbacks.host_copies import HostCopies
from t3vis.callbacks.spans import span_rows
from t3vis.callbacks.tasks import IGNORED_LABEL, SEQUENCE_TASKS, TOKEN_TASKS, Task, sequence_rows, sequence_task
from t3vis.callbacks.tokens import Rows, token_rows
from t3vis.errors import ConfigurationError

Pooling = Literal["mean", "first", "last"] | Callable[[Tensor, Tensor], Tensor]
Layers = Literal["all", "last"] | Sequence[int] | None

FLOAT16_MAX = 65504.0
_TELLING = ("logits", "log_probs", "start_logits")


@dataclass(frozen=True)
class Captured:
    """Rows of one micro-batch, on the host or on their way to it, and what they show of the task.

    ``copies`` are on their way, ``token_rows`` are there. ``layers`` and ``decoder_layers`` say which hidden states
    they are. ``left_out`` says in words what the model returned, or was expected to, that is not among the rows.
    """

    n_examples: int
    copies: HostCopies
    token_rows: Rows
    task: Task
    layers: list[int] | None
    left_out: tuple[str, ...] = ()
    decoder_layers: list[int] | None = None

    def rows(self) -> Rows:
        """The rows, once they have arrived.

        Returns
        -------
        ``example``, what is recorded of the task (such as ``logits`` and ``loss``), ``hidden_states`` and, for a store
        that has no other source for them, ``labels`` or ``targets`` and ``length``, in the dimensions of a segment.
        """
        return {**self.copies.arrays(), **self.token_rows}


def hidden_states_of(outputs: Mapping[str, Any]) -> Sequence[Tensor] | None:
    """Hidden states among a model's outputs; of an encoder-decoder those of the encoder."""
    return outputs.get("hidden_states") or outputs.get("encoder_hidden_states") or None


@torch.no_grad()
def captured(
    batch: Batch,
    outputs: Any,
    *,
    hidden_states: Layers,
    pooling: Pooling,
    problem_type: str | None,
    task: Task | None = None,
) -> Captured:
    """Rows of one micro-batch; those that are not of tokens are not waited for.

    Parameters
    ----------
    outputs
        What the model returned: a ``ModelOutput`` or dict with ``logits`` of each example, or outputs of each token
        (their logits, or their ``log_probs``), or ``start_logits`` and ``end_logits``, or ``hidden_states`` only.
    task
        What the model is for; where it is ``None`` the outputs and labels tell.

    Raises
    ------
    ConfigurationError
        If the outputs have none of these, or not those of the task, not one row per example, or layers that cannot be
        stored side by side.
    """
    found: Mapping[str, Any] = outputs if isinstance(outputs, Mapping) else {}
    batch = batch.split_up()
    if not any(isinstance(found.get(name), Tensor) for name in _TELLING) and not hidden_states_of(found):
        names = ", ".join(found) if found else type(outputs).__name__
        raise ConfigurationError(
            f"expected the model to return an output with logits, found {names}; use a model with a task head "
            "(AutoModelForSequenceClassification), or return a dict with 'logits' from your own."
        )
    task = task_of_batch(batch, found, task, problem_type)
    of_task, of_tokens, left_out = _task_rows(task, batch, found)
    rows = {"example": batch.ids, **of_task}
    mask = None if batch.mask is None else batch.mask[: len(batch.ids)]
    if mask is not None and mask.dim() == (3 if batch.n_choices > 1 else 2):
        rows["length"] = mask.flatten(1).sum(1).int()
    states, layers, decoder_layers = hidden_states_of(found), None, None
    if hidden_states is not None and states:
        layers = chosen_layers(hidden_states, len(states))
        rows["hidden_states"] = _states(batch, [states[layer] for layer in layers], mask, pooling)
        decoder_states: Sequence[Tensor] = found.get("decoder_hidden_states") or ()
        decoder_layers = [layer for layer in _numbers(hidden_states, len(decoder_states)) if layer is not None]
        if decoder_layers:
            mask = _decoder_mask(task, batch, decoder_states[0].shape[1])
            chosen = [decoder_states[layer] for layer in decoder_layers]
            rows["decoder_hidden_states"] = _states(batch, chosen, mask, pooling)
    return Captured(len(batch.ids), HostCopies(rows), of_tokens, task, layers, left_out, decoder_layers or None)


def task_of_batch(batch: Batch, outputs: Mapping[str, Any], task: Task | None, problem_type: str | None) -> Task:
    """The task: as it is known of the model, else as the outputs and labels of a batch tell.

    Raises
    ------
    ConfigurationError
        If the outputs are not those of the task.
    """
    logits, labels, has_spans = outputs.get("logits"), batch.labels, "start_logits" in outputs
    n_dims = logits.dim() if isinstance(logits, Tensor) else 0
    if batch.paired:
        return "preference"
    if task is not None:
        fits = has_spans if task == "question_answering" else n_dims in ((0, 3) if task in TOKEN_TASKS else (2,))
        if not fits:
            found = f"logits of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ", ".join(outputs)
            raise ConfigurationError(
                f"the task is {task}, but the model returned {found}, which are no outputs of that task; name the "
                "right one in RecorderCallback(task=...)."
            )
        return task
    if has_spans:
        return "question_answering"
    if "log_probs" in outputs:
        return "causal_lm"
    if n_dims == 3:
        is_labelled = isinstance(logits, Tensor) and labels is not None and labels.shape == logits.shape[:2]
        return ("causal_lm" if batch.shifted else "token_classification") if is_labelled else "other"
    if isinstance(logits, Tensor):
        return "multiple_choice" if batch.n_choices > 1 else sequence_task(logits, labels, problem_type)
    return "other"


def _task_rows(task: Task, batch: Batch, outputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], Rows, tuple[str, ...]]:
    """What is recorded of the examples for their task: tensors, rows on the host, and in words what is left out."""
    if task in SEQUENCE_TASKS:
        logits = outputs["logits"]
        if len(logits) != len(batch.ids):
            raise wrong_number_of_rows(len(logits), "logits", len(batch.ids))
        return sequence_rows(task, logits, batch.labels), {}, ()
    if task == "question_answering":
        logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], 1)
        batch.check_rows(logits, "logits")
        return span_rows(logits, batch.spans, batch.mask), {}, ()
    return {}, *token_rows(task, batch, outputs)


def _states(batch: Batch, states: Sequence[Tensor], mask: Tensor | None, pooling: Pooling) -> Tensor:
    """Pooled hidden states of the examples; of several choices their mean."""
    if mask is not None and batch.n_choices > 1:
        mask = mask.flatten(0, 1)
    own = [batch.own(state, "hidden states") for state in states]
    with torch.autocast(own[0].device.type, enabled=False):  # the mean over tokens is taken in float32
        return pooled(own, mask, pooling, n_choices=batch.n_choices)


def _decoder_mask(task: Task, batch: Batch, n_tokens: int) -> Tensor | None:
    """Which tokens of the decoder are not padding: each is there to predict the label at its position."""
    if batch.decoder_mask is not None:
        return batch.decoder_mask
    if task == "seq2seq_lm" and batch.labels is not None and batch.labels.shape[1:] == (n_tokens,):
        return batch.labels != IGNORED_LABEL
    same = batch.mask is not None and batch.mask.shape[1:] == (n_tokens,)
    return batch.mask if same else None  # a decoder that is fed the input itself


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
    found = _numbers(layers, n_states)
    beyond = [named for named, layer in zip(layers or (), found, strict=False) if layer is None]
    if beyond:
        raise ConfigurationError(
            f"hidden_states names {beyond}, but the model has {n_states} hidden states, 0 to {n_states - 1} "
            "(0 is the output of the embeddings); choose among these."
        )
    return [layer for layer in found if layer is not None]


def _numbers(layers: Layers, n_states: int) -> list[int | None]:
    """The hidden states that are named, ``None`` in place of one that the model does not have."""
    if layers == "all":
        return list(range(n_states))
    wanted = [-1] if layers == "last" else [int(layer) for layer in layers or ()]
    return [layer % n_states if -n_states <= layer < n_states else None for layer in wanted]


def pooled(states: Sequence[Tensor], mask: Tensor | None, pooling: Pooling, *, n_choices: int = 1) -> Tensor:
    """Pool each layer over the tokens of an example.

    Parameters
    ----------
    states
        Shape (n, n_tokens, hidden) each.
    mask
        Shape (n, n_tokens), 1 for tokens that are not padding; ``None`` counts all.
    n_choices
        Rows that belong to one example; the mean of what is pooled of each is taken.

    Returns
    -------
    Shape (n_layers, n / n_choices, hidden), float16, saturated at its range.

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
    stacked = torch.stack(vectors)
    means = stacked.view(len(vectors), n_rows // n_choices, n_choices, -1).mean(2)
    return means.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()


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
