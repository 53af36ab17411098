"""The analyses of a run, computed from its store and kept there until what they were computed from changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import t3vis
from t3vis.analysis.data_map import DataMap, data_map
from t3vis.analysis.label_quality import Suspects, suspected_errors
from t3vis.errors import AnalysisError
from t3vis.store.reader import Run, Split
from t3vis.store.results import Result, read_result, write_result

MEANINGS = {
    "confidence": "mean gold-label probability over the passes in which the example was seen",
    "variability": "population standard deviation of the gold-label probability over these passes",
    "correctness": "fraction of these passes in which the gold label was predicted",
    "threshold_closeness": "confidence * (1 - confidence)",
    "forgetting_events": "how often the example went from predicted right to predicted wrong",
    "never_learned": "whether the example was seen and never predicted right",
    "n_seen": "passes in which the example was seen",
    "score": "suspicion that the label is wrong, in [0, 1]; 1 is the most suspicious",
    "suggested_label": "the most probable other class; -1 where nothing is known",
    "suggested_prob": "mean probability of the suggested class",
    "aum": "area under the margin: mean of the gold logit minus the largest other logit",
}


def analyzed_data_map(run: Run, split: Split, *, burn_in: int = 0, burn_out: int | None = None) -> DataMap:
    """The data map of a split, from the store if it is there and current, else computed and written.

    Raises
    ------
    AnalysisError
        If nothing was recorded, or the split's task has no gold class.
    """
    parameters = {"burn_in": burn_in, "burn_out": burn_out}
    known = _current(run, split, "data_map", parameters)
    if known is not None:
        return DataMap(n_epochs=known.attributes["n_epochs"], **known.columns)
    logits, labels = _logits_and_labels(split)
    computed = data_map(_Reported(logits, f"data map of {split.name}"), labels, burn_in=burn_in, burn_out=burn_out)
    _keep(run, split, "data_map", computed.as_columns(), parameters, n_epochs=computed.n_epochs)
    return computed


def analyzed_suspects(run: Run, split: Split) -> Suspects:
    """Suspicion of every label of a split, from the store if it is there and current, else computed and written.

    Raises
    ------
    AnalysisError
        If nothing was recorded, or the split's task has no gold class.
    """
    known = _current(run, split, "label_quality", {})
    if known is not None:
        return Suspects(**known.columns)
    logits, labels = _logits_and_labels(split)
    computed = suspected_errors(_Reported(logits, f"label quality of {split.name}"), labels)
    _keep(run, split, "label_quality", computed.as_columns(), {})
    return computed


def split_of(run: Run, name: str) -> Split:
    """A split by name.

    Raises
    ------
    AnalysisError
        If the run has none of that name.
    """
    if name not in run.splits:
        raise AnalysisError(f"{run.path} holds no split {name!r}; it holds: {', '.join(run.splits) or 'none'}.")
    return run.splits[name]


class _Reported:
    """Logits that show a progress bar while they are read, a slice of examples after the other."""

    def __init__(self, logits: Any, what: str) -> None:
        self._logits = logits
        self._bar = tqdm(total=logits.shape[1], desc=what, unit=" examples", delay=1, leave=False)

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._logits.shape
        return shape

    def __getitem__(self, key: tuple[slice, slice]) -> NDArray[Any]:
        found: NDArray[Any] = self._logits[key]
        self._bar.update(found.shape[1])
        if self._bar.n >= self.shape[1]:
            self._bar.close()
        return found


def _logits_and_labels(split: Split) -> tuple[Any, NDArray[np.int64]]:
    task = split.attributes.get("task")
    if task is None:
        raise AnalysisError(f"nothing was recorded of {split.path} yet; train, or evaluate, with the recorder first.")
    if task != "single_label":
        raise AnalysisError(
            f"{split.path} is a {task.replace('_', ' ')} task; expected single-label classification, which the data "
            "map and the label quality of this version are defined on."
        )
    return split.logits, split.labels


def _provenance(split: Split, parameters: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on; equal means that computing it again would give the same."""
    passes = [[record.index, record.last_step, record.n_seen, record.n_repeated] for record in split.passes]
    return {
        "t3vis": t3vis.__version__,
        "parameters": parameters,
        "mode": split.attributes["mode"],
        "fingerprint": split.attributes["fingerprint"],
        "passes": passes,
    }


def _current(run: Run, split: Split, name: str, parameters: dict[str, Any]) -> Result | None:
    known = read_result(run.path, split.name, name)
    if known is None or any(
        known.attributes.get(key) != value for key, value in _provenance(split, parameters).items()
    ):
        return None
    return known


def _keep(
    run: Run, split: Split, name: str, columns: dict[str, NDArray[Any]], parameters: dict[str, Any], **more: Any
) -> None:
    if not isinstance(run.path, Path):
        return  # a copy at a URL is read only
    attributes = {**_provenance(split, parameters), **more}
    write_result(run.path, split.name, name, columns, meanings=MEANINGS, attributes=attributes)
