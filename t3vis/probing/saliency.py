"""Which tokens a prediction rests on: a value for each token, by any of several methods, with what it adds up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from t3vis.errors import ProbingError
from t3vis.probing.attribution import Attribution, Method
from t3vis.probing.encoded import Encoded, encoded
from t3vis.probing.gradients import (
    attnlrp,
    cp_lrp,
    gradient_norm,
    input_x_gradient,
    integrated_gradients,
    smoothgrad,
)
from t3vis.probing.model import probed
from t3vis.probing.occlusion import attention_rollout, occlusion
from t3vis.probing.predicted import predicted_target
from t3vis.probing.question import Question
from t3vis.probing.targets import Target, class_target

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "cp_lrp": cp_lrp,
        "attnlrp": attnlrp,
        "input_x_gradient": input_x_gradient,
        "integrated_gradients": integrated_gradients,
        "smoothgrad": smoothgrad,
        "occlusion": occlusion,
        "gradient_norm": gradient_norm,
        "attention_rollout": attention_rollout,
    }
)
DEFAULT_METHOD = "cp_lrp"


@dataclass(frozen=True, eq=False)
class Saliency:
    """What the tokens of one example contribute to each explained number.

    Parameters
    ----------
    method
        By its name.
    example
        The tokens, their texts and characters.
    target
        The explained numbers.
    values
        Shape (n_numbers, n_tokens). Positive: the token speaks for the number. `gradient_norm` and
        `attention_rollout` have no sign.
    numbers
        What the model says, shape (n_numbers,).
    rest
        What of it is not the tokens', shape (n_numbers,): what biases and positions take, or for integrated gradients
        what the model says to the baseline. NaN where the method does not say.
    error
        How far tokens and rest are from adding up, relative, shape (n_numbers,): the conservation error, for integrated
        gradients the completeness error. NaN where the method promises no sum.
    steps
        Passes that integrated gradients needed; 0 for other methods.
    """

    method: str
    example: Encoded
    target: Target
    values: NDArray[np.float64]
    numbers: NDArray[np.float64]
    rest: NDArray[np.float64]
    error: NDArray[np.float64]
    steps: int = 0

    @property
    def rest_share(self) -> NDArray[np.float64]:
        """Share of each number that biases and positions take, or the baseline; shape (n_numbers,)."""
        return self.rest / self.numbers

    def top(self, n_tokens: int, *, number: int = 0) -> list[tuple[str, float]]:
        """The tokens that speak most for a number, with their values."""
        best = np.argsort(-self.values[number], kind="stable")[:n_tokens]
        return [(self.example.tokens[i], float(self.values[number, i])) for i in best]


def explain(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    text_pair: str | None = None,
    *,
    method: str | Method = DEFAULT_METHOD,
    classes: Sequence[int] | None = None,
    target: Target | None = None,
) -> Saliency:
    """Explain what a model says to a text.

    Parameters
    ----------
    model
        Of transformers, with a head; it is left as it was.
    tokenizer
        That of the model.
    text, text_pair
        What it reads.
    method
        A name of `METHODS`, or a function: see `Method`.
    classes
        Of a classifier: those that are explained.
    target
        What is explained otherwise; by default what the model predicts, see `predicted_target`.

    Raises
    ------
    ProbingError
        If the method cannot explain this model, or the target is not in its output.
    """
    example = encoded(tokenizer, text, text_pair)
    if target is None and classes is not None:
        target = class_target(classes, _class_names(model))
    if target is None:
        target = predicted_target(model, example, tokenizer)
    return saliencies(model, [example], [target], method=method, tokenizer=tokenizer)[0]


def saliencies(
    model: Any,
    examples: Sequence[Encoded],
    targets: Sequence[Target],
    *,
    method: str | Method = DEFAULT_METHOD,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 32,
) -> list[Saliency]:
    """Explain several examples, in batches of like length.

    Parameters
    ----------
    model, method
        As in `explain`.
    examples
        What is explained.
    targets
        One for each, all of the same kind and with as many numbers.
    tokenizer
        Says which tokens are [MASK] and padding; without one the model's config does, and there is no [MASK].
    batch_size
        Examples in a batch.

    Returns
    -------
    One for each example, in their order.
    """
    if isinstance(method, str):
        name, function = method, method_of(method)
    else:
        name, function = getattr(method, "__name__", type(method).__name__), method
    found: dict[int, Saliency] = {}
    with probed(model):
        for ids, question in questions(model, examples, targets, tokenizer=tokenizer, batch_size=batch_size):
            given = function(question)
            answer = given if isinstance(given, Attribution) else Attribution(given, question.numbers().detach())
            _check_shape(name, answer.values, question)
            found |= {i: _saliency(name, question, answer, row) for row, i in enumerate(ids)}
    return [found[i] for i in range(len(examples))]


def questions(
    model: Any,
    examples: Sequence[Encoded],
    targets: Sequence[Target],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 32,
) -> Iterator[tuple[list[int], Question]]:
    """Examples in batches of like length, as questions put to the model; the numbers of the examples beside each."""
    if len(targets) != len(examples):
        raise ProbingError(f"{len(targets)} targets for {len(examples)} examples; pass one for each.")
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    mask_id = None if tokenizer is None else tokenizer.mask_token_id
    pad_id = None if tokenizer is None else tokenizer.pad_token_id
    if pad_id is None:
        pad_id = getattr(model.config, "pad_token_id", None)
    for start in range(0, len(order), batch_size):
        ids = order[start : start + batch_size]
        yield (
            ids,
            Question(
                model, tuple(examples[i] for i in ids), tuple(targets[i] for i in ids), mask_id=mask_id, pad_id=pad_id
            ),
        )


def method_of(name: str) -> Method:
    """The method of a name.

    Raises
    ------
    ProbingError
        If there is none.
    """
    if name not in METHODS:
        raise ProbingError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def _class_names(model: Any) -> list[str]:
    names = model.config.id2label
    return [names[i] for i in range(len(names))]


def _check_shape(name: str, values: Tensor, question: Question) -> None:
    expected = (len(question.examples), question.n_numbers, question.embeddings.shape[1])
    if tuple(values.shape) != expected:
        raise ProbingError(
            f"the method {name} gave values of shape {tuple(values.shape)}; expected {expected}: examples, explained "
            "numbers, tokens."
        )


def _saliency(name: str, question: Question, answer: Attribution, row: int) -> Saliency:
    example = question.examples[row]
    numbers = _array(answer.numbers[row])
    unknown = np.full(len(numbers), np.nan)
    return Saliency(
        method=name,
        example=example,
        target=question.targets[row],
        values=_array(answer.values[row, :, : len(example)]),
        numbers=numbers,
        rest=unknown if answer.rest is None else _array(answer.rest[row]),
        error=unknown if answer.error is None else _array(answer.error[row]),
        steps=0 if answer.steps is None else int(answer.steps[row]),
    )


def _array(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return found
