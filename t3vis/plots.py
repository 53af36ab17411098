"""Matplotlib figures of the analyses: the data map, and what all figures share.

They are built on `matplotlib.figure.Figure`, never through pyplot: nothing global changes and nothing has to be
closed. The colours hold for colour-blind readers, and markers and sizes repeat what the colours say.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from t3vis.errors import AnalysisError, ConfigurationError

try:
    import matplotlib
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ImportError as error:
    raise ImportError('t3vis.plots needs matplotlib; install it with: pip install "t3vis[plots]"') from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from t3vis.analysis.data_map import DataMap

__all__ = ["as_svg", "plot_data_map", "write_figure"]

CORRECTNESS_COLORS = LinearSegmentedColormap.from_list(
    "t3vis.correctness", ["#9c1127", "#e0603f", "#e9a83b", "#4f9fc8", "#134a8a"]
)
CORRECTNESS_MARKERS = "Xv<D>^o"
MAX_LEVELS = len(CORRECTNESS_MARKERS) - 1
INK, GREY, PALE = "#1d232b", "#5c6672", "#e6e9ed"

WIDTH, HEIGHT = 10.0, 6.3
"""Size of the data map in inches, as are the next two lines: hexagons are regular only on axes of known shape."""
MAP_LEFT, MAP_BOTTOM, MAP_WIDTH, MAP_HEIGHT = 0.72, 0.92, 6.0, 4.4
LEGEND_ROW = HEIGHT - 0.72
X_LIMITS, Y_LIMITS = (-0.015, 0.515), (-0.045, 1.045)
N_HEXAGONS_ACROSS = 58
MAX_RINGS = 1_000
"""More rings than this paint over the map."""
MAX_VECTOR_MARKERS = 2_000
"""More markers than this are an image inside an SVG or PDF: 25,000 of them would take megabytes."""


def plot_data_map(
    data_map: DataMap,
    *,
    title: str | None = None,
    highlight: ArrayLike | None = None,
    highlight_label: str = "highlighted",
    max_points: int = 25_000,
    seed: int = 0,
) -> Figure:
    """Draw confidence against variability, coloured by correctness, and the histogram of each.

    Up to `max_points` examples are drawn one by one. Above that every example is counted in a hexagon, whose
    side grows with the logarithm of the count and whose colour is the mean correctness of the examples in it.

    Parameters
    ----------
    data_map
        The training dynamics. Examples for which they are NaN (never seen, or without a label) are left out
        and counted in the footer.
    title
        Heading of the figure.
    highlight
        Examples to ring, such as suspected label errors: a boolean mask of shape (n_examples,) or example ids.
    highlight_label
        What the ringed examples are; the legend says it, and how many there are.
    max_points
        The most examples to be drawn one by one.
    seed
        Picks the rings to draw if there are more than 1,000; the legend then says so.

    Raises
    ------
    AnalysisError
        If there is no example to draw, or `highlight` is a mask of another length or has ids out of range.

    Notes
    -----
    Marker and colour tell correctness rounded to ``1 / n_epochs``, above six epochs to 0.2; the paper's code
    rounds to one decimal. The names of the regions hide no example of variability up to 0.49.

    References
    ----------
    Swayamdipta et al. (2020), "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics",
    figure 1.
    """
    drawable = np.isfinite(data_map.confidence + data_map.variability + data_map.correctness)
    if not drawable.any():
        raise AnalysisError(
            f"none of the {drawable.size:,} examples can be drawn: each was never seen or has no label; "
            "pass the data map of a split with labelled examples, after some training."
        )
    ringed = None if highlight is None else np.unique(example_ids(highlight, drawable.size))
    cloud = Cloud(
        data_map.variability[drawable],
        data_map.confidence[drawable],
        data_map.correctness[drawable],
        n_levels=data_map.n_epochs if data_map.n_epochs <= MAX_LEVELS else 5,
    )
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=150, facecolor="white")
    ax = axes_at(figure, MAP_LEFT, MAP_BOTTOM, MAP_WIDTH, MAP_HEIGHT)
    ax.set(xlim=X_LIMITS, ylim=Y_LIMITS)
    if cloud.confidence.size <= max_points:
        _draw_points(ax, cloud)
    else:
        _draw_hexagons(ax, cloud)
    if ringed is not None:
        _draw_rings(ax, data_map, ringed[drawable[ringed]], ringed.size, highlight_label, seed)
    _name_regions(ax, data_map.n_epochs)
    quieten(ax, "variability", "confidence")
    _draw_histograms(figure, cloud)
    write_heading(figure, title or "Data map", _footer(data_map, drawable))
    return figure


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of ``path``; equal figures give equal bytes.

    Raises
    ------
    ConfigurationError
        If the suffix is another one. Nothing is written then.
    """
    path = Path(path)
    undated: dict[str, dict[str, str | None]] = {
        ".png": {},
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
    }
    suffix = path.suffix.lower()
    if suffix not in undated:
        raise ConfigurationError(
            f"Cannot write a figure to {path}: its suffix is {path.suffix!r}; use .png, .svg or .pdf."
        )
    # Without a salt the ids in an SVG are random. The salt cannot be passed to savefig.
    with matplotlib.rc_context({"svg.hashsalt": "t3vis"}):
        figure.savefig(path, format=suffix[1:], metadata=undated[suffix])


def as_svg(figure: Figure) -> str:
    """A figure as the text of an SVG file, without a background; equal figures give equal text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "t3vis"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()


@dataclass(frozen=True, eq=False)
class Cloud:
    """The examples on a data map; each array has shape (n_drawn,) and is finite."""

    variability: NDArray[np.float64]
    confidence: NDArray[np.float64]
    correctness: NDArray[np.float64]
    n_levels: int
    """Correctness is told in steps of ``1 / n_levels``."""

    @property
    def nearest_level(self) -> NDArray[np.int64]:
        """Correctness in steps, in ``[0, n_levels]``."""
        return np.rint(self.correctness * self.n_levels).astype(np.int64)

    @property
    def steps(self) -> NDArray[np.float64]:
        """The correctness that each level stands for, shape (n_levels + 1,)."""
        return np.arange(self.n_levels + 1) / self.n_levels


@dataclass(frozen=True, eq=False)
class Hexagons:
    """Examples counted on a lattice of regular hexagons, the empty ones left out."""

    centers: NDArray[np.float64]
    """Shape (n_hexagons, 2): variability and confidence."""
    corners: NDArray[np.float64]
    """Shape (6, 2): the corners of a full hexagon around the origin."""
    n_examples: NDArray[np.int64]
    """Shape (n_hexagons,), at least 1."""
    correctness: NDArray[np.float64]
    """Shape (n_hexagons,): the mean over the examples in each, in [0, 1]."""


def hexagons(cloud: Cloud) -> Hexagons:
    """Count every example in the hexagon whose centre is nearest to it on the page.

    The centres are two rectangular lattices, one shifted by half a step; the nearer centre of the two wins.

    References
    ----------
    Carr et al. (1987), "Scatterplot Matrix Techniques for Large N".
    """
    width = 0.5 / N_HEXAGONS_ACROSS
    inches_per_x = MAP_WIDTH / (X_LIMITS[1] - X_LIMITS[0])
    inches_per_y = MAP_HEIGHT / (Y_LIMITS[1] - Y_LIMITS[0])
    step = np.array([width, np.sqrt(3) * width * inches_per_x / inches_per_y])
    place = np.stack([cloud.variability, cloud.confidence], axis=1) / step
    even, odd = np.rint(place), np.floor(place) + 0.5
    to_even, to_odd = (((place - center) ** 2) @ [1.0, 3.0] for center in (even, odd))
    nearest = np.where((to_odd < to_even)[:, np.newaxis], odd, even)

    cells, cell = np.unique((2 * nearest).astype(np.int64), axis=0, return_inverse=True)
    n_examples = np.bincount(cell)
    corners = np.array([[0, 2], [3, 1], [3, -1], [0, -2], [-3, -1], [-3, 1]]) / 6
    return Hexagons(
        centers=cells / 2 * step,
        corners=corners * step,
        n_examples=n_examples,
        correctness=np.bincount(cell, weights=cloud.correctness) / n_examples,
    )


def _draw_points(ax: Axes, cloud: Cloud) -> None:
    """Draw the commonest correctness first, so that rare examples stay in sight."""
    n_examples = cloud.confidence.size
    size, alpha = _shrinking(n_examples, 42, 5), _shrinking(n_examples, 0.9, 0.55)
    level = cloud.nearest_level
    for order, shown in enumerate(np.argsort(-np.bincount(level, minlength=cloud.n_levels + 1))):
        ax.scatter(
            cloud.variability[level == shown],
            cloud.confidence[level == shown],
            s=size,
            marker=_marker(cloud.steps[shown]),
            color=CORRECTNESS_COLORS(cloud.steps[shown]),
            alpha=alpha,
            linewidths=0,
            zorder=2 + order / 100,
            rasterized=n_examples > MAX_VECTOR_MARKERS,
            clip_on=False,
        )
    key = [_swatch(_marker(step), 7, CORRECTNESS_COLORS(step), f"{step:.2g}") for step in cloud.steps]
    _legend(ax, key, "center left", MAP_LEFT, LEGEND_ROW, heading="correctness")


def _draw_hexagons(ax: Axes, cloud: Cloud) -> None:
    """Tell density by the size of the hexagons: told by fading, it would change their colours."""
    cells = hexagons(cloud)
    most = int(cells.n_examples.max())
    side = _relative_side(cells.n_examples, most)[:, np.newaxis, np.newaxis]
    ax.add_collection(
        PolyCollection(
            list(cells.centers[:, np.newaxis] + side * cells.corners),
            array=cells.correctness,
            cmap=CORRECTNESS_COLORS,
            clim=(0, 1),
            linewidths=0,
            clip_on=False,
        )
    )
    key = [_swatch("h", 8, CORRECTNESS_COLORS(step), f"{step:.2g}") for step in cloud.steps]
    _legend(ax, key, "center left", MAP_LEFT, LEGEND_ROW, heading="mean correctness")

    n_decades = int(np.log10(most)) + 1
    counts = 10 ** np.arange(0, n_decades, 1 + n_decades // 6)
    inches_across = MAP_WIDTH * np.ptp(cells.corners[:, 0]) / (X_LIMITS[1] - X_LIMITS[0])
    # A marker of size s is s points high from corner to corner.
    points_high = 72 * inches_across * 2 / np.sqrt(3) * _relative_side(counts, most)
    sizes = [_swatch("h", high, GREY, _short(int(count))) for high, count in zip(points_high, counts, strict=True)]
    _legend(ax, sizes, "center right", WIDTH - 0.2, LEGEND_ROW, heading="examples per hexagon")


def _relative_side(n_examples: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """Side of a hexagon relative to a full one; that of a single example is as visible as a marker."""
    relative: NDArray[np.float64] = 0.3 + 0.7 * np.log(n_examples) / np.log(max(most, 2))
    return relative


def _draw_rings(ax: Axes, data_map: DataMap, shown: NDArray[np.int64], n_chosen: int, label: str, seed: int) -> None:
    """Ring the examples `shown`; the legend says how many of those chosen are not on the map, or not ringed."""
    counts = [f"{shown.size:,}"]
    if shown.size < n_chosen:
        counts.append(f"{n_chosen - shown.size:,} not on the map")
    if shown.size > MAX_RINGS:
        counts.append(f"{MAX_RINGS:,} ringed")
        shown = np.random.default_rng(seed).choice(shown, MAX_RINGS, replace=False)
    size = 60 * np.sqrt(30 / max(shown.size, 30))
    line = 0.16 * np.sqrt(size)
    # A white rim keeps a ring apart from dark neighbours, but hundreds of rims would paint over the map.
    rim = [withStroke(linewidth=2.2 * line, foreground="white")] if shown.size <= 300 else None
    ax.scatter(
        data_map.variability[shown],
        data_map.confidence[shown],
        s=size,
        facecolors="none",
        edgecolors=INK,
        linewidths=line,
        path_effects=rim,
        rasterized=shown.size > MAX_VECTOR_MARKERS,
        clip_on=False,
        zorder=4,
        label=label,
    )
    ring = _swatch("o", 7, "none", textwrap.fill(f"{label} ({'; '.join(counts)})", width=36))
    ring.set_markeredgecolor(INK)
    _legend(ax, [ring], "upper right", MAP_LEFT + MAP_WIDTH, MAP_BOTTOM + MAP_HEIGHT - 0.05)


def _name_regions(ax: Axes, n_epochs: int) -> None:
    """Name the regions outside the half disc ``variability**2 <= confidence * (1 - confidence)`` of examples."""
    style: dict[str, Any] = {"color": INK, "fontsize": 10.5, "va": "center", "zorder": 5}
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": GREY, "linewidth": 0.7}
    ax.text(0.165, 1.006, "easy-to-learn", fontweight="bold", bbox=box, **style)
    ax.text(0.165, -0.006, "hard-to-learn", fontweight="bold", bbox=box, **style)
    if n_epochs > 1:
        ax.text(0.494, 0.5, "ambiguous", fontweight="bold", bbox=box, rotation=270, **style)
    else:
        ax.text(0.26, 0.5, "after one epoch variability\nis 0 for every example", ha="center", **style)


def _draw_histograms(figure: Figure, cloud: Cloud) -> None:
    """Draw one histogram for each quantity, beside the map and stacked by correctness."""
    half = 0.5 / cloud.n_levels
    panels = [
        ("confidence", cloud.confidence, np.linspace(0, 1, 26)),
        ("variability", cloud.variability, np.linspace(0, 0.5, 26)),
        ("correctness", cloud.steps[cloud.nearest_level], np.linspace(-half, 1 + half, cloud.n_levels + 2)),
    ]
    for row, (name, values, edges) in enumerate(panels):
        ax = axes_at(figure, 7.55, MAP_BOTTOM + 1.66 * (2 - row), 2.25, 1.08)
        floor = np.zeros(edges.size - 1)
        for level, step in enumerate(cloud.steps):
            # Rounding can leave a mean of ones a hair above one, where a histogram would drop it.
            stacked = np.clip(values[cloud.nearest_level == level], edges[0], edges[-1])
            counts, _ = np.histogram(stacked, edges)
            centers, widths = (edges[:-1] + edges[1:]) / 2, 0.9 * np.diff(edges)
            ax.bar(centers, counts, widths, floor, color=CORRECTNESS_COLORS(step), linewidth=0)
            floor = floor + counts
        ax.set(xlim=(edges[0] - 0.01, edges[-1] + 0.01), ylim=(0, 1.05 * floor.max()))
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.yaxis.set_major_formatter(FuncFormatter(_short))
        if name == "correctness":
            ax.set_xticks(cloud.steps, [f"{step:.2g}" for step in cloud.steps])
        quieten(ax, name, "examples")


def _footer(data_map: DataMap, drawable: NDArray[np.bool_]) -> str:
    """Count what is on the map, and what is not."""
    n_unlabelled = np.count_nonzero(~drawable) - data_map.n_never_seen
    parts = [
        f"{np.count_nonzero(drawable):,} of {drawable.size:,} examples",
        "1 epoch" if data_map.n_epochs == 1 else f"{data_map.n_epochs} epochs",
        f"{data_map.n_never_seen:,} never seen",
        f"{data_map.n_partly_seen:,} seen in some epochs only",
    ]
    if n_unlabelled:
        parts.append(f"{n_unlabelled:,} without a label")
    if data_map.n_epochs > MAX_LEVELS:
        parts.append("correctness to the nearest 0.2")
    return "  ·  ".join(parts)


def example_ids(chosen: ArrayLike, n_examples: int) -> NDArray[np.int64]:
    """Ids from a boolean mask or from ids, checked."""
    ids = np.asarray(chosen)
    if ids.dtype == bool and ids.shape != (n_examples,):
        raise AnalysisError(
            f"the mask has shape {ids.shape} but there are {n_examples:,} examples; pass one value per example."
        )
    if ids.dtype == bool:
        return np.flatnonzero(ids)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise AnalysisError(
            f"example ids must be integers in one dimension, not {ids.dtype} of shape {ids.shape}; "
            "pass row indices or a boolean mask."
        )
    wrong = ids[(ids < 0) | (ids >= n_examples)]
    if wrong.size:
        raise AnalysisError(f"there is no example {wrong[0]}; pass ids from 0 to {n_examples - 1}.")
    return ids.astype(np.int64)


def _shrinking(n_examples: int, at_30: float, at_25_000: float) -> float:
    """Size of what is drawn ``n_examples`` times, falling with the logarithm of that number."""
    return float(np.interp(np.log10(max(n_examples, 1)), np.log10([30, 25_000]), [at_30, at_25_000]))


def _short(count: float, _position: int | None = None) -> str:
    """Write 1500 as 1.5k and 2000000 as 2M."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            return f"{count / unit:g}{letter}"
    return f"{count:g}"


def shortened(name: str, n_characters: int) -> str:
    """A name of at most so many characters, cut in the middle: names of many classes differ only at the end.

    Examples
    --------
    >>> shortened("balance_not_updated_after_bank_transfer", 25)
    'balance_not_…ank_transfer'
    """
    if len(name) <= n_characters:
        return name
    n_last = (n_characters - 1) // 2
    return f"{name[: n_characters - 1 - n_last]}…{name[len(name) - n_last :]}"


def _marker(correctness: float) -> str:
    return CORRECTNESS_MARKERS[round(correctness * MAX_LEVELS)]


def _swatch(marker: str, size: float, color: str | tuple[float, float, float, float], label: str) -> Line2D:
    swatch = Line2D([], [], linestyle="", marker=marker, markersize=size, label=label)
    swatch.set(markerfacecolor=color, markeredgecolor="none")
    return swatch


def _legend(
    ax: Axes,
    entries: list[Line2D],
    loc: Literal["center left", "center right", "upper right"],
    x: float,
    y: float,
    heading: str = "",
) -> None:
    """Lay out a legend in one row, at (x, y) inches from the corner of the figure, behind its heading."""
    if heading:
        entries = [_swatch("", 0, "none", heading), *entries]
    legend = Legend(
        ax,
        entries,
        [str(entry.get_label()) for entry in entries],
        loc=loc,
        # The heading has an empty swatch in front of it.
        bbox_to_anchor=(x - 0.16 if heading and "left" in loc else x, y),
        bbox_transform=ax.figure.dpi_scale_trans,
        ncols=len(entries),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handletextpad=0.1,
        columnspacing=0.9,
        handlelength=1.2,
        borderpad=0,
        borderaxespad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    ax.add_artist(legend)


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def quieten(ax: Axes, x_label: str, y_label: str) -> None:
    """Make the axes quiet: no box, thin grey lines."""
    ax.set_facecolor("none")
    ax.set_axisbelow(True)
    ax.grid(True, color=PALE, linewidth=0.7)
    ax.tick_params(colors=GREY, labelsize=9, length=3, width=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=GREY, linewidth=0.7)
    ax.set_xlabel(x_label, color=INK, fontsize=10.5)
    ax.set_ylabel(y_label, color=INK, fontsize=10.5)


def write_heading(figure: Figure, title: str, footer: str) -> None:
    """Write heading and footer, in which a dollar sign is a dollar sign and starts no formula."""
    width, height = figure.get_size_inches()
    plain = {"x": 0.2 / width, "ha": "left", "parse_math": False}
    figure.suptitle(title, y=1 - 0.18 / height, va="top", color=INK, fontsize=14, fontweight="bold", **plain)
    figure.text(y=0.14 / height, s=footer, va="bottom", color=GREY, fontsize=9, **plain)
