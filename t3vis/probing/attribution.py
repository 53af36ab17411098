"""What every method of explaining gives: values of tokens, what they should add up to, and how far they are from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from t3vis.probing.question import Question

_SMALLEST = 1e-6


@dataclass(frozen=True, eq=False)
class Attribution:
    """Saliency of the tokens of a batch; what a method does not say is ``None``.

    Parameters
    ----------
    values
        Shape (n, n_numbers, n_tokens); what stands at padding does not matter.
    numbers
        The explained numbers, shape (n, n_numbers).
    rest
        What of each number is not the tokens', shape (n, n_numbers): the share of biases and positions, or what the
        model says to the baseline. Tokens and rest should add up to the number.
    error
        How far they are from it, relative, shape (n, n_numbers).
    steps
        Forward-backward passes that were needed for each example, shape (n,).
    """

    values: Tensor
    numbers: Tensor
    rest: Tensor | None = None
    error: Tensor | None = None
    steps: Tensor | None = None


Method = Callable[[Question], Attribution | Tensor]
"""A method: from a question to its attribution, or to the values alone, shape (n, n_numbers, n_tokens)."""


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """|found - expected| / |expected|, guarded against an expectation of 0."""
    return (found - expected).abs() / expected.abs().clamp_min(_SMALLEST)
