"""Which explanation to believe: take away the tokens that a method ranks first, and see what is left of the prediction.

Comprehensiveness is how far the probability of what is explained falls when the first tokens are removed (high is
good); sufficiency how far when only they are kept (low is good). Both are averaged over several shares of the tokens,
the area over the perturbation curve (AOPC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from t3vis.probing.attribution import Attribution, Method
from t3vis.probing.encoded import Encoded
from t3vis.probing.model import probed
from t3vis.probing.question import Baseline, Question
from t3vis.probing.saliency import METHODS, questions
from t3vis.probing.targets import Target

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How much of the prediction the first tokens of each ranking carry.

    Parameters
    ----------
    methods
        Names, ``random`` among them.
    fractions
        Shares of an example's tokens, special ones not counted, that are removed or kept.
    probs
        Of what is explained, with the whole example, shape (n_examples,).
    removed, kept
        Shape (n_methods, n_fractions, n_examples): the probability without the first tokens, and with only these.
    n_resamples, seed
        Of the bootstrap over examples.
    """

    methods: tuple[str, ...]
    fractions: tuple[float, ...]
    probs: NDArray[np.float64]
    removed: NDArray[np.float64]
    kept: NDArray[np.float64]
    n_resamples: int = 2000
    seed: int = 0

    @property
    def comprehensiveness(self) -> NDArray[np.float64]:
        """Mean fall over the fractions, shape (n_methods, n_examples)."""
        found: NDArray[np.float64] = (self.probs - self.removed).mean(1)
        return found

    @property
    def sufficiency(self) -> NDArray[np.float64]:
        """Mean fall over the fractions, shape (n_methods, n_examples)."""
        found: NDArray[np.float64] = (self.probs - self.kept).mean(1)
        return found

    def rows(self) -> list[dict[str, str]]:
        """The table as text, the most comprehensive method first.

        Each figure is a mean over examples with the half width of its 95 % interval. ``behind the best`` is how much
        less comprehensive a method is than the first one, on the same resampled examples: one whose
        interval has 0 in it cannot be told from the best.
        """
        means, lows, highs = self._intervals(self.comprehensiveness)
        sufficient, low_kept, high_kept = self._intervals(self.sufficiency)
        order = np.argsort(-means, kind="stable")
        behind, low, high = self._intervals(self.comprehensiveness[order[0]] - self.comprehensiveness)
        return [
            {
                "method": self.methods[i],
                "comprehensiveness": _with_width(means[i], lows[i], highs[i]),
                "sufficiency": _with_width(sufficient[i], low_kept[i], high_kept[i]),
                "behind the best": f"{behind[i]:.3f} [{low[i]:.3f}, {high[i]:.3f}]" if i != order[0] else "",
            }
            for i in order.tolist()
        ]

    @property
    def best(self) -> str:
        """The most comprehensive method."""
        return self.methods[int(self.comprehensiveness.mean(1).argmax())]

    def _intervals(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Mean over examples of each row, and the ends of its percentile interval."""
        draws = np.random.default_rng(self.seed).multinomial(
            values.shape[1], np.full(values.shape[1], 1 / values.shape[1]), size=self.n_resamples
        )
        means = values @ draws.T / values.shape[1]
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
        return values.mean(1), low, high


def faithfulness(
    model: Any,
    examples: Sequence[Encoded],
    targets: Sequence[Target],
    *,
    methods: Mapping[str, Method] = METHODS,
    tokenizer: PreTrainedTokenizerBase | None = None,
    fractions: Sequence[float] = FRACTIONS,
    baseline: Baseline | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Faithfulness:
    """Compare methods on a model and its data, and each with a random order of the tokens.

    Parameters
    ----------
    model, examples, targets, tokenizer, batch_size
        As in `saliencies`; of each target the first number counts.
    methods
        By name.
    fractions
        Shares of the tokens, in (0, 1); at least one token is taken.
    baseline
        What takes the place of a removed token: see `Question.baseline`.
    seed
        Of the random order and of the bootstrap.

    References
    ----------
    DeYoung et al. (2020), "ERASER", section 4.2. Samek et al. (2017), "Evaluating the visualization of what a deep
    neural network has learned".

    Notes
    -----
    ERASER cuts removed tokens out and takes shares from 1 % on; here the mask token stands in their place, so that
    positions do not move, and a share of 1 % would be no token in most sentences.
    """
    names = (*methods, "random")
    shape = (len(names), len(fractions), len(examples))
    removed, kept, probs = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape[2], np.nan)
    generator = np.random.default_rng(seed)
    orders = [torch.from_numpy(generator.random(len(example), dtype=np.float32)) for example in examples]
    with probed(model), tqdm(total=len(examples), desc="faithfulness", delay=1, leave=False) as bar:
        for ids, question in questions(model, examples, targets, tokenizer=tokenizer, batch_size=batch_size):
            probs[ids] = _first(question.probs())
            replacement = question.baseline(baseline)
            drawn = torch.nn.utils.rnn.pad_sequence([orders[i] for i in ids], batch_first=True)
            for m, name in enumerate(names):
                ranks = _ranks(
                    drawn.to(question.lengths.device) if name == "random" else _scores(methods[name], question),
                    question,
                )
                for f, fraction in enumerate(fractions):
                    first = question.is_content & (ranks < _n_taken(question, fraction)[:, None])
                    others = question.is_content & ~first
                    removed[m, f, ids] = _first(question.probs(question.without(first, replacement)))
                    kept[m, f, ids] = _first(question.probs(question.without(others, replacement)))
            bar.update(len(ids))
    return Faithfulness(names, tuple(fractions), probs, removed, kept, seed=seed)


def _scores(method: Method, question: Question) -> Tensor:
    answer = method(question)
    return (answer.values if isinstance(answer, Attribution) else answer)[:, 0]


def _ranks(scores: Tensor, question: Question) -> Tensor:
    """Place of each token in the order of its example, the highest score first; special tokens come last."""
    hidden = scores.detach().masked_fill(~question.is_content, -torch.inf)
    return hidden.argsort(descending=True, stable=True, dim=1).argsort(1)


def _n_taken(question: Question, fraction: float) -> Tensor:
    return (question.is_content.sum(1) * fraction).round().clamp_min(1)


def _first(probs: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = probs[:, 0].double().cpu().numpy()
    return found


def _with_width(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} ± {(high - low) / 2:.3f}"
