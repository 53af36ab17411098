"""What is asked of the attention weights of a batch: it depends on its tokens, and is the same for all layers.

B examples, H heads, Q queries, K keys. The key is all that most patterns are about; those are answered by one product
of the weights with a few columns that say what each key is. Three more are read off a band beside the diagonal. Only
the rest (same token, sentence and span, and the distance) needs something of the size of the weights of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from t3vis.analysis.attention_patterns import (
    CLS,
    KINDS,
    PATTERNS,
    PUNCTUATION,
    SEP,
    SPECIAL,
    WORD,
    Pattern,
)
from t3vis.probing.attention import AttentionCall, Tokens

DENSE: tuple[Pattern, ...] = ("same_token", "same_sentence", "same_span")
BESIDE: dict[Pattern, int] = {"previous": -1, "same_position": 0, "next": 1}
SPECIALS: dict[Pattern, tuple[int, ...]] = {"cls": (CLS,), "sep": (SEP,), "delimiter": (CLS, SEP, SPECIAL)}


@dataclass(frozen=True, eq=False)
class Side:
    """The tokens of the queries, or of the keys, each (B, T): what they are, and where in the text."""

    ids: Tensor | None
    real: Tensor
    kinds: Tensor
    sentences: Tensor
    spans: Tensor

    @property
    def is_word(self) -> Tensor:
        """Real tokens that are not special."""
        return self.real & (self.kinds <= PUNCTUATION)

    @property
    def is_first(self) -> Tensor:
        """The first real token."""
        return self.real & (self.real.cumsum(1) == 1)

    def parts(self, n_bins: int) -> Tensor:
        """Share of each token in each of the equal parts of its text, shape (B, T, n_bins)."""
        width = n_bins / self.real.sum(1).clamp(min=1)[:, None, None]
        start = (self.real.cumsum(1) - 1)[..., None] * width
        edges = torch.arange(n_bins, device=start.device)
        overlap = torch.minimum(start + width, edges + 1) - torch.maximum(start, edges)
        return overlap.clamp(min=0) / width * self.real[..., None]

    def one_hot_kinds(self) -> Tensor:
        """Shape (B, T, n_kinds); nothing for padding."""
        return (one_hot(self.kinds, len(KINDS)) * self.real[..., None]).float()


@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked of the weights (B, H, Q, K) of one batch."""

    queries: Side
    keys: Side
    is_cross: bool
    is_all_visible: bool
    visible: Tensor
    """(B, Q, K): real pairs that the model's mask leaves."""
    columns: Tensor
    """(B, K, n_bins + n_kinds + 1): which part of the text each key is in, which kind it is of, whether it is first."""
    rows: Tensor
    """(B, Q, n_bins + n_kinds): the same of the queries."""
    band: Tensor
    """(Q * n_offsets,): where in Q * K the keys beside each query stand; of those outside any."""
    words_beside: Tensor
    """(B, Q, n_offsets): true of pairs of words."""
    dense: Tensor
    """(B, n_dense + 1, Q * K): what a weight adds to each of the patterns `asked`, then to the distance."""
    asked: tuple[Pattern, ...]
    """Those of `DENSE` that some query of the batch counts for."""
    counts: Tensor
    """(P, B, Q): what each query adds to the mean over those that count for a pattern; they sum to one, or to none."""
    chance: Tensor
    """(P, B): mass of attention to all that is visible alike."""
    spread: Tensor
    """(B, Q, 2): what each query adds to the mean of the entropy, then of the relative entropy."""

    @property
    def n_bins(self) -> int:
        """Parts of a text."""
        return self.rows.shape[-1] - len(KINDS)


def side(
    tokens: Tokens,
    known: tuple[Tensor, Tensor],
    *,
    sentence_ids: Tensor | None = None,
    span_ids: Tensor | None = None,
) -> Side:
    """What the tokens of a batch are; sentences end by rule where they are not given."""
    kinds = torch.full(tokens.real.shape, WORD, device=tokens.real.device)
    ends, none = torch.zeros_like(tokens.real), torch.full_like(kinds, -1)
    if tokens.ids is not None:
        ids = tokens.ids.clamp(max=len(known[0]) - 1)
        kinds, ends = (table.to(ids.device)[ids] for table in known)
    if sentence_ids is None:
        ends = ends | (kinds > PUNCTUATION)
        begins = ends[:, :-1] & ~ends[:, 1:]
        sentence_ids = pad(begins.cumsum(1), (1, 0))
    spans = none if span_ids is None else span_ids
    return Side(tokens.ids, tokens.real, kinds, sentence_ids.to(kinds.device), spans.to(kinds.device))


def questions(call: AttentionCall, queries: Side, keys: Side, *, max_offset: int, n_bins: int) -> Questions:
    """What to ask of the weights of a call, and of all that see the same."""
    is_cross = call.kind == "cross"
    visible = call.visible & queries.is_word[:, :, None]
    words = visible & keys.is_word[:, None, :]
    kinds, first = keys.one_hot_kinds(), keys.is_first[..., None].float()
    n_queries, n_keys = words.shape[1:]
    offsets = _offsets(n_queries, n_keys, words.device)
    band = _band(n_queries, n_keys, max_offset, words.device)
    inside = (band >= 0).view(n_queries, -1)
    words_beside = words.flatten(1).index_select(1, band.clamp(min=0)).view(len(words), *inside.shape) & inside
    if is_cross:
        words_beside = torch.zeros_like(words_beside)

    n_visible, n_words = visible.sum(2), words.sum(2)
    together = _together(queries, keys, words, offsets, is_cross)
    n_targets = _n_targets(queries, visible.float() @ torch.cat([kinds, first], -1), words_beside, together, is_cross)
    in_words = n_targets | dict.fromkeys(SPECIALS, torch.zeros_like(n_words))
    in_words["first"] = n_targets["first"] * (keys.is_first & keys.is_word).any(1, keepdim=True)
    counts = torch.stack([(n_targets[name] > 0) & (n_words > in_words[name]) for name in PATTERNS]).float()
    counts /= counts.sum(2, keepdim=True).clamp(min=1)
    targets = torch.stack([n_targets[name] for name in PATTERNS])
    asked = tuple(name for name in DENSE if bool(counts[PATTERNS.index(name)].any()))
    dense = [together[name] * counts[PATTERNS.index(name)][..., None] for name in asked]
    return Questions(
        queries=queries,
        keys=keys,
        is_cross=is_cross,
        is_all_visible=bool(call.visible.all()),
        visible=call.visible,
        columns=torch.cat([keys.parts(n_bins), kinds, first], -1),
        rows=torch.cat([queries.parts(n_bins), queries.one_hot_kinds()], -1),
        band=band.clamp(min=0),
        words_beside=words_beside,
        dense=torch.stack([*dense, words * offsets.abs().float()], 1).flatten(2),
        asked=asked,
        counts=counts,
        chance=(counts * targets / n_visible.clamp(min=1)).sum(2),
        spread=_spread(n_visible, queries.is_word),
    )


def _together(queries: Side, keys: Side, words: Tensor, offsets: Tensor, is_cross: bool) -> dict[Pattern, Tensor]:
    """Pairs of words that have something in common, shape (B, Q, K) each; of two texts only the token."""
    nothing = torch.zeros_like(words[:, :1, :1]).expand_as(words)
    found: dict[Pattern, Tensor] = dict.fromkeys(DENSE, nothing)
    if queries.ids is not None and keys.ids is not None:
        same = words & (queries.ids[:, :, None] == keys.ids[:, None, :])
        found["same_token"] = same if is_cross else same & (offsets != 0)
    if not is_cross:
        found["same_sentence"] = words & _equal(queries.sentences, keys.sentences)
        if bool((queries.spans >= 0).any()):
            found["same_span"] = words & _equal(queries.spans, keys.spans)
    return found


def _n_targets(
    queries: Side, of_keys: Tensor, words_beside: Tensor, together: dict[Pattern, Tensor], is_cross: bool
) -> dict[Pattern, Tensor]:
    """Visible keys that follow each pattern, shape (B, Q) each; ``of_keys`` are those of each kind, and the first."""
    found: dict[Pattern, Tensor] = {name: pairs.sum(2) for name, pairs in together.items()}
    centre = words_beside.shape[-1] // 2
    for name, offset in BESIDE.items():
        found[name] = words_beside[..., centre + offset].long()
    for name, kinds in SPECIALS.items():
        found[name] = of_keys[..., list(kinds)].sum(-1)
    found["punctuation"] = of_keys[..., PUNCTUATION]
    found["first"] = of_keys[..., -1]
    if not is_cross:
        found["punctuation"] = found["punctuation"] - (queries.is_word & (queries.kinds == PUNCTUATION)).long()
        found["first"] = found["first"] - (queries.is_word & queries.is_first).long()
    return found


def _spread(n_visible: Tensor, is_word: Tensor) -> Tensor:
    """Weights of the queries in the mean of the entropy and of the relative one, which needs a choice."""
    choice = is_word & (n_visible > 1)
    plain = is_word / is_word.sum(1, keepdim=True).clamp(min=1)
    relative = choice / n_visible.clamp(min=2).log() / choice.sum(1, keepdim=True).clamp(min=1)
    return torch.stack([plain, relative], -1)


def _equal(one: Tensor, other: Tensor) -> Tensor:
    return (one[:, :, None] == other[:, None, :]) & (one >= 0)[:, :, None]


def _offsets(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """How much further on each key stands than each query, shape (Q, K)."""
    return torch.arange(n_keys, device=device) - torch.arange(n_queries, device=device)[:, None]


def _band(n_queries: int, n_keys: int, max_offset: int, device: torch.device) -> Tensor:
    """Places in Q * K of the keys up to ``max_offset`` before and after each query, shape (Q * n_offsets,); or -1."""
    rows = torch.arange(n_queries, device=device)[:, None]
    columns = rows + torch.arange(-max_offset, max_offset + 1, device=device)
    inside = (columns >= 0) & (columns < n_keys)
    return torch.where(inside, rows * n_keys + columns, -1).flatten()
