import sys
from types import SimpleNamespace

import numpy as np
import openTSNE
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openTSNE.affinity import Uniform
from scipy.spatial import procrustes
from scipy.stats import special_ortho_group
from sklearn.decomposition import PCA

from t3vis.analysis import principal_axes as axes_module
from t3vis.analysis.neighbours import map_neighbours, neighbour_graph, shared
from t3vis.analysis.principal_axes import principal_axes
from t3vis.analysis.projection import (
    CONTINUED,
    REARRANGED,
    Phase,
    TSNEMap,
    displacement,
    pca_start,
    phases_after,
    place,
    tsne,
    umap,
)
from t3vis.errors import AnalysisError

OPENTSNE = (Phase(250, 12), Phase(500, 1))
"""Its own iterations."""


def clouds(n_examples: int, *, seed: int = 0) -> np.ndarray:
    """Six clouds of states in ten dimensions."""
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(6, 10))[rng.integers(0, 6, n_examples)] + rng.normal(size=(n_examples, 10))


def fresh_map(states: np.ndarray, seed: int = 0) -> TSNEMap:
    return tsne(neighbour_graph(states), pca_start(states, seed=seed))


class LazyStates:
    """States on a pretended disk: no array, only slices."""

    def __init__(self, states: np.ndarray):
        self._states = states
        self.shape = states.shape

    def __getitem__(self, key: slice) -> np.ndarray:
        return self._states[key].copy()


def test_principal_axes_by_hand():
    # A rectangle of sides 2 and 1: variances 1 and 1/4.
    found = principal_axes(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]]))
    np.testing.assert_allclose(found.mean, [1, 0.5])
    np.testing.assert_allclose(found.axes, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.explained, [0.8, 0.2])


@pytest.mark.parametrize("n_components", [1, 2, 10])
def test_principal_axes_agree_with_scikit_learn(n_components, monkeypatch):
    monkeypatch.setattr(axes_module, "CHUNK_SIZE", 37)
    states = clouds(300) + 50
    expected = PCA(n_components, svd_solver="full").fit(states)
    found = principal_axes(LazyStates(states), n_components=n_components)
    np.testing.assert_allclose(found.axes, expected.components_, atol=1e-8)
    np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_, atol=1e-10)
    np.testing.assert_allclose(found.coordinates(LazyStates(states)), expected.transform(states), atol=1e-8)


@given(st.integers(0, 9))
def test_turning_moving_and_reordering_the_states_turns_no_map(seed):
    states = clouds(50, seed=seed)
    order = np.random.default_rng(seed).permutation(50)
    turned = (states @ special_ortho_group.rvs(10, random_state=seed) + 7)[order]
    expected, found = (principal_axes(rows).coordinates(rows) for rows in (states, turned))
    signs = np.sign((found * expected[order]).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected[order], atol=1e-8)


def test_the_start_is_that_of_opentsne():
    states = clouds(200)
    expected = openTSNE.initialization.pca(states, svd_solver="full", random_state=0, add_jitter=False)
    found = pca_start(states)
    assert found.std(axis=0)[0] == pytest.approx(1e-4, rel=1e-3)
    np.testing.assert_allclose(found, expected, atol=6e-6)  # but for the jitter, whose deviation is 1e-6


def test_equal_states_start_apart():
    start = pca_start(np.ones((50, 3)))
    assert len(np.unique(start, axis=0)) == 50
    assert 0 < np.abs(start).max() < 1e-3


def test_a_map_is_that_of_opentsne_called_by_hand():
    states = clouds(300)
    start = pca_start(states)
    by_hand = openTSNE.TSNE(initialization=start).fit(affinities=Uniform(states, k_neighbors=15, method="exact"))
    found = tsne(neighbour_graph(states), start, phases=OPENTSNE)
    assert (found.n_iter, found.n_planned, found.finished) == (750, 750, True)
    assert found.kl_divergence == pytest.approx(by_hand.kl_divergence, rel=0.01)
    # Gradient descent takes roundings apart: places differ, what is kept of the neighbours does not.
    assert displacement(np.array(by_hand), found.coordinates).mean() < 0.1


def test_fewer_iterations_at_a_higher_rate_fit_as_well():
    states = clouds(600)
    graph, start = neighbour_graph(states), pca_start(states)
    one, other = tsne(graph, start), tsne(graph, start, phases=OPENTSNE)
    assert one.n_iter < other.n_iter
    assert one.kl_divergence < 1.02 * other.kl_divergence


def test_clouds_of_states_are_clouds_on_the_map():
    rng = np.random.default_rng(0)
    states = 20 * np.eye(3)[np.repeat(np.arange(3), 40)] + rng.normal(size=(120, 3))
    near = map_neighbours(fresh_map(states).coordinates, k=10)
    assert (near // 40 == np.arange(120)[:, np.newaxis] // 40).all()


@pytest.mark.parametrize("n_examples", [300, 10_100])  # forces from a tree, and by FFT
def test_equal_input_gives_equal_maps_whatever_the_threads(n_examples):
    states = clouds(n_examples)
    graph, phases = neighbour_graph(states, k=5), (Phase(5, 12), Phase(5, 1))
    one, again, two = (tsne(graph, pca_start(states), phases=phases, n_jobs=jobs) for jobs in (1, 1, 2))
    np.testing.assert_array_equal(again.coordinates, one.coordinates)
    np.testing.assert_array_equal(two.coordinates, one.coordinates)


@pytest.mark.parametrize("stop_at", [10, 30, 50, 70])  # within and at the end of each phase
def test_a_map_that_was_stopped_goes_on_to_the_same_end(stop_at):
    states = clouds(150)
    graph, start, phases = neighbour_graph(states), pca_start(states), (Phase(40, 12), Phase(50, 1))
    whole = tsne(graph, start, phases=phases)
    stopped = tsne(graph, start, phases=phases, callback=lambda done, _planned, _kl: done >= stop_at - 1)
    assert not stopped.finished
    assert stopped.n_iter == stop_at - 1
    assert np.isfinite(stopped.kl_divergence)
    resumed = tsne(neighbour_graph(states), start, phases=phases, resume=stopped)
    assert resumed.finished
    np.testing.assert_array_equal(resumed.coordinates, whole.coordinates)
    assert resumed.kl_divergence == whole.kl_divergence
    np.testing.assert_array_equal(tsne(graph, start, phases=phases, resume=whole).coordinates, whole.coordinates)


def test_the_callback_follows_the_iterations_and_the_divergence():
    told: list[tuple[int, int, float]] = []
    states = clouds(100)
    found = tsne(neighbour_graph(states), pca_start(states), callback=lambda *said: told.append(said))
    assert [done for done, _, _ in told] == list(range(9, 600, 10))
    assert {planned for _, planned, _ in told} == {600}
    assert told[-1][2] == pytest.approx(found.kl_divergence, rel=0.1)  # exaggeration is never in it
    assert all(kl < 6 for _, _, kl in told)


def test_the_start_and_the_map_to_resume_are_left_as_they_are():
    states = clouds(60)
    graph, start = neighbour_graph(states), pca_start(states)
    kept = start.copy()
    stopped = tsne(graph, start, callback=lambda *_: True)
    before = [array.copy() for array in (stopped.coordinates, stopped.gains, stopped.update)]
    tsne(graph, start, resume=stopped)
    np.testing.assert_array_equal(start, kept)
    for array, expected in zip((stopped.coordinates, stopped.gains, stopped.update), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_map_started_from_the_last_stays_near_it_and_is_as_good():
    states = clouds(500)
    moved = states + 0.2 * np.random.default_rng(1).normal(size=states.shape)
    last, graph = fresh_map(states), neighbour_graph(moved)
    continued, anew = tsne(graph, last.coordinates, phases=CONTINUED), fresh_map(moved)

    def recall(found):
        return shared(graph.indices, map_neighbours(found.coordinates, k=15)).mean()

    assert recall(continued) > 0.97 * recall(anew)
    assert displacement(last.coordinates, continued.coordinates).mean() < 0.3
    assert continued.n_planned < anew.n_planned / 2


def test_a_map_is_rearranged_where_few_neighbours_were_kept():
    assert [phases_after(kept) for kept in (0, 0.29, 0.3, 1)] == [REARRANGED, REARRANGED, CONTINUED, CONTINUED]


@pytest.mark.parametrize("n_examples", [4, 5, 16])
def test_few_examples_make_a_map_too(n_examples):
    found = fresh_map(clouds(n_examples)).coordinates
    assert np.isfinite(found).all()
    assert len(np.unique(found.round(6), axis=0)) == n_examples


def test_duplicates_make_a_map_too():
    found = fresh_map(np.repeat(clouds(20), 10, axis=0)).coordinates
    assert np.isfinite(found).all()
    assert np.isfinite(tsne(neighbour_graph(np.ones((40, 3))), np.zeros((40, 2))).coordinates).all()


def test_further_examples_find_their_place_among_landmarks():
    states = clouds(700)
    landmarks, others = states[:500], states[500:]
    graph = neighbour_graph(landmarks)
    known = tsne(graph, pca_start(landmarks)).coordinates
    told: list[tuple[int, int]] = []
    before = known.copy()
    placed = place(others, landmarks, graph, known, progress=lambda *said: told.append(said))
    np.testing.assert_array_equal(known, before)
    assert told == [(200, 200)]
    recall = shared(neighbour_graph(states).indices, map_neighbours(np.concatenate([known, placed]), k=15))
    assert recall[500:].mean() > 0.7 * recall[:500].mean()
    assert recall[500:].mean() > 0.2


def test_without_umap_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    states = clouds(20)
    with pytest.raises(AnalysisError, match=r'UMAP needs umap-learn; install it with: pip install "t3vis\[umap\]"'):
        umap(states, neighbour_graph(states), pca_start(states))


def test_umap_is_given_the_graph_and_the_start(monkeypatch):
    # Its own test below needs the extra; this one holds what it is called with, wherever the suite runs.
    class UMAP:
        def __init__(self, **options):
            self.options = options

        def fit_transform(self, states):
            indices, distances = self.options["precomputed_knn"]
            np.testing.assert_array_equal(indices[:, 0], np.arange(20))
            np.testing.assert_array_equal(indices[:, 1:], graph.indices)
            np.testing.assert_array_equal(distances, np.c_[np.zeros(20), graph.distances])
            assert self.options["n_neighbors"] == indices.shape[1] == 6
            assert self.options["random_state"] == 3
            return self.options["init"].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    states = clouds(20)
    graph, start = neighbour_graph(states, k=5), pca_start(states)
    found = umap(states, graph, start, seed=3)
    assert found.dtype == np.float64
    assert np.abs(found).max() == pytest.approx(10)
    np.testing.assert_allclose(found, start * (10 / np.abs(start).max()), rtol=1e-6)


def test_a_umap_map_keeps_neighbours_and_is_repeatable():
    states = clouds(120)
    graph, start = neighbour_graph(states), pca_start(states)
    found = umap(states, graph, start)
    np.testing.assert_array_equal(umap(states, graph, start), found)
    assert shared(graph.indices, map_neighbours(found, k=15)).mean() > 0.4  # by chance 0.13


def test_displacement_by_hand():
    # A square of side 2 about its middle: radius sqrt(2). Two of its corners exchanged: the best turn is none, the
    # best scale is 1/2 of the overlap left, so that (1, 1) goes to (0.5, 0.5) and the exchanged to the other side.
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    exchanged = square[[0, 3, 2, 1]]
    np.testing.assert_allclose(displacement(square, exchanged), 0, atol=1e-12)  # that is a reflection
    pair = square[[1, 0, 2, 3]]
    expected = np.linalg.norm(square - np.array([[0, -1], [1, 0], [0, 0], [0, 0]]), axis=1)
    assert displacement(square, pair).shape == expected.shape
    np.testing.assert_allclose((displacement(square, pair) ** 2).mean(), 1 - 0.5**2, atol=1e-12)


@given(st.integers(0, 9), st.floats(0.1, 9), st.booleans())
def test_displacement_does_not_see_where_and_how_large_a_map_lies(seed, scale, mirrored):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 30, 2))
    turn = special_ortho_group.rvs(2, random_state=seed) @ np.diag([1, -1 if mirrored else 1])
    expected = displacement(one, other)
    np.testing.assert_allclose(displacement(one, scale * other @ turn + 5), expected, atol=1e-9)
    np.testing.assert_allclose(displacement(scale * one @ turn - 3, other), expected, atol=1e-9)
    order = rng.permutation(30)
    np.testing.assert_allclose(displacement(one[order], other[order]), expected[order], atol=1e-9)


def test_displacement_agrees_with_scipy_s_procrustes():
    one, other = np.random.default_rng(0).normal(size=(2, 40, 2))
    first, second, disparity = procrustes(one, other)  # of unit size, the squares of whose distances it sums up
    found = displacement(one, other)
    np.testing.assert_allclose(found, np.linalg.norm(first - second, axis=1) * np.sqrt(40), atol=1e-9)
    assert (found**2).mean() == pytest.approx(disparity)


@pytest.mark.parametrize(
    ("n_examples", "n_places", "options", "message"),
    [
        (3, 3, {}, "3 examples make no t-SNE map; pass at least 4, or use PCA"),
        (9, 8, {}, r"the start has shape \(8, 2\) but the graph has 9 examples"),
    ],
)
def test_errors_of_tsne(n_examples, n_places, options, message):
    with pytest.raises(AnalysisError, match=message):
        tsne(neighbour_graph(clouds(n_examples)), np.zeros((n_places, 2)), **options)


def test_errors_say_what_disagrees():
    states = clouds(30)
    graph, start = neighbour_graph(states), pca_start(states)
    stopped = tsne(graph, start, callback=lambda *_: True)
    with pytest.raises(AnalysisError, match="the map to resume was to take 600 iterations, these phases 250"):
        tsne(graph, start, phases=CONTINUED, resume=stopped)
    with pytest.raises(AnalysisError, match="there are 29 landmarks, 30 in their graph and 30 on the map"):
        place(states, states[1:], graph, start)
    with pytest.raises(AnalysisError, match="too little for 11 principal components"):
        principal_axes(states, n_components=11)
    with pytest.raises(AnalysisError, match="too little for 2 principal components"):
        principal_axes(states[:0])
    with pytest.raises(AnalysisError, match="not finite, example 0"):
        principal_axes(np.full((3, 2), np.nan))
    with pytest.raises(AnalysisError, match=r"the maps have shapes \(30, 2\) and \(29, 2\)"):
        displacement(start, start[1:])
    with pytest.raises(AnalysisError, match="at one place"):
        displacement(start, np.ones((30, 2)))
