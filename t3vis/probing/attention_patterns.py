"""The patterns of all heads over a dataset, in one pass: nothing is kept of an example but what it adds to sums.

All that a layer's weights are asked is asked in a few products of matrices, so that it costs little beside the forward
pass; what is asked depends on the tokens only, and is written down once for all layers that share a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from t3vis.analysis.attention_patterns import (
    PATTERNS,
    PUNCTUATION,
    WORD,
    HeadPatterns,
    Pattern,
    RunningMean,
    Vocabulary,
    vocabulary,
)
from t3vis.errors import ProbingError
from t3vis.probing.attention import ORDER, AttentionCall, AttentionReader
from t3vis.probing.attention_questions import BESIDE, SPECIALS, Questions, questions, side
from t3vis.probing.batches import Batch, Examples, batches

MAX_OFFSET = 16
N_BINS = 16
TINY = 1e-30
"""A weight below this adds nothing to an entropy."""
HOLDS_FROM = 0.5
"""A pattern holds in an example from this mass on."""


def attention_patterns(
    model: PreTrainedModel,
    examples: Examples,
    known: Vocabulary,
    *,
    sentence_ids: Sequence[Sequence[int]] | None = None,
    span_ids: Sequence[Sequence[int]] | None = None,
    batch_size: int = 16,
    max_offset: int = MAX_OFFSET,
    n_bins: int = N_BINS,
    what: str | None = None,
) -> HeadPatterns:
    """What each head of a model attends to, over a dataset.

    Parameters
    ----------
    model
        Runs in eval mode, and is left as it was.
    examples
        What the model is called with, as for `t3vis.probing.batches.batches`.
    known
        What the tokens are, as by `vocabulary_of`.
    sentence_ids
        For each example the number of each token's sentence, -1 for none. By default a sentence ends after a full stop,
        a question or an exclamation mark, and after a special token.
    span_ids
        The same of spans, such as phrases or entities; by default there are none.
    batch_size
        Examples at a time; it changes nothing but time and memory.
    max_offset
        The largest offset in ``by_offset``, at least 1.
    n_bins
        Parts of a text in ``by_position``.
    what
        Shown on a progress bar.

    Raises
    ------
    ProbingError
        If there is no example, or the model does not give its attention weights.

    References
    ----------
    Clark et al. (2019), "What Does BERT Look At? An Analysis of BERT's Attention", section 3; Vig and Belinkov (2019),
    "Analyzing the Structure of Attention in a Transformer Language Model", sections 4 and 5.
    """
    sums = PatternSums(known, max_offset=max_offset, n_bins=n_bins)
    with AttentionReader(model) as reader:
        for batch in batches(model, examples, batch_size=batch_size, what=what):
            sums.begin(
                sentence_ids=_of_batch(sentence_ids, batch),
                span_ids=_of_batch(span_ids, batch),
            )
            reader.read(batch.inputs, sums.add)
    return sums.result()


def _of_batch(values: Sequence[Sequence[int]] | None, batch: Batch) -> Tensor | None:
    """What is given of the tokens of a batch, padded with -1."""
    if values is None:
        return None
    found = torch.full(batch.inputs["input_ids"].shape, -1)
    for row, number in zip(found, batch.ids, strict=True):
        row[: len(values[number])] = torch.as_tensor(values[number])
    return found


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """What the tokens of a tokenizer are; what begins and ends a text there is told by its special tokens."""
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    texts = [tokenizer.convert_tokens_to_string([name]) if name else "" for name in names]
    ends = {tokenizer.sep_token_id, tokenizer.eos_token_id} - {None}
    begins = {tokenizer.cls_token_id, tokenizer.bos_token_id} - {None}
    return vocabulary(texts, special=tokenizer.all_special_ids, cls=sorted(begins), sep=sorted(ends))


class PatternSums:
    """Sums over the examples of a dataset; their size depends neither on their number nor on their length."""

    def __init__(self, known: Vocabulary, *, max_offset: int = MAX_OFFSET, n_bins: int = N_BINS) -> None:
        self._known = torch.from_numpy(known.kinds), torch.from_numpy(known.ends_sentence)
        self._max_offset, self._n_bins = max_offset, n_bins
        self._layers: dict[tuple[int, int], _LayerSums] = {}
        self._annotations: dict[str, Tensor | None] = {}
        self._questions: list[tuple[AttentionCall, Questions]] = []

    def begin(self, *, sentence_ids: Tensor | None = None, span_ids: Tensor | None = None) -> None:
        """A batch begins: what is known of its tokens, shape (n_examples, n_tokens), -1 for none."""
        self._annotations = {"sentence_ids": sentence_ids, "span_ids": span_ids}
        self._questions = []

    def add(self, call: AttentionCall) -> None:
        """Add the weights of one layer for one batch; they are overwritten."""
        layer = self._layers.setdefault((ORDER.index(call.kind), call.index), _LayerSums())
        layer.add(_answers(call, self._asked(call)))

    def result(self) -> HeadPatterns:
        """What the sums say.

        Raises
        ------
        ProbingError
            If nothing was added.
        """
        if not self._layers:
            raise ProbingError("there is no example whose attention could be summed; pass at least one batch.")
        keys = sorted(self._layers)
        layers = [self._layers[key] for key in keys]
        n_heads = max(layer.n_heads for layer in layers)

        def stacked(name: str) -> NDArray[np.float64]:
            return np.stack([_widened(layer.means[name].mean, n_heads) for layer in layers])

        return HeadPatterns(
            attention=tuple(ORDER[kind] for kind, _ in keys),
            mass=stacked("mass"),
            error=np.stack([_widened(layer.means["mass"].error, n_heads) for layer in layers]),
            chance=np.stack([layer.means["chance"].mean for layer in layers]),
            top=stacked("top"),
            holds=stacked("holds"),
            n_examples=np.stack([layer.means["chance"].n for layer in layers]),
            entropy=stacked("entropy"),
            relative_entropy=stacked("relative_entropy"),
            distance=stacked("distance"),
            by_offset=np.stack([_widened(layer.by_offset, n_heads) for layer in layers]),
            by_position=stacked("by_position"),
            by_kind=stacked("by_kind"),
        )

    def _asked(self, call: AttentionCall) -> Questions:
        for other, asked in self._questions:
            if other.visible is call.visible:
                return asked
        is_cross = call.kind == "cross"
        is_annotated = call.kind in ("self", "encoder")
        queries = side(call.queries, self._known, **(self._annotations if is_annotated else {}))
        keys = side(call.keys, self._known) if is_cross else queries
        asked = questions(call, queries, keys, max_offset=self._max_offset, n_bins=self._n_bins)
        self._questions.append((call, asked))
        return asked


@dataclass
class _LayerSums:
    """Sums of one layer."""

    n_heads: int = 0
    means: dict[str, RunningMean] = field(default_factory=dict)
    offsets: NDArray[np.float64] | float = 0.0
    n_pairs: NDArray[np.float64] | float = 0.0

    def add(self, answers: _Answers) -> None:
        self.n_heads = answers.of_examples["entropy"].shape[1]
        for name, values in answers.of_examples.items():
            self.means.setdefault(name, RunningMean()).add(values)
        self.offsets = self.offsets + answers.offsets
        self.n_pairs = self.n_pairs + answers.n_pairs

    @property
    def by_offset(self) -> NDArray[np.float64]:
        n_pairs = np.asarray(self.n_pairs)
        return np.asarray(self.offsets) / np.where(n_pairs > 0, n_pairs, np.nan)


@dataclass(frozen=True, eq=False)
class _Answers:
    """What one layer's weights say for one batch: a row for each example, and sums over examples by offset."""

    of_examples: dict[str, NDArray[np.float64]]
    offsets: NDArray[np.float64]
    n_pairs: NDArray[np.float64]


def _answers(call: AttentionCall, asked: Questions) -> _Answers:
    """What the weights say; they are overwritten."""
    weights = call.weights.float()
    if not asked.is_all_visible:
        weights.masked_fill_(~asked.visible[:, None], 0)
    n_examples, n_heads, n_queries, _ = weights.shape
    flow = torch.bmm(weights.flatten(1, 2), asked.columns).view(n_examples, n_heads, n_queries, -1)
    beside = weights.flatten(2).index_select(2, asked.band).view(n_examples, n_heads, n_queries, -1)
    beside *= asked.words_beside[:, None]
    dense = torch.bmm(weights.flatten(2), asked.dense.transpose(1, 2))
    told = asked.counts.any(2).T[:, None].cpu().numpy()
    masses = np.where(told, _double(_masses(flow, beside, dense, asked)), np.nan)
    entropies = _entropy(weights) @ asked.spread
    has_words = asked.spread.any(1).cpu().numpy()
    to_words = flow[..., [asked.n_bins + WORD, asked.n_bins + PUNCTUATION]].sum(3) * asked.queries.is_word[:, None]
    word_mass = _double(to_words.sum(2))
    is_cross = np.nan if asked.is_cross else 0.0
    of_examples = {
        "mass": masses,
        "chance": np.where(told[:, 0], _double(asked.chance.T), np.nan),
        "top": np.where(told, _double(_hits(weights.argmax(3), asked)), np.nan),
        "holds": np.where(told, masses >= HOLDS_FROM, np.nan),
        "entropy": np.where(has_words[:, :1], _double(entropies[..., 0]), np.nan),
        "relative_entropy": np.where(has_words[:, 1:], _double(entropies[..., 1]), np.nan),
        "distance": _double(dense[..., -1]) / np.where(word_mass > 0, word_mass, np.nan) + is_cross,
        "by_position": _between(flow, asked.rows, slice(None, asked.n_bins)),
        "by_kind": _between(flow[..., :-1], asked.rows, slice(asked.n_bins, None)),
    }
    return _Answers(of_examples, _double(beside.sum((0, 2))) + is_cross, _double(asked.words_beside.sum((0, 1))))


def _entropy(weights: Tensor) -> Tensor:
    """Entropy of each query's attention, nats; in half the time of ``torch.special.entr``."""
    return -weights.clamp(min=TINY).log_().mul_(weights).sum(3)


def _masses(flow: Tensor, beside: Tensor, dense: Tensor, asked: Questions) -> Tensor:
    """Mass of each head on each pattern, shape (B, n_heads, P)."""
    centre = beside.shape[-1] // 2
    kinds, itself = flow[..., asked.n_bins : -1], beside[..., centre]
    of_queries: dict[Pattern, Tensor] = {name: beside[..., centre + offset] for name, offset in BESIDE.items()}
    of_queries |= {name: kinds[..., list(which)].sum(-1) for name, which in SPECIALS.items()}
    of_queries["punctuation"] = kinds[..., PUNCTUATION] - itself * (asked.queries.kinds == PUNCTUATION)[:, None]
    of_queries["first"] = flow[..., -1] - itself * asked.queries.is_first[:, None]
    known = {name: dense[..., number] for number, name in enumerate(asked.asked)}
    for name, values in of_queries.items():
        known[name] = (values * asked.counts[PATTERNS.index(name), :, None]).sum(2)
    return torch.stack([known.get(name, torch.zeros_like(dense[..., -1])) for name in PATTERNS], -1)


def _hits(best: Tensor, asked: Questions) -> Tensor:
    """Share of the queries whose most attended key, shape (B, n_heads, Q), follows each pattern; as the masses."""

    def at_best(of_keys: Tensor) -> Tensor:
        return of_keys[:, None].expand(*best.shape[:2], -1).gather(2, best)

    queries, keys = asked.queries, asked.keys
    offsets = best - torch.arange(best.shape[2], device=best.device)
    kinds, is_word = at_best(keys.kinds), at_best(keys.is_word)
    is_other = torch.ones_like(is_word) if asked.is_cross else offsets != 0
    hits: dict[Pattern, Tensor] = {name: is_word & (offsets == offset) for name, offset in BESIDE.items()}
    hits |= {name: torch.isin(kinds, kinds.new_tensor(which)) for name, which in SPECIALS.items()}
    hits["punctuation"] = (kinds == PUNCTUATION) & is_other
    hits["first"] = at_best(keys.is_first) & is_other
    if queries.ids is not None and keys.ids is not None:
        hits["same_token"] = is_word & (at_best(keys.ids) == queries.ids[:, None]) & is_other
    hits["same_sentence"] = is_word & (at_best(keys.sentences) == queries.sentences[:, None])
    hits["same_span"] = is_word & (at_best(keys.spans) == queries.spans[:, None])
    shares = [
        (hits.get(name, is_word) * counts[:, None]).sum(2) for name, counts in zip(PATTERNS, asked.counts, strict=True)
    ]
    return torch.stack(shares, -1)


def _between(flow: Tensor, rows: Tensor, part: slice) -> NDArray[np.float64]:
    """Mean attention from the queries of one group to the keys of another, shape (B, n_heads, n_groups, n_groups)."""
    groups = rows[:, None, :, part]
    sums = groups.transpose(2, 3) @ flow[..., part]
    sizes = _double(groups.sum(2))[..., None]
    return _double(sums) / np.where(sizes > 0, sizes, np.nan)


def _widened(values: NDArray[np.float64], n_heads: int) -> NDArray[np.float64]:
    """Heads that a layer does not have are NaN."""
    return np.concatenate([values, np.full((n_heads - len(values), *values.shape[1:]), np.nan)])


def _double(values: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.cpu().numpy().astype(np.float64)
    return found
