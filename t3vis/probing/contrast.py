"""The same example in several states of a model: before and after fine-tuning, in two epochs, whole and pruned."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from t3vis.errors import ProbingError
from t3vis.probing.attribution import Method
from t3vis.probing.encoded import Encoded
from t3vis.probing.saliency import DEFAULT_METHOD, saliencies
from t3vis.probing.targets import Target


@dataclass(frozen=True, eq=False)
class Contrast:
    """One number of the output, explained in every state.

    Parameters
    ----------
    example, target, method
        What was explained, and how.
    states
        Their names.
    values
        Shape (n_states, n_tokens).
    numbers, rest, error
        Shape (n_states,), as in `Saliency`.
    """

    example: Encoded
    target: Target
    method: str
    states: tuple[str, ...]
    values: NDArray[np.float64]
    numbers: NDArray[np.float64]
    rest: NDArray[np.float64]
    error: NDArray[np.float64]

    def rows(self) -> list[dict[str, str]]:
        """The table as text: a row for each token, a column for each state and the change from the first to the last.

        Below the tokens: what is not the tokens', and the number that all of them add up to.
        """
        lines = [
            *zip(self.example.tokens, self.values.T, strict=True),
            ("(biases and rest)", self.rest),
            (f"= {self.target[0].name}", self.numbers),
        ]
        return [
            {
                "token": token,
                **{state: f"{value:+.3f}" for state, value in zip(self.states, values, strict=True)},
                "change": f"{values[-1] - values[0]:+.3f}",
            }
            for token, values in lines
        ]

    @property
    def change(self) -> NDArray[np.float64]:
        """From the first state to the last, shape (n_tokens,)."""
        found: NDArray[np.float64] = self.values[-1] - self.values[0]
        return found


def contrast(
    states: Mapping[str, Any],
    example: Encoded,
    target: Target,
    *,
    method: str | Method = DEFAULT_METHOD,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Contrast:
    """Explain one number of one example in several states of a model.

    Parameters
    ----------
    states
        At least two by name: each a model, or a context manager within which what it yields is the model in that state,
        such as ``{"whole": model, "pruned": prune(model, {(3, 7)})}``.
    example, method, tokenizer
        As in `saliencies`.
    target
        Its first number is explained, the same in every state.

    Raises
    ------
    ProbingError
        If there are fewer than two states.
    """
    if len(states) < 2:
        raise ProbingError(f"{len(states)} state of a model is nothing to contrast; give two or more.")
    found = []
    for state in states.values():
        within: AbstractContextManager[Any] = nullcontext(state) if isinstance(state, nn.Module) else state
        with within as model:
            found += saliencies(model, [example], [target[:1]], method=method, tokenizer=tokenizer)
    return Contrast(
        example=example,
        target=target[:1],
        method=found[0].method,
        states=tuple(states),
        values=np.stack([each.values[0] for each in found]),
        numbers=np.array([each.numbers[0] for each in found]),
        rest=np.array([each.rest[0] for each in found]),
        error=np.array([each.error[0] for each in found]),
    )
