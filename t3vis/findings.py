"""What the analyses of a run found, as lines and rows of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.nearest import n_references
from t3vis.analysis.slices import by_group
from t3vis.analyze import (
    analyzed_data_map,
    analyzed_difficulty,
    analyzed_drift,
    analyzed_outliers,
    analyzed_progress,
    analyzed_separability,
    analyzed_suspects,
)
from t3vis.errors import AnalysisError
from t3vis.store.reader import Run, Split

Rows = list[dict[str, str]]

SUSPECT_COLUMNS = ("rank", "example", "score", "label", "suggested", "confidence", "variability", "correctness", "text")


def _learned_last(run: Run, split: Split) -> NDArray[np.float64]:
    """First pass predicted right, infinite where there is none; NaN for what was not seen."""
    mapped, first = analyzed_data_map(run, split), analyzed_difficulty(run, split)["first_learned"]
    return np.where(np.isnan(mapped.confidence), np.nan, np.where(first < 0, np.inf, first))


def _forgotten(run: Run, split: Split) -> NDArray[np.float64]:
    mapped = analyzed_data_map(run, split)
    return np.where(np.isnan(mapped.confidence), np.nan, mapped.forgetting_events)


RANKINGS: dict[str, Callable[[Run, Split], NDArray[Any]]] = {
    "outlier": lambda run, split: analyzed_outliers(run, split).score,
    "moved": lambda run, split: analyzed_drift(run, split).displacement,
    "new-neighbours": lambda run, split: analyzed_drift(run, split).neighbourhood_change,
    "flipped": lambda run, split: analyzed_difficulty(run, split)["flips"],
    "learned-last": _learned_last,
    "forgotten": _forgotten,
    "el2n": lambda run, split: analyzed_difficulty(run, split)["el2n"],
    "ambiguous": lambda run, split: analyzed_data_map(run, split).variability,
}
"""Quantities by which examples can be ranked, each high for those that come first."""


RANKED_BY = {
    "outlier": "outlier_score",
    "moved": "displacement",
    "new-neighbours": "neighbourhood_change",
    "flipped": "flips",
    "learned-last": "first_learned",
    "forgotten": "forgetting_events",
    "el2n": "el2n",
    "ambiguous": "variability",
}
"""Names of these quantities in `t3vis.analyze.MEANINGS`."""


def ranked_rows(run: Run, split: Split, by: str, n_rows: int) -> Rows:
    """The first examples of a ranking, one dictionary of texts each; those of which nothing is known are left out.

    Raises
    ------
    AnalysisError
        If there is no such ranking, or what it needs was not recorded.
    """
    if by not in RANKINGS:
        raise AnalysisError(f"there is no ranking {by!r}; choose one of {', '.join(RANKINGS)}.")
    values = np.asarray(RANKINGS[by](run, split), dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    order = order[~np.isnan(values[order])][:n_rows]
    labels, texts = split.labels, list(split.text.values())
    return [
        {
            "rank": str(rank + 1),
            "example": str(example),
            by: "never" if np.isinf(values[example]) else f"{values[example]:.4g}",
            "label": label_text(split, labels[example]),
            "text": " | ".join(column[int(example)] for column in texts),
        }
        for rank, example in enumerate(order.tolist())
    ]


def suspect_rows(run: Run, split: Split, n_rows: int) -> Rows:
    """The most suspicious examples of a split, one dictionary of texts each, in the order of suspicion."""
    suspects, mapped = analyzed_suspects(run, split), analyzed_data_map(run, split)
    ranking = suspects.ranking()
    ranking = ranking[~np.isnan(suspects.score[ranking])][:n_rows]
    labels, texts = split.labels, list(split.text.values())
    return [
        {
            "rank": str(rank + 1),
            "example": str(example),
            "score": f"{suspects.score[example]:.3f}",
            "label": label_text(split, labels[example]),
            "suggested": label_text(split, suggested) if (suggested := suspects.suggested_label[example]) >= 0 else "",
            "confidence": f"{mapped.confidence[example]:.3f}",
            "variability": f"{mapped.variability[example]:.3f}",
            "correctness": f"{mapped.correctness[example]:.2f}",
            "text": " | ".join(column[int(example)] for column in texts),
        }
        for rank, example in enumerate(ranking.tolist())
    ]


def label_text(split: Split, label: Any) -> str:
    """A class by its name where it has one; several labels or numbers as they are."""
    if np.ndim(label):
        return " ".join(f"{value:g}" for value in label)
    names = split.class_names
    return names[int(label)] if names is not None and 0 <= label < len(names) else str(int(label))


def class_rows(run: Run, split: Split) -> Rows:
    """Examples and mean training dynamics of each class.

    Raises
    ------
    AnalysisError
        If the split's task has no gold class.
    """
    labels = split.labels
    if labels.ndim != 1:
        raise AnalysisError(f"{split.path} has no classes but several labels or numbers for each example.")
    mapped, suspects = analyzed_data_map(run, split), analyzed_suspects(run, split)
    quantities = {
        "confidence": mapped.confidence,
        "variability": mapped.variability,
        "correctness": mapped.correctness,
        "forgotten": mapped.forgetting_events,
        "suspicion": suspects.score,
    }
    summaries = {name: by_group(values, labels) for name, values in quantities.items()}
    n_examples = summaries["confidence"].n_examples
    return [
        {
            **{name: f"{summary.mean[i]:.3f}" for name, summary in summaries.items()},
            "examples": f"{n_examples[i]:,}",
            "class": label_text(split, i),
        }
        for i in np.argsort(summaries["confidence"].mean, kind="stable").tolist()
    ]


def findings(run: Run, split: Split, *, burn_in: int = 0, burn_out: int | None = None) -> list[str]:
    """Everything that is analysed of a split, in a few lines each; what cannot be is said to be so, and why.

    Raises
    ------
    AnalysisError
        If nothing was recorded, or burn-in and burn-out leave no pass.
    """
    if "logits" in split.arrays:
        lines = _of_data_map(run, split, burn_in, burn_out)
    else:
        lines = [f"{split.name}: {split.n_examples:,} examples over {len(split.passes)} passes, without logits"]
    n_asked = n_references(split.n_examples)
    if "hidden_states" in split.arrays and n_asked < split.n_examples:
        lines.append(f"  neighbours in hidden space: looked for among {n_asked:,} examples drawn at random")
    for what, lines_of in (
        ("passes", _of_progress),
        ("label quality", _of_suspects),
        ("difficulty", _of_difficulty),
        ("layers", _of_layers),
        ("outliers", _of_outliers),
        ("drift", _of_drift),
        ("map", _of_map),
    ):
        try:
            lines += lines_of(run, split)
        except AnalysisError as error:
            lines.append(f"  {what}: not computed; {error}")
    return lines


def _of_data_map(run: Run, split: Split, burn_in: int, burn_out: int | None) -> list[str]:
    mapped = analyzed_data_map(run, split, burn_in=burn_in, burn_out=burn_out)
    lines = [
        f"{split.name}: {mapped.n_examples:,} examples over {mapped.n_epochs} passes ({split.attributes['mode']} mode)"
    ]
    for name in ("confidence", "variability", "correctness"):
        values = mapped.as_columns()[name]
        known = values[~np.isnan(values)]
        if len(known):
            low, middle, high = np.quantile(known, [0.1, 0.5, 0.9])
            lines.append(f"  {name:<12} median {middle:.3f}, 80 % of examples in {low:.3f} to {high:.3f}")
    lines.append(
        f"  never learned: {int(mapped.never_learned.sum()):,}; forgotten at least once: "
        f"{int((mapped.forgetting_events > 0).sum()):,}"
    )
    if mapped.n_never_seen or mapped.n_partly_seen:
        lines.append(f"  never seen: {mapped.n_never_seen:,}; seen in some passes only: {mapped.n_partly_seen:,}")
    return lines


def _of_progress(run: Run, split: Split) -> list[str]:
    figures = analyzed_progress(run, split).figures
    return [
        f"  {what}, pass by pass: " + " ".join(f"{value:.3f}" for value in figures[name])
        for name, what in (("accuracy", "accuracy"), ("loss", "mean loss"))
        if name in figures
    ]


def _of_suspects(run: Run, split: Split) -> list[str]:
    suspects = analyzed_suspects(run, split)
    if split.attributes["task"] == "regression":  # no other number is suggested
        what, mask = "labels more suspicious than credible", suspects.score > 1 / 2
    else:
        what, mask = "labels less credible than another", suspects.suggested_prob > 1 - suspects.score
    return [f"  {what}: {int(mask.sum()):,} (t3vis suspects {run.path})"]


def _of_difficulty(run: Run, split: Split) -> list[str]:
    columns = analyzed_difficulty(run, split)
    n_flipped = int((columns["flips"] > 1).sum())
    return [f"  predictions that changed more than once: {n_flipped:,} (t3vis rank {run.path} --by flipped)"]


def _of_layers(run: Run, split: Split) -> list[str]:
    found = analyzed_separability(run, split)
    lines = ["  accuracy of a linear probe, by pass and layer:"]
    lines.append("    pass  " + "".join(f"{layer:>7}" for layer in found.layers))
    for index, row in zip(found.passes, found.figures["probe_accuracy"], strict=True):
        lines.append(f"    {index:>4}  " + "".join(f"{value:7.3f}" for value in row))
    return lines


def _of_outliers(run: Run, split: Split) -> list[str]:
    score = analyzed_outliers(run, split).score
    n_far = int((score > 0.95).sum())
    return [f"  outliers with a score above 0.95: {n_far:,} (t3vis rank {run.path} --by outlier)"]


def _of_drift(run: Run, split: Split) -> list[str]:
    drift = analyzed_drift(run, split)
    lines = [f"  similarity of each layer in pass {drift.passes[1]} to itself in pass {drift.passes[0]} (linear CKA):"]
    lines.append("          " + "".join(f"{layer:>7}" for layer in drift.layers))
    lines.append("          " + "".join(f"{value:7.3f}" for value in np.diag(drift.cka)))
    known = drift.neighbourhood_change[~np.isnan(drift.neighbourhood_change)]
    if len(known):
        lines.append(f"  neighbours in the last layer that are new since then: {known.mean():.0%}")
    return lines


def _of_map(run: Run, split: Split) -> list[str]:
    from t3vis.analyze_projection import last_map  # openTSNE and scikit-learn take a second to load

    found = last_map(run, split)
    measures = ", ".join(f"{name.replace('_', ' ')} {estimate.value:.3f}" for name, estimate in found.quality.items())
    return [f"  map {found.name} of {found.n_seen:,} examples: {measures} (t3vis project {run.path})"]
