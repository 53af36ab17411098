"""Matplotlib figures of attention: what every head follows, the weights of one example, attention by offset.

As in `t3vis.plots`, nothing global changes, and what the colours say is written beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from t3vis.analysis.attention_patterns import MEANINGS, PATTERNS, HeadPatterns, Name, head_names
from t3vis.errors import AnalysisError
from t3vis.plots import GREY, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["plot_attention", "plot_head_patterns", "plot_offsets"]

COLORS: dict[Name, str] = {
    "previous": "#134a8a",
    "next": "#4f9fc8",
    "same_position": "#6a51a3",
    "same_token": "#b5446e",
    "same_sentence": "#2f7d4f",
    "same_span": "#8cbf6a",
    "punctuation": "#8a5a2b",
    "first": "#e0603f",
    "cls": "#9c1127",
    "sep": "#e9a83b",
    "delimiter": "#c97f1b",
    "broad": "#aeb6c0",
    "mixed": "#e6e9ed",
}
WORDS: dict[Name, str] = {"broad": "attends broadly", "mixed": "no one pattern"}
SHORT: dict[Name, str] = {
    "same_position": "itself",
    "same_token": "same token",
    "same_sentence": "sentence",
    "same_span": "span",
}
MAX_HEADS_WITH_TEXT = 400
MAX_TOKENS = 60
MAX_LINES = 8


def plot_head_patterns(patterns: HeadPatterns, *, title: str | None = None) -> Figure:
    """All heads by layer, the colour and the word in each cell its pattern, the number its mass.

    The more of a head's attention follows its pattern, the stronger the colour; one that follows several has a stripe
    for each.

    Raises
    ------
    AnalysisError
        If there is no head.
    """
    names = head_names(patterns)
    n_layers, n_heads = patterns.entropy.shape
    if not names:
        raise AnalysisError("there is no head to draw; the model has no attention.")
    cell = min(0.82, 11 / n_heads)
    width, height = cell * n_heads, 0.62 * cell * n_layers
    figure = Figure(figsize=(width + 3.6, max(height + 1.6, 1.2 + 0.42 * len(COLORS) / 2)), dpi=150, facecolor="white")
    ax = _axes(figure, 0.95, figure.get_size_inches()[1] - 0.75 - height, width, height)
    for (layer, head), several in names.items():
        for number, name in enumerate(several):
            stripe = _Stripe(head, layer + 0.04 + 0.92 * number / len(several), 0.92 / len(several))
            _draw_stripe(
                ax, stripe, name, _share(patterns, layer, head, name), with_text=len(names) <= MAX_HEADS_WITH_TEXT
            )
    ax.set(xlim=(0, n_heads), ylim=(n_layers, 0))
    ax.set_xticks(np.arange(n_heads) + 0.5, [str(i) for i in range(n_heads)])
    kinds = [kind if set(patterns.attention) != {"self"} else "" for kind in patterns.attention]
    ax.set_yticks(np.arange(n_layers) + 0.5, [f"{kind} {i}".strip() for i, kind in enumerate(kinds)])
    ax.set_xlabel("head", color=INK, fontsize=10)
    ax.set_ylabel("layer", color=INK, fontsize=10)
    ax.tick_params(length=0, colors=GREY, labelsize=8.5)
    ax.spines[:].set_visible(False)
    _legend(figure, Counter(name for several in names.values() for name in several), 0.95 + width + 0.3)
    _write_title(figure, title or "What each attention head attends to", "number: share of the attention")
    return figure


class _Stripe(NamedTuple):
    """A part of the cell of a head: its left and upper end, and how high it is; 1 is the width of a column."""

    left: float
    top: float
    height: float


def _draw_stripe(ax: Axes, stripe: _Stripe, name: Name, share: float | None, *, with_text: bool) -> None:
    strength = 1.0 if share is None else 0.3 + 0.7 * share
    color = tuple(strength * c + (1 - strength) for c in to_rgb(COLORS[name]))
    left, top, height = stripe
    ax.add_patch(Rectangle((left + 0.03, top), 0.94, height, facecolor=color, edgecolor="none"))
    if not with_text or share is None:
        return
    is_dark = float(np.dot(color, (0.3, 0.59, 0.11))) < 0.55
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if is_dark else INK}
    if height > 0.5:
        ax.text(left + 0.5, top + 0.35 * height, SHORT.get(name, name), fontsize=6.4, **style)
        ax.text(left + 0.5, top + 0.7 * height, f"{share:.2f}", fontsize=7.4, **style)
    else:
        ax.text(left + 0.5, top + height / 2, f"{SHORT.get(name, name)} {share:.2f}", fontsize=5.8, **style)


def _share(patterns: HeadPatterns, layer: int, head: int, name: Name) -> float | None:
    return float(patterns.mass[layer, head, PATTERNS.index(name)]) if name in PATTERNS else None


def _legend(figure: Figure, counts: Counter[Name], left: float) -> None:
    across, up = figure.get_size_inches()
    for number, name in enumerate(name for name in COLORS if name in counts):
        y = up - 0.9 - 0.42 * number
        box = Rectangle((left / across, y / up), 0.16 / across, 0.16 / up, transform=figure.transFigure)
        box.set(facecolor=COLORS[name], edgecolor="none")
        figure.add_artist(box)
        text = f"{WORDS.get(name, name.replace('_', ' '))} ({counts[name]})"
        figure.text((left + 0.25) / across, (y + 0.02) / up, text, fontsize=8.5, color=INK)
        meaning = next((text for pattern, text in MEANINGS.items() if pattern == name), "")
        figure.text((left + 0.25) / across, (y - 0.13) / up, meaning.split(";")[0], fontsize=6.6, color=GREY)


def plot_attention(
    weights: NDArray[np.floating],
    tokens: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """The weights of one head in one example: a row for each query, a column for each key, dark where it looks.

    Parameters
    ----------
    weights
        Shape (n_queries, n_keys).
    tokens
        The queries, and the keys if ``keys`` are not given.
    keys
        The keys of cross-attention.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If there are not as many tokens as queries and keys.
    """
    keys = tokens if keys is None else keys
    if weights.shape != (len(tokens), len(keys)):
        raise AnalysisError(f"the weights have shape {weights.shape} for {len(tokens)} queries and {len(keys)} keys.")
    cell = min(0.24, 12 / max(weights.shape))
    width, height = cell * len(keys), cell * len(tokens)
    figure = Figure(figsize=(max(width + 2.4, 5), height + 2.4), dpi=150, facecolor="white")
    ax = _axes(figure, 1.3, 0.55, width, height)
    image = ax.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    ax.xaxis.tick_top()
    size = min(8.0, 40 * cell)
    if max(weights.shape) <= MAX_TOKENS:
        ax.set_xticks(range(len(keys)), [*keys], rotation=90, fontsize=size)
        ax.set_yticks(range(len(tokens)), [*tokens], fontsize=size)
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        text.set_parse_math(False)
    bar = _axes(figure, 1.3 + width + 0.15, 0.55, 0.13, height)
    figure.colorbar(image, cax=bar)
    for axes in (ax, bar):
        axes.tick_params(colors=GREY, labelsize=size, length=2, width=0.6)
        for spine in axes.spines.values():
            spine.set(color=GREY, linewidth=0.6)
    _write_title(figure, title or "Attention", "rows attend to columns")
    return figure


def plot_offsets(patterns: HeadPatterns, heads: Sequence[tuple[int, int]], *, title: str | None = None) -> Figure:
    """Mean attention from a word to the words before and after it, a line for each (layer, head).

    Raises
    ------
    AnalysisError
        If there is none of these heads, or more than eight.
    """
    known = [at for at in heads if at[0] < len(patterns.attention) and at[1] < patterns.mass.shape[1]]
    if not 1 <= len(known) == len(heads) <= MAX_LINES:
        raise AnalysisError(f"one to {MAX_LINES} heads can be drawn, by layer and head; not {list(heads)}.")
    figure = Figure(figsize=(8.2, 4.3), dpi=150, facecolor="white")
    ax = _axes(figure, 0.8, 0.8, 5.6, 2.7)
    offsets = np.arange(-patterns.max_offset, patterns.max_offset + 1)
    colors = [COLORS[name] for name in COLORS if name not in WORDS]
    for number, (layer, head) in enumerate(known):
        color, marker = colors[number * 3 % len(colors)], "osv^Dx+*"[number]
        values = patterns.by_offset[layer, head]
        ax.plot(offsets, values, color=color, marker=marker, markersize=3.5, linewidth=1.2, label=f"L{layer}H{head}")
    ax.set_xlabel("offset in tokens, negative: before", color=INK, fontsize=10)
    ax.set_ylabel("mean attention", color=INK, fontsize=10)
    ax.set_ylim(bottom=0)
    ax.grid(True, color=PALE, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(colors=GREY, labelsize=8.5, width=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=8.5)
    _write_title(figure, title or "Attention by offset", "pairs of words, over all examples")
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _write_title(figure: Figure, title: str, footer: str) -> None:
    width, height = figure.get_size_inches()
    plain: dict[str, Any] = {"x": 0.2 / width, "ha": "left", "parse_math": False}
    figure.suptitle(title, y=1 - 0.16 / height, va="top", color=INK, fontsize=13, fontweight="bold", **plain)
    figure.text(y=0.12 / height, s=footer, va="bottom", color=GREY, fontsize=8.5, **plain)
