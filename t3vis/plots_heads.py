"""Matplotlib figures of attention heads: how much each matters, and what is left of a model without some of them.

As in `t3vis.plots`, nothing global changes, and what the colours say is written beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from t3vis.errors import AnalysisError
from t3vis.plots import GREY, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from t3vis.analysis.head_importance import HeadImportance
    from t3vis.probing.pruning import PruningCurve

__all__ = ["plot_heads", "plot_pruning"]

CELL_INCHES, MAX_INCHES = 0.46, 6.5
MAX_CELLS_WITH_NUMBERS = 200
CURVE_COLORS = ("#134a8a", "#e0603f", "#6b8e23", "#8a6bbf", "#5c6672")
CURVE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
QUANTITIES = {
    "gate": "does it matter? mean |dL/dgate|",
    "removal": "estimated rise of the loss without it, nats",
    "group": "(mean dL/dgate)²",
    "loss_change": "true rise of the loss without it, nats",
    "divergence": "true KL of the predictions without it, nats",
    "score_change": "true change of the score without it",
}


def plot_heads(
    scores: Mapping[str, HeadImportance],
    *,
    which: Sequence[str] = ("gate", "loss_change"),
    attention: Sequence[str] | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> Figure:
    """Scores of every head, one matrix for each: layers up, heads across; dots mark heads whose interval excludes zero.

    Parameters
    ----------
    scores
        By name.
    which
        The scores to draw; those that are not there are left out.
    attention
        What each layer is, where they are not all alike.
    title
        Heading of the figure.
    notes
        Lines below.

    Raises
    ------
    AnalysisError
        If none of the scores is there, or nothing is known.
    """
    shown = [name for name in which if name in scores]
    if not shown or all(np.isnan(scores[name].value).all() for name in shown):
        raise AnalysisError(
            f"none of {', '.join(which)} is known of any head; known are: {', '.join(scores) or 'none'}."
        )
    n_layers, n_heads = scores[shown[0]].value.shape
    cell = min(CELL_INCHES, MAX_INCHES / max(n_layers, n_heads))
    width, height = max(cell * n_heads, 1.8), max(cell * n_layers, 0.9)
    gap = 1.75
    below = 0.75 + 0.17 * len(notes)
    figure = Figure(figsize=(0.35 + (width + gap) * len(shown), height + below + 0.85), dpi=150, facecolor="white")
    for number, name in enumerate(shown):
        left = 0.95 + number * (width + gap)
        ax = _axes(figure, left, below, width, height)
        bar = _axes(figure, left + width + 0.12, below, 0.13, height)
        _matrix(figure, ax, bar, scores[name])
        ax.set_title(QUANTITIES.get(name, name.replace("_", " ")), fontsize=9, color=INK, loc="left")
        ax.set_xlabel("head", color=INK, fontsize=9)
        if number == 0:
            _name_layers(ax, n_layers, attention)
        else:
            ax.set_yticks(_some(n_layers))
    _write_around(figure, title or "Attention heads", [*notes, "dots: the 95 % interval over examples excludes 0"])
    return figure


def plot_pruning(curves: Mapping[str, PruningCurve], *, title: str | None = None) -> Figure:
    """Score and loss as heads are removed one after another, a line for each order in which they go.

    Parameters
    ----------
    curves
        By the name of the order.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If there is no curve.
    """
    if not curves:
        raise AnalysisError("there is no pruning curve to draw.")
    figure = Figure(figsize=(9.6, 3.95), dpi=150, facecolor="white")
    of_score, of_loss = (_axes(figure, left, 0.85, 3.75, 2.55) for left in (0.8, 5.5))
    for number, (name, curve) in enumerate(curves.items()):
        look: dict[str, Any] = {
            "color": CURVE_COLORS[number % len(CURVE_COLORS)],
            "linestyle": CURVE_STYLES[number % len(CURVE_STYLES)],
            "linewidth": 1.6,
        }
        of_score.plot(curve.n_pruned, curve.score, label=name, **look)
        of_score.fill_between(
            curve.n_pruned, curve.score_low, curve.score_high, color=look["color"], alpha=0.12, linewidth=0
        )
        of_loss.plot(curve.n_pruned, curve.loss, **look)
    for ax, name in ((of_score, "score"), (of_loss, "loss, nats")):
        ax.set_xlabel("heads removed", color=INK, fontsize=10)
        ax.set_ylabel(name, color=INK, fontsize=10)
        ax.grid(True, color=PALE, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        _quiet(ax)
    of_score.legend(loc="lower left", fontsize=8.5, frameon=False)
    n_examples = next(iter(curves.values())).n_examples
    _write_around(
        figure, title or "Pruning attention heads", [f"{n_examples:,} examples; band: 95 % interval over examples"]
    )
    return figure


def _matrix(figure: Figure, ax: Axes, bar: Axes, score: HeadImportance) -> None:
    values = score.value
    known = values[~np.isnan(values)]
    is_signed = bool(known.size) and known.min() < 0
    largest = float(np.abs(known).max()) if known.size else 1.0
    low, high = (-largest, largest) if is_signed else (0.0, largest)
    image = ax.imshow(
        values, cmap="RdBu_r" if is_signed else "cividis", vmin=low, vmax=high or 1.0, aspect="auto", origin="lower"
    )
    sure = ~np.isnan(score.low) & ((score.low > 0) | (score.high < 0))
    for layer, head in np.argwhere(~np.isnan(values)).tolist():
        shade = (values[layer, head] - low) / ((high - low) or 1.0)
        is_dark = abs(shade - 0.5) > 0.36 if is_signed else shade < 0.5
        color = "white" if is_dark else INK
        if values.size <= MAX_CELLS_WITH_NUMBERS:
            ax.text(
                head, layer, _short(values[layer, head], largest), ha="center", va="center", fontsize=6, color=color
            )
        if is_signed and sure[layer, head]:
            ax.plot(head + 0.36, layer + 0.34, ".", color=color, markersize=3)
    ax.set_xticks(_some(values.shape[1]))
    figure.colorbar(image, cax=bar)
    _quiet(ax)
    _quiet(bar)


def _short(value: float, largest: float) -> str:
    """Two digits after the first of the largest."""
    digits = min(max(1 - int(np.floor(np.log10(largest))), 0), 6) if largest > 0 else 0
    text = f"{round(value, digits) + 0.0:.{digits}f}"  # plus zero, so that nothing is written as minus nothing
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _name_layers(ax: Axes, n_layers: int, attention: Sequence[str] | None) -> None:
    kinds = list(attention or [])
    at = _some(n_layers)
    if len(set(kinds)) <= 1:
        ax.set_yticks(at)
        ax.set_ylabel("layer", color=INK, fontsize=9)
        return
    ax.set_yticks(at, [f"{kinds[i]} {i}" for i in at])


def _some(number: int) -> list[int]:
    """At most 25 of the numbers, evenly spaced."""
    return list(range(0, number, -(-number // 25)))


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _quiet(ax: Axes) -> None:
    ax.tick_params(colors=GREY, labelsize=8, width=0.7)
    for spine in ax.spines.values():
        spine.set(color=GREY, linewidth=0.7)


def _write_around(figure: Figure, title: str, notes: Sequence[str]) -> None:
    width, height = figure.get_size_inches()
    plain: dict[str, Any] = {"x": 0.2 / width, "ha": "left", "parse_math": False}
    figure.suptitle(title, y=1 - 0.16 / height, va="top", color=INK, fontsize=12, fontweight="bold", **plain)
    figure.text(y=0.1 / height, s="\n".join(notes), va="bottom", color=GREY, fontsize=7.5, **plain)
