"""What can be shown of every example of a split: the catalogue of its columns, and their bytes.

A column is one value per example in the order of the example ids. Columns of an analysis that is not in the store yet
are computed when they are first asked for, and kept there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import t3vis
from t3vis.aligned import aligned_pca
from t3vis.analysis.data_map import DataMap, regions
from t3vis.analyze import (
    MEANINGS,
    analyzed_data_map,
    analyzed_difficulty,
    analyzed_drift,
    analyzed_outliers,
    analyzed_pass_outliers,
    analyzed_suspects,
)
from t3vis.analyze_maps import MEANINGS as MAP_MEANINGS
from t3vis.analyze_maps import Method
from t3vis.analyze_projection import analyzed_projection
from t3vis.store.reader import Run, Split

Kind = Literal["category", "number", "coordinate"]
Rows = slice | NDArray[np.int64]

MAX_CATEGORIES = 65_535
METHODS: tuple[Method, ...] = ("pca", "tsne")
MAP_COLUMNS = ("neighbour_recall", "trustworthiness", "continuity")
REGIONS = ("none", "easy", "ambiguous", "easy and ambiguous", "hard", "easy and hard", "ambiguous and hard", "all")


@dataclass(frozen=True)
class Column:
    """One value per example."""

    id: str
    """Such as ``confidence``, ``loss@3`` (epoch 3) or ``x:tsne:12@3`` (layer 12)."""
    title: str
    group: str
    kind: Kind
    description: str
    key: str
    """Names the content: another one as soon as what the column is made of has changed."""
    read: Callable[[Rows], NDArray[Any]] = field(repr=False)
    """The values of some examples; of what is no quantity of a pass they are made of all examples each time."""
    mode: str
    pass_index: int | None = None
    layer: int | None = None
    categories: tuple[str, ...] = ()
    is_analysis: bool = False
    """Whether it may have to be computed."""
    is_count: bool = False
    """Whether the numbers are whole."""

    @property
    def is_by_rows(self) -> bool:
        """Whether some of the values can be read without the others."""
        return self.pass_index is not None and not self.is_analysis

    def values(self) -> NDArray[Any]:
        """The value of every example."""
        return self.read(slice(None))

    @property
    def dtype(self) -> str:
        """NumPy's name of the type on the wire, little-endian."""
        if self.kind != "category":
            return "<f4"
        return "|u1" if len(self.categories) < np.iinfo(np.uint8).max else "<u2"

    def described(self) -> dict[str, Any]:
        """What the page is told of it."""
        return {
            "id": self.id,
            "title": self.title,
            "group": self.group,
            "kind": self.kind,
            "description": self.description,
            "dtype": self.dtype.lstrip("<|"),
            "missing": None if self.kind != "category" else int(np.iinfo(self.dtype).max),
            "categories": list(self.categories),
            "pass": self.pass_index,
            "layer": self.layer,
            "mode": self.mode,
            "is_analysis": self.is_analysis,
            "url": f"/api/v1/columns/{self.key}",
        }

    def to_bytes(self) -> bytes:
        """The values as they go over the wire: a category's code, or a float32; missing are 255, 65535 or NaN."""
        values = self.values()
        if self.kind != "category":
            return np.ascontiguousarray(values, "<f4").tobytes()
        known = (values >= 0) & (values < len(self.categories))
        return np.where(known, values, np.iinfo(self.dtype).max).astype(self.dtype).tobytes()


def columns_of(run: Run, split: Split) -> list[Column]:
    """All columns of a split, those of the examples themselves first."""
    made = _Columns(run, split)
    return [*made.of_examples(), *made.of_analyses(), *made.of_passes(), *made.of_maps()]


class _Columns:
    """Makes the columns of one split as it is now."""

    def __init__(self, run: Run, split: Split) -> None:
        self._run = run
        self._split = split
        self._task = split.attributes.get("task")
        self._arrays = set(split.arrays)
        self._passes = split.passes
        self._classes = _class_names(split) if self._task == "single_label" else ()
        self._state = [
            t3vis.__version__,
            run.attributes["t3vis"]["created"],
            split.name,
            split.attributes["fingerprint"],
            [[record.index, record.last_step, record.n_seen, record.n_repeated] for record in self._passes],
        ]

    @cached_property
    def _labels(self) -> NDArray[Any]:
        return self._split.labels

    def of_examples(self) -> Iterator[Column]:
        if self._classes:
            yield self._column("label", "gold label", "example", lambda rows: self._labels[rows], "the gold label")
        yield self._column("length", "tokens", "example", self._length, "tokens that are not padding")

    def of_passes(self) -> Iterator[Column]:
        for record in self._passes:
            index = record.index
            what = f"epoch {record.epoch:g}"
            if "loss" in self._arrays:
                values = partial(lambda i, rows: self._split.loss[i, rows], index)
                yield self._column(f"loss@{index}", "loss", what, values, "loss of the example", pass_index=index)
            if self._split.layers and "hidden_states" not in record.attributes.get("dropped", ()):
                values = partial(self._pass_outlier, index)
                meaning = "mean rank by distances in the last layer and by loss, of this pass alone, in [0, 1]"
                yield self._column(
                    f"outlier@{index}", "outlier score", what, values, meaning, pass_index=index, is_analysis=True
                )
            if "logits" in self._arrays and self._classes:
                yield self._column(
                    f"prediction@{index}", "prediction", what, partial(self._prediction, index), "the predicted class",
                    pass_index=index,
                )  # fmt: skip
                yield self._column(
                    f"probability@{index}", "gold probability", what, partial(self._gold_probability, index),
                    "probability of the gold label", pass_index=index,
                )  # fmt: skip

    def of_analyses(self) -> Iterator[Column]:
        for group, analysis in _ANALYSES.items():
            if analysis.needs not in self._arrays or (not self._classes and group != "data map"):
                continue
            for name, (title, meaning) in analysis.columns.items():
                values = partial(self._of_analysis, analysis, name)
                yield self._column(name, title, group, values, meaning, is_analysis=True)

    def of_maps(self) -> Iterator[Column]:
        for record in self._passes if self._split.layers else ():
            if "hidden_states" in record.attributes.get("dropped", ()):
                continue
            for layer in self._split.layers:
                for method in METHODS:
                    for name in ("x", "y", *MAP_COLUMNS):
                        yield self._column(
                            f"{name}:{method}:{layer}@{record.index}", name.replace("_", " "),
                            f"{method} of layer {layer}, epoch {record.epoch:g}",
                            partial(self._of_map, name, method, layer, record.index), MAP_MEANINGS[name],
                            pass_index=record.index, layer=layer, is_analysis=True,
                        )  # fmt: skip

    def _column(
        self,
        name: str,
        title: str,
        group: str,
        read: Callable[[Rows], NDArray[Any]],
        meaning: str,
        *,
        pass_index: int | None = None,
        layer: int | None = None,
        is_analysis: bool = False,
    ) -> Column:
        base = name.partition("@")[0]
        categories = _CATEGORIES.get(base, ())
        if base in ("label", "prediction", "suggested_label"):
            categories = self._classes
        kind: Kind = "category" if categories else "coordinate" if base[:2] in ("x:", "y:") else "number"
        digest = hashlib.blake2b(json.dumps([self._state, name, categories]).encode(), digest_size=16)
        return Column(
            id=name, title=title, group=group, kind=kind, description=meaning, key=digest.hexdigest(), read=read,
            mode=self._split.attributes["mode"], pass_index=pass_index, layer=layer, categories=categories,
            is_analysis=is_analysis, is_count=base in _COUNTS,
        )  # fmt: skip

    def _length(self, rows: Rows) -> NDArray[Any]:
        length = self._split.length[rows]
        return np.where(length < 0, np.nan, length)

    def _prediction(self, index: int, rows: Rows) -> NDArray[Any]:
        logits = self._split.logits[index, rows]
        return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)

    def _gold_probability(self, index: int, rows: Rows) -> NDArray[Any]:
        logits, labels = self._split.logits[index, rows], self._labels[rows]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        known = np.flatnonzero((labels >= 0) & (labels < logits.shape[1]))
        gold = np.full(len(logits), np.nan)
        gold[known] = shifted[known, labels[known]] / shifted[known].sum(axis=1)
        return gold

    def _pass_outlier(self, index: int, rows: Rows) -> NDArray[Any]:
        return analyzed_pass_outliers(self._run, self._split, index).score[rows]

    def _of_analysis(self, analysis: _Analysis, name: str, rows: Rows) -> NDArray[Any]:
        return analysis.read(self._run, self._split, name)[rows]

    def _of_map(self, name: str, method: Method, layer: int, index: int, rows: Rows) -> NDArray[Any]:
        if method == "pca" and name in ("x", "y"):
            return aligned_pca(self._run, self._split, layer=layer, pass_index=index)[name][rows]
        found = analyzed_projection(self._run, self._split, pass_index=index, layer=layer, method=method)
        values: NDArray[Any] = found.columns[name]
        return values[rows]


def _class_names(split: Split) -> tuple[str, ...]:
    """Names of the classes, else their numbers."""
    if split.class_names:
        return tuple(split.class_names)[:MAX_CATEGORIES]
    n_classes = split.logits.shape[-1] if "logits" in split.arrays else int(split.labels.max(initial=-1)) + 1
    return tuple(str(number) for number in range(min(n_classes, MAX_CATEGORIES)))


def _region(run: Run, split: Split) -> NDArray[Any]:
    found: DataMap = analyzed_data_map(run, split)
    marked = regions(found)
    code = 1 * marked.easy_to_learn + 2 * marked.ambiguous + 4 * marked.hard_to_learn
    return np.where(np.isnan(found.confidence), -1, code)


_COUNTS = ("length", "forgetting_events", "flips", "first_learned")
_CATEGORIES = {"region": REGIONS, "never_learned": ("no", "yes")}


def _data_map(run: Run, split: Split) -> dict[str, NDArray[Any]]:
    return analyzed_data_map(run, split).as_columns()


def _difficulty(run: Run, split: Split) -> dict[str, NDArray[Any]]:
    found = analyzed_difficulty(run, split)
    first = found["first_learned"].astype(np.float64)
    return {**found, "first_learned": np.where(first < 0, np.nan, first)}


@dataclass(frozen=True)
class _Analysis:
    """A group of columns that are computed, and read, together."""

    needs: str
    """The recorded array."""
    read: Callable[[Run, Split, str], NDArray[Any]]
    columns: dict[str, tuple[str, str]]
    """Title and meaning by name."""


_ANALYSES: dict[str, _Analysis] = {
    "data map": _Analysis(
        "logits",
        lambda run, split, name: _region(run, split) if name == "region" else _data_map(run, split)[name],
        {
            "confidence": ("confidence", "mean gold-label probability"),
            "variability": ("variability", "standard deviation of the gold-label probability"),
            "correctness": ("correctness", "share of passes predicted right"),
            "region": ("region", "easy, ambiguous and hard thirds of the data map"),
            "threshold_closeness": ("threshold closeness", MEANINGS["threshold_closeness"]),
            "forgetting_events": ("forgetting events", "how often it went from right to wrong"),
            "never_learned": ("never learned", "whether it was never predicted right"),
        },
    ),
    "label quality": _Analysis(
        "logits",
        lambda run, split, name: analyzed_suspects(run, split).as_columns()[name],
        {
            "score": ("suspicion", MEANINGS["score"]),
            "suggested_label": ("suggested label", MEANINGS["suggested_label"]),
            "suggested_prob": ("credibility of the suggestion", MEANINGS["suggested_prob"]),
            "self_confidence": ("self-confidence", MEANINGS["self_confidence"]),
            "normalized_margin": ("normalized margin", MEANINGS["normalized_margin"]),
            "confidence_weighted_entropy": ("confidence-weighted entropy", MEANINGS["confidence_weighted_entropy"]),
            "aum": ("area under the margin", MEANINGS["aum"]),
            "neighbour_agreement": ("agreement of neighbours", MEANINGS["neighbour_agreement"]),
        },
    ),
    "difficulty": _Analysis(
        "logits",
        lambda run, split, name: _difficulty(run, split)[name],
        {
            "el2n": ("EL2N", "mean length of the probabilities minus the one-hot label"),
            "flips": ("flips", "how often the prediction changed"),
            "first_learned": ("first learned", "first epoch predicted right; missing where never"),
        },
    ),
    "outliers": _Analysis(
        "hidden_states",
        lambda run, split, _: analyzed_outliers(run, split).score,
        {"outlier": ("outlier score", "mean rank by distances in hidden space and by loss, in [0, 1]")},
    ),
    "change": _Analysis(
        "hidden_states",
        lambda run, split, name: vars(analyzed_drift(run, split))[name],
        {
            "displacement": ("moved", "distance moved in the last layer from the first epoch to the last"),
            "neighbourhood_change": ("new neighbours", "share of the neighbours that are new since the first epoch"),
        },
    ),
}
