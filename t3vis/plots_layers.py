"""Matplotlib figures of the analyses by layer and by class: separability, CKA, and the dynamics of each class.

As in `t3vis.plots`, nothing global changes, and what the colours say is written beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from t3vis.analysis.slices import by_group
from t3vis.errors import AnalysisError
from t3vis.plots import GREY, INK, PALE, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["plot_cka", "plot_classes", "plot_layers"]

CELL_INCHES = 0.62
MAX_CELLS_WITH_NUMBERS = 400
ROW_INCHES = 0.24
MAX_NAME = 40
MAX_CLASSES = 100
"""Of more classes than this, those with the lowest medians are drawn."""


def plot_layers(
    values: NDArray[np.floating],
    *,
    passes: Sequence[int],
    layers: Sequence[int],
    quantity: str = "accuracy of a linear probe",
    title: str | None = None,
) -> Figure:
    """One figure of merit in every layer and pass, the number in each cell and its colour.

    Parameters
    ----------
    values
        Shape (n_passes, n_layers); NaN where not known.
    passes, layers
        Numbers of the rows and the columns.
    quantity
        What the values are.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If the shape is not that of passes and layers, or nothing is known.
    """
    return _heat_map(values, passes, layers, ("pass", "layer"), quantity, title or "Layers over training")


def plot_cka(
    values: NDArray[np.floating], *, passes: tuple[int, int], layers: Sequence[int], title: str | None = None
) -> Figure:
    """Similarity of every layer in one pass to every layer in another.

    Parameters
    ----------
    values
        Shape (n_layers, n_layers), in [0, 1]: rows are the layers of the first pass.
    passes
        Numbers of the two passes.
    layers
        Numbers of the layers.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If the shape is not that of the layers, or nothing is known.
    """
    names = (f"layer in pass {passes[0]}", f"layer in pass {passes[1]}")
    return _heat_map(values, layers, layers, names, "linear CKA", title or "How the layers changed", limits=(0.0, 1.0))


def plot_classes(
    values: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    quantity: str = "confidence",
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Median and quartiles of a quantity by class, the lowest median at the top, and how many examples each has.

    Of more than 100 classes, the 100 with the lowest medians are drawn.

    Parameters
    ----------
    values
        Shape (n_examples,); NaN where not known.
    labels
        Shape (n_examples,); negative where there is none.
    quantity
        What the values are.
    class_names
        By label; by default their numbers.
    title
        Heading of the figure.

    Raises
    ------
    AnalysisError
        If no class has a known value.
    """
    summary = by_group(values, labels)
    shown = np.flatnonzero(summary.n_known)
    if not shown.size:
        raise AnalysisError(f"no class has a known {quantity}; pass a split with labelled examples, after training.")
    n_classes = len(shown)
    shown = shown[np.argsort(summary.quantiles[shown, 1], kind="stable")][:MAX_CLASSES][::-1]
    names = [_name(class_names, int(label)) for label in shown]
    left = 0.5 + 0.085 * max(map(len, names))
    figure = Figure(figsize=(left + 5.6, 1.5 + ROW_INCHES * len(shown)), dpi=150, facecolor="white")
    ax = _axes(figure, left, 0.75, 4.4, ROW_INCHES * len(shown))
    place = np.arange(len(shown))
    low, middle, high = summary.quantiles[shown].T
    ax.hlines(place, low, high, color=GREY, linewidth=3, alpha=0.5)
    ax.plot(middle, place, "o", color=INK, markersize=4.5)
    ax.set_yticks(place, names)
    for text in ax.get_yticklabels():
        text.set_parse_math(False)
    ax.set(
        ylim=(-0.7, len(shown) - 0.3),
    )
    ax.set_xlabel(f"{quantity}: median and quartiles", color=INK, fontsize=10)
    ax.grid(True, axis="x", color=PALE, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    for y, count in zip(place.tolist(), summary.n_examples[shown], strict=True):
        # In units of the axes across, of the classes up.
        ax.text(1.03, y, f"{count:,}", transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=GREY)
    _quiet(ax)
    footer = "at the right: examples of the class"
    if n_classes > MAX_CLASSES:
        footer = f"the {MAX_CLASSES} lowest of {n_classes:,} classes; {footer}"
    _write_title(figure, title or f"{quantity.capitalize()} by class", footer)
    return figure


def _heat_map(
    values: NDArray[np.floating],
    rows: Sequence[int],
    columns: Sequence[int],
    names: tuple[str, str],
    quantity: str,
    title: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    if values.shape != (len(rows), len(columns)):
        raise AnalysisError(
            f"the values have shape {values.shape} but there are {len(rows)} rows and {len(columns)} columns."
        )
    known = values[~np.isnan(values)]
    if not known.size:
        raise AnalysisError(f"no {quantity} is known; it needs at least two classes, and states that vary.")
    low, high = limits or (float(known.min()), float(known.max()))
    # Few cells are as large as many numbers need, many are drawn smaller and without them.
    cell = min(CELL_INCHES, 14 / max(values.shape))
    width, height = cell * len(columns), cell * len(rows)
    figure = Figure(figsize=(max(width + 2.2, 5.2), height + 1.75), dpi=150, facecolor="white")
    ax = _axes(figure, 0.85, 0.95, width, height)
    image = ax.imshow(values, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
    ax.set_xlabel(names[1], color=INK, fontsize=10)
    ax.set_ylabel(names[0], color=INK, fontsize=10)
    _number_ticks(ax, rows, columns)
    if values.size <= MAX_CELLS_WITH_NUMBERS:
        for (i, j), value in np.ndenumerate(values):
            if not np.isnan(value):
                is_dark = value > (low + high) / 2
                ax.text(j, i, _short(value), ha="center", va="center", fontsize=8, color="white" if is_dark else INK)
    bar = _axes(figure, 0.85 + width + 0.2, 0.95, 0.16, height)
    figure.colorbar(image, cax=bar)
    _quiet(ax)
    _quiet(bar)
    _write_title(figure, title, quantity)
    return figure


def _number_ticks(ax: Axes, rows: Sequence[int], columns: Sequence[int]) -> None:
    """At most 25 numbers on each side."""
    for numbers, place in ((rows, ax.set_yticks), (columns, ax.set_xticks)):
        step = -(-len(numbers) // 25)
        at = list(range(0, len(numbers), step))
        place(at, [str(numbers[i]) for i in at])


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def _name(class_names: Sequence[str] | None, label: int) -> str:
    name = class_names[label] if class_names is not None and label < len(class_names) else str(label)
    return shortened(name, MAX_NAME)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _quiet(ax: Axes) -> None:
    ax.tick_params(colors=GREY, labelsize=8.5, width=0.7)
    for spine in ax.spines.values():
        spine.set(color=GREY, linewidth=0.7)


def _write_title(figure: Figure, title: str, footer: str) -> None:
    width, height = figure.get_size_inches()
    plain: dict[str, Any] = {"x": 0.2 / width, "ha": "left", "parse_math": False}
    figure.suptitle(title, y=1 - 0.16 / height, va="top", color=INK, fontsize=13, fontweight="bold", **plain)
    figure.text(y=0.12 / height, s=footer, va="bottom", color=GREY, fontsize=8.5, **plain)
