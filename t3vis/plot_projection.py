"""Matplotlib figures of maps of hidden states, with what each map keeps of them printed on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from t3vis.errors import AnalysisError
from t3vis.plots import GREY, INK, MAX_VECTOR_MARKERS, PALE, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox
    from numpy.typing import ArrayLike, NDArray

    from t3vis.analysis.projection_quality import Estimate

__all__ = ["plot_projection", "quality_lines"]

FEW = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7d00", "#3d3d3d"]
"""Eight colours that colour-blind readers tell apart (Okabe and Ito, the yellow darkened)."""
MANY = [
    "#1f5fa8", "#e8590c", "#2b8a3e", "#c2255c", "#6741d9", "#0b7285", "#a67c00", "#5c3b28", "#e64980", "#495057",
    "#74a9dc", "#ffa94d", "#7bc47f", "#f29ab8", "#a48be0", "#4fc3c9", "#d9b93b", "#b58a6c", "#8a1538", "#9aa5b1",
]  # fmt: skip
"""Twenty colours, half of them lighter."""
MARKERS = "osD^vPX<"
TRUST = LinearSegmentedColormap.from_list("t3vis.trust", ["#9c1127", "#e0603f", "#e9a83b", "#4f9fc8", "#134a8a"])
MAX_MARKED = 2_000
"""Of more examples than this, the markers are too small to be told apart: all are discs."""
MAX_LISTED = 90
"""Of more classes than this, the largest are listed."""
UNKNOWN = "#c3cad1"
WIDTH, HEIGHT = 10.0, 7.75
MAP_LEFT, MAP_BOTTOM, MAP_SIDE = 0.25, 1.0, 6.1


@dataclass(frozen=True)
class Look:
    """How the examples of a class are drawn, and what it is called."""

    color: str
    marker: str
    name: str


def plot_projection(
    coordinates: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    values: ArrayLike | None = None,
    values_name: str = "",
    notes: Sequence[str] = (),
    title: str | None = None,
    seed: int = 0,
) -> Figure:
    """Draw a map: a point for every example, coloured by its label or by a value.

    Up to 8 classes have colours of their own and, while the points are large enough, markers; up to 20 have colours,
    which then come round again with other markers. From nine classes on their names also stand on the map, where most
    of their examples are, as far as they do not cover each other.

    Parameters
    ----------
    coordinates
        Shape (n_examples, 2); examples at NaN are left out, and counted.
    labels
        Shape (n_examples,), integers; negative where unknown, drawn in grey.
    class_names
        By label; by default the numbers.
    values
        Shape (n_examples,), in place of labels: a number in [0, 1] of each example, such as its neighbour recall;
        NaN is drawn in grey.
    values_name
        What they are.
    notes
        Lines below the map, such as `quality_lines`.
    title
        Heading of the figure.
    seed
        Of the order in which the points are drawn, so that no class lies on top of the others.

    Raises
    ------
    AnalysisError
        If there is nothing to draw, or the shapes disagree.
    """
    places = np.asarray(coordinates, dtype=np.float64)
    given = values if values is not None else labels
    colored = np.full(len(places), -1) if given is None else np.asarray(given)
    if places.ndim != 2 or places.shape[1] != 2 or colored.shape != (len(places),):
        raise AnalysisError(
            f"coordinates have shape {places.shape} and what colours them {colored.shape}; expected (n_examples, 2) "
            "and (n_examples,)."
        )
    drawn = np.flatnonzero(np.isfinite(places).all(axis=1))
    if not drawn.size:
        raise AnalysisError(f"none of the {len(places):,} examples is on the map; pass one on which some were seen.")
    drawn = np.random.default_rng(seed).permutation(drawn)
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=150, facecolor="white")
    ax = _map_axes(figure, places[drawn])
    if values is not None:
        _draw_values(figure, ax, places[drawn], np.asarray(values, np.float64)[drawn], values_name)
    else:
        _draw_classes(ax, places[drawn], colored[drawn], class_names)
    counts = f"{drawn.size:,} of {len(places):,} examples; the axes have no unit, and directions no meaning"
    _write_text(figure, title or "Map of hidden states", [*notes, counts])
    return figure


def quality_lines(quality: Mapping[str, Estimate], attributes: Mapping[str, Any], n_examples: int) -> list[str]:
    """What a map keeps, as lines for the figure; and how far it has moved, if it was started from another.

    Parameters
    ----------
    quality
        The measures of the whole map by name.
    attributes
        Those of `t3vis.analyze_projection.AnalyzedProjection`.
    n_examples
        Examples on the map.
    """
    measures = [
        f"{name.replace('_', ' ')} {estimate.value:.3f}" + (f" ± {estimate.error:.3f}" if estimate.error else "")
        for name, estimate in quality.items()
    ]
    how = f"measured on {attributes['k']} neighbours of each example"
    if attributes["n_sampled"] < n_examples:
        how += f"; ± is the standard error of a sample of {attributes['n_sampled']:,}"
    if attributes["graph_recall"] < 1:
        how += f"; {attributes['graph_recall']:.1%} of the true neighbours are known"
    lines = ["  ·  ".join(measures), how]
    if "displacement" in attributes:
        lines.append(
            f"moved by {attributes['displacement']:.2f} radii since the map it started from "
            f"({attributes['noise_floor']:.2f} where nothing changes); kept {attributes['neighbour_overlap']:.0%} of "
            "the neighbours in hidden space"
        )
    return lines


def _map_axes(figure: Figure, places: NDArray[np.float64]) -> Axes:
    """Square axes with equal scales, without ticks."""
    ax = figure.add_axes((MAP_LEFT / WIDTH, MAP_BOTTOM / HEIGHT, MAP_SIDE / WIDTH, MAP_SIDE / HEIGHT))
    low, high = places.min(axis=0), places.max(axis=0)
    middle, half = (low + high) / 2, 0.53 * max(float((high - low).max()), 1e-9)
    ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), xticks=[], yticks=[])
    ax.spines[:].set(color=PALE, linewidth=0.8)
    return ax


def _size_and_alpha(n_examples: int) -> tuple[float, float]:
    """Smaller and fainter with the logarithm of the number of points."""
    decades = np.log10(np.clip(n_examples, 50, 200_000))
    known = np.log10([50, 500, 5_000, 50_000, 200_000])
    # Where many colours lie over each other, fainter ones mix to colours that are in no legend.
    return float(np.interp(decades, known, [60, 26, 8, 1.6, 0.6])), float(
        np.interp(decades, known, [1, 0.9, 0.8, 0.8, 0.8])
    )


def _scatter(ax: Axes, places: NDArray[np.float64], n_examples: int, **style: Any) -> PathCollection:
    size, alpha = _size_and_alpha(n_examples)
    rasterized = n_examples > MAX_VECTOR_MARKERS
    style = {"alpha": alpha, "linewidths": 0, "rasterized": rasterized, **style}
    return ax.scatter(places[:, 0], places[:, 1], s=size, **style)


def _draw_classes(
    ax: Axes,
    places: NDArray[np.float64],
    labels: NDArray[np.integer],
    class_names: Sequence[str] | None,
) -> None:
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    looks = _looks(known.tolist(), class_names, is_marked=len(places) <= MAX_MARKED)
    for marker in sorted({look.marker for look in looks.values()}):
        chosen = np.isin(labels, [label for label, look in looks.items() if look.marker == marker])
        colors = np.array([to_rgb(look.color) for look in looks.values()])
        _scatter(ax, places[chosen], len(places), color=colors[np.searchsorted(known, labels[chosen])], marker=marker)
    _scatter(ax, places[labels < 0], len(places), color=UNKNOWN, marker="o")
    order = known[np.argsort(-counts, kind="stable")].tolist()
    n_of = dict(zip(known.tolist(), counts.tolist(), strict=True))
    if len(known) > len(FEW):
        _name_on_map(ax, places, labels, {label: looks[label] for label in order})
    is_short = len(known) <= len(MANY)
    entries = [
        _swatch(looks[label], f"{shortened(looks[label].name, 30 if is_short else 21)} ({n_of[label]:,})")
        for label in order[:MAX_LISTED]
    ]
    if np.any(labels < 0):
        entries.append(_swatch(Look(UNKNOWN, "o", ""), f"no label ({np.count_nonzero(labels < 0):,})"))
    heading = {0: "no labels", 1: "1 class"}.get(len(known), f"{len(known)} classes")
    if not is_short:
        heading += f"; every {len(MANY)}th has the same colour"
    if len(known) > MAX_LISTED:
        heading += f"\n(the {MAX_LISTED} largest are listed)"
    _legend(ax, entries, heading, is_short=is_short)


def _looks(labels: list[int], class_names: Sequence[str] | None, *, is_marked: bool) -> dict[int, Look]:
    """How each class is drawn. Markers tell few classes apart for who sees no colours, and many of one colour."""
    is_few = len(labels) <= len(FEW)
    palette = FEW if is_few else MANY
    found = {}
    for i, label in enumerate(labels):
        name = class_names[label] if class_names is not None and label < len(class_names) else str(label)
        marker = MARKERS[(i if is_few else i // len(MANY)) % len(MARKERS)] if is_marked else "o"
        found[label] = Look(palette[i % len(palette)], marker, name)
    return found


def _draw_values(figure: Figure, ax: Axes, places: NDArray[np.float64], values: NDArray[np.float64], name: str) -> None:
    unknown = np.isnan(values)
    if unknown.any():
        _scatter(ax, places[unknown], len(places), color=UNKNOWN, marker="o")
        _legend(
            ax, [_swatch(Look(UNKNOWN, "o", ""), f"not measured ({np.count_nonzero(unknown):,})")], "", is_short=True
        )
    style = {"c": values[~unknown], "cmap": TRUST, "vmin": 0, "vmax": 1, "marker": "o"}
    points = _scatter(ax, places[~unknown], len(places), alpha=1, **style)
    beside = figure.add_axes(((MAP_LEFT + MAP_SIDE + 0.35) / WIDTH, MAP_BOTTOM / HEIGHT, 0.22 / WIDTH, 4.2 / HEIGHT))
    bar = figure.colorbar(points, cax=beside)
    bar.outline.set_visible(False)
    beside.tick_params(colors=GREY, labelsize=9, length=3, width=0.7)
    beside.set_title(name, loc="left", pad=10, color=INK, fontsize=10.5, parse_math=False)


def _name_on_map(ax: Axes, places: NDArray[np.float64], labels: NDArray[np.integer], looks: Mapping[int, Look]) -> None:
    """Write the name of each class amidst its examples, the first that are given first, unless it covers another."""
    written: list[Bbox] = []
    frame = ax.get_window_extent()
    size = 8 if len(looks) <= len(MANY) else 6
    for label, look in looks.items():
        x, y = _densest(places[labels == label])
        dark = 0.7 * np.array(to_rgb(look.color))
        text = ax.text(x, y, shortened(look.name, 26), fontsize=size, color=dark, ha="center", va="center", zorder=5)
        text.set(parse_math=False, fontweight="bold", path_effects=[withStroke(linewidth=3, foreground="white")])
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in written) or box.x0 < frame.x0 or box.x1 > frame.x1:
            text.remove()
        else:
            written.append(box)


def _densest(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where a class has most examples, on a grid of twelve by twelve; the mean of those in that cell."""
    low, high = places.min(axis=0), places.max(axis=0)
    cell = np.minimum(12 * (places - low) / np.maximum(high - low, 1e-12), 11).astype(np.int64) @ [12, 1]
    chosen = cell == np.bincount(cell).argmax()
    densest: NDArray[np.float64] = places[chosen].mean(axis=0)
    return densest


def _legend(ax: Axes, entries: list[Line2D], heading: str, *, is_short: bool) -> None:
    """List the entries beside the map, in one column or in two of small print."""
    legend = Legend(
        ax,
        entries,
        [str(entry.get_label()) for entry in entries],
        title=heading,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        ncols=1 if is_short else 2,
        fontsize=9 if is_short else 5.6,
        columnspacing=0.6,
        labelcolor=INK,
        alignment="left",
        handletextpad=0.2,
        borderaxespad=0,
    )
    legend.get_title().set(color=INK, fontsize=10.5, parse_math=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    ax.add_artist(legend)


def _swatch(look: Look, label: str) -> Line2D:
    swatch = Line2D([], [], linestyle="", marker=look.marker, markersize=6, label=label)
    swatch.set(markerfacecolor=look.color, markeredgecolor="none")
    return swatch


def _write_text(figure: Figure, title: str, lines: Sequence[str]) -> None:
    """Write heading and footer, in which a dollar sign is a dollar sign and starts no formula."""
    plain: dict[str, Any] = {"x": MAP_LEFT / WIDTH, "ha": "left", "parse_math": False}
    figure.suptitle(title, y=1 - 0.2 / HEIGHT, va="top", color=INK, fontsize=14, fontweight="bold", **plain)
    figure.text(y=0.12 / HEIGHT, s="\n".join(lines), va="bottom", color=GREY, fontsize=9, linespacing=1.35, **plain)
