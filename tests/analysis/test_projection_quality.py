import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import special_ortho_group
from sklearn.manifold import trustworthiness

from t3vis.analysis import neighbours
from t3vis.analysis.neighbours import neighbour_graph
from t3vis.analysis.principal_axes import principal_axes
from t3vis.analysis.projection_quality import Estimate, ProjectionQuality, projection_quality
from t3vis.errors import AnalysisError


def states_and_map(n_examples: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Six clouds in ten dimensions, and their first two principal components."""
    rng = np.random.default_rng(seed)
    states = 2 * rng.normal(size=(6, 10))[rng.integers(0, 6, n_examples)] + rng.normal(size=(n_examples, 10))
    return states, principal_axes(states).coordinates(states)


def quality(states: np.ndarray, coordinates: np.ndarray, k: int = 15, **options: object) -> ProjectionQuality:
    return projection_quality(states, coordinates, neighbour_graph(states, k=k), **options)


def by_hand(states: np.ndarray, coordinates: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The measures from whole matrices of distances and ranks, as the papers define them."""
    n_examples = len(states)
    far, far_on_map = cdist(states, states), cdist(coordinates, coordinates)
    others = ~np.eye(n_examples, dtype=bool)
    rank, rank_on_map = (
        (d[:, np.newaxis, :] < d[:, :, np.newaxis]).sum(axis=2, where=others[:, np.newaxis]) + 1
        for d in (far, far_on_map)
    )
    near, near_on_map = (rank <= k) & others, (rank_on_map <= k) & others
    worst = k * (2 * n_examples - 3 * k - 1) / 2
    return {
        "trustworthiness": 1 - ((rank - k) * (near_on_map & ~near)).sum(axis=1) / worst,
        "continuity": 1 - ((rank_on_map - k) * (near & ~near_on_map)).sum(axis=1) / worst,
        "neighbour_recall": (near & near_on_map).sum(axis=1) / k,
        "distance_correlation": np.array(
            [np.corrcoef(a[o], b[o])[0, 1] for a, b, o in zip(far, far_on_map, others, strict=True)]
        ),
    }


def test_measures_by_hand():
    # Six points on a line; on the map the third has gone beyond the last. With k = 1 the worst sum of excess ranks
    # is (12 - 3 - 1) / 2 = 4. Nearest on the map: 0-1, 1-0, 2-5, 3-4, 4-3, 5-4. Ranks of these on the line: 5 is
    # the furthest from 2, rank 5, excess 4; for 3 the nearer is 2 (1.2), then 4 (1.3), rank 2, excess 1.
    line = np.array([[0.0], [1.0], [2.1], [3.3], [4.6], [6.0]])
    mapped = np.array([[0.0, 0], [1.0, 0], [9.0, 0], [3.3, 0], [4.6, 0], [6.0, 0]])
    found = quality(line, mapped, k=1)
    assert found.trustworthiness.tolist() == [1, 1, 0, 3 / 4, 1, 1]
    # Nearest on the line: 0-1, 1-0, 2-1, 3-2, 4-3, 5-4. On the map 1 is at 8 from 2, behind 5 (3), 4 (4.4) and
    # 3 (5.7): rank 4, excess 3; 2 is at 5.7 from 3, behind 4, 1 (2.3), 5 (2.7) and 0 (3.3): rank 5, excess 4.
    assert found.continuity.tolist() == [1, 1, 1 / 4, 0, 1, 1]
    assert found.neighbour_recall.tolist() == [1, 1, 0, 0, 1, 1]
    assert (found.k, found.n_sampled, found.graph_recall) == (1, 6, 1)
    assert found.summary()["trustworthiness"] == Estimate(pytest.approx(4.75 / 6), 0)


def test_agrees_with_the_definitions_point_by_point():
    states, coordinates = states_and_map(90)
    found = quality(states, coordinates, k=6).as_columns()
    for name, expected in by_hand(states, coordinates, 6).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6, err_msg=name)


def test_agrees_with_scikit_learn(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 100_000)  # some 15 blocks
    states, coordinates = states_and_map(600)
    summary = quality(states, coordinates).summary()
    assert summary["trustworthiness"].value == pytest.approx(
        trustworthiness(states, coordinates, n_neighbors=15), abs=1e-6
    )
    # The continuity of a map is the trustworthiness of the states as a map of the map.
    assert summary["continuity"].value == pytest.approx(trustworthiness(coordinates, states, n_neighbors=15), abs=1e-6)


def test_the_overall_correlation_is_over_all_pairs():
    states, coordinates = states_and_map(80)
    pairs = np.triu_indices(80, 1)
    expected = np.corrcoef(cdist(states, states)[pairs], cdist(coordinates, coordinates)[pairs])[0, 1]
    found = quality(states, coordinates).summary()["distance_correlation"]
    assert found == Estimate(pytest.approx(expected, abs=1e-6), 0)


def test_a_faithful_map_is_perfect():
    plane = np.random.default_rng(0).normal(size=(100, 2))
    found = quality(plane, 7 * plane[:, ::-1] + 3)
    for name, values in found.as_columns().items():
        np.testing.assert_allclose(values, 1, atol=1e-5, err_msg=name)


def test_a_random_map_is_at_a_half_and_keeps_neighbours_by_chance_only():
    states, _ = states_and_map(1_000)
    found = quality(states, np.random.default_rng(1).normal(size=(1_000, 2))).summary()
    assert found["trustworthiness"].value == pytest.approx(0.5, abs=0.02)
    assert found["continuity"].value == pytest.approx(0.5, abs=0.02)
    assert found["neighbour_recall"].value == pytest.approx(15 / 999, abs=0.01)
    assert found["distance_correlation"].value == pytest.approx(0, abs=0.02)


@given(st.integers(0, 5))
def test_turning_scaling_and_reordering_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    states, coordinates = states_and_map(60, seed=seed)
    order = rng.permutation(60)
    turned = 3 * coordinates @ special_ortho_group.rvs(2, random_state=seed) + 10
    states_turned = states @ special_ortho_group.rvs(10, random_state=seed) - 4
    found = quality(states_turned[order], turned[order], k=5).as_columns()
    for name, expected in quality(states, coordinates, k=5).as_columns().items():
        np.testing.assert_allclose(found[name], expected[order], atol=1e-4, err_msg=name)


def test_a_sample_is_exact_where_it_is_taken_and_says_how_far_its_mean_may_be_off():
    states, coordinates = states_and_map(1_500)
    whole = quality(states, coordinates)
    part = quality(states, coordinates, max_exact=1_000, n_sampled=300)
    assert part.n_sampled == 300
    measured = ~np.isnan(part.trustworthiness)
    for name in ("trustworthiness", "continuity", "distance_correlation"):
        np.testing.assert_allclose(part.as_columns()[name][measured], whole.as_columns()[name][measured], atol=1e-6)
        assert np.isnan(part.as_columns()[name][~measured]).all()
    np.testing.assert_array_equal(part.neighbour_recall, whole.neighbour_recall)
    assert part.summary()["neighbour_recall"] == whole.summary()["neighbour_recall"]
    for name in ("trustworthiness", "continuity", "distance_correlation"):
        found, expected = part.summary()[name], whole.summary()[name]
        assert 0 < found.error < 0.05
        assert abs(found.value - expected.value) < 4 * found.error


@pytest.mark.parametrize("name", ["trustworthiness", "distance_correlation"])
def test_standard_errors_are_the_spread_over_samples(name):
    states, coordinates = states_and_map(400)
    samples = [
        quality(states, coordinates, max_exact=100, n_sampled=100, seed=seed).summary()[name] for seed in range(60)
    ]
    spread = np.std([sample.value for sample in samples])
    assert np.mean([sample.error for sample in samples]) == pytest.approx(spread, rel=0.3)


def test_duplicates_share_the_best_rank():
    # Five texts that all stand twice, as they do in the wild: a map that keeps each beside its copy loses nothing.
    states = np.repeat(np.random.default_rng(0).normal(size=(10, 5)), 2, axis=0)
    coordinates = np.repeat(np.random.default_rng(1).normal(size=(10, 2)), 2, axis=0)
    found = quality(states, coordinates, k=1)
    assert found.trustworthiness.tolist() == found.continuity.tolist() == found.neighbour_recall.tolist() == [1] * 20


def test_all_at_one_place_has_no_correlation():
    found = quality(np.ones((6, 3)), np.ones((6, 2)), k=2)
    assert np.isnan(found.distance_correlation).all()
    assert np.isnan(found.summary()["distance_correlation"].value)
    assert found.trustworthiness.tolist() == [1] * 6


def test_as_many_neighbours_as_the_measures_are_defined_for():
    states, coordinates = states_and_map(6)
    assert quality(states, coordinates).k == 2
    assert quality(*states_and_map(4)).k == 1


def test_progress_counts_the_points():
    told = []
    quality(*states_and_map(50), progress=lambda done, total: told.append((done, total)))
    assert told == [(50, 50)]


@pytest.mark.parametrize(
    ("n_states", "n_places", "options", "message"),
    [
        (3, 3, {}, "there are 3 states, 3 places and 3 examples in the graph; pass the same examples, at least four"),
        (5, 6, {}, "there are 5 states, 6 places and 5 examples"),
        (5, 5, {"n_sampled": 1}, "n_sampled is 1 but must be at least 2"),
    ],
)
def test_errors_say_what_disagrees(n_states, n_places, options, message):
    with pytest.raises(AnalysisError, match=message):
        quality(np.eye(n_states), np.zeros((n_places, 2)), **options)


def test_a_place_that_is_not_finite_is_an_error():
    with pytest.raises(AnalysisError, match=r"coordinates of shape \(5, 2\) must be two-dimensional and finite"):
        quality(np.eye(5), np.full((5, 2), np.nan))
