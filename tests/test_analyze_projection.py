"""The maps of a run, made from a real store and kept in it."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from t3vis import analyze_maps, analyze_projection, open_run
from t3vis.analysis.neighbours import neighbour_graph, neighbour_overlap
from t3vis.analysis.principal_axes import principal_axes
from t3vis.analysis.projection import CONTINUED, REARRANGED, displacement, tsne
from t3vis.analysis.projection_quality import projection_quality
from t3vis.analysis.states import unit_rows
from t3vis.analyze_projection import AnalyzedProjection, analyzed_projection, last_map
from t3vis.errors import AnalysisError
from t3vis.store.results import read_result
from t3vis.store.seal import seal_pass
from t3vis.store.writer import RunWriter, create_run

N_EXAMPLES, HIDDEN = 90, 6


def states_of(epoch: int, n_layers: int = 2) -> np.ndarray:
    """Four clouds, shape (n_layers, n_examples, hidden), that drift apart from epoch to epoch."""
    rng = np.random.default_rng(0)
    clouds = rng.normal(size=(4, HIDDEN))[rng.integers(0, 4, N_EXAMPLES)]
    noise = np.random.default_rng(epoch + 1).normal(size=(n_layers, N_EXAMPLES, HIDDEN))
    return (clouds * (1 + 0.3 * epoch) + rng.normal(size=(N_EXAMPLES, HIDDEN)) + 0.2 * noise).astype(np.float16)


LAYERS = [0, 3]


def recorded(
    path: Path,
    *,
    epochs: Iterable[int] = range(3),
    unseen: dict[int, list[int]] | None = None,
    spoiled: Callable[[np.ndarray], np.ndarray] = lambda states: states,
) -> Path:
    """A run of a few epochs, in which some examples were not seen, or have odd states."""
    writer = create_run(path, {"model": {"class": "Tiny"}})
    attributes = {"kind": "train", "mode": "train", "n_examples": N_EXAMPLES, "fingerprint": "f"}
    writer.add_split("train", {**attributes, "arrays": {"hidden_states": {"layers": LAYERS}}})
    for epoch in epochs:
        record_epoch(writer, path, epoch, (unseen or {}).get(epoch, []), spoiled(states_of(epoch)))
    return path


def record_epoch(writer: RunWriter, path: Path, epoch: int, unseen: list[int], states: np.ndarray) -> None:
    seen = np.setdiff1d(np.arange(N_EXAMPLES), unseen)
    writer.begin_pass("train", epoch, {"epoch": epoch, "step": epoch})
    rows = {
        "example": seen,
        "step": np.full(len(seen), epoch),
        "loss": np.zeros(len(seen), np.float32),
        "hidden_states": states[:, seen],
    }
    writer.log("train", rows)
    writer.flush()
    seal_pass(path, "train", epoch)


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return recorded(tmp_path / "run.zarr")


def mapped(path: Path, **options: Any) -> AnalyzedProjection:
    run = open_run(path)
    return analyzed_projection(run, run.train, **options)


def results_in(path: Path) -> dict[str, int]:
    """When each result was written."""
    return {node.parent.name: node.stat().st_mtime_ns for node in sorted((path / "analysis/train").glob("*/zarr.json"))}


def test_pca_and_its_quality_are_those_of_the_analyses(run_path):
    states = unit_rows(states_of(1)[1])
    expected = principal_axes(states).coordinates(states).astype(np.float32)
    found = mapped(run_path, pass_index=1, layer=3, method="pca")
    np.testing.assert_array_equal(found.coordinates, expected)
    quality = projection_quality(states, expected, neighbour_graph(states))
    for name, values in quality.as_columns().items():
        np.testing.assert_array_equal(found.columns[name], values)
    assert found.quality == quality.summary()
    assert found.name == "pca_p0001_l03"
    assert found.attributes["k"] == 15


def test_every_map_goes_back_to_that_of_the_last_layer_in_the_first_epoch(run_path):
    mapped(run_path, pass_index=1, layer=0)
    assert sorted(results_in(run_path)) == [
        "neighbours_p0000_l00",
        "neighbours_p0000_l03",
        "neighbours_p0001_l00",
        "tsne_p0000_l00",
        "tsne_p0000_l03",
        "tsne_p0000_l03_still",
        "tsne_p0001_l00",
    ]


def test_by_default_it_is_the_last_layer_of_the_last_epoch(run_path):
    assert mapped(run_path, method="pca").name == "pca_p0002_l03"


def test_a_map_says_how_it_differs_from_the_last(run_path):
    first, second = (mapped(run_path, pass_index=index) for index in (0, 1))
    assert "displacement" not in first.attributes
    graphs = [neighbour_graph(unit_rows(states_of(epoch)[1])) for epoch in (0, 1)]
    np.testing.assert_allclose(second.columns["neighbour_overlap"], neighbour_overlap(*graphs))
    assert second.attributes["neighbour_overlap"] == pytest.approx(neighbour_overlap(*graphs).mean())
    moved = displacement(first.coordinates, second.coordinates)
    np.testing.assert_allclose(second.columns["displacement"], moved)
    assert second.attributes["displacement"] == pytest.approx(np.sqrt((moved**2).mean()))
    assert 0 < second.attributes["noise_floor"] < 0.6


def test_what_is_current_is_not_computed_again(run_path):
    first = mapped(run_path)
    written = results_in(run_path)
    second = mapped(run_path)
    assert results_in(run_path) == written
    np.testing.assert_array_equal(second.coordinates, first.coordinates)
    assert second.quality == first.quality
    assert second.attributes == first.attributes
    mapped(run_path, method="pca")
    assert {name: results_in(run_path)[name] for name in written} == written
    mapped(run_path, seed=1)
    assert all(results_in(run_path)[name] > written[name] for name in written)


def test_a_further_epoch_leaves_the_maps_before_it_as_they_are(tmp_path):
    path = tmp_path / "run.zarr"
    recorded(path, epochs=range(2))
    mapped(path)
    written = results_in(path)
    record_epoch(create_run(path, {}, resume=True, start_step=2), path, 2, [], states_of(2))
    assert mapped(path).name == "tsne_p0002_l03"
    assert {name: results_in(path)[name] for name in written} == written


def test_the_same_call_on_another_copy_gives_the_same_map(run_path, tmp_path):
    np.testing.assert_array_equal(mapped(run_path).coordinates, mapped(recorded(tmp_path / "other.zarr")).coordinates)


def test_stopped_anywhere_and_called_again_it_ends_where_it_would_have(run_path, tmp_path):
    asked = itertools.count()

    def cancel() -> bool:
        return next(asked) in (1, 3, 30, 60, 90, 110, 130)

    for _ in range(7):
        with pytest.raises(AnalysisError, match="stopped after"):
            mapped(run_path, cancel=cancel)
    found = mapped(run_path, cancel=cancel)
    expected = mapped(recorded(tmp_path / "other.zarr"))
    np.testing.assert_array_equal(found.coordinates, expected.coordinates)
    assert found.attributes == expected.attributes
    assert not [name for name in results_in(run_path) if name.endswith("stopped")]


def test_examples_that_were_not_seen_are_not_on_the_map(tmp_path):
    # 3 and 7 are missing at first, 5 later; 3 is new on the second map, and starts amidst its neighbours.
    path = recorded(tmp_path / "run.zarr", epochs=range(2), unseen={0: [3, 7], 1: [5, 7]})
    first, second = (mapped(path, pass_index=index) for index in (0, 1))
    assert np.flatnonzero(np.isnan(first.coordinates[:, 0])).tolist() == [3, 7]
    assert np.flatnonzero(np.isnan(second.coordinates[:, 0])).tolist() == [5, 7]
    assert (first.n_seen, second.n_seen) == (88, 88)
    for name in ("displacement", "neighbour_overlap"):
        assert np.flatnonzero(np.isnan(second.columns[name])).tolist() == [3, 5, 7]
    graph = read_result(path, "train", "neighbours_p0001_l03").columns
    assert np.flatnonzero(graph["indices"][:, 0] < 0).tolist() == [5, 7]
    seen = np.setdiff1d(np.arange(N_EXAMPLES), [5, 7])
    expected = seen[neighbour_graph(unit_rows(states_of(1)[1][seen])).indices]
    np.testing.assert_array_equal(graph["indices"][seen], expected)
    ids = [neighbour_ids(states_of(epoch)[1], unseen) for epoch, unseen in ((0, [3, 7]), (1, [5, 7]))]
    kept = [len(ids[0][example] & ids[1][example]) / 15 for example in (0, 40, 89)]
    assert second.columns["neighbour_overlap"][[0, 40, 89]] == pytest.approx(kept)


def neighbour_ids(states: np.ndarray, unseen: list[int]) -> dict[int, set[int]]:
    seen = np.setdiff1d(np.arange(len(states)), unseen)
    near = seen[neighbour_graph(unit_rows(states[seen])).indices]
    return dict(zip(seen.tolist(), map(set, near.tolist()), strict=True))


def test_of_many_examples_some_make_the_map_and_the_others_are_placed_on_it(run_path, monkeypatch):
    monkeypatch.setattr(analyze_maps, "MAX_FITTED", 80)
    monkeypatch.setattr(analyze_maps, "N_LANDMARKS", 60)
    found = mapped(run_path, pass_index=1)
    assert found.attributes["n_fitted"] == 60
    assert np.isfinite(found.coordinates).all()
    assert found.quality["neighbour_recall"].value > 0.3
    assert np.isfinite(found.attributes["noise_floor"])


def test_what_can_be_had_in_a_minute_depends_on_what_is_there(run_path, monkeypatch):
    # 90 examples: a fresh map of 600 iterations with its noise floor of 250, and two that go on for 250 each.
    monkeypatch.setattr(analyze_projection, "MAX_WORK", 90 * 1_350 - 1)
    run = open_run(run_path)
    assert last_map(run, run.train).name == "pca_p0002_l03"
    monkeypatch.setattr(analyze_projection, "MAX_WORK", 90 * 1_350)
    assert last_map(run, run.train).name == "tsne_p0002_l03"
    monkeypatch.setattr(analyze_projection, "MAX_WORK", 0)
    assert last_map(run, run.train).name == "tsne_p0002_l03"  # it is there now
    monkeypatch.setattr(analyze_projection, "MAX_EXACT", 89)
    run = open_run(recorded(run_path.with_name("other.zarr"), epochs=range(1)))
    with pytest.raises(AnalysisError, match="a map of 90 examples takes more than a minute; make it with: t3vis proj"):
        last_map(run, run.train)


def test_the_results_are_plain_zarr(run_path):
    found = mapped(run_path, pass_index=0)
    group = zarr.open_group(run_path / "analysis/train", mode="r")
    np.testing.assert_array_equal(group["tsne_p0000_l03/x"][...], found.coordinates[:, 0])
    assert group["neighbours_p0000_l03/indices"].shape == (N_EXAMPLES, 15)
    assert group["neighbours_p0000_l03/indices"].metadata.dimension_names == ("example", "neighbour")
    assert group["neighbours_p0000_l03/distances"].attrs["description"]


def test_few_examples_end_with_an_answer_or_a_clear_error(tmp_path):
    path = recorded(
        tmp_path / "four.zarr", epochs=range(2), unseen={epoch: list(range(4, N_EXAMPLES)) for epoch in (0, 1)}
    )
    assert np.isfinite(mapped(path).coordinates[:4]).all()
    path = recorded(tmp_path / "three.zarr", epochs=range(1), unseen={0: list(range(3, N_EXAMPLES))})
    with pytest.raises(AnalysisError, match=r"3 examples of .* were seen in pass 0; a map needs at least 4"):
        mapped(path)


@pytest.mark.parametrize(("noise", "phases"), [(0, CONTINUED), (9, REARRANGED)])
def test_how_a_map_goes_on_depends_on_the_neighbours_that_were_kept(tmp_path, noise, phases):
    drawn = iter(np.random.default_rng(5).normal(size=(2, 2, N_EXAMPLES, HIDDEN)))
    path = recorded(tmp_path / "run.zarr", epochs=[0, 1], spoiled=lambda states: states + noise * next(drawn))
    first, second = (mapped(path, pass_index=index) for index in (0, 1))
    states = unit_rows(open_run(path).train.hidden_states[1, 1])
    start = first.coordinates.astype(np.float64)
    start += np.random.default_rng(0).normal(0, start.std() / 1_000, start.shape)
    expected = tsne(neighbour_graph(states), start, phases=phases).coordinates
    np.testing.assert_array_equal(second.coordinates, expected.astype(np.float32))


def test_an_epoch_that_is_missing_is_passed_over(tmp_path):
    path = recorded(tmp_path / "run.zarr", epochs=[0, 2])
    assert mapped(path).name == "tsne_p0002_l03"
    graphs = [neighbour_graph(unit_rows(states_of(epoch)[1])) for epoch in (0, 2)]
    np.testing.assert_allclose(mapped(path).columns["neighbour_overlap"], neighbour_overlap(*graphs))
    with pytest.raises(AnalysisError, match=r"no hidden states of layer 3 in pass 1; it holds .* in passes \[0, 2\]"):
        mapped(path, pass_index=1)


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_states_that_are_all_one_make_a_map_whose_distances_say_nothing(tmp_path, method):
    path = recorded(tmp_path / "run.zarr", epochs=[0], spoiled=lambda states: np.ones_like(states))
    found = mapped(path, method=method)
    assert np.isfinite(found.coordinates).all()
    assert np.isnan(found.quality["distance_correlation"].value)
    assert "NaN" not in (path / f"analysis/train/{method}_p0000_l03/zarr.json").read_text()  # which is no JSON
    assert np.isnan(mapped(path, method=method).quality["distance_correlation"].value)


def test_texts_that_are_there_twice_lie_beside_each_other(tmp_path):
    path = recorded(tmp_path / "run.zarr", epochs=[0], spoiled=lambda states: np.repeat(states[:, ::2], 2, axis=1))
    found = mapped(path).coordinates
    apart = np.linalg.norm(found[::2] - found[1::2], axis=1)
    assert np.median(apart) < 0.1 * found.std()


def test_passes_without_a_common_example_have_no_common_map(tmp_path):
    half = N_EXAMPLES // 2
    unseen = {0: list(range(half)), 1: list(range(half, N_EXAMPLES))}
    path = recorded(tmp_path / "run.zarr", epochs=[0, 1], unseen=unseen)
    with pytest.raises(AnalysisError, match="no example was seen both in pass 0 and in the next"):
        mapped(path)
    assert mapped(path, method="pca").n_seen == half


def test_states_that_are_not_finite_are_not_on_the_map(tmp_path):
    def spoiled(states):
        states[1, 3, 2], states[1, 7, :] = np.inf, np.nan
        return states

    found = mapped(recorded(tmp_path / "run.zarr", epochs=[0], spoiled=spoiled))
    assert np.flatnonzero(np.isnan(found.coordinates[:, 0])).tolist() == [3, 7]
    with pytest.raises(AnalysisError, match=r"0 examples of .* were seen in pass 0; a map needs at least 4"):
        mapped(recorded(tmp_path / "nan.zarr", epochs=[0], spoiled=lambda states: states * np.float16(np.nan)))


def test_what_was_not_recorded_is_named(run_path, tmp_path):
    with pytest.raises(
        AnalysisError, match=r"no hidden states of layer 1 in pass 2; it holds layers \[0, 3\] in passes"
    ):
        mapped(run_path, layer=1)
    with pytest.raises(AnalysisError, match="no hidden states of layer 3 in pass 7"):
        mapped(run_path, pass_index=7)
    writer = create_run(tmp_path / "bare.zarr", {})
    writer.add_split("train", {"kind": "train", "mode": "train", "n_examples": 5, "fingerprint": "f"})
    with pytest.raises(AnalysisError, match="holds no hidden states, of which maps are made; record them"):
        mapped(tmp_path / "bare.zarr")
