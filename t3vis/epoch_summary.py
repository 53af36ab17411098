"""What can be said of a run after each of its epochs: a few numbers, and the data map so far as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.data_map import DataMap
from t3vis.analyze import data_map_of, has_data_map
from t3vis.store.reader import Split, open_run

OF_ARRAYS = ("loss", "token_accuracy")
OF_DATA_MAP = ("confidence", "variability", "correctness", "forgetting_events", "never_learned")


class EpochSummary:
    """The training set of a run as it is now, after an epoch that has been recorded to its end."""

    def __init__(self, path: Path, epoch: int) -> None:
        self._split: Split = open_run(path).train
        self._epoch = epoch
        mapped = has_data_map(self._split)
        self._data_map: DataMap | None = data_map_of(self._split, self._split.logits) if mapped else None

    def scalars(self) -> dict[str, float]:
        """Means over the examples: of the loss in this epoch, and of the data map of all epochs so far.

        ``correctness``, ``confidence`` and ``variability`` are those of the data map, ``forgetting_events`` a count of
        each example, ``never_learned`` a share of the examples; ``loss`` and ``token_accuracy`` are of this epoch. What
        is not known of any example is left out.
        """
        found = {name: self._split.array(name)[self._epoch] for name in OF_ARRAYS if name in self._split.arrays}
        if self._data_map is not None:
            known = ~np.isnan(self._data_map.confidence)
            found |= {name: getattr(self._data_map, name)[known] for name in OF_DATA_MAP}
        return {name: _mean(values) for name, values in found.items() if np.isfinite(values).any()}

    def picture(self, title: str) -> NDArray[np.uint8] | None:
        """The data map, shape (height, width, 3); ``None`` before the second epoch, and for tasks without one.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if self._data_map is None or self._data_map.n_epochs < 2 or np.isnan(self._data_map.confidence).all():
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # matplotlib is an extra

        from t3vis.plots import plot_data_map

        canvas: Any = FigureCanvasAgg(plot_data_map(self._data_map, title=title))
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def _mean(values: NDArray[np.generic]) -> float:
    return float(np.nanmean(values.astype(np.float64)))
