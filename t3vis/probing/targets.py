"""What of a model's output is explained: numbers of it, each with its place and a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t3vis.errors import ProbingError

_SPANS = ("start_logits", "end_logits")


@dataclass(frozen=True)
class Number:
    """One number of the output for one example.

    Parameters
    ----------
    name
        How it is shown.
    index
        Along the last axis of the output: a class or a token id; for ``start_logits`` and ``end_logits`` a token.
    position
        Token at which it is read, counted without padding; ``None`` if the output has one row for each example.
    output
        Name of the model's output.
    """

    name: str
    index: int
    position: int | None = None
    output: str = "logits"


Target = tuple[Number, ...]
"""The numbers that are explained, each by itself."""


def class_target(classes: Sequence[int], names: Sequence[str] | None = None) -> Target:
    """Logits of a classifier.

    Examples
    --------
    >>> class_target([1], ["negative", "positive"])
    (Number(name='positive', index=1, position=None, output='logits'),)
    """
    return tuple(Number(_name(names, i), i) for i in classes)


def token_target(position: int, classes: Sequence[int], names: Sequence[str] | None = None) -> Target:
    """Logits of one token in a model that classifies tokens."""
    return tuple(Number(_name(names, i), i, position) for i in classes)


def span_target(start: int, end: int) -> Target:
    """Logits of the first and of the last token of an answer."""
    return (Number(f"start at {start}", start, None, "start_logits"), Number(f"end at {end}", end, None, "end_logits"))


def generation_target(ids: Sequence[int], *, first: int, names: Sequence[str] | None = None) -> Target:
    """Logits of tokens that a language model has generated, each read where the token before it stands.

    Parameters
    ----------
    ids
        The generated tokens.
    first
        Position of the first of them in the example; for an encoder-decoder model, in what the decoder reads.
    names
        What they read.
    """
    return tuple(Number(str(i) if names is None else names[place], i, first + place - 1) for place, i in enumerate(ids))


def numbers_of(outputs: Any, targets: Sequence[Target]) -> Tensor:
    """Pick the explained numbers of every example of a batch that is padded on the right.

    Returns
    -------
    Shape (n_examples, n_numbers), in the type of the output.
    """
    return torch.stack([_column(outputs, targets, k) for k in range(len(targets[0]))], 1)


def probs_of(outputs: Any, targets: Sequence[Target], lengths: Sequence[int], *, each_by_itself: bool) -> Tensor:
    """How much the model believes in each explained number.

    Parameters
    ----------
    outputs
        Of the model.
    targets
        One for each example.
    lengths
        Tokens of each example: a span begins and ends at one of these.
    each_by_itself
        Whether classes do not exclude each other (several labels): a sigmoid of each then, not a softmax over all.

    Returns
    -------
    Shape (n_examples, n_numbers), in [0, 1]; of a model with a single output (regression) the output itself.
    """
    columns = [_column(outputs, targets, k, (lengths, each_by_itself)) for k in range(len(targets[0]))]
    return torch.stack(columns, 1)


def checked(targets: Sequence[Target], lengths: Sequence[int]) -> None:
    """Refuse targets that differ in kind, or lie outside of their example.

    Raises
    ------
    ProbingError
        Naming the example.
    """
    if len(targets) != len(lengths):
        raise ProbingError(f"{len(targets)} targets for {len(lengths)} examples; pass one for each.")
    kinds = {tuple((n.output, n.position is None) for n in target) for target in targets}
    if len(kinds) > 1 or not targets[0]:
        raise ProbingError(
            "targets of one call must explain the same number of outputs, at least one; found "
            f"{sorted({len(target) for target in targets})} of them."
        )
    for i, (target, n_tokens) in enumerate(zip(targets, lengths, strict=True)):
        for number in target:
            place = number.index if number.output in _SPANS else number.position
            if place is not None and not 0 <= place < n_tokens:
                raise ProbingError(f"example {i} has {n_tokens} tokens, none at {place}, where {number} is read.")


def _column(
    outputs: Any, targets: Sequence[Target], k: int, as_probs: tuple[Sequence[int], bool] | None = None
) -> Tensor:
    numbers = [target[k] for target in targets]
    name = numbers[0].output
    if name not in outputs:
        raise ProbingError(f"the model has no output {name}; it has {', '.join(outputs)}.")
    values: Tensor = outputs[name]
    rows = torch.arange(len(numbers), device=values.device)
    if numbers[0].position is not None:
        values = values[rows, torch.tensor([number.position for number in numbers], device=values.device)]
    if values.dim() != 2:
        raise ProbingError(
            f"{name} has the shape {tuple(values.shape)}, one dimension too "
            + ("many; name the token whose logits are meant." if values.dim() > 2 else "few; name no token.")
        )
    indices = torch.tensor([number.index for number in numbers], device=values.device)
    if int(indices.min()) < 0 or int(indices.max()) >= values.shape[1]:
        raise ProbingError(f"{name} has {values.shape[1]} columns, none at {sorted(set(indices.tolist()))}.")
    if as_probs is not None and values.shape[1] > 1:
        values = _probs(values.float(), name, *as_probs)
    return values[rows, indices]


def _probs(logits: Tensor, name: str, lengths: Sequence[int], each_by_itself: bool) -> Tensor:
    if name in _SPANS:
        behind = (
            torch.arange(logits.shape[1], device=logits.device) >= torch.tensor(lengths, device=logits.device)[:, None]
        )
        logits = logits.masked_fill(behind, -torch.inf)
    return logits.sigmoid() if each_by_itself else logits.softmax(-1)


def _name(names: Sequence[str] | None, i: int) -> str:
    return str(i) if names is None else names[i]
