"""Matplotlib figures of values per token: one example explained by several methods, or in several states of a model.

As in `t3vis.plots`, nothing global changes; the numbers stand beside the colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure

from t3vis.errors import AnalysisError
from t3vis.plots import GREY, INK

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["plot_tokens"]

TOKEN_INCHES, COLUMN_INCHES = 0.24, 1.25
MAX_TOKENS = 120
MAX_NAME = 22
COLORS = LinearSegmentedColormap.from_list("t3vis.tokens", ["#9c1127", "#ffffff", "#134a8a"])


def plot_tokens(
    values: NDArray[np.floating],
    tokens: Sequence[str],
    *,
    columns: Sequence[str],
    notes: Sequence[str] = (),
    title: str | None = None,
) -> Figure:
    """A line for each token, a column for each method or state, coloured by the value that stands in the cell.

    Parameters
    ----------
    values
        Shape (n_columns, n_tokens). Each column has a scale of its own, that of its largest value, if they are not
        all in the same unit; the caller scales them then.
    tokens
        What each reads.
    columns
        Names of the columns.
    notes
        A line of small print below each column.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If the shape is not that of columns and tokens, there are too many tokens to read, or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(columns), len(tokens)):
        raise AnalysisError(f"values have the shape {values.shape}; expected {(len(columns), len(tokens))}.")
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise AnalysisError(f"{len(tokens)} tokens cannot be drawn; pass 1 to {MAX_TOKENS}.")
    if not np.isfinite(values).all():
        raise AnalysisError("some values are not finite; leave such columns out.")
    names = [_short(token) for token in tokens]
    left = 0.4 + 0.085 * max(map(len, names))
    bottom = 0.35 + 0.45 * bool(notes)
    width, height = COLUMN_INCHES * len(columns), TOKEN_INCHES * len(tokens)
    size = max(left + width + 0.4, 3.5), bottom + height + 0.75
    figure = Figure(figsize=size, dpi=150, facecolor="white")
    ax = figure.add_axes((left / size[0], bottom / size[1], width / size[0], height / size[1]))
    largest = max(float(np.abs(values).max()), np.finfo(float).tiny)
    ax.imshow(values.T, cmap=COLORS, norm=TwoSlopeNorm(0, -largest, largest), aspect="auto")
    for (column, token), value in np.ndenumerate(values):
        ink = "white" if abs(value) > 0.55 * largest else INK
        ax.text(column, token, f"{value:+.2f}", ha="center", va="center", fontsize=7, color=ink)
    ax.set_yticks(range(len(tokens)), names, fontsize=8)
    ax.set_xticks(range(len(columns)), [_short(column) for column in columns], fontsize=8)
    for text in (*ax.get_yticklabels(), *ax.get_xticklabels()):
        text.set_parse_math(False)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for column, note in enumerate(notes):
        ax.text(column, len(tokens) - 0.3, note, ha="center", va="top", fontsize=6.5, color=GREY, parse_math=False)
    figure.text(0.15 / size[0], 1 - 0.25 / size[1], title or "Tokens", fontsize=10, color=INK, parse_math=False)
    return figure


def _short(text: str) -> str:
    shown = " ".join(text.split()) or repr(text)
    return shown if len(shown) <= MAX_NAME else shown[: MAX_NAME - 1] + "…"
