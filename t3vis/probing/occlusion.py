"""Explanations that need no gradient of the embeddings: tokens taken away one by one, and attention rolled out."""

from __future__ import annotations

import torch
from torch import Tensor

from t3vis.errors import ProbingError
from t3vis.probing.attribution import Attribution
from t3vis.probing.question import Baseline, Question

_ROWS = 64


def occlusion(question: Question, *, baseline: Baseline | None = None) -> Attribution:
    """How much the number falls when a token is replaced by the baseline; special tokens stay, and have 0.

    Parameters
    ----------
    question
        What is explained.
    baseline
        What takes the place of a token, as in `Question.baseline`.
    """
    replacement = question.baseline(baseline)
    places = question.is_content.nonzero()
    with torch.no_grad():
        numbers = question.numbers()
        values = numbers.new_zeros((*numbers.shape, question.embeddings.shape[1]))
        for start in range(0, len(places), _ROWS):
            rows, tokens = places[start : start + _ROWS].T
            asked = question.take(rows.tolist())
            removed = torch.zeros_like(asked.inputs["input_ids"], dtype=torch.bool)
            removed[torch.arange(len(rows), device=rows.device), tokens] = True
            values[rows, :, tokens] = numbers[rows] - asked.numbers(asked.without(removed, replacement))
    return Attribution(values, numbers)


def attention_rollout(question: Question) -> Attribution:
    """Attention multiplied through the layers, half of each layer being the residual path (Abnar and Zuidema 2020).

    Rolled out from the positions that the number is read at, by how much it depends on their last hidden state. It has
    no sign, and tells numbers apart only where they are read at different positions.

    Raises
    ------
    ProbingError
        If the model shows no attention weights, or has two stacks.
    """
    model = question.model
    if getattr(model.config, "is_encoder_decoder", False):
        raise ProbingError(f"attention of {type(model).__name__} has two stacks, through which it is not rolled out.")
    implementation = getattr(model.config, "_attn_implementation", None)
    model.set_attn_implementation("eager")
    x = question.embeddings.detach().requires_grad_()
    try:
        with torch.enable_grad():
            outputs = question.outputs(x, output_attentions=True, output_hidden_states=True)
    finally:
        if implementation is not None:
            model.set_attn_implementation(implementation)
    weights, states = outputs.get("attentions"), outputs.get("hidden_states")
    if not weights or not states or any(layer is None for layer in weights):
        raise ProbingError(f"{type(model).__name__} shows no attention weights; choose another method.")
    numbers = question.numbers_of(outputs)
    read = torch.stack([_read_at(numbers[:, k], states[-1]) for k in range(question.n_numbers)], 1)
    values = torch.bmm(read, _rolled_out([layer.detach().mean(1) for layer in weights]))
    return Attribution(values, numbers.detach())


def _read_at(number: Tensor, state: Tensor) -> Tensor:
    """Share of each position in what the number reads of the last hidden state, shape (n, n_tokens)."""
    (gradient,) = torch.autograd.grad(number.sum(), state, retain_graph=True)
    size = gradient.norm(dim=-1)
    share: Tensor = size / size.sum(-1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
    return share


def _rolled_out(layers: list[Tensor]) -> Tensor:
    eye = torch.eye(layers[0].shape[-1], dtype=layers[0].dtype, device=layers[0].device)
    rolled = eye.expand_as(layers[0])
    for weights in layers:
        mixed = 0.5 * weights + 0.5 * eye
        rolled = torch.bmm(mixed / mixed.sum(-1, keepdim=True), rolled)
    return rolled
