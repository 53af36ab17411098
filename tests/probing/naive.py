"""The definitions of the patterns once more, one pair at a time in float64, over examples without padding."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from t3vis.analysis.attention_patterns import CLS, KINDS, PATTERNS, PUNCTUATION, SEP


def follows(pattern, i, j, ids, kinds, sentences, spans):
    """Whether the pair of query i and key j, which the mask leaves, follows a pattern."""
    is_word = kinds[j] <= PUNCTUATION
    return {
        "previous": is_word and j == i - 1,
        "next": is_word and j == i + 1,
        "same_position": j == i,
        "same_token": is_word and j != i and ids[i] == ids[j],
        "same_sentence": is_word and sentences[i] == sentences[j] >= 0,
        "same_span": is_word and spans[i] == spans[j] >= 0,
        "punctuation": kinds[j] == PUNCTUATION and j != i,
        "first": j == 0 and j != i,
        "cls": kinds[j] == CLS,
        "sep": kinds[j] == SEP,
        "delimiter": kinds[j] > PUNCTUATION,
    }[pattern]


def naive_patterns(weights, ids, kinds, sentences, spans, *, causal, max_offset, n_bins):
    """All figures of one head; each argument is a list with an entry for each example, ``weights`` (n, n) float64."""
    sums = defaultdict(list)
    pairs = np.zeros((2, 2 * max_offset + 1))
    for a, *tokens in zip(weights, ids, kinds, sentences, spans, strict=True):
        token_kinds, n = tokens[1], len(a)
        seen = [[j for j in range(n) if j <= i or not causal] for i in range(n)]
        queries = [i for i in range(n) if token_kinds[i] <= PUNCTUATION]
        words = [[j for j in seen[i] if token_kinds[j] <= PUNCTUATION] for i in range(n)]
        for pattern in PATTERNS:
            shares, chances, tops = [], [], []
            for i in queries:
                targets = [j for j in seen[i] if follows(pattern, i, j, *tokens)]
                if not targets or set(words[i]) <= set(targets):
                    continue
                shares.append(sum(a[i, j] for j in targets))
                chances.append(len(targets) / len(seen[i]))
                tops.append(max(seen[i], key=lambda j: a[i, j]) in targets)
            if shares:
                sums["mass", pattern].append(np.mean(shares))
                sums["chance", pattern].append(np.mean(chances))
                sums["top", pattern].append(np.mean(tops))
                sums["holds", pattern].append(np.mean(shares) >= 0.5)
        entropies = [-sum(a[i, j] * math.log(a[i, j]) for j in seen[i] if a[i, j] > 0) for i in queries]
        sums["entropy"].append(np.mean(entropies))
        choices = [e / math.log(len(seen[i])) for e, i in zip(entropies, queries, strict=True) if len(seen[i]) > 1]
        sums["relative_entropy"].append(np.mean(choices))
        on_words = sum(a[i, j] for i in queries for j in words[i])
        sums["distance"].append(sum(a[i, j] * abs(i - j) for i in queries for j in words[i]) / on_words)
        for i in queries:
            for j in words[i]:
                if abs(j - i) <= max_offset:
                    pairs[:, j - i + max_offset] += a[i, j], 1
        for name, groups in (("by_position", stretched(n, n_bins)), ("by_kind", np.eye(len(KINDS))[token_kinds])):
            sizes = groups.sum(0)[:, None]
            flow = sum(a[i, j] * np.outer(groups[i], groups[j]) for i in range(n) for j in range(n))
            sums[name].append(np.divide(flow, sizes, out=np.full(flow.shape, np.nan), where=sizes > 0))
    found = {name: np.nanmean(values, 0) for name, values in sums.items() if isinstance(name, str)}
    for name in ("mass", "chance", "top", "holds"):
        found[name] = np.array([np.mean(sums[name, p]) if sums[name, p] else np.nan for p in PATTERNS])
    found["n_examples"] = np.array([len(sums["mass", p]) for p in PATTERNS])
    found["error"] = np.array([standard_error(sums["mass", p]) for p in PATTERNS])
    found["by_offset"] = np.divide(*pairs, out=np.full(pairs.shape[1], np.nan), where=pairs[1] > 0)
    return found


def standard_error(values):
    return np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.nan


def stretched(n, n_bins):
    """Share of each of n tokens in each of the equal parts of the text."""
    shares = np.zeros((n, n_bins))
    for i in range(n):
        for part in range(n_bins):
            low, high = max(i / n, part / n_bins), min((i + 1) / n, (part + 1) / n_bins)
            shares[i, part] = max(0, high - low) * n
    return shares
