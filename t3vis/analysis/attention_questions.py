"""What is asked of the attention weights of a batch, and what the answers mean.

The questions depend on the tokens of the batch, and are the same for all layers that see the same. B examples, H heads,
Q queries, K keys, P patterns. The key is all that most patterns are about; those are answered by one product of the
weights with a few columns that say what each key is. Three more are read off a band beside the diagonal. Only the rest
(same token, sentence and span, and the distance) needs something of the size of the weights of a head. The rows then
say what each query adds to each mean.

All here is NumPy: on a few cores many small operations cost a parallel library more in waiting than in work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.attention_patterns import (
    CLS,
    KINDS,
    PATTERNS,
    PUNCTUATION,
    SEP,
    SPECIAL,
    WORD,
    Pattern,
    Vocabulary,
)

DENSE: tuple[Pattern, ...] = ("same_token", "same_sentence", "same_span")
BESIDE: dict[Pattern, int] = {"previous": -1, "same_position": 0, "next": 1}
SPECIALS: dict[Pattern, tuple[int, ...]] = {"cls": (CLS,), "sep": (SEP,), "delimiter": (CLS, SEP, SPECIAL)}
HOLDS_FROM = 0.5
"""A pattern holds in an example from this mass on."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Side:
    """The tokens of the queries, or of the keys, each (B, T): what they are, and where in the text."""

    ids: Ints | None
    real: Bools
    kinds: Ints
    sentences: Ints
    spans: Ints

    @property
    def is_word(self) -> Bools:
        """Real tokens that are not special."""
        found: Bools = self.real & (self.kinds <= PUNCTUATION)
        return found

    @property
    def is_first(self) -> Bools:
        """The first real token."""
        found: Bools = self.real & (self.real.cumsum(1) == 1)
        return found

    def parts(self, n_bins: int) -> Doubles:
        """Share of each token in each of the equal parts of its text, shape (B, T, n_bins)."""
        width = n_bins / np.maximum(self.real.sum(1), 1)[:, None, None]
        start = (self.real.cumsum(1) - 1)[..., None] * width
        edges = np.arange(n_bins)
        overlap = np.minimum(start + width, edges + 1) - np.maximum(start, edges)
        shares: Doubles = np.maximum(overlap, 0) / width * self.real[..., None]
        return shares

    def one_hot_kinds(self) -> Doubles:
        """Shape (B, T, n_kinds); nothing for padding."""
        return np.eye(len(KINDS))[self.kinds] * self.real[..., None]


def side(
    ids: Ints | None,
    real: Bools,
    known: Vocabulary,
    *,
    sentence_ids: Ints | None = None,
    span_ids: Ints | None = None,
) -> Side:
    """What the tokens of a batch are; sentences end by rule where they are not given."""
    kinds, ends = np.full(real.shape, WORD), np.zeros(real.shape, bool)
    if ids is not None:
        within = np.minimum(ids, len(known.kinds) - 1)
        kinds, ends = known.kinds[within], known.ends_sentence[within]
    if sentence_ids is None:
        ends = ends | (kinds > PUNCTUATION)
        begins = ends[:, :-1] & ~ends[:, 1:]
        sentence_ids = np.pad(begins.cumsum(1), ((0, 0), (1, 0)))
    return Side(ids, real, kinds, sentence_ids, np.full(real.shape, -1) if span_ids is None else span_ids)


@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked of the weights (B, H, Q, K) of one batch."""

    queries: Side
    keys: Side
    is_cross: bool
    n_bins: int
    columns: Floats
    """(B, K, n_bins + n_kinds + 1): which part of the text each key is in, which kind it is of, whether it is first."""
    rows: Floats
    """(B, Q, ...): the parts and the kinds of the queries; what each adds to the mean of each pattern; the same where
    it is punctuation, and where it is first, of which it is not its own target; whether it is a word; what it adds to
    the mean of the entropy and of the relative entropy."""
    band: Ints
    """(Q * n_offsets,): where in Q * K the keys beside each query stand; anywhere for those that do not exist."""
    words_beside: Floats
    """(B, Q, n_offsets): 1 of pairs of words."""
    dense: Floats
    """(B, n_dense + 1, Q * K): what a weight adds to each of the patterns `asked`, then to the distance."""
    asked: tuple[Pattern, ...]
    """Those of `DENSE` that some query of the batch counts for."""
    counts: Doubles
    """(P, B, Q): what each query adds to the mean over those that count for a pattern; they sum to one, or to none."""
    chance: Doubles
    """(P, B): mass of attention to all that is visible alike."""


def questions(visible: Bools, queries: Side, keys: Side, *, is_cross: bool, max_offset: int, n_bins: int) -> Questions:
    """What to ask of weights of which the real pairs ``visible``, (B, Q, K), are seen."""
    visible = visible & queries.is_word[:, :, None]
    words = visible & keys.is_word[:, None, :]
    n_visible, n_words = visible.sum(2), words.sum(2)
    kinds, first = keys.one_hot_kinds(), keys.is_first[..., None]
    offsets = np.arange(words.shape[2]) - np.arange(words.shape[1])[:, None]
    band, inside = _band(words.shape[1], words.shape[2], max_offset)
    beside = words.reshape(len(words), -1)[:, band].reshape(len(words), *inside.shape) & inside & (not is_cross)

    together = _together(queries, keys, words, is_cross)
    of_keys = (visible.astype(np.float32) @ np.concatenate([kinds, first], -1).astype(np.float32)).round().astype(int)
    n_targets = _n_targets(queries, of_keys, beside, together, is_cross)
    in_words = n_targets | dict.fromkeys(SPECIALS, np.zeros_like(n_words))
    in_words["first"] = n_targets["first"] * (keys.is_first & keys.is_word).any(1, keepdims=True)
    counts = np.array([(n_targets[name] > 0) & (n_words > in_words[name]) for name in PATTERNS], np.float64)
    counts /= np.maximum(counts.sum(2, keepdims=True), 1)
    asked = tuple(name for name in DENSE if counts[PATTERNS.index(name)].any())
    dense = [together[name] * _single(counts[PATTERNS.index(name)])[..., None] for name in asked]
    targets = np.array([n_targets[name] for name in PATTERNS])
    return Questions(
        queries=queries,
        keys=keys,
        is_cross=is_cross,
        n_bins=n_bins,
        columns=_single(np.concatenate([keys.parts(n_bins), kinds, first], -1)),
        rows=_single(_rows(queries, counts, n_visible, n_bins)),
        band=band,
        words_beside=_single(beside),
        dense=np.stack([*dense, words * _single(np.abs(offsets))], 1).reshape(len(words), len(dense) + 1, -1),
        asked=asked,
        counts=counts,
        chance=(counts * targets / np.maximum(n_visible, 1)).sum(2),
    )


def _rows(queries: Side, counts: Doubles, n_visible: Ints, n_bins: int) -> Doubles:
    """What each query adds to what."""
    is_word, choice = queries.is_word, queries.is_word & (n_visible > 1)
    plain = is_word / np.maximum(is_word.sum(1, keepdims=True), 1)
    relative = choice / np.log(np.maximum(n_visible, 2)) / np.maximum(choice.sum(1, keepdims=True), 1)
    itself = [
        counts[PATTERNS.index("punctuation")] * (queries.kinds == PUNCTUATION),
        counts[PATTERNS.index("first")] * queries.is_first,
    ]
    each = np.stack([*counts, *itself, is_word, plain, relative], -1)
    return np.concatenate([queries.parts(n_bins), queries.one_hot_kinds(), each], -1)


def _together(queries: Side, keys: Side, words: Bools, is_cross: bool) -> dict[Pattern, Bools]:
    """Pairs of words that have something in common, shape (B, Q, K) each; of two texts only the token."""
    found: dict[Pattern, Bools] = dict.fromkeys(DENSE, np.zeros_like(words))
    if queries.ids is not None and keys.ids is not None:
        found["same_token"] = words & (queries.ids[:, :, None] == keys.ids[:, None, :])
        if not is_cross:
            found["same_token"] &= ~np.eye(words.shape[1], dtype=bool)
    if not is_cross:
        found["same_sentence"] = words & _equal(queries.sentences, keys.sentences)
        if (queries.spans >= 0).any():
            found["same_span"] = words & _equal(queries.spans, keys.spans)
    return found


def _n_targets(
    queries: Side, of_keys: Ints, beside: Bools, together: dict[Pattern, Bools], is_cross: bool
) -> dict[Pattern, Ints]:
    """Visible keys that follow each pattern, shape (B, Q) each; ``of_keys`` are those of each kind, and the first."""
    found: dict[Pattern, Ints] = {name: pairs.sum(2) for name, pairs in together.items()}
    centre = beside.shape[-1] // 2
    for name, offset in BESIDE.items():
        found[name] = beside[..., centre + offset].astype(int)
    for name, kinds in SPECIALS.items():
        found[name] = of_keys[..., list(kinds)].sum(-1)
    itself = 0 if is_cross else queries.is_word.astype(int)
    found["punctuation"] = of_keys[..., PUNCTUATION] - itself * (queries.kinds == PUNCTUATION)
    found["first"] = of_keys[..., -1] - itself * queries.is_first
    return found


def _equal(one: Ints, other: Ints) -> Bools:
    found: Bools = (one[:, :, None] == other[:, None, :]) & (one >= 0)[:, :, None]
    return found


def _band(n_queries: int, n_keys: int, max_offset: int) -> tuple[Ints, Bools]:
    """Places in Q * K of the keys up to ``max_offset`` before and after each query, and (Q, n_offsets) which exist."""
    rows = np.arange(n_queries)[:, None]
    columns = rows + np.arange(-max_offset, max_offset + 1)
    inside = (columns >= 0) & (columns < n_keys)
    return np.where(inside, rows * n_keys + columns, 0).ravel(), inside


@dataclass(frozen=True, eq=False)
class Answers:
    """What one layer's weights say of one batch: a row for each example, and sums over examples by offset."""

    of_examples: dict[str, Doubles]
    offsets: Doubles
    """(H, n_offsets): attention between words."""
    n_pairs: Doubles
    """(n_offsets,): pairs of words."""


def answers(asked: Questions, sums: NDArray[np.floating], dense: NDArray[np.floating], best: Ints) -> Answers:
    """What the weights say.

    Parameters
    ----------
    asked
        The questions.
    sums
        (B, n_rows, H, n_columns + n_offsets + 1): for each of the rows the sum over queries of the attention to each
        of the columns, then to the words beside, then of the entropy.
    dense
        (B, H, n_dense + 1): sums of the weights times ``dense``.
    best
        (B, H, Q): the key that each query attends to most.
    """
    doubles, dense_sums = sums.astype(np.float64), dense.astype(np.float64)
    n_bins, n_rows = asked.n_bins, asked.rows.shape[2]
    parts, kinds = slice(0, n_bins), slice(n_bins, n_bins + len(KINDS))
    is_word, plain, relative = (doubles[:, number] for number in range(n_rows - 3, n_rows))
    sizes = asked.rows.sum(1)
    told = np.any(asked.counts > 0, axis=2).T[:, None]
    masses = np.where(told, _masses(asked, doubles, dense_sums), np.nan)
    word_mass = is_word[..., n_bins + WORD] + is_word[..., n_bins + PUNCTUATION]
    unknown = np.nan if asked.is_cross else 0.0
    of_examples = {
        "mass": masses,
        "chance": np.where(told[:, 0], asked.chance.T, np.nan),
        "top": np.where(told, _hits(asked, best), np.nan),
        "holds": np.where(told, masses >= HOLDS_FROM, np.nan),
        "entropy": np.where(sizes[:, -2, None] > 0, plain[..., -1], np.nan),
        "relative_entropy": np.where(sizes[:, -1, None] > 0, relative[..., -1], np.nan),
        "distance": dense_sums[..., -1] / np.where(word_mass > 0, word_mass, np.nan) + unknown,
        "by_position": _between(doubles, sizes, parts),
        "by_kind": _between(doubles, sizes, kinds),
    }
    n_columns = asked.columns.shape[2]
    offsets = is_word[..., n_columns:-1].sum(0) + unknown
    return Answers(of_examples, offsets, asked.words_beside.sum((0, 1), dtype=np.float64))


def _masses(asked: Questions, sums: Doubles, dense: Doubles) -> Doubles:
    """Mass of each head on each pattern, shape (B, H, P); of those not asked nothing of meaning."""
    n_columns, first_row = asked.columns.shape[2], asked.n_bins + len(KINDS)
    by_pattern = dict(zip(PATTERNS, sums[:, first_row:].swapaxes(0, 1), strict=False))
    of_punctuation, of_first = sums[:, first_row + len(PATTERNS)], sums[:, first_row + len(PATTERNS) + 1]
    centre = n_columns + asked.words_beside.shape[2] // 2
    found = {name: by_pattern[name][..., centre + offset] for name, offset in BESIDE.items()}
    for name, kinds in SPECIALS.items():
        found[name] = by_pattern[name][..., [asked.n_bins + kind for kind in kinds]].sum(-1)
    to_punctuation = by_pattern["punctuation"][..., asked.n_bins + PUNCTUATION]
    found["punctuation"] = to_punctuation - of_punctuation[..., centre]
    # Where the first token is a special one it is no query, and its row is empty.
    found["first"] = by_pattern["first"][..., n_columns - 1] - of_first[..., centre]
    for number, name in enumerate(asked.asked):
        found[name] = dense[..., number]
    nothing = np.zeros(dense.shape[:2])
    return np.stack([found.get(name, nothing) for name in PATTERNS], -1)


def _hits(asked: Questions, best: Ints) -> Doubles:
    """Share of the queries whose most attended key follows each pattern, shape (B, H, P); as the masses."""
    queries, keys = asked.queries, asked.keys
    rows = np.arange(len(best))[:, None, None]
    offsets = best - np.arange(best.shape[2])
    kinds, is_word = keys.kinds[rows, best], keys.is_word[rows, best]
    is_other = np.ones_like(is_word) if asked.is_cross else offsets != 0
    hits: dict[Pattern, Bools] = {name: is_word & (offsets == offset) for name, offset in BESIDE.items()}
    hits |= {name: np.isin(kinds, which) for name, which in SPECIALS.items()}
    hits["punctuation"] = (kinds == PUNCTUATION) & is_other
    hits["first"] = keys.is_first[rows, best] & is_other
    hits["same_token"] = is_word & is_other
    if queries.ids is not None and keys.ids is not None:
        hits["same_token"] &= keys.ids[rows, best] == queries.ids[:, None]
    hits["same_sentence"] = is_word & (keys.sentences[rows, best] == queries.sentences[:, None])
    hits["same_span"] = is_word & (keys.spans[rows, best] == queries.spans[:, None])
    pairs = zip(PATTERNS, asked.counts, strict=True)
    return np.stack([np.einsum("bhq,bq->bh", hits[name].astype(np.float64), counts) for name, counts in pairs], -1)


def _between(sums: Doubles, sizes: Floats, part: slice) -> Doubles:
    """Mean attention from the queries of one group to the keys of another, shape (B, H, n_groups, n_groups)."""
    of_groups = sums[:, part, :, part].transpose(0, 2, 1, 3)
    n = sizes[:, None, part, None].astype(np.float64)
    return of_groups / np.where(n > 0, n, np.nan)


def _single(values: NDArray[np.generic] | Sequence[float]) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float32)
