"""What attention heads attend to over a dataset: scores of each head, what it is named after, heads that are alike.

A pattern says of each pair of a query and a key whether it follows it. Its mass is the share of the attention that
follows it: the mean over an example's queries that could both follow it and not, then the mean over examples. Queries
are words and punctuation, never special tokens; beside the patterns that are about special tokens, so are keys.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import AnalysisError

Pattern = Literal[
    "previous", "next", "same_position", "same_token", "same_sentence", "same_span", "punctuation",
    "first", "cls", "sep", "delimiter",
]  # fmt: skip
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
MEANINGS: dict[Pattern, str] = {
    "previous": "the token before",
    "next": "the token after",
    "same_position": "the token itself",
    "same_token": "other occurrences of the token",
    "same_sentence": "tokens of its sentence, itself among them; in texts of several sentences",
    "same_span": "tokens of its span, itself among them",
    "punctuation": "punctuation other than itself",
    "first": "the first token of the text, whatever it is",
    "cls": "[CLS], or what begins a text",
    "sep": "[SEP], or what ends a text",
    "delimiter": "any special token",
}

KINDS = ("word", "punctuation", "cls", "sep", "special")
"""What a token can be; ``special`` is any other special token."""
WORD, PUNCTUATION, CLS, SEP, SPECIAL = range(len(KINDS))
_SENTENCE_ENDS = frozenset({".", "!", "?", "...", "…", "。", "\uff01", "\uff1f", "।", "؟"})
"""Full stops, question and exclamation marks, also those of Chinese, Hindi and Arabic."""
_MARKS = "Ġ▁ \t\n\r"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What is known of a token by its id: shape (n_ids,) each."""

    kinds: NDArray[np.int64]
    """Numbers of `KINDS`."""
    ends_sentence: NDArray[np.bool_]


def vocabulary(
    tokens: Sequence[str], *, special: Sequence[int] = (), cls: Sequence[int] = (), sep: Sequence[int] = ()
) -> Vocabulary:
    """Which tokens are punctuation, special, or end a sentence.

    Parameters
    ----------
    tokens
        By id; marks of sub-words (``##``, ``Ġ``, ``▁``) are passed over.
    special, cls, sep
        Ids of special tokens; ``cls`` and ``sep`` are special without being named twice. An id that is both is ``cls``.

    Examples
    --------
    >>> found = vocabulary(["[CLS]", "[SEP]", "[MASK]", "un", "##do", ".", ","], special=[2], cls=[0], sep=[1])
    >>> [KINDS[kind] for kind in found.kinds]
    ['cls', 'sep', 'special', 'word', 'word', 'punctuation', 'punctuation']
    >>> found.ends_sentence.nonzero()[0]
    array([5])
    """
    plain = [(token[2:] if token.startswith("##") and len(token) > 2 else token).strip(_MARKS) for token in tokens]
    kinds = np.array([PUNCTUATION if is_punctuation(token) else WORD for token in plain], np.int64)
    for ids, kind in ((special, SPECIAL), (sep, SEP), (cls, CLS)):
        kinds[list(ids)] = kind
    ends = np.array([token in _SENTENCE_ENDS for token in plain], np.bool_)
    return Vocabulary(kinds, ends & (kinds == PUNCTUATION))


def is_punctuation(token: str) -> bool:
    """Whether all characters of a token are punctuation or symbols by Unicode.

    Examples
    --------
    >>> [is_punctuation(token) for token in ("--", "’", "$", "n't", "")]
    [True, True, True, False, False]
    """
    return bool(token) and all(unicodedata.category(character)[0] in "PS" for character in token)


class RunningMean:
    """Mean, and standard error of the mean, of rows that come by in batches; NaN is left out value by value."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | float = 0.0
        self._squares: NDArray[np.float64] | float = 0.0
        self._n: NDArray[np.int64] | int = 0

    def add(self, rows: NDArray[np.floating]) -> None:
        """Add rows of shape (n, ...)."""
        known = ~np.isnan(rows)
        values = np.where(known, rows, 0).astype(np.float64)
        self._sum = self._sum + values.sum(0)
        self._squares = self._squares + np.square(values).sum(0)
        self._n = self._n + known.sum(0)

    @property
    def n(self) -> NDArray[np.int64]:
        """Rows that had a value."""
        return np.asarray(self._n)

    @property
    def mean(self) -> NDArray[np.float64]:
        """NaN where there was none."""
        return _ratio(np.asarray(self._sum), self.n)

    @property
    def error(self) -> NDArray[np.float64]:
        """Standard error of the mean; NaN where there were fewer than two."""
        spread = _ratio(np.asarray(self._squares), self.n) - self.mean**2
        return np.sqrt(_ratio(np.maximum(spread, 0), np.maximum(self.n - 1, 0)))


@dataclass(frozen=True, eq=False)
class HeadPatterns:
    """What each head of a model attends to over a dataset; NaN where a layer has fewer heads or nothing is known."""

    attention: tuple[str, ...]
    """Of each layer: ``self``, or in a model of two stacks ``encoder``, ``decoder`` or ``cross``."""
    mass: NDArray[np.float64]
    """Shape (n_layers, n_heads, n_patterns), in [0, 1]: share of the attention that follows the pattern, in the order
    of `PATTERNS`."""
    error: NDArray[np.float64]
    """Standard error of `mass` over examples."""
    chance: NDArray[np.float64]
    """Shape (n_layers, n_patterns): the mass of a head that attends to all it may see alike."""
    top: NDArray[np.float64]
    """As `mass`: share of the queries whose most attended key follows the pattern."""
    holds: NDArray[np.float64]
    """As `mass`: share of the examples of which at least half of the attention follows the pattern."""
    n_examples: NDArray[np.int64]
    """Shape (n_layers, n_patterns): examples in which the pattern can be told."""
    entropy: NDArray[np.float64]
    """Shape (n_layers, n_heads), nats: mean over queries, then over examples."""
    relative_entropy: NDArray[np.float64]
    """In [0, 1]: of each query in units of that of attention to all it may see alike."""
    distance: NDArray[np.float64]
    """Shape (n_layers, n_heads), tokens: mean distance of attention from words to words."""
    by_offset: NDArray[np.float64]
    """Shape (n_layers, n_heads, 2 * max_offset + 1): mean attention from a word to the word ``offset`` further on; over
    all such pairs of all examples. NaN in cross-attention."""
    by_position: NDArray[np.float64]
    """Shape (n_layers, n_heads, n_bins, n_bins): attention from one part of the text to another, all texts stretched to
    one length; rows sum to one."""
    by_kind: NDArray[np.float64]
    """Shape (n_layers, n_heads, n_kinds, n_kinds): attention from tokens of one kind to those of another, in the order
    of `KINDS`; rows sum to one."""

    @property
    def lift(self) -> NDArray[np.float64]:
        """Shape of `mass`, >= 0: mass in units of chance."""
        return _ratio(self.mass, self.chance[:, None])

    @property
    def max_offset(self) -> int:
        """The largest offset in `by_offset`."""
        return int(self.by_offset.shape[-1]) // 2

    def of(self, pattern: Pattern) -> NDArray[np.float64]:
        """Mass of one pattern, shape (n_layers, n_heads)."""
        return self.mass[..., PATTERNS.index(pattern)]


@dataclass(frozen=True)
class Scored:
    """A head, and how it follows a pattern."""

    layer: int
    head: int
    pattern: Pattern
    mass: float
    error: float
    chance: float
    lift: float
    top: float
    holds: float


def strongest(patterns: HeadPatterns, pattern: Pattern, *, n: int = 3) -> list[Scored]:
    """The heads with the greatest mass on a pattern, the greatest first; none if the pattern could not be told.

    Examples
    --------
    >>> mass = np.full((1, 3, len(PATTERNS)), np.nan)
    >>> mass[0, :2, PATTERNS.index("previous")] = [0.2, 0.9]
    >>> rest = dict.fromkeys(["error", "top", "holds", "n_examples", "entropy", "distance", "relative_entropy"], mass)
    >>> rest |= dict.fromkeys(["by_offset", "by_position", "by_kind"], mass)
    >>> patterns = HeadPatterns(("self",), mass=mass, chance=np.full((1, len(PATTERNS)), 0.1), **rest)
    >>> [(head.head, head.mass, head.lift.__round__(3)) for head in strongest(patterns, "previous")]
    [(1, 0.9, 9.0), (0, 0.2, 2.0)]
    >>> strongest(patterns, "next")
    []
    """
    masses = patterns.of(pattern).ravel()
    order = np.argsort(-masses, kind="stable")[: min(n, int(np.isfinite(masses).sum()))]
    n_heads = patterns.mass.shape[1]
    return [scored(patterns, int(i) // n_heads, int(i) % n_heads, pattern) for i in order]


def scored(patterns: HeadPatterns, layer: int, head: int, pattern: Pattern) -> Scored:
    """What is known of one head and one pattern; see `strongest`."""
    at = layer, head, PATTERNS.index(pattern)
    tables = (patterns.mass, patterns.error)
    mass, error = (float(table[at]) for table in tables)
    lift, top, holds = (float(table[at]) for table in (patterns.lift, patterns.top, patterns.holds))
    return Scored(layer, head, pattern, mass, error, float(patterns.chance[layer, at[2]]), lift, top, holds)


Name = Pattern | Literal["broad", "mixed"]

NAMED_FROM = 0.3
"""A head is named after a pattern from this mass on."""
LIFTED = 2.0
"""... if it is at least so many times chance."""
BROAD_FROM = 0.85
"""Above this share of the greatest entropy a head that follows no pattern attends broadly."""
_CONTAINED: dict[Pattern, tuple[Pattern, ...]] = {
    "delimiter": ("first", "cls", "sep"),
    "same_sentence": ("previous", "next", "same_position", "same_span"),
    "same_span": ("previous", "next", "same_position"),
}
"""Patterns that others are nearly always part of."""


def head_names(patterns: HeadPatterns) -> dict[tuple[int, int], tuple[Name, ...]]:
    """The patterns that each head follows: all whose mass is large and more than chance, that of greatest mass first.

    Returns
    -------
    For each layer and head the names of patterns; ``broad`` alone for a head that follows none and attends to nearly
    all alike, ``mixed`` alone for any other.

    Notes
    -----
    A head is named after a pattern if its mass is at least 0.3 and at least twice chance. Patterns that contain others
    (any special token, the sentence, the span) name a head only where none of those they contain does; where the first
    token is always [CLS], it is called that.

    Examples
    --------
    >>> nan = np.full((1, 3, len(PATTERNS)), np.nan)
    >>> nan[0, :2, :2] = [[0.4, 0.5], [0.2, 0.2]]
    >>> flat = np.array([[0.3, 0.9, np.nan]])
    >>> known = dict(chance=np.full((1, len(PATTERNS)), 0.1), relative_entropy=flat)
    >>> rest = dict.fromkeys(["error", "top", "holds", "n_examples", "entropy", "distance"], nan)
    >>> rest |= dict.fromkeys(["by_offset", "by_position", "by_kind"], nan)
    >>> head_names(HeadPatterns(("self",), mass=nan, **known, **rest))
    {(0, 0): ('next', 'previous'), (0, 1): ('broad',)}
    """
    follows = (patterns.mass >= NAMED_FROM) & (patterns.lift >= LIFTED)
    first, cls = PATTERNS.index("first"), PATTERNS.index("cls")
    follows[..., first] &= ~(patterns.mass[..., cls] >= patterns.mass[..., first])
    for name, contained in _CONTAINED.items():
        follows[..., PATTERNS.index(name)] &= ~follows[..., [PATTERNS.index(other) for other in contained]].any(-1)
    order = np.argsort(-patterns.mass, axis=-1, kind="stable")
    found: dict[tuple[int, int], tuple[Name, ...]] = {}
    for layer, head in np.argwhere(np.isfinite(patterns.relative_entropy)).tolist():
        names = tuple(PATTERNS[number] for number in order[layer, head] if follows[layer, head, number])
        is_broad = patterns.relative_entropy[layer, head] >= BROAD_FROM
        found[layer, head] = names or (("broad",) if is_broad else ("mixed",))
    return found


@dataclass(frozen=True, eq=False)
class HeadClusters:
    """Heads that attend alike."""

    labels: NDArray[np.int64]
    """Shape (n_layers, n_heads): number of the cluster, the largest cluster first; -1 where there is no head."""
    silhouette: float
    """In [-1, 1]: how much closer heads are to their own cluster than to the next; near 0 there are none."""
    features: tuple[str, ...]
    """What the heads were compared by."""
    profiles: NDArray[np.float64]
    """Shape (n_clusters, n_features): the mean over the heads of each cluster."""

    @property
    def n_clusters(self) -> int:
        """How many there are."""
        return len(self.profiles)


MAX_CLUSTERS = 12


def cluster_heads(patterns: HeadPatterns, *, n_clusters: int | None = None) -> HeadClusters:
    """Groups of heads that follow the same patterns.

    Parameters
    ----------
    patterns
        Scores of the heads.
    n_clusters
        How many; by default the number, up to twelve, with the greatest silhouette.

    Raises
    ------
    AnalysisError
        If there are fewer than three heads, or fewer than ``n_clusters``.

    Notes
    -----
    Heads are compared by the square root of their masses and their relative entropy, all in [0, 1], so that a step near
    zero counts for more than one near one; a pattern that cannot be told of some of the heads is left out. Clusters are
    Ward's.
    Clark et al. compare heads by the Jensen-Shannon divergence of their attention, example by example, which takes
    memory or time with the square of the number of heads.

    Examples
    --------
    Six heads, of which three attend to the token before and three to the one after.

    >>> mass = np.zeros((2, 3, len(PATTERNS)))
    >>> mass[0, :, PATTERNS.index("previous")] = mass[1, :, PATTERNS.index("next")] = [0.7, 0.8, 0.9]
    >>> rest = dict.fromkeys(["error", "top", "holds", "n_examples", "entropy", "distance"], mass)
    >>> rest |= dict.fromkeys(["by_offset", "by_position", "by_kind"], mass)
    >>> known = dict(chance=np.full((2, len(PATTERNS)), 0.1), relative_entropy=np.full((2, 3), 0.5))
    >>> cluster_heads(HeadPatterns(("self",) * 2, mass=mass, **known, **rest)).labels
    array([[0, 0, 0],
           [1, 1, 1]])

    References
    ----------
    Clark et al. (2019), "What Does BERT Look At? An Analysis of BERT's Attention", section 6; Ward (1963),
    "Hierarchical Grouping to Optimize an Objective Function".
    """
    from scipy.cluster.hierarchy import fcluster, ward  # takes a second to load

    is_head = np.isfinite(patterns.relative_entropy)
    values = np.concatenate([np.sqrt(patterns.mass), patterns.relative_entropy[..., None]], -1)[is_head]
    known = np.isfinite(values).all(0)
    values = values[:, known]
    names = tuple(name for name, is_known in zip((*PATTERNS, "entropy"), known, strict=True) if is_known)
    if len(values) < max(3, n_clusters or 0):
        raise AnalysisError(f"{len(values)} heads are too few for {n_clusters or 2} clusters of them.")
    tree = ward(values)
    most = min(MAX_CLUSTERS, len(values) - 1)
    sizes = range(2, most + 1) if n_clusters is None else [n_clusters]
    candidates = [fcluster(tree, size, "maxclust") for size in sizes]
    scores = [_silhouette(values, labels) for labels in candidates]
    best = int(np.argmax(scores))
    _, first, labels, counts = np.unique(candidates[best], return_index=True, return_inverse=True, return_counts=True)
    rank = np.argsort(np.lexsort((first, -counts)))
    found = np.full(is_head.shape, -1)
    found[is_head] = rank[labels]
    profiles = np.stack([values[rank[labels] == number].mean(0) for number in range(len(counts))])
    return HeadClusters(found, scores[best], names, np.where(np.array(names) == "entropy", profiles, profiles**2))


def _silhouette(values: NDArray[np.float64], labels: NDArray[np.integer]) -> float:
    """Mean silhouette; 0 for a cluster of one, and where there is only one cluster.

    Rousseeuw (1987), "Silhouettes", equation 4.
    """
    _, numbers = np.unique(labels, return_inverse=True)
    members = np.eye(numbers.max() + 1)[numbers]
    counts = members.sum(0)
    if len(counts) < 2:
        return 0.0
    distances = np.sqrt(np.maximum(((values[:, None] - values[None]) ** 2).sum(-1), 0)) @ members
    own = distances[np.arange(len(values)), numbers] / np.maximum(counts[numbers] - 1, 1)
    others = np.where(members > 0, np.inf, distances / counts).min(1)
    widths = np.where(counts[numbers] > 1, (others - own) / np.maximum(np.maximum(own, others), 1e-300), 0)
    return float(widths.mean())


def _ratio(values: NDArray[Any], by: NDArray[Any]) -> NDArray[np.float64]:
    """NaN where divided by nothing."""
    found = np.full(np.broadcast_shapes(values.shape, by.shape), np.nan)
    np.divide(values, by, out=found, where=by > 0)
    return found
