"""The maps of a split, each made from the last, and what they are made of: kept in the store, used while current."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from t3vis.analysis.nearest import Progress
from t3vis.analysis.neighbours import K_NEIGHBOURS, NeighbourGraph, neighbour_graph, shared
from t3vis.analysis.principal_axes import principal_axes
from t3vis.analysis.projection import (
    CONTINUED,
    FRESH,
    REARRANGED,
    TSNEMap,
    displacement,
    pca_start,
    phases_after,
    place,
    tsne,
    umap,
)
from t3vis.analysis.projection_quality import projection_quality
from t3vis.analysis.states import unit_rows
from t3vis.code_version import code_version
from t3vis.errors import AnalysisError
from t3vis.store.reader import Run, Split
from t3vis.store.results import Result, read_result, remove_result, write_result
from t3vis.store.schema import pass_name

Method = Literal["tsne", "pca", "umap"]

MAX_FITTED = 1_000_000
"""Up to this many examples make a t-SNE map; of more, `N_LANDMARKS` do, and the others are placed on it, which saves
memory: it takes longer, and keeps fewer neighbours (the part ``landmarks`` of ``benchmarks/bench_projection.py``)."""
N_LANDMARKS = 50_000
N_ONE_THREAD = 10_000
"""From this many examples on, threads gain more than they lose by waiting for each other."""

MEANINGS = {
    "x": "first coordinate on the map; NaN for an example that was not seen",
    "y": "second coordinate on the map; NaN for an example that was not seen",
    "trustworthiness": "in [0, 1]; low where neighbours on the map are far away in hidden space",
    "continuity": "in [0, 1]; low where neighbours in hidden space are far away on the map",
    "neighbour_recall": "share of the neighbours in hidden space that are neighbours on the map",
    "distance_correlation": "correlation of the distances to all others in hidden space and on the map",
    "displacement": "distance from the place on the map that this one started from, in radii of that map",
    "neighbour_overlap": "share of the neighbours in hidden space kept from the layer of that map; no map is involved",
    "indices": "ids of the nearest neighbours in hidden space, nearest first; -1 for an example that was not seen",
    "distances": "their distances between states of length one",
    "gains_x": "state of the optimizer",
    "gains_y": "state of the optimizer",
    "update_x": "state of the optimizer",
    "update_y": "state of the optimizer",
}


@dataclass(frozen=True)
class Step:
    """One layer in one pass."""

    pass_index: int
    layer: int

    @property
    def name(self) -> str:
        """As results of it are named in the store."""
        return f"{pass_name(self.pass_index)}_l{self.layer:02d}"


class Maps:
    """Makes the maps of a split one after the other, and keeps in the store what each is made of."""

    def __init__(self, run: Run, split: Split, method: Method, seed: int, cancel: Callable[[], bool] | None) -> None:
        self._run = run
        self._split = split
        self._method = method
        self._seed = seed
        self._cancel = cancel
        self._passes = {record.index: record for record in split.passes}
        self._first = Step(min(self._passes), split.layers[-1])
        self._results: dict[str, Result] = {}
        self._digests: dict[str, str] = {}

    def of(self, step: Step, last: Step | None) -> Result:
        """The map of a step, started from that of the last one if there is one."""
        known = self._current(step, last)
        return self._made(step, last) if known is None else known

    def n_iter_left(self, step: Step, last: Step | None) -> int:
        """Iterations that a t-SNE map of a step takes, and for the first its noise floor; none if it is current."""
        if self._current(step, last) is not None:
            return 0
        phases = [*FRESH, *CONTINUED] if last is None else CONTINUED
        return sum(phase.n_iter for phase in phases)

    def _current(self, step: Step, last: Step | None) -> Result | None:
        provenance = self._provenance(step, last)
        self._digests[step.name] = hashlib.blake2b(json.dumps(provenance).encode(), digest_size=8).hexdigest()
        return self._read(f"{self._method}_{step.name}", provenance)

    def _made(self, step: Step, last: Step | None) -> Result:
        states, seen = self._states(step)
        graph = self._graph(step, states, seen)
        what: dict[str, Any] = {}
        if self._method == "tsne":
            fitted = self._fitted(step, last, states, seen, graph)
            coordinates = fitted.pop("coordinates")
            what |= fitted
        elif self._method == "pca":
            axes = principal_axes(states)
            coordinates, what["explained"] = axes.coordinates(states), axes.explained.tolist()
        else:
            coordinates = umap(states, graph, pca_start(states, seed=self._seed), seed=self._seed)
        coordinates = coordinates.astype(np.float32)
        with self._bar(f"quality of {step.name}", " examples") as progress:
            quality = projection_quality(states, coordinates, graph, seed=self._seed, progress=progress)
        columns = {"x": coordinates[:, 0], "y": coordinates[:, 1], **quality.as_columns()}
        what |= {"k": quality.k, "n_sampled": quality.n_sampled, "graph_recall": quality.graph_recall}
        # JSON has no number for what is not defined.
        what["quality"] = {
            name: asdict(estimate) if np.isfinite(estimate.value) else None
            for name, estimate in quality.summary().items()
        }
        if last is not None:
            columns |= self._change(last, seen, coordinates, graph)
            what |= {
                "displacement": _root_mean_square(columns["displacement"]),
                "neighbour_overlap": float(np.nanmean(columns["neighbour_overlap"])),
                "noise_floor": self._noise_floor(self._first),
            }
        whole = {name: _spread_out(values, seen, np.nan) for name, values in columns.items()}
        return self._write(f"{self._method}_{step.name}", whole, self._provenance(step, last), what)

    def _states(self, step: Step) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        position = self._split.layers.index(step.layer)
        states = self._split.hidden_states[step.pass_index, position]
        seen = np.isfinite(states).all(axis=1)
        if np.count_nonzero(seen) < 4:
            raise AnalysisError(
                f"{np.count_nonzero(seen)} examples of {self._split.path} were seen in pass {step.pass_index}; a map "
                "needs at least 4."
            )
        return unit_rows(states[seen]), seen

    def _graph(self, step: Step, states: NDArray[np.float32], seen: NDArray[np.bool_]) -> NeighbourGraph:
        name, provenance = f"neighbours_{step.name}", self._provenance(step, None, of_graph=True)
        known = self._read(name, provenance)
        if known is None:
            with self._bar(f"neighbours of {step.name}", " examples") as progress:
                graph = neighbour_graph(states, seed=self._seed, progress=progress)
            ids = np.flatnonzero(seen).astype(np.int32)
            columns = {
                "indices": _spread_out(ids[graph.indices], seen, -1),
                "distances": _spread_out(graph.distances, seen, np.nan),
            }
            self._write(name, columns, provenance, {"recall": graph.recall}, dims=("example", "neighbour"))
            return graph
        position = np.cumsum(seen) - 1
        indices = position[known.columns["indices"][seen]].astype(np.int32)
        return NeighbourGraph(indices, known.columns["distances"][seen], known.attributes["recall"])

    def _fitted(
        self,
        step: Step,
        last: Step | None,
        states: NDArray[np.float32],
        seen: NDArray[np.bool_],
        graph: NeighbourGraph,
    ) -> dict[str, Any]:
        """Coordinates and KL divergence of a t-SNE map of what was seen."""
        start = pca_start(states, seed=self._seed) if last is None else self._start(last, seen, graph)
        phases = FRESH if last is None else phases_after(float(np.nanmean(self._overlap(last, seen, graph))))
        name, provenance = f"tsne_{step.name}_stopped", self._provenance(step, last)
        chosen = self._landmarks(seen)
        if len(chosen) < len(states):
            graph = neighbour_graph(states[chosen], seed=self._seed)
        stopped = self._read(name, provenance)
        with tqdm(desc=f"t-SNE of {step.name}", unit=" iterations", delay=1, leave=False) as bar:

            def watch(n_done: int, n_planned: int, kl_divergence: float) -> bool:
                bar.total = n_planned
                bar.set_postfix_str(f"KL {kl_divergence:.3f}", refresh=False)
                bar.update(n_done - bar.n)
                return self._cancel is not None and self._cancel()

            made = tsne(
                graph,
                start[chosen],
                phases=phases,
                resume=None if stopped is None else _as_map(stopped, np.flatnonzero(seen)[chosen]),
                callback=watch,
                n_jobs=_n_jobs(len(chosen)),
            )
        if not made.finished:
            columns = {
                column: _spread_out(values, seen, np.nan, chosen) for column, values in _as_columns(made).items()
            }
            progress_made = {"n_iter": made.n_iter, "n_planned": made.n_planned, "kl_divergence": made.kl_divergence}
            self._write(name, columns, provenance, progress_made)
            raise AnalysisError(
                f"the map of {step.name} was stopped after {made.n_iter} of {made.n_planned} iterations; the same "
                "call goes on from there."
            )
        if stopped is not None and isinstance(self._run.path, Path):
            remove_result(self._run.path, self._split.name, name)
        coordinates = np.empty((len(states), 2))
        coordinates[chosen] = made.coordinates
        others = np.setdiff1d(np.arange(len(states)), chosen)
        if len(others):
            with self._bar(f"places in {step.name}", " examples") as progress:
                coordinates[others] = place(states[others], states[chosen], graph, made.coordinates, progress=progress)
        return {"coordinates": coordinates, "kl_divergence": made.kl_divergence, "n_fitted": len(chosen)}

    def _landmarks(self, seen: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Which of the examples that were seen make the map, the same in every pass if all are seen in it."""
        if np.count_nonzero(seen) <= MAX_FITTED:
            return np.arange(np.count_nonzero(seen))
        order = np.random.default_rng(self._seed).permutation(len(seen))
        return np.sort((np.cumsum(seen) - 1)[order[seen[order]][:N_LANDMARKS]])

    def _start(self, last: Step, seen: NDArray[np.bool_], graph: NeighbourGraph) -> NDArray[np.float64]:
        """Where every example is on the last map; one that is not on it starts amidst its neighbours."""
        known = self._results[f"tsne_{last.name}"]
        start = np.stack([known.columns["x"], known.columns["y"]], axis=1)[seen].astype(np.float64)
        is_new = np.isnan(start[:, 0])
        if is_new.all():
            raise AnalysisError(
                f"no example was seen both in pass {last.pass_index} and in the next of {self._split.path}; t-SNE maps "
                "start from the last: choose another method, such as pca."
            )
        around = start[graph.indices[is_new]]
        n_known = np.count_nonzero(~np.isnan(around[:, :, :1]), axis=1)
        start[is_new] = np.nansum(around, axis=1) / np.maximum(n_known, 1)
        return self._jittered(start)

    def _jittered(self, start: NDArray[np.float64]) -> NDArray[np.float64]:
        """The start with every example moved by a thousandth of the spread, so that no two are at one place."""
        return start + np.random.default_rng(self._seed).normal(0, start.std() / 1_000, start.shape)

    def _change(
        self, last: Step, seen: NDArray[np.bool_], coordinates: NDArray[np.float32], graph: NeighbourGraph
    ) -> dict[str, NDArray[np.float64]]:
        """Displacement and neighbour overlap of the examples on both maps, NaN for the others."""
        known = self._results[f"tsne_{last.name}"]
        before = np.stack([known.columns["x"], known.columns["y"]], axis=1)[seen]
        both = np.isfinite(before[:, 0])
        moved = np.full(len(both), np.nan)
        moved[both] = displacement(before[both], coordinates[both])
        return {"displacement": moved, "neighbour_overlap": self._overlap(last, seen, graph)}

    def _overlap(self, last: Step, seen: NDArray[np.bool_], graph: NeighbourGraph) -> NDArray[np.float64]:
        """Share of its neighbours that each example on this map had on the last; NaN where it was not there."""
        states, seen_before = self._states(last)
        before = self._graph(last, states, seen_before)
        overlap = np.full(len(seen), np.nan)
        both = seen & seen_before
        overlap[both] = shared(
            np.flatnonzero(seen_before)[before.indices[both[seen_before]]],
            np.flatnonzero(seen)[graph.indices[both[seen]]],
        )
        return overlap[seen]

    def _noise_floor(self, first: Step) -> float:
        """How far the examples move on the first map when it is continued though no state has changed."""
        name, provenance = f"tsne_{first.name}_still", self._provenance(first, None)
        known = self._read(name, provenance)
        if known is None:
            states, seen = self._states(first)
            graph = self._graph(first, states, seen)
            start = self._start(first, seen, graph)
            chosen = self._landmarks(seen)
            if len(chosen) < len(states):
                graph = neighbour_graph(states[chosen], seed=self._seed)
            with self._bar("noise floor of the maps", " iterations") as progress:
                still = tsne(
                    graph,
                    start[chosen],
                    phases=CONTINUED,
                    callback=lambda done, planned, _: progress(done, planned),
                    n_jobs=_n_jobs(len(chosen)),
                )
            moved = displacement(start[chosen], still.coordinates)
            known = self._write(name, {"displacement": _spread_out(moved, seen, np.nan, chosen)}, provenance, {})
        return _root_mean_square(known.columns["displacement"])

    def _provenance(self, step: Step, last: Step | None, *, of_graph: bool = False) -> dict[str, Any]:
        """What a result depends on; equal means that computing it again would give the same."""
        record = self._passes[step.pass_index]
        found: dict[str, Any] = {
            "t3vis": code_version(),
            "seed": self._seed,
            "k": K_NEIGHBOURS,
            "mode": self._split.attributes["mode"],
            "fingerprint": self._split.attributes["fingerprint"],
            "pass": [record.index, record.last_step, record.n_seen, record.n_repeated],
            "layer": step.layer,
        }
        if not of_graph:
            phases = FRESH if last is None else [*CONTINUED, *REARRANGED]
            found["method"] = self._method
            found["phases"] = [[phase.n_iter, phase.exaggeration, phase.learning_rate] for phase in phases]
            found["from"] = None if last is None else [last.name, self._digests[last.name]]
        return found

    def _read(self, name: str, provenance: dict[str, Any]) -> Result | None:
        known = self._results.get(name) or read_result(self._run.path, self._split.name, name)
        if known is None or known.attributes.get("provenance") != provenance:
            return None
        self._results[name] = known
        return known

    def _write(
        self,
        name: str,
        columns: dict[str, NDArray[Any]],
        provenance: dict[str, Any],
        what: dict[str, Any],
        dims: tuple[str, ...] = ("example",),
    ) -> Result:
        made = Result(columns, {"mode": provenance["mode"], "provenance": provenance, **what})
        self._results[name] = made
        write_result(
            self._run.path, self._split.name, name, columns, meanings=MEANINGS, attributes=made.attributes, dims=dims
        )
        return made

    @contextmanager
    def _bar(self, what: str, unit: str) -> Iterator[Progress]:
        """A bar that appears when the work takes more than a second, and ends it when it is to be cancelled."""
        with tqdm(desc=what, unit=unit, delay=1, leave=False) as bar:

            def report(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)
                if self._cancel is not None and self._cancel():
                    raise AnalysisError(f"{what}: stopped after {done:,} of {total:,}{unit}.")

            yield report


def _spread_out(
    values: NDArray[Any], seen: NDArray[np.bool_], fill: float, chosen: NDArray[np.intp] | None = None
) -> NDArray[Any]:
    """Values of the examples that were seen, or of those chosen among them, with `fill` for the others."""
    whole = np.full((len(seen), *values.shape[1:]), fill, values.dtype)
    whole[np.flatnonzero(seen) if chosen is None else np.flatnonzero(seen)[chosen]] = values
    return whole


def _n_jobs(n_examples: int) -> int:
    return 1 if n_examples < N_ONE_THREAD else -1


def _root_mean_square(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.nanmean(values**2)))


STOPPED = ("x", "y", "gains_x", "gains_y", "update_x", "update_y")


def _as_columns(stopped: TSNEMap) -> dict[str, NDArray[np.float64]]:
    arrays = np.concatenate([stopped.coordinates, stopped.gains, stopped.update], axis=1)
    return dict(zip(STOPPED, arrays.T, strict=True))


def _as_map(stopped: Result, ids: NDArray[np.intp]) -> TSNEMap:
    arrays = np.stack([stopped.columns[name][ids] for name in STOPPED], axis=1)
    return TSNEMap(
        coordinates=arrays[:, :2],
        kl_divergence=stopped.attributes["kl_divergence"],
        n_iter=stopped.attributes["n_iter"],
        n_planned=stopped.attributes["n_planned"],
        gains=arrays[:, 2:4],
        update=arrays[:, 4:],
    )
