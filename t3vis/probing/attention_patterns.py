"""The patterns of all heads over a dataset, in one pass: nothing is kept of an example but what it adds to sums.

All that a layer's weights are asked is asked in a few products of matrices, so that it costs little beside the forward
pass; what is asked depends on the tokens only, and is written down once for all layers that share a mask
(`t3vis.analysis.attention_questions`).
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

from t3vis.analysis.attention_patterns import HeadPatterns, RunningMean, Vocabulary, vocabulary
from t3vis.analysis.attention_questions import Answers, Questions, Side, answers, questions, side
from t3vis.errors import ProbingError
from t3vis.probing.attention import ORDER, AttentionCall, AttentionReader, Tokens
from t3vis.probing.batches import Batch, Examples, batches

MAX_OFFSET = 16
N_BINS = 16
TINY = 1e-30
"""A weight below this adds nothing to an entropy."""


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
        self._known = known
        self._max_offset, self._n_bins = max_offset, n_bins
        self._layers: dict[tuple[int, int], _LayerSums] = {}
        self._annotations: dict[str, NDArray[np.int64] | None] = {}
        self._questions: list[_Asked] = []

    def begin(self, *, sentence_ids: Tensor | None = None, span_ids: Tensor | None = None) -> None:
        """A batch begins: what is known of its tokens, shape (n_examples, n_tokens), -1 for none."""
        given = {"sentence_ids": sentence_ids, "span_ids": span_ids}
        self._annotations = {name: None if ids is None else ids.cpu().numpy() for name, ids in given.items()}
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

    def _asked(self, call: AttentionCall) -> _Asked:
        for asked in self._questions:
            if asked.visible is call.visible:
                return asked
        is_cross, is_annotated = call.kind == "cross", call.kind in ("self", "encoder")
        queries = self._side(call.queries, **(self._annotations if is_annotated else {}))
        keys = self._side(call.keys) if is_cross else queries
        visible = call.visible.cpu().numpy()
        sizes = {"max_offset": self._max_offset, "n_bins": self._n_bins}
        asked = _asked(call, questions(visible, queries, keys, is_cross=is_cross, **sizes))
        self._questions.append(asked)
        return asked

    def _side(self, tokens: Tokens, **annotations: NDArray[np.int64] | None) -> Side:
        ids = None if tokens.ids is None else tokens.ids.cpu().numpy()
        return side(ids, tokens.real.cpu().numpy(), self._known, **annotations)


@dataclass
class _LayerSums:
    """Sums of one layer."""

    n_heads: int = 0
    means: dict[str, RunningMean] = field(default_factory=dict)
    offsets: NDArray[np.float64] | float = 0.0
    n_pairs: NDArray[np.float64] | float = 0.0

    def add(self, answers: Answers) -> None:
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
class _Asked:
    """The questions for one batch, and what of them is multiplied with the weights, on their device."""

    visible: Tensor
    questions: Questions
    invisible: Tensor | None
    columns: Tensor
    rows: Tensor
    band: Tensor
    words_beside: Tensor
    dense: Tensor


def _asked(call: AttentionCall, asked: Questions) -> _Asked:
    device = call.weights.device
    columns, rows, band, beside, dense = (
        torch.from_numpy(array).to(device)
        for array in (asked.columns, asked.rows, asked.band, asked.words_beside, asked.dense)
    )
    invisible = None if bool(call.visible.all()) else ~call.visible[:, None]
    return _Asked(
        call.visible, asked, invisible, columns, rows.transpose(1, 2), band, beside[:, None], dense.transpose(1, 2)
    )


def _answers(call: AttentionCall, asked: _Asked) -> Answers:
    """What the weights say; they are overwritten."""
    weights = call.weights.float()
    if asked.invisible is not None:
        weights.masked_fill_(asked.invisible, 0)
    size = weights.shape[:3]
    flow = torch.bmm(weights.flatten(1, 2), asked.columns).view(*size, -1)
    beside = weights.flatten(2).index_select(2, asked.band).view(*size, -1) * asked.words_beside
    of_queries = torch.cat([flow, beside, _entropy(weights)[..., None]], -1)
    sums = torch.bmm(asked.rows, of_queries.transpose(1, 2).flatten(2)).unflatten(2, (size[1], -1))  # type: ignore[no-untyped-call]
    dense = torch.bmm(weights.flatten(2), asked.dense)
    return answers(asked.questions, *(found.cpu().numpy() for found in (sums, dense, weights.argmax(3))))


def _entropy(weights: Tensor) -> Tensor:
    """Entropy of each query's attention, nats; in half the time of ``torch.special.entr``."""
    return -weights.clamp(min=TINY).log_().mul_(weights).sum(3)


def _widened(values: NDArray[np.float64], n_heads: int) -> NDArray[np.float64]:
    """Heads that a layer does not have are NaN."""
    return np.concatenate([values, np.full((n_heads - len(values), *values.shape[1:]), np.nan)])
