"""What a model says of the tokens that it is to predict: a few numbers each, never a score per word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_VALUES = 1 << 22
"""Logits that are widened to float32 at a time, 16 MiB; beside them there is once as much again of temporaries."""


@dataclass(frozen=True)
class TokenScores:
    """What a model says of each scored token; shape (n_scored,) each.

    ``logprob`` of the gold class and ``entropy`` of all are in nats, float32. ``prediction`` is the class with the
    largest logit, and ``rank`` how many classes have a larger one than the gold class: 0 where it is predicted.
    """

    logprob: Tensor
    prediction: Tensor
    entropy: Tensor
    rank: Tensor


def token_scores(logits: Tensor, rows: Tensor, columns: Tensor, gold: Tensor) -> TokenScores:
    """Scores of some tokens, a chunk of them at a time.

    Parameters
    ----------
    logits
        Shape (n_rows, n_tokens, n_classes), of any floating type; ``-inf`` where a class is ruled out.
    rows, columns
        Which logits are those of the scored tokens, shape (n_scored,) each.
    gold
        The class of each, shape (n_scored,), in ``[0, n_classes)``.

    Notes
    -----
    The sums are taken in float32, of logits less the largest one, whatever their own type is.

    Examples
    --------
    >>> logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    >>> scores = token_scores(logits, torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    >>> scores.logprob, scores.prediction, scores.rank
    (tensor([-1.4076]), tensor([2]), tensor([1]))
    """
    size = max(CHUNK_VALUES // logits.shape[2], 1)
    chunks = zip(*(torch.split(each, size) for each in (rows, columns, gold)), strict=True)
    found = [_scores(logits[row, column].float(), wanted) for row, column, wanted in chunks]
    logprob, prediction, entropy, rank = (torch.cat(parts) for parts in zip(*found, strict=True))
    return TokenScores(logprob, prediction, entropy, rank)


def _scores(logits: Tensor, gold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probability, prediction, entropy and rank, of logits (n, n_classes) that are overwritten."""
    of_gold = logits.gather(1, gold[:, None])
    rank = (logits > of_gold).sum(1)
    largest, prediction = logits.max(1, keepdim=True)
    logits -= largest
    weights = logits.exp()
    total = weights.sum(1)
    logits.clamp_(min=torch.finfo(logits.dtype).min)  # a class that is ruled out adds nothing to the entropy, not NaN
    entropy = total.log() - weights.mul_(logits).sum(1) / total
    return (of_gold - largest)[:, 0] - total.log(), prediction[:, 0], entropy, rank
