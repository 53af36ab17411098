"""Importance of the attention heads of a run's model, on the run's own examples; kept in the store while current."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.head_importance import FORMS, HeadImportance, head_importance
from t3vis.analysis.nearest import sample_of
from t3vis.checkpointed import pass_with_checkpoint, provenance
from t3vis.code_version import code_version
from t3vis.errors import AnalysisError, ProbingError
from t3vis.store.passes import Pass
from t3vis.store.reader import Run, Split
from t3vis.store.results import current_result, write_result
from t3vis.store.schema import pass_name

MAX_EXAMPLES = 1000
N_REMOVED = 256

_OF_GATES = {
    "gate": "mean size of the gradient of a gate on the head: how much the head matters for what is predicted",
    "removal": "estimate, from that gradient, of how much the loss rises without the head",
    "group": "square of the mean gradient: importance of the head's columns of the output projection, as a group",
}
_OF_REMOVAL = {
    "divergence": "KL divergence of the predictions without the head, nats; it was truly removed",
    "loss_change": "how much the loss rises without the head, nats; it was truly removed",
    "score_change": "how much the share answered right rises without the head; it was truly removed",
}
_ENDS = {"low": "lower end of the 95 % interval over examples of", "high": "upper end of the 95 % interval of"}
MEANINGS = {**_OF_GATES, **_OF_REMOVAL}
MEANINGS |= {f"{name}_{end}": f"{what} {name}" for name in MEANINGS for end, what in _ENDS.items()}
MEANINGS["gradient"] = "gradient of a gate on the head, of the example's own loss, in eval mode"


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of every head of one model; each array of them has shape (n_layers, n_heads)."""

    scores: dict[str, HeadImportance]
    attention: list[str]
    """What each layer is: ``self``, or ``encoder``, ``decoder`` or ``cross``."""
    modules: list[str]
    agreements: dict[str, dict[str, float]]
    """Spearman's correlation of each estimate with each true effect; empty where no head was removed."""
    source: str
    """Which model, and how; shown in tables and figures."""


def recorded_heads(run: Run, split: Split) -> dict[int, HeadScores]:
    """Importance of the heads in each pass, from the gradients that were recorded in training; no model is needed.

    They are of the model as it was when it saw each example, with dropout on.

    Raises
    ------
    AnalysisError
        If none were recorded.
    """
    if "head_gradients" not in split.arrays:
        raise AnalysisError(f"{split.path} holds no head gradients; record them with RecorderCallback(heads=True).")
    return {record.index: _of_pass(run, split, record) for record in split.passes}


def _of_pass(run: Run, split: Split, record: Pass) -> HeadScores:
    name = f"recorded_heads_{pass_name(record.index)}"
    said = split.attributes["arrays"]["head_gradients"]
    made_of = {
        "t3vis": code_version(),
        "mode": split.attributes["mode"],
        "last_step": record.last_step,
        "n_seen": record.n_seen,
    }
    known = _current(run, split, name, made_of)
    if known is not None:
        return known
    gradients = _Gradients(split, record.index)
    computed = HeadScores(
        scores={form: head_importance(gradients, form) for form in FORMS},
        attention=said["attention"],
        modules=said["modules"],
        agreements={},
        source=f"epoch {record.epoch:g}, gradients recorded in {split.attributes['mode']} mode",
    )
    _keep(run, split, name, computed, made_of)
    return computed


class _Gradients:
    """Gradients of one pass, read a layer at a time."""

    def __init__(self, split: Split, index: int) -> None:
        self._array, self._index = split.head_gradients, index
        self.shape: tuple[int, ...] = self._array.shape[1:]

    def __getitem__(self, layer: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._array[self._index, layer]
        return found


def analyzed_heads(
    run: Run,
    split: Split,
    *,
    pass_index: int | None = None,
    model: Path | None = None,
    max_examples: int = MAX_EXAMPLES,
    n_removed: int = N_REMOVED,
    keep_examples: bool = False,
    seed: int = 0,
) -> HeadScores:
    """Importance of the heads of a checkpoint, from the store if it is there and current, else computed and written.

    Parameters
    ----------
    run, split
        Whose examples to take; the split needs their token ids and labels.
    pass_index
        Number of the pass whose checkpoint is taken; by default the last that has one.
    model
        The folder of a model to take instead; what is found of it is not kept.
    max_examples
        Of a larger split so many examples are taken by chance.
    n_removed
        Of these, on how many each head is truly removed.
    keep_examples
        Keep also the gradients of each example, as ``head_gradients_<pass>`` of dims (layer, example, head).
    seed
        Of that chance, and of the resampling.

    Raises
    ------
    ProbingError
        If there is no checkpoint, its heads cannot be found, or the run lacks token ids or labels.
    """
    if model is not None:
        return _probed(model, split, max_examples, n_removed, seed, source=model.name)[0]
    chosen, checkpoint = pass_with_checkpoint(split, pass_index)
    name = pass_name(chosen.index)
    made_of = {
        **provenance(split, checkpoint),
        "max_examples": max_examples,
        "n_removed": n_removed,
        "seed": seed,
    }
    known = _current(run, split, f"head_importance_{name}", made_of)
    has_examples = current_result(run.path, split.name, f"head_gradients_{name}", made_of) is not None
    if known is not None and (has_examples or not keep_examples):
        return known
    source = f"checkpoint of epoch {chosen.epoch:g}"
    found, gradients = _probed(checkpoint.path, split, max_examples, n_removed, seed, source=source)
    _keep(run, split, f"head_importance_{name}", found, made_of)
    if keep_examples:
        write_result(
            run.path,
            split.name,
            f"head_gradients_{name}",
            {"gradient": gradients},
            meanings=MEANINGS,
            attributes=made_of,
            dims=("layer", "example", "head"),
        )
    return found


def known_heads(run: Run, split: Split, index: int) -> HeadScores | None:
    """What ``analyzed_heads`` has kept of a pass and is still current; nothing is computed."""
    record = next((record for record in split.passes if record.index == index), None)
    checkpoint = None if record is None else record.checkpoint
    if checkpoint is None:
        return None
    made_of = {**provenance(split, checkpoint), "max_examples": MAX_EXAMPLES, "n_removed": N_REMOVED, "seed": 0}
    return _current(run, split, f"head_importance_{pass_name(index)}", made_of)


def analyzed_heads_of_epochs(run: Run, split: Split, **options: Any) -> dict[int, HeadScores]:
    """The same of every pass that has a checkpoint, by the number of the pass.

    Parameters
    ----------
    options
        As for ``analyzed_heads``, but for the pass and the model.

    Raises
    ------
    ProbingError
        If none has one, or as ``analyzed_heads``.
    """
    pass_with_checkpoint(split, None)
    having = [record.index for record in split.passes if record.checkpoint is not None]
    return {index: analyzed_heads(run, split, pass_index=index, **options) for index in having}


def labelled_examples(split: Split, max_examples: int, seed: int = 0) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Ids of examples of a run, all or so many by chance, and their token ids and labels.

    Raises
    ------
    ProbingError
        If the run does not hold token ids.
    """
    tokens, labels = split.token_ids, split.labels
    if tokens is None:
        raise ProbingError(f"{split.path} holds no token ids; train on a dataset with a column input_ids.")
    ids = sample_of(split.n_examples, max_examples, seed=seed)
    has_label = labels.ndim == 2 or bool((labels >= 0).any())
    rows = [
        {"input_ids": tokens[i].tolist()} | ({"labels": labels[i].tolist()} if has_label else {}) for i in ids.tolist()
    ]
    return ids, rows


def _probed(
    folder: Path, split: Split, max_examples: int, n_removed: int, seed: int, *, source: str
) -> tuple[HeadScores, NDArray[np.float32]]:
    """Scores of a model, and the gradient of each example, shape (n_layers, n_examples, n_heads)."""
    from t3vis.probing.head_importance import importances  # torch takes seconds to load
    from t3vis.probing.model import load_model

    ids, rows = labelled_examples(split, max_examples, seed)
    found = importances(load_model(folder), rows, n_removed=n_removed, seed=seed)
    projections, own = found.heads.projections, found.gradients.gradients
    gradients = np.full((len(own), split.n_examples, own.shape[2]), np.nan, np.float32)
    gradients[:, ids] = own
    attention, modules = [p.attention for p in projections], [p.name for p in projections]
    return HeadScores(found.scores, list(attention), modules, found.agreements, source), gradients


def _current(run: Run, split: Split, name: str, made_of: dict[str, Any]) -> HeadScores | None:
    result = current_result(run.path, split.name, name, made_of)
    if result is None:
        return None
    columns, said = result.columns, result.attributes
    scores = {
        score: HeadImportance(columns[score], columns[f"{score}_low"], columns[f"{score}_high"], n_examples)
        for score, n_examples in said["n_examples"].items()
    }
    agreements = {
        form: {effect: np.nan if value is None else value for effect, value in of.items()}
        for form, of in said["agreements"].items()
    }
    return HeadScores(scores, said["attention"], said["modules"], agreements, said["source"])


def _keep(run: Run, split: Split, name: str, found: HeadScores, made_of: dict[str, Any]) -> None:
    columns: dict[str, NDArray[Any]] = {}
    for score, importance in found.scores.items():
        columns |= {score: importance.value, f"{score}_low": importance.low, f"{score}_high": importance.high}
    said = {
        "attention": found.attention,
        "modules": found.modules,
        "agreements": {form: {k: _or_none(v) for k, v in of.items()} for form, of in found.agreements.items()},
        "source": found.source,
        "n_examples": {score: importance.n_examples for score, importance in found.scores.items()},
    }
    attributes = {**made_of, **said}
    write_result(run.path, split.name, name, columns, meanings=MEANINGS, attributes=attributes, dims=("layer", "head"))


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else value
