import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from t3vis.analysis import nearest
from t3vis.analysis.nearest import lowest, nearest_neighbours, nearest_rows, sample_of
from t3vis.errors import AnalysisError


def test_four_points_by_hand():
    # Unit vectors at 0, 90, 180 and 45 degrees; cosines of 45 and 135 degrees are plus and minus sqrt(1/2).
    states = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    found = nearest_neighbours(states, k=3)
    assert found.ids.tolist() == [[3, 1, 2], [3, 0, 2], [1, 3, 0], [0, 1, 2]]
    root = np.sqrt(1 / 2)
    np.testing.assert_allclose(found.distances[0], [1 - root, 1, 2], atol=1e-6)
    np.testing.assert_allclose(found.distances[2], [1, 1 + root, 2], atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("offset", [0, 100])
def test_agrees_with_scikit_learn(metric, offset, monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK_BYTES", 20_000)  # so that there are several blocks
    states = (np.random.default_rng(0).normal(size=(400, 20)) + offset).astype(np.float32)
    found = nearest_neighbours(states, k=10, metric=metric)
    distances, ids = NearestNeighbors(metric=metric).fit(states.astype(np.float64)).kneighbors(n_neighbors=10)
    # At an offset of 100 all cosines are 1 within 1e-4, and float32 orders some pairs the other way.
    assert np.mean(found.ids == ids) > (0.97 if offset and metric == "cosine" else 0.999)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-3, atol=1e-6)


@given(st.integers(0, 999), st.integers(1, 9), st.sampled_from([1, 12, 1_200]), st.sampled_from([1, 4, 1_000]))
def test_the_lowest_are_the_first_of_a_stable_order(seed, k, n_columns, n_values):
    # Few different values have many ties, from 4 * 25 * k columns on they fall into groups; some are infinite.
    far = np.random.default_rng(seed).integers(0, n_values, (3, n_columns)).astype(np.float32)
    far[far == 7] = np.inf
    k = min(k, n_columns)
    found, values = lowest(far, k)
    np.testing.assert_array_equal(found, np.sort(np.argsort(far, axis=1, kind="stable")[:, :k], axis=1))
    np.testing.assert_array_equal(values, np.take_along_axis(far, found, axis=1))


def test_products_that_lose_the_small_distances_only_choose_the_candidates():
    # Squares of a thousand leave no digit of a hundredth in float32: the order among the nine is that of differences.
    rows = np.array([[1_000.0], [1_000.04], [1_000.01], [1_000.03], [1_000.02], [-1_000.0]], dtype=np.float32)
    found, distances = nearest_rows(rows[:1], rows, k=2, own=np.array([0]))
    assert found.tolist() == [[2, 4]]
    np.testing.assert_allclose(distances, [[0.01, 0.02]], rtol=0.01)


def test_where_nothing_is_left_the_distance_is_infinite():
    found, distances = nearest_rows(
        np.zeros((2, 1), np.float32), np.ones((1, 1), np.float32), k=1, own=np.array([0, -1])
    )
    assert distances.tolist() == [[np.inf], [1]]
    assert found[1] == 0


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(-9, 9)),
    st.integers(1, 5),
)
def test_no_reference_that_is_left_out_is_nearer(states, k):
    found = nearest_neighbours(states, k=k, metric="euclidean")
    n_found = min(k, len(states) - 1)
    assert np.all(found.ids[:, :n_found] >= 0)
    assert np.all(found.ids[:, n_found:] == -1)
    assert not np.any(found.ids == np.arange(len(states))[:, np.newaxis])
    expected = cdist(states, states)
    np.fill_diagonal(expected, np.inf)
    np.testing.assert_allclose(found.distances[:, :n_found], np.sort(expected, axis=1)[:, :n_found], atol=1e-4)


def test_what_was_not_seen_is_nobody_s_neighbour():
    states = np.array([[0.0], [np.nan], [1.0], [5.0]])
    found = nearest_neighbours(states, k=2, metric="euclidean")
    assert found.ids.tolist() == [[2, 3], [-1, -1], [0, 3], [2, 0]]
    assert np.isnan(found.distances[1]).all()


def test_references_and_queries_bound_the_search():
    states = np.arange(10.0)[:, np.newaxis]
    found = nearest_neighbours(
        states, k=2, metric="euclidean", references=np.array([0, 9, 5]), queries=np.array([8, 5])
    )
    assert found.ids.tolist() == [[9, 5], [9, 0]]
    assert found.distances.tolist() == [[1, 3], [4, 5]]


def test_duplicates_are_neighbours_at_distance_zero():
    found = nearest_neighbours(np.ones((3, 4)), k=2)
    assert found.ids.tolist() == [[1, 2], [0, 2], [0, 1]]
    np.testing.assert_allclose(found.distances, 0, atol=1e-7)


def test_nothing_but_what_was_not_seen():
    found = nearest_neighbours(np.full((3, 2), np.nan), k=2)
    assert (found.ids == -1).all()


def test_a_sample_is_sorted_distinct_and_repeatable():
    drawn = sample_of(1000, 10, seed=3)
    assert len(set(drawn)) == 10
    assert sorted(drawn) == drawn.tolist() == sample_of(1000, 10, seed=3).tolist()


def test_errors_say_what_is_wrong():
    with pytest.raises(AnalysisError, match="k is 0"):
        nearest_neighbours(np.zeros((2, 2)), k=0)
    with pytest.raises(AnalysisError, match=r"shape \(2,\) but must be \(n_examples, hidden\)"):
        nearest_neighbours(np.zeros(2))


def test_progress_is_told_and_blocks_change_nothing(monkeypatch):
    states = np.random.default_rng(0).normal(size=(50, 3))
    whole = nearest_neighbours(states, k=4)
    monkeypatch.setattr(nearest, "CHUNK_SIZE", 20)
    monkeypatch.setattr(nearest, "DIFFERENCE_BYTES", 4 * 12 * 3 * 7)
    told = []
    found = nearest_neighbours(states, k=4, progress=lambda *done: told.append(done))
    assert told == [(20, 50), (40, 50), (50, 50)]
    np.testing.assert_array_equal(found.ids, whole.ids)
    np.testing.assert_allclose(found.distances, whole.distances, rtol=1e-6)
