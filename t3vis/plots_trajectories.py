"""Matplotlib figure of single examples: the probability of their label, epoch by epoch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from t3vis.errors import AnalysisError
from t3vis.plots import CORRECTNESS_COLORS, INK, PALE, axes_at, example_ids, quieten, write_heading

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["plot_trajectories"]

MAX_TRAJECTORIES = 12


def plot_trajectories(
    gold_probs: ArrayLike,
    *,
    ids: Sequence[int] | NDArray[np.integer],
    names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Gold-label probability over the epochs, one small panel per example, the others in grey behind it.

    Parameters
    ----------
    gold_probs
        Shape (n_epochs, n_examples), in [0, 1]; NaN in an epoch in which the example was not seen leaves a gap.
    ids
        The examples to draw, in this order: 1 to 12 columns of ``gold_probs``.
    names
        Their texts, one for each id, shortened to two lines.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If ``gold_probs`` is not two-dimensional, has no epoch, or has values outside [0, 1]; if there are no ids,
        more than 12, or one out of range; if there are not as many names as ids.
    """
    probs = np.asarray(gold_probs, dtype=np.float64)
    if probs.ndim != 2 or probs.shape[0] == 0:
        raise AnalysisError(
            f"gold_probs must have shape (n_epochs, n_examples) with at least one epoch, not {probs.shape}; "
            "pass the probabilities of the gold label only."
        )
    chosen = example_ids(ids, probs.shape[1])
    if not 1 <= chosen.size <= MAX_TRAJECTORIES:
        raise AnalysisError(f"ids has {chosen.size} examples; choose 1 to {MAX_TRAJECTORIES} to draw.")
    if names is not None and len(names) != chosen.size:
        raise AnalysisError(f"names has {len(names)} texts but ids has {chosen.size}; pass one text for each id.")
    lines = probs[:, chosen]
    if np.any((lines < 0) | (lines > 1 + 1e-6)):  # a softmax in float32 can end a hair above one
        raise AnalysisError(
            f"gold_probs has values in [{np.nanmin(lines):g}, {np.nanmax(lines):g}] but probabilities lie in "
            "[0, 1]; pass probabilities, not logits."
        )
    texts = [""] * chosen.size if names is None else names
    captions = [_caption(example_id, text) for example_id, text in zip(chosen, texts, strict=True)]
    return _draw_trajectories(lines, captions, title)


def _draw_trajectories(gold_probs: NDArray[np.float64], captions: Sequence[str], title: str | None) -> Figure:
    """Draw each column of `gold_probs`, shape (n_epochs, n_chosen), in a panel of its own."""
    n_columns = min(4, len(captions))
    n_rows = -(-len(captions) // n_columns)
    width, height = max(0.9 + 2.4 * n_columns, 5.0), 1.0 + 1.95 * n_rows
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    epochs = np.arange(gold_probs.shape[0])
    for panel, caption in enumerate(captions):
        row, column = divmod(panel, n_columns)
        panel_width = (width - 0.7) / n_columns
        ax = axes_at(figure, 0.65 + column * panel_width, height - 2.2 - 1.95 * row, panel_width - 0.25, 1.2)
        ax.plot(epochs, np.delete(gold_probs, panel, axis=1), color=PALE, linewidth=1)
        ax.plot(epochs, gold_probs[:, panel], color=CORRECTNESS_COLORS(1.0), marker="o", markersize=4, clip_on=False)
        ax.set_title(caption, loc="left", fontsize=8.5, color=INK, parse_math=False)
        ax.set(xlim=(-0.3, epochs[-1] + 0.3), ylim=(0, 1), yticks=(0, 0.5, 1))
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        is_lowest = panel + n_columns >= len(captions)
        ax.tick_params(labelbottom=is_lowest, labelleft=column == 0)
        quieten(ax, "epoch" if is_lowest else "", "probability" if column == 0 else "")
    write_heading(figure, title or "Gold-label probability by epoch", "")
    return figure


def _caption(example_id: int, name: str) -> str:
    """Write the id above at most two lines of the text."""
    lines = textwrap.wrap(name, width=32, max_lines=2, placeholder=" …", break_on_hyphens=False)
    return "\n".join([f"example {example_id}", *lines])
