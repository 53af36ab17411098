"""The sections of a report that are of one split: each a function of run and split that returns what is on the page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from t3vis.analysis.data_map import regions
from t3vis.analysis.trajectories import trajectories
from t3vis.analyze import (
    MEANINGS,
    analyzed_data_map,
    analyzed_difficulty,
    analyzed_drift,
    analyzed_outliers,
    analyzed_separability,
    analyzed_suspects,
)
from t3vis.errors import AnalysisError, T3VisError
from t3vis.findings import RANKED_BY, class_rows, label_text, ranked_rows, suspect_rows
from t3vis.report_page import (
    Block,
    Cell,
    Command,
    Missing,
    Noted,
    Picture,
    Section,
    Sparkline,
    Table,
    Text,
    Tiles,
    cut,
    picture,
)
from t3vis.store.reader import Run, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

UNKNOWN = "\u2013"  # a dash
N_SUSPECTS = 25
N_RANKED = 10
MAX_CLASSES = 100
MAX_PASSES = 200
"""Of more classes or passes than these, the first are listed; the page says so."""
MAX_ON_MAP = 50_000
REGION_SHARE = 1 / 3
NEEDED_FOR = {
    "logits": "needed for the data map, the labels in doubt and the classes",
    "loss": "needed for the mean loss",
    "hidden_states": "needed for outliers, layers, change and maps",
    "head_gradients": "needed for the importance of attention heads; recorded with heads=True",
}
METHODS = {"tsne": "t-SNE", "pca": "PCA", "umap": "UMAP"}
NOT_EVIDENCE = ("score", "suggested_label", "suggested_prob", "self_confidence")


def sections_of(run: Run, split: Split) -> list[Section]:
    """Everything that is known of a split; what is not says why."""
    return [
        section(title, blocks, run, split)
        for title, blocks in (
            ("At a glance", _glance),
            ("What was recorded", _recorded),
            ("Data map", _data_map),
            ("Labels that are probably wrong", _suspects),
            ("Classes", _classes),
            ("Outliers", _outliers),
            ("Layers", _layers),
            ("Change", _change),
            ("Map of hidden states", _map),
        )
    ]


def section(title: str, blocks: Callable[..., list[Block]], *of: Any) -> Section:
    """A section, or in its place the reason why it could not be made."""
    try:
        return Section(title, blocks(*of))
    except T3VisError as error:
        return Section(title, [Missing(str(error))])


def drawn(draw: Callable[[], Figure], alt: str) -> Picture | Missing:
    """A figure, or why there is none: its values, or matplotlib, are missing."""
    try:
        from t3vis.plots import as_svg  # it says how to install matplotlib

        return picture(as_svg(draw()), alt)
    except (AnalysisError, ImportError) as error:
        return Missing(str(error))


def number(value: float) -> str:
    """A figure of merit in three decimals; a dash where it is not known."""
    return UNKNOWN if np.isnan(value) else f"{value:.3f}"


def _glance(run: Run, split: Split) -> list[Block]:
    tiles = [("examples", f"{split.n_examples:,}"), ("passes recorded", f"{len(split.passes):,}")]
    if split.class_names:
        tiles.append(("classes", f"{len(split.class_names):,}"))
    reasons: list[Block] = []
    for figures in (_of_data_map, _of_suspects, _of_difficulty):
        try:
            tiles += figures(run, split)
        except T3VisError as error:
            reasons.append(Missing(str(error)))
    return [Tiles(tiles), *reasons[:1]]


def _of_data_map(run: Run, split: Split) -> list[tuple[str, str]]:
    mapped = analyzed_data_map(run, split)
    known = ~np.isnan(mapped.confidence)
    means = [
        (f"mean {name}", number(values[known].mean() if known.any() else np.nan))
        for name, values in (("confidence", mapped.confidence), ("correctness", mapped.correctness))
    ]
    return [
        *means,
        ("never learned", f"{np.count_nonzero(mapped.never_learned):,}"),
        ("forgotten at least once", f"{np.count_nonzero(mapped.forgetting_events):,}"),
        ("never seen", f"{mapped.n_never_seen:,}"),
    ]


def _of_suspects(run: Run, split: Split) -> list[tuple[str, str]]:
    suspects = analyzed_suspects(run, split)
    return [("labels less credible than another", f"{np.count_nonzero(_is_doubtful(suspects)):,}")]


def _of_difficulty(run: Run, split: Split) -> list[tuple[str, str]]:
    flips = analyzed_difficulty(run, split)["flips"]
    return [("predictions that changed more than once", f"{np.count_nonzero(flips > 1):,}")]


def _is_doubtful(suspects: Any) -> NDArray[np.bool_]:
    doubtful: NDArray[np.bool_] = suspects.suggested_prob > 1 - suspects.score
    return doubtful


def _recorded(_run: Run, split: Split) -> list[Block]:
    arrays = [split.array(name) for name in split.arrays] + [split.ragged(name) for name in split.ragged_arrays]
    recorded = {array.name for array in arrays}
    gaps = [f"{name} ({what})" for name, what in NEEDED_FOR.items() if name not in recorded]
    passes = split.passes
    return [
        Table(
            [
                {
                    "array": array.name,
                    "mode": array.attributes["mode"],
                    "shape": " x ".join(f"{size:,} {dim}" for dim, size in zip(array.dims, array.shape, strict=False)),
                    "type": str(array.dtype),
                    "what it is": array.attributes["description"],
                }
                for array in arrays
            ],
            caption="Arrays",
        ),
        *([Text(f"Not recorded: {'; '.join(gaps)}.")] if gaps else []),
        Text(
            f"Texts: {', '.join(split.text)}." if split.text else "No texts were recorded; examples have numbers only."
        ),
        Table(
            [
                {
                    "pass": str(record.index),
                    "epoch" if split.kind == "train" else "epochs trained": f"{record.epoch:g}",
                    "steps": f"{record.step:,} to {record.last_step:,}",
                    "examples seen": f"{record.n_seen:,}",
                    "never seen": f"{record.n_never:,}",
                    "more than once": f"{record.n_repeated:,}",
                    "state": "complete" if record.sealed else "in progress",
                    "no longer kept": ", ".join(record.attributes.get("dropped", ())) or UNKNOWN,
                }
                for record in passes[:MAX_PASSES]
            ],
            caption=_first(len(passes), MAX_PASSES, "Passes"),
        ),
    ]


def _data_map(run: Run, split: Split) -> list[Block]:
    mapped = analyzed_data_map(run, split)

    def draw() -> Figure:
        from t3vis.plots import plot_data_map

        return plot_data_map(mapped, title=f"Data map of {split.name} ({split.attributes['mode']} mode)")

    found = regions(mapped, fraction=REGION_SHARE)
    rows: list[dict[str, Cell]] = [
        {
            "region": name,
            "examples": f"{np.count_nonzero(mask):,}",
            **{
                quantity: number(values[mask].mean() if mask.any() else np.nan)
                for quantity, values in (
                    ("confidence", mapped.confidence),
                    ("variability", mapped.variability),
                    ("correctness", mapped.correctness),
                )
            },
        }
        for name, mask in (
            ("easy to learn", found.easy_to_learn),
            ("ambiguous", found.ambiguous),
            ("hard to learn", found.hard_to_learn),
        )
    ]
    meanings = {name: MEANINGS[name] for name in ("confidence", "variability", "correctness")}
    both = np.count_nonzero(found.ambiguous & found.hard_to_learn)
    return [
        Text(
            "Each example by how sure the model was of its label over the passes, and how much that changed. Easy "
            "examples are at the top, ambiguous ones at the right; hard ones, at the bottom, often have a wrong label."
        ),
        drawn(draw, "Data map: confidence against variability of every example, coloured by correctness"),
        Table(rows, caption="The third of the examples that is highest or lowest in each; means", meanings=meanings),
        Text(f"{both:,} examples are both ambiguous and hard to learn."),
    ]


def _suspects(run: Run, split: Split) -> list[Block]:
    suspects = analyzed_suspects(run, split)
    rows = suspect_rows(run, split, N_SUSPECTS)
    if not rows:
        return [Missing("no label of an example that was seen is known.")]
    ids = [int(row["example"]) for row in rows]
    curves = _gold_curves(split, ids)
    evidence = {"confidence": suspects.self_confidence} | {
        name: values
        for name, values in suspects.as_columns().items()
        if name not in NOT_EVIDENCE and np.ndim(values) == 1 and np.isfinite(values[ids]).any()
    }
    shown: list[dict[str, Cell]] = [
        {
            **{name: row[name] for name in ("rank", "example", "score", "label", "suggested")},
            **({"gold probability": curves[i]} if curves else {}),
            "text, and evidence": Noted(cut(row["text"]), _evidence(evidence, ids[i])),
        }
        for i, row in enumerate(rows)
    ]
    meanings = {name.replace("_", " "): MEANINGS[name] for name in ("score", *evidence)}
    if curves:
        meanings["gold probability"] = "of the given label, pass by pass, from 0 at the bottom to 1 at the top"
    doubtful = np.flatnonzero(_is_doubtful(suspects))
    of_split = f"{shlex.quote(str(run.path))} --split {split.name}"
    return [
        Text(
            f"{doubtful.size:,} labels are less credible than another. The {len(rows)} most suspicious follow; this "
            "writes as many as you like to a file:"
        ),
        Command(f"t3vis suspects {of_split} --top {max(doubtful.size, 1)} --csv suspects.csv"),
        Table(shown, meanings=meanings),
        *_confusions(split, suspects, doubtful),
    ]


def _gold_curves(split: Split, ids: list[int]) -> list[Sparkline]:
    """Probability of the given label over the passes, where an example has one label."""
    if split.attributes["task"] != "single_label":
        return []
    probs = trajectories(split.logits[:, ids], split.labels[ids]).gold_probs
    return [Sparkline(curve) for curve in probs.T.tolist()]


def _evidence(columns: dict[str, NDArray[Any]], example: int) -> str:
    said = [f"{name.replace('_', ' ')} {number(values[example])}" for name, values in columns.items()]
    return "  ·  ".join(item.replace(" ", "\u00a0") for item in said)


def _confusions(split: Split, suspects: Any, doubtful: NDArray[np.intp]) -> list[Block]:
    """Which labels are suggested in the place of which."""
    labels = split.labels
    if labels.ndim != 1:
        return []
    pairs = Counter(zip(labels[doubtful].tolist(), suspects.suggested_label[doubtful].tolist(), strict=True))
    rows: list[dict[str, Cell]] = [
        {"label": label_text(split, given), "suggested": label_text(split, suggested), "examples": f"{n:,}"}
        for (given, suggested), n in pairs.most_common(N_RANKED)
    ]
    return [Table(rows, caption=_first(len(pairs), N_RANKED, "Labels in doubt, by what is suggested instead"))]


def _classes(run: Run, split: Split) -> list[Block]:
    rows = class_rows(run, split)
    mapped = analyzed_data_map(run, split)

    def draw() -> Figure:
        from t3vis.plots_layers import plot_classes

        return plot_classes(mapped.confidence, split.labels, class_names=split.class_names, title="Confidence by class")

    shown: list[dict[str, Cell]] = [
        {name: row[name] for name in ("class", "examples", *(key for key in row if key not in ("class", "examples")))}
        for row in rows[:MAX_CLASSES]
    ]
    return [
        drawn(draw, "Median and quartiles of the confidence in every class"),
        Table(shown, caption=_first(len(rows), MAX_CLASSES, "Means over each class, the hardest first")),
    ]


def _outliers(run: Run, split: Split) -> list[Block]:
    score = analyzed_outliers(run, split).score
    return [
        Text(
            f"{np.count_nonzero(score > 0.95):,} examples have an outlier score above 0.95: far from their neighbours "
            "and from the class means in the hidden states of the last layer, in the last pass, and high in loss."
        ),
        _ranking(run, split, "outlier"),
    ]


def _layers(run: Run, split: Split) -> list[Block]:
    found = analyzed_separability(run, split)
    accuracy = found.figures["probe_accuracy"]

    def draw() -> Figure:
        from t3vis.plots_layers import plot_layers

        return plot_layers(
            accuracy, passes=found.passes, layers=found.layers, title="How well each layer tells the classes apart"
        )

    names = [name for name in found.figures if name != "n_queries"]
    last = found.passes[-1]
    rows: list[dict[str, Cell]] = [
        {"layer": str(layer), **{name.replace("_", " "): number(found.figures[name][-1, i]) for name in names}}
        for i, layer in enumerate(found.layers)
    ]
    blocks: list[Block] = [
        drawn(draw, "Accuracy of a linear probe in every layer and pass"),
        Table(
            rows,
            caption=f"Pass {last}, by layer; 0 is the output of the embeddings",
            meanings={name.replace("_", " "): MEANINGS[name] for name in names},
        ),
    ]
    if np.isfinite(accuracy[-1]).any():
        best = int(np.nanargmax(accuracy[-1]))
        best_text = (
            f"In pass {last} layer {found.layers[best]} tells the classes apart best, with {accuracy[-1, best]:.3f}."
        )
        blocks.insert(0, Text(best_text))
    return blocks


def _change(run: Run, split: Split) -> list[Block]:
    drift = analyzed_drift(run, split)
    known = drift.neighbourhood_change[~np.isnan(drift.neighbourhood_change)]
    first, last = drift.passes

    def draw() -> Figure:
        from t3vis.plots_layers import plot_cka

        return plot_cka(drift.cka, passes=drift.passes, layers=drift.layers, title="How the layers changed")

    return [
        Text(
            f"From pass {first} to pass {last}: on the diagonal, each layer with itself, 1 is no change."
            + (f" {known.mean():.0%} of the neighbours in the last layer are new." if len(known) else "")
        ),
        drawn(draw, "Linear CKA of every layer in the first pass with every layer in the last"),
        _ranking(run, split, "moved"),
    ]


def _map(run: Run, split: Split) -> list[Block]:
    from t3vis.analyze_projection import kept_projection

    found = kept_projection(run, split)
    if found is None:
        return [
            Missing("There is no map in the store that is current. This makes one:"),
            Command(f"t3vis project {shlex.quote(str(run.path))} --split {split.name}"),
        ]
    on_map = np.flatnonzero(np.isfinite(found.coordinates).all(axis=1))
    chosen = on_map
    if len(on_map) > MAX_ON_MAP:
        chosen = np.sort(np.random.default_rng(0).choice(on_map, MAX_ON_MAP, replace=False))
    labels = split.labels

    def draw() -> Figure:
        from t3vis.plot_projection import plot_projection, quality_lines

        notes = quality_lines(found.quality, found.attributes, found.n_seen)
        if len(chosen) < len(on_map):
            notes.append(f"shown are {len(chosen):,} examples drawn at random of {len(on_map):,} on the map")
        return plot_projection(
            found.coordinates[chosen],
            labels=labels[chosen] if labels.ndim == 1 else None,
            class_names=split.class_names,
            notes=notes,
            title=_map_title(split, found.name),
        )

    quality: list[dict[str, Cell]] = [
        {"measure": name.replace("_", " "), "value": number(estimate.value), "standard error": number(estimate.error)}
        for name, estimate in found.quality.items()
    ]
    return [
        drawn(draw, "Map of the hidden states, every example a point coloured by its label"),
        Table(quality, caption="What the map keeps of the hidden states; 1 is everything"),
    ]


def _map_title(split: Split, name: str) -> str:
    method, index, layer = name.split("_")
    return f"{split.name}: {METHODS[method]} of layer {int(layer[1:])} in pass {int(index[1:])}"


def _ranking(run: Run, split: Split, by: str) -> Table:
    rows = ranked_rows(run, split, by, N_RANKED)
    shown: list[dict[str, Cell]] = [{**row, "text": cut(row["text"])} for row in rows]
    return Table(shown, caption=f"The first {len(rows)} by: {MEANINGS[RANKED_BY[by]]}")


def _first(n_all: int, n_shown: int, what: str) -> str:
    return what if n_all <= n_shown else f"{what}; the first {n_shown:,} of {n_all:,}"
