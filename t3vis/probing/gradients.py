"""Explanations from gradients at the embeddings: their products and norms, along a path, and under noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3vis.probing.attribution import Attribution, relative_error
from t3vis.probing.question import Baseline, Question
from t3vis.probing.relevance import Rules, propagation


def cp_lrp(question: Question) -> Attribution:
    """Conservative propagation (Ali et al. 2022): tokens, biases and positions share the number out among them."""
    return _propagated(question, "cp_lrp")


def attnlrp(question: Question) -> Attribution:
    """AttnLRP (Achtibat et al. 2024): relevance also flows through attention weights; does not add up to the number."""
    return _propagated(question, "attnlrp")


def input_x_gradient(question: Question) -> Attribution:
    """The embedding times its gradient: what a change in proportion to it does to the number, to first order."""
    return _propagated(question, "gradient")


def gradient_norm(question: Question) -> Attribution:
    """Euclidean norm of the gradient of each token's embedding; without a sign."""
    numbers, gradients = question.gradients()
    return Attribution(gradients.norm(dim=-1), numbers)


def smoothgrad(question: Question, *, n_draws: int = 32, noise: float = 0.15, seed: int = 0) -> Attribution:
    """The embedding times the mean of its gradients under Gaussian noise on all tokens (Smilkov et al. 2017).

    Parameters
    ----------
    question
        What is explained.
    n_draws
        Draws of the noise.
    noise
        Its standard deviation, as a share of the range of the values in the example's embeddings.
    seed
        Of the noise, which is the same for an example whatever else is in its batch.

    Notes
    -----
    The paper shows the mean gradient itself; times the input it has a sign, and is comparable to the other methods.
    """
    x, shape = question.embeddings, question.embeddings.shape[1:]
    total = x.new_zeros((len(x), question.n_numbers, *shape))
    inside = x.masked_fill(~question.is_token[..., None], 0)
    scale = noise * (inside.amax((1, 2)) - inside.amin((1, 2)))[:, None, None]
    for draw in range(n_draws):
        # A stream for each draw, token by token, so that padding behind them takes nothing away from the tokens.
        drawn = np.random.default_rng((seed, draw)).standard_normal(tuple(shape), dtype=np.float32)
        total += question.gradients(x + scale * torch.from_numpy(drawn).to(x))[1]
    return Attribution((total / n_draws * x[:, None]).sum(-1), question.numbers())


def integrated_gradients(
    question: Question, *, baseline: Baseline | None = None, tolerance: float = 0.01, max_steps: int = 513
) -> Attribution:
    """Gradients along the straight way from a baseline, times that way (Sundararajan et al. 2017).

    The baseline keeps special tokens, as it keeps mask and positions. The steps are the points of Clenshaw and Curtis'
    quadrature, which are doubled, those before being used again, for the examples that do not add up yet.

    Parameters
    ----------
    question
        What is explained.
    baseline
        What takes the place of the tokens, as in `Question.baseline`.
    tolerance
        Relative completeness error at which no further steps are taken.
    max_steps
        Where it ends at the latest; the error is then larger, and said.
    """
    start = question.without(question.is_content, question.baseline(baseline))
    way = question.embeddings - start
    values = [_Path(question, i) for i in range(len(way))]
    n_steps = 9
    unfinished = list(range(len(way)))
    ends = torch.stack([question.numbers(start).detach(), question.numbers().detach()])
    while unfinished:
        _extend([values[i] for i in unfinished], question, start, way, n_steps)
        unfinished = [
            i for i in unfinished if (values[i].error(ends[:, i]) > tolerance).any() and 2 * n_steps - 1 <= max_steps
        ]
        n_steps = 2 * n_steps - 1
    found = torch.stack([path.integral() for path in values])
    return Attribution(
        found,
        ends[1],
        rest=ends[0],
        error=relative_error(found.sum(-1), ends[1] - ends[0]),
        steps=torch.tensor([len(path.known) for path in values]),
    )


class _Path:
    """What is known along the way of one example: at each place in [0, 1] the directional gradient of each token."""

    def __init__(self, question: Question, row: int) -> None:
        self.row = row
        self.known: dict[float, Tensor] = {}
        self._shape = (question.n_numbers, question.embeddings.shape[1])

    def integral(self) -> Tensor:
        places, weights = clenshaw_curtis(len(self.known))
        stacked = torch.stack([self.known[place] for place in places.tolist()])
        return torch.einsum("s,skt->kt", torch.from_numpy(weights).to(stacked), stacked)

    def error(self, ends: Tensor) -> Tensor:
        return relative_error(self.integral().sum(-1), ends[1] - ends[0])


def _extend(paths: Sequence[_Path], question: Question, start: Tensor, way: Tensor, n_steps: int) -> None:
    places = clenshaw_curtis(n_steps)[0].tolist()
    missing = [(path, place) for path in paths for place in places if place not in path.known]
    n_rows = max(len(question.examples), 8)
    for first in range(0, len(missing), n_rows):
        some = missing[first : first + n_rows]
        rows = [path.row for path, _ in some]
        share = way.new_tensor([place for _, place in some])[:, None, None]
        _, gradients = question.take(rows).gradients(start[rows] + share * way[rows])
        along = (gradients * way[rows][:, None]).sum(-1)
        for (path, place), each in zip(some, along, strict=True):
            path.known[place] = each


def clenshaw_curtis(n_points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points in [0, 1] and weights that integrate polynomials of a degree below ``n_points`` exactly.

    With ``2 * n_points - 1`` points, every other is one of these.

    Parameters
    ----------
    n_points
        Odd, at least 3.

    Examples
    --------
    >>> places, weights = clenshaw_curtis(5)
    >>> places.round(3).tolist(), round(float(weights @ places**4), 6)
    ([0.0, 0.146, 0.5, 0.854, 1.0], 0.2)
    """
    n = n_points - 1
    places = np.array([0.5 - 0.5 * np.cos(np.pi * (k / n)) for k in range(n_points)])
    even = np.arange(0, n + 1, 2)
    moments = 1 / (1 - even.astype(float) ** 2)
    halved = np.where((even == 0) | (even == n), 0.5, 1.0)
    cosines = np.cos(np.pi * np.outer(np.arange(n_points), even) / n)
    weights = 2 / n * cosines @ (moments * halved)
    weights[[0, -1]] /= 2
    return places, weights


def _propagated(question: Question, rules: Rules) -> Attribution:
    x = question.embeddings.detach().requires_grad_()
    with torch.enable_grad(), propagation(question.model, rules, len(x)) as running:
        numbers = question.numbers(x)
    values, rest = [], []
    for gradient in question.backward(numbers, x):
        values.append((gradient * x.detach()).sum(-1))
        taken = running.taken_by_constants()
        rest.append(torch.zeros_like(numbers[:, 0]).detach() if taken is None else taken)
    shared, constant, found = torch.stack(values, 1), torch.stack(rest, 1), numbers.detach()
    return Attribution(shared, found, rest=constant, error=relative_error(shared.sum(-1) + constant, found))
