"""The analyses of a run, computed from its store and kept there until what they were computed from changes.

Every result is of one split, and so of one mode: dynamics recorded in training, with dropout, and in evaluations are
different quantities, and nothing here mixes them. Each result says in its attributes which of the two it is of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from t3vis.analysis.data_map import DataMap, data_map
from t3vis.analysis.difficulty import learning, loss_trajectories
from t3vis.analysis.drift import cka, displacement, neighbourhood_change
from t3vis.analysis.generalised import multi_label_map, regression_map
from t3vis.analysis.generalised_quality import multi_label_suspects, regression_suspects
from t3vis.analysis.label_quality import Suspects, n_voters, suspected_errors
from t3vis.analysis.nearest import Neighbours, n_references, nearest_neighbours, sample_of
from t3vis.analysis.outliers import Outliers, knn_distance, mahalanobis, outliers
from t3vis.analysis.passes import pass_figures
from t3vis.analysis.separability import separability
from t3vis.analysis.states import MeanDirection, SideBySide, StatesLike
from t3vis.code_version import code_version
from t3vis.errors import AnalysisError
from t3vis.store import schema
from t3vis.store.reader import Run, Split
from t3vis.store.results import Result, current_result, result_names, write_result
from t3vis.store.schema import pass_name

T = TypeVar("T")


MEANINGS = {
    "confidence": "mean gold-label probability over the passes in which the example was seen",
    "variability": "population standard deviation of the gold-label probability over these passes",
    "correctness": "fraction of these passes in which the gold label was predicted",
    "threshold_closeness": "confidence * (1 - confidence)",
    "forgetting_events": "how often the example went from predicted right to predicted wrong",
    "never_learned": "whether the example was seen and never predicted right",
    "n_seen": "passes in which the example was seen",
    "score": "suspicion that the label is wrong, in [0, 1]; 1 is the most suspicious",
    "suggested_label": "the most credible other class; of several labels the one to change; -1 where there is none",
    "suggested_prob": "how credible the suggestion is",
    "self_confidence": "mean probability of the given label; low is suspicious, as in the next four",
    "normalized_margin": "mean probability of the given label minus the highest other one, brought to [0, 1]",
    "confidence_weighted_entropy": "entropy of the mean probabilities over that of the given label, brought to [0, 1]",
    "aum": "area under the margin: mean of the gold logit minus the largest other logit",
    "neighbour_agreement": "share of the nearest neighbours in hidden space that carry the given label",
    "el2n": "mean length of the probabilities minus the one-hot label",
    "first_learned": "first pass in which the gold label was predicted; -1 where there is none",
    "flips": "how often the predicted class changed from one pass to the next",
    "first_loss": "loss in the first pass in which the example was seen",
    "last_loss": "loss in the last pass in which the example was seen",
    "loss_slope": "change of the loss per pass, by least squares",
    "outlier_score": "mean rank by the distances and the mean loss, in [0, 1]; 1 is the farthest out",
    "knn_distance": "mean cosine distance to the nearest neighbours in hidden space",
    "mahalanobis": "Mahalanobis distance to the nearest class mean; without classes, to the mean of all",
    "mahalanobis_own": "Mahalanobis distance to the mean of the own class",
    "mean_loss": "mean loss over the passes in which the example was seen",
    "displacement": "distance moved from the first to the last pass in the last layer, after the best rotation",
    "neighbourhood_change": "share of the nearest neighbours in the last pass that were none in the first",
    "cka": "linear CKA of each layer in the first pass (layer) with each layer in the last (other_layer)",
    "knn_accuracy": "leave-one-out accuracy of the nearest neighbours by cosine",
    "probe_accuracy": "cross-validated accuracy of a linear probe",
    "silhouette": "mean silhouette of the classes",
    "davies_bouldin": "Davies-Bouldin index of the classes; low is better",
    "fisher_ratio": "scatter of the class means over the scatter within the classes",
    "mean_cosine": "mean cosine between two centred class means",
    "n_queries": "examples that the k-NN accuracy was taken over",
    "accuracy": "share of the examples whose gold label was predicted in the pass",
    "gold_prob": "mean probability of the gold label in the pass",
    "n_known": "examples that were seen in the pass and have a label",
    "loss": "mean loss of the examples that were seen in the pass",
}


_MAPS: dict[str, Callable[..., DataMap]] = {
    "single_label": data_map,
    "multiple_choice": data_map,
    "multi_label": multi_label_map,
    "regression": regression_map,
}

_SUSPECTS: dict[str, Callable[..., Suspects]] = {
    "single_label": suspected_errors,
    "multiple_choice": suspected_errors,
    "multi_label": multi_label_suspects,
    "regression": regression_suspects,
}


def analyzed_data_map(run: Run, split: Split, *, burn_in: int = 0, burn_out: int | None = None) -> DataMap:
    """The data map of a split, from the store if it is there and current, else computed and written.

    What it is of for several labels or numbers is said in `t3vis.analysis.generalised`.

    Raises
    ------
    AnalysisError
        If nothing was recorded, or of a task of another kind.
    """
    parameters = {"burn_in": burn_in, "burn_out": burn_out}
    known = _current(run, split, "data_map", parameters)
    if known is not None:
        return DataMap(n_epochs=known.attributes["n_epochs"], **known.columns)
    logits = _Reported(_recorded(split, "logits"), f"data map of {split.name}")
    computed = data_map_of(split, logits, burn_in=burn_in, burn_out=burn_out)
    _keep(run, split, "data_map", computed.as_columns(), parameters, n_epochs=computed.n_epochs)
    return computed


def data_map_of(split: Split, logits: Any, *, burn_in: int = 0, burn_out: int | None = None) -> DataMap:
    """The data map of the logits of a split, by its task; nothing is written.

    Raises
    ------
    AnalysisError
        If the task is of another kind.
    """
    return _for_task(split, _MAPS, "data map")(logits, split.labels, burn_in=burn_in, burn_out=burn_out)


def has_data_map(split: Split) -> bool:
    """Whether there is a data map of the split's task."""
    return "logits" in split.arrays and split.attributes.get("task") in _MAPS


def analyzed_suspects(run: Run, split: Split) -> Suspects:
    """Suspicion of every label of a split, from the store if it is there and current, else computed and written.

    Where hidden states were recorded, the neighbours by the mean direction in the first, the middle and the last layer
    are asked too. What the suspicion is for several labels or numbers is said in `t3vis.analysis.generalised_quality`.

    Raises
    ------
    AnalysisError
        If nothing was recorded, or of a task of another kind.
    """
    parameters = {
        "n_neighbours": n_voters(split.n_examples),
        "n_references": n_references(split.n_examples),
    }
    known = _current(run, split, "label_quality", parameters)
    if known is not None:
        return Suspects(**known.columns)
    logits = _Reported(_recorded(split, "logits"), f"label quality of {split.name}")
    suspects_of = _for_task(split, _SUSPECTS, "label quality")
    neighbours = None
    if "hidden_states" in split.arrays and split.attributes["task"] != "multiple_choice":  # places are no classes
        states = _over_passes_and_layers(split)
        neighbours = _neighbours(states, f"label quality of {split.name}", k=parameters["n_neighbours"])
    computed = suspects_of(logits, split.labels, neighbours=neighbours)
    _keep(run, split, "label_quality", computed.as_columns(), parameters)
    return computed


def analyzed_difficulty(run: Run, split: Split) -> dict[str, NDArray[Any]]:
    """When each example was learned, how hard it was and what its loss did; columns of shape (n_examples,) by name.

    Raises
    ------
    AnalysisError
        If no logits and labels of a task with a gold class were recorded.
    """
    known = _current(run, split, "difficulty", {})
    if known is not None:
        return known.columns
    logits, labels = _logits_and_labels(split)
    columns = learning(_Reported(logits, f"difficulty of {split.name}"), labels).as_columns()
    if "loss" in split.arrays:
        of_loss = loss_trajectories(split.loss[:]).as_columns()
        columns |= {f"{name}_loss" if name != "slope" else "loss_slope": values for name, values in of_loss.items()}
    _keep(run, split, "difficulty", columns, {})
    return columns


@dataclass(frozen=True, eq=False)
class Progress:
    """What each pass was like over all examples; each figure has shape (n_passes,), NaN where it is not known."""

    figures: dict[str, NDArray[Any]]
    """``loss``; and ``accuracy``, ``gold_prob`` and ``n_known`` of a task with a gold class."""
    passes: list[int]
    epochs: list[float]
    """As `t3vis.store.passes.Pass` has them: 0, 1, 2, ... in training; how many had been trained, for an evaluation."""


def analyzed_progress(run: Run, split: Split) -> Progress:
    """Mean loss, and accuracy where there is one, pass by pass.

    Raises
    ------
    AnalysisError
        If neither losses nor logits of a task with a gold class were recorded.
    """
    indices, epochs = [record.index for record in split.passes], [record.epoch for record in split.passes]
    known = _current(run, split, "progress", {})
    if known is not None:
        return Progress(known.columns, indices, epochs)
    figures: dict[str, NDArray[Any]] = {}
    if "loss" in split.arrays:
        figures["loss"] = np.array([_mean_known(split.loss[index]) for index in indices])
    if "logits" in split.arrays and split.attributes["task"] == "single_label":
        found = pass_figures(_Reported(split.logits, f"passes of {split.name}"), split.labels)
        figures |= {name: values[indices] for name, values in found.as_columns().items()}
    if not figures:
        _recorded(split, "loss")
    _keep(run, split, "progress", figures, {}, dims=("pass",), passes_shown=indices, epochs=epochs)
    return Progress(figures, indices, epochs)


@dataclass(frozen=True, eq=False)
class LayerFigures:
    """Separability of every layer in every pass; each figure has shape (n_passes, n_layers)."""

    figures: dict[str, NDArray[np.float64]]
    passes: list[int]
    layers: list[int]
    """Numbers of the hidden states; 0 is the output of the embeddings."""


def analyzed_separability(run: Run, split: Split) -> LayerFigures:
    """How well each layer tells the classes apart, pass by pass.

    Raises
    ------
    AnalysisError
        If no hidden states were recorded, or the split's task has no gold class.
    """
    parameters = {"max_queries": 2_000, "max_references": 20_000}
    known = _current(run, split, "separability", parameters)
    if known is not None:
        return LayerFigures(known.columns, known.attributes["passes_shown"], known.attributes["layers"])
    _recorded(split, "hidden_states")
    labels, indices = _classes(split), _passes_with_states(split)
    cells = [(index, number) for index in indices for number in range(len(split.layers))]
    rows = [
        separability(Layer(split, index, number), labels, **parameters).as_row()
        for index, number in tqdm(cells, desc=f"separability of {split.name}", unit=" layers", delay=1, leave=False)
    ]
    shape = len(indices), len(split.layers)
    figures = {name: np.array([row[name] for row in rows], dtype=np.float64).reshape(shape) for name in rows[0]}
    more = {"passes_shown": indices, "layers": split.layers}
    _keep(run, split, "separability", figures, parameters, dims=("pass", "layer"), **more)
    return LayerFigures(figures, indices, split.layers)


def analyzed_outliers(run: Run, split: Split) -> Outliers:
    """Outliers in the last layer of the last pass, and by loss.

    A task without a gold class has one mean for all examples, and no distance to that of the own class.

    Raises
    ------
    AnalysisError
        If no hidden states were recorded.
    """
    parameters = {"n_references": n_references(split.n_examples)}
    known = _current(run, split, "outliers", parameters)
    if known is not None:
        return _as_outliers(known)
    _recorded(split, "hidden_states")
    loss = loss_trajectories(split.loss[:]).mean if "loss" in split.arrays else None
    computed = _outliers_of(split, _passes_with_states(split)[-1], loss)
    _keep(run, split, "outliers", _outlier_columns(computed), parameters)
    return computed


def analyzed_pass_outliers(run: Run, split: Split, pass_index: int) -> Outliers:
    """Outliers in the last layer of one pass, and by the loss in that pass.

    Raises
    ------
    AnalysisError
        If no hidden states of that pass are kept.
    """
    name = f"outliers_{pass_name(pass_index)}"
    parameters = {"pass": pass_index, "n_references": n_references(split.n_examples)}
    known = _current(run, split, name, parameters)
    if known is not None:
        return _as_outliers(known)
    _recorded(split, "hidden_states")
    computed = _outliers_of(split, pass_index, split.loss[pass_index] if "loss" in split.arrays else None)
    _keep(run, split, name, _outlier_columns(computed), parameters)
    return computed


def _outliers_of(split: Split, pass_index: int, loss: NDArray[Any] | None) -> Outliers:
    states = Layer(split, pass_index, -1)
    unknown = np.full(split.n_examples, np.nan)
    if split.attributes["task"] == "single_label":
        nearest, own = mahalanobis(states, split.labels)
    else:  # without classes all examples are one cloud
        nearest, own = mahalanobis(states, np.zeros(split.n_examples, np.int64))[0], unknown
    distance = knn_distance(_neighbours(states, f"outliers of {split.name}"))
    return outliers(distance, nearest, own, unknown if loss is None else loss)


def _outlier_columns(found: Outliers) -> dict[str, NDArray[Any]]:
    columns = found.as_columns()
    return {"outlier_score": columns.pop("score"), **columns}


def _as_outliers(known: Result) -> Outliers:
    columns = dict(known.columns)
    return Outliers(score=columns.pop("outlier_score"), **columns)


@dataclass(frozen=True, eq=False)
class Drift:
    """How the model changed from the first pass to the last."""

    cka: NDArray[np.float64]
    """Shape (n_layers, n_layers): each layer in the first pass with each in the last."""
    displacement: NDArray[np.float64]
    """Shape (n_examples,), of the last layer."""
    neighbourhood_change: NDArray[np.float64]
    """Shape (n_examples,), of the last layer."""
    passes: tuple[int, int]
    layers: list[int]


def analyzed_drift(run: Run, split: Split) -> Drift:
    """CKA, displacement and change of neighbours from the first pass to the last.

    Raises
    ------
    AnalysisError
        If no hidden states were recorded, or of a single pass only.
    """
    _recorded(split, "hidden_states")
    parameters = {"n_references": n_references(split.n_examples)}
    known, of_layers = _current(run, split, "drift", parameters), _current(run, split, "layer_drift", {})
    if known is not None and of_layers is not None:
        first, last = of_layers.attributes["passes_shown"]
        return Drift(of_layers.columns["cka"], **known.columns, passes=(first, last), layers=split.layers)
    indices = _passes_with_states(split)
    if len(indices) < 2:
        raise AnalysisError(f"{split.path} holds hidden states of a single pass; change needs two.")
    ends = indices[0], indices[-1]
    before, after = ([Layer(split, index, number) for number in range(len(split.layers))] for index in ends)
    near = [_neighbours(states[-1], f"change of {split.name}") for states in (before, after)]
    columns = {
        "displacement": displacement(before[-1], after[-1]).distance,
        "neighbourhood_change": neighbourhood_change(*near),
    }
    between = cka(before, after)
    _keep(run, split, "drift", columns, parameters)
    more = {"passes_shown": list(ends), "layers": split.layers}
    _keep(run, split, "layer_drift", {"cka": between}, {}, dims=("layer", "other_layer"), **more)
    return Drift(between, **columns, passes=ends, layers=split.layers)


class Layer:
    """Hidden states of one pass and layer, read from the store when they are asked for."""

    def __init__(self, split: Split, index: int, number: int) -> None:
        self._states = split.hidden_states
        self._index = index
        self._number = number % len(split.layers)
        self.shape = self._states.shape[2:]
        """Examples and hidden size."""

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[Any]:
        found: NDArray[Any] = self._states[self._index, self._number, key]
        return found


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


def _over_passes_and_layers(split: Split) -> SideBySide:
    """The mean directions over all passes in the first, the middle and the last layer."""
    last = len(split.layers) - 1
    numbers = sorted({0, last // 2, last})
    indices = _passes_with_states(split)
    return SideBySide([MeanDirection([Layer(split, index, number) for index in indices]) for number in numbers])


def _neighbours(states: StatesLike, what: str, *, k: int = 15) -> Neighbours:
    """The nearest neighbours of all examples, among a sample of them where they are many."""
    n_examples = states.shape[0]
    references = sample_of(n_examples, n_references(n_examples))
    with tqdm(desc=f"neighbours for the {what}", total=n_examples, unit=" examples", delay=1, leave=False) as bar:

        def show(done: int, _total: int) -> None:
            bar.update(done - bar.n)

        return nearest_neighbours(states, k=k, references=references, progress=show)


def _recorded(split: Split, name: str) -> Any:
    """An array of a split of which something was recorded."""
    if split.attributes.get("task") is None or not split.passes:
        raise AnalysisError(f"nothing was recorded of {split.path} yet; train, or evaluate, with the recorder first.")
    if name not in split.arrays:
        raise AnalysisError(
            f"{split.path} holds no {name.replace('_', ' ')}, which this analysis needs; record them with the next run."
        )
    return split.array(name)


def _passes_with_states(split: Split) -> list[int]:
    """Passes of which hidden states are kept; those that are still going on only if there are no others."""
    kept = [record for record in split.passes if "hidden_states" not in record.attributes.get("dropped", ())]
    indices = [record.index for record in kept if record.sealed] or [record.index for record in kept]
    if not indices:
        raise AnalysisError(f"{split.path} holds the hidden states of no pass, which this analysis needs.")
    return indices


def _mean_known(values: NDArray[np.floating]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if known.size else np.nan


def _for_task(split: Split, functions: dict[str, Callable[..., T]], what: str) -> Callable[..., T]:
    """The function for the task of a split."""
    task = split.attributes["task"]
    if task not in functions:
        raise AnalysisError(
            f"{split.path} is a {task.replace('_', ' ')} task; there is a {what} of {', '.join(functions)} tasks."
        )
    return functions[task]


def _logits_and_labels(split: Split) -> tuple[Any, NDArray[np.int64]]:
    return _recorded(split, "logits"), _classes(split)


def _classes(split: Split) -> NDArray[np.int64]:
    """The gold classes of a task that has one for each example."""
    task = split.attributes["task"]
    if task != "single_label":
        raise AnalysisError(
            f"{split.path} is a {task.replace('_', ' ')} task; expected single-label classification, which this "
            "analysis is defined on."
        )
    labels: NDArray[np.int64] = split.labels
    return labels


def _provenance(split: Split, parameters: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on; equal means that computing it again would give the same."""
    passes = [[record.index, record.last_step, record.n_seen, record.n_repeated] for record in split.passes]
    return {
        "t3vis": code_version(),
        "parameters": parameters,
        "mode": split.attributes["mode"],
        **{name: split.attributes[name] for name in ("probe",) if name in split.attributes},
        "fingerprint": split.attributes["fingerprint"],
        "passes": passes,
    }


def current_results(run: Run, split: Split) -> set[str]:
    """Names of the results in the store that were made of what is recorded now, by this version of t3vis."""
    wanted = {name: value for name, value in _provenance(split, {}).items() if name != "parameters"}
    group = run.path / "analysis" / split.name
    found = {name: schema.read_metadata(group / name)["attributes"] for name in result_names(run.path, split.name)}
    return {name for name, said in found.items() if all(said.get(key) == value for key, value in wanted.items())}


def _current(run: Run, split: Split, name: str, parameters: dict[str, Any]) -> Result | None:
    return current_result(run.path, split.name, name, _provenance(split, parameters))


def _keep(
    run: Run,
    split: Split,
    name: str,
    columns: dict[str, NDArray[Any]],
    parameters: dict[str, Any],
    *,
    dims: tuple[str, ...] = ("example",),
    **more: Any,
) -> None:
    attributes = {**_provenance(split, parameters), **more}
    write_result(run.path, split.name, name, columns, meanings=MEANINGS, attributes=attributes, dims=dims)
