"""Matplotlib figure of how a run went: loss and accuracy pass by pass, every split in its own mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from t3vis.errors import AnalysisError
from t3vis.plots import INK, axes_at, quieten, shortened, write_heading

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Curve", "plot_passes"]

COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7d00", "#3d3d3d"]
"""Eight colours that colour-blind readers tell apart (Okabe and Ito, the yellow darkened)."""
MARKERS = "osD^vPX<"
WIDTH = 9.0
N_COLUMNS = 3
MAX_NAME = 40
MAX_LARGE_MARKERS = 20


@dataclass(frozen=True)
class Curve:
    """What was measured of a split, pass by pass."""

    split: str
    mode: str
    epochs: Sequence[float]
    """Epochs trained when each value was measured, shape (n_passes,)."""
    figures: Mapping[str, NDArray[np.floating]]
    """By name, each of shape (n_passes,); NaN where not known."""


def plot_passes(curves: Sequence[Curve], *, title: str | None = None) -> Figure:
    """Accuracy and loss over the epochs, a line for each split; those of training are solid, the others dashed.

    Parameters
    ----------
    curves
        One for each split, with figures named ``accuracy`` and ``loss``. One that has neither is left out.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If no curve has a known figure.

    Notes
    -----
    Figures recorded in training are means over the pass, with dropout on and while the model changes: they are drawn
    in the middle of their epoch, and cannot be compared to those of an evaluation as the two halves of one measure.
    """
    shown = [curve for curve in curves if any(_is_known(curve, name) for name in ("accuracy", "loss"))]
    if not shown:
        raise AnalysisError("no accuracy or loss is known of any pass; train with the recorder first.")
    panels = [name for name in ("accuracy", "loss") if any(_is_known(curve, name) for curve in shown)]
    n_rows = -(-len(shown) // N_COLUMNS)
    height = 3.2 + 0.22 * n_rows
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
    width = (WIDTH - 0.3) / 2
    looks = [_look(i, curve) for i, curve in enumerate(shown)]
    for i, name in enumerate(panels):
        ax = axes_at(figure, 0.65 + i * width, 0.6, width - 0.8, 1.95)
        for curve, look in zip(shown, looks, strict=True):
            if _is_known(curve, name):
                middle = 0.5 if curve.mode == "train" else 0.0
                ax.plot(np.asarray(curve.epochs) + middle, curve.figures[name], clip_on=False, **look)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.set_xlim(0, max(1.0, *(max(curve.epochs) + 0.5 for curve in shown)))
        quieten(ax, "epochs trained", f"mean {name}" if name == "loss" else name)
    figure.legend(
        handles=[
            Line2D([], [], label=shortened(f"{curve.split} ({curve.mode} mode)", MAX_NAME), **look)
            for curve, look in zip(shown, looks, strict=True)
        ],
        loc="upper left",
        bbox_to_anchor=(0.12 / WIDTH, 1 - 0.42 / height),
        ncols=N_COLUMNS,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    write_heading(figure, title or "The passes", "")
    return figure


def _is_known(curve: Curve, name: str) -> bool:
    return name in curve.figures and bool(np.isfinite(curve.figures[name]).any())


def _look(i: int, curve: Curve) -> dict[str, Any]:
    return {
        "color": COLORS[i % len(COLORS)],
        # Colours come round again with other markers.
        "marker": MARKERS[(i + i // len(COLORS)) % len(MARKERS)],
        "linestyle": "-" if curve.mode == "train" else "--",
        "linewidth": 1.6,
        "markersize": 5 if len(curve.epochs) <= MAX_LARGE_MARKERS else 2.5,
    }
