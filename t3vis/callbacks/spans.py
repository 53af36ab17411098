"""What a model that extracts answers says of the gold span, and which span it would have chosen."""

from __future__ import annotations

import torch
from torch import Tensor


def span_rows(logits: Tensor, spans: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
    """What is recorded of examples whose answer is a span of their tokens.

    Parameters
    ----------
    logits
        Of the start and the end, shape (n, 2, n_tokens).
    spans
        First and last token of the gold answer, shape (n, 2); what lies beyond the tokens is no answer.
    mask
        Shape (n, n_tokens), 1 for tokens that are not padding. Padding has no part in the probabilities, so that they
        do not depend on the other examples of the batch.

    Returns
    -------
    ``span_prediction``, and where there are ``spans`` also ``span_label``, ``span_logprob``, shape (n, 2) each, and
    ``loss``, shape (n,).
    """
    logits = logits.float()
    present = torch.ones_like(logits[:, 0], dtype=torch.bool) if mask is None else mask.to(logits.device).bool()
    logits = logits.masked_fill(~present[:, None], -torch.inf)
    rows = {"span_prediction": best_span(logits[:, 0], logits[:, 1]).int()}
    if spans is None:
        return rows
    spans = spans.to(logits.device).long()
    inside = (spans >= 0) & (spans < logits.shape[2])
    at = spans.where(inside, 0)
    inside &= present.gather(1, at)
    logprob = logits.log_softmax(2).gather(2, at[..., None])[..., 0].where(inside, torch.nan)
    return {**rows, "span_label": spans.where(inside, -1).int(), "span_logprob": logprob, "loss": -logprob.mean(1)}


def best_span(start: Tensor, end: Tensor) -> Tensor:
    """The span with the largest sum of logits whose first token does not come after its last one.

    Parameters
    ----------
    start, end
        Logits, shape (n, n_tokens) each.

    Returns
    -------
    First and last token, shape (n, 2).

    Examples
    --------
    >>> best_span(torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.0, 5.0, -5.0]]))
    tensor([[1, 1]])
    """
    highest, at = start.cummax(1)
    last = (highest + end).argmax(1, keepdim=True)
    return torch.cat([at.gather(1, last), last], 1)
