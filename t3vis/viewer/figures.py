"""Figures of the model over training: what the layers tell apart, how they changed, loss and accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from t3vis.analyze import analyzed_drift, analyzed_progress, analyzed_separability
from t3vis.code_version import code_version
from t3vis.store.reader import Run, Split

FigureKind = Literal["separability", "drift", "progress"]
FIGURE_KINDS: tuple[FigureKind, ...] = get_args(FigureKind)


@dataclass(frozen=True)
class Figures:
    """One kind of figures of a split, as it is now."""

    run: Run
    split: Split
    kind: FigureKind
    is_analysis = True

    @property
    def key(self) -> str:
        """Another one as soon as more was recorded."""
        passes = [(record.index, record.last_step, record.n_seen) for record in self.split.passes]
        return f"{self.kind} {self.split.name} {passes} {code_version()}"

    def to_bytes(self) -> bytes:
        """JSON: ``figures`` by name, and the passes and layers that they are of."""
        return json.dumps(_found(self.run, self.split, self.kind)).encode()


def _found(run: Run, split: Split, kind: FigureKind) -> dict[str, Any]:
    if kind == "separability":
        of_layers = analyzed_separability(run, split)
        return {"figures": _plain(of_layers.figures), "passes": of_layers.passes, "layers": of_layers.layers}
    if kind == "drift":
        drift = analyzed_drift(run, split)
        return {"figures": _plain({"cka": drift.cka}), "passes": list(drift.passes), "layers": drift.layers}
    progress = analyzed_progress(run, split)
    return {"figures": _plain(progress.figures), "passes": progress.passes, "epochs": progress.epochs}


def _plain(figures: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: _listed(values.astype(np.float64).tolist()) for name, values in figures.items()}


def _listed(values: Any) -> Any:
    """Nested lists of numbers as JSON knows them; what is not finite is null."""
    if isinstance(values, list):
        return [_listed(value) for value in values]
    return values if math.isfinite(values) else None
