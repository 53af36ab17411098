import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import special_ortho_group
from sklearn.neighbors import NearestNeighbors

from t3vis.analysis import nearest, neighbours
from t3vis.analysis.neighbours import (
    NeighbourGraph,
    map_neighbours,
    nearest_in,
    neighbour_graph,
    neighbour_overlap,
)
from t3vis.errors import AnalysisError

# Half-integers, so that equal distances are equal in floating point too.
points = hnp.arrays(np.float64, st.tuples(st.integers(2, 30), st.integers(1, 4)), elements=st.integers(-6, 6)).map(
    lambda rows: rows / 2
)


def clouds(n_examples: int, hidden: int = 24, seed: int = 0) -> np.ndarray:
    """Twelve clouds of states."""
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(12, hidden))[rng.integers(0, 12, n_examples)] + rng.normal(size=(n_examples, hidden))


def brute_force(states: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By distance, then by id; the example itself left out."""
    far = np.linalg.norm(states[:, np.newaxis] - states, axis=2)
    np.fill_diagonal(far, np.inf)
    order = np.argsort(far, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(far, order, axis=1)


def test_neighbours_by_hand():
    # Distances from 0: 3 and 10; from 3: 3 and 7; from 10: 7 and 10.
    found = neighbour_graph(np.array([[0.0], [3.0], [10.0]]), k=2)
    assert found.indices.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert found.distances.tolist() == [[3, 10], [3, 7], [7, 10]]
    assert (found.n_examples, found.k, found.recall) == (3, 2, 1)


def test_there_are_at_most_as_many_neighbours_as_others():
    assert neighbour_graph(np.array([[0.0], [1.0], [5.0]]), k=15).k == 2


@given(points, st.integers(1, 5))
def test_exact_neighbours_are_those_of_all_distances(states, k):
    found = neighbour_graph(states, k=k)
    _, distances = brute_force(states, found.k)
    np.testing.assert_allclose(found.distances, distances, atol=1e-6)
    np.testing.assert_allclose(
        found.distances, np.linalg.norm(states[found.indices] - states[:, np.newaxis], axis=2), atol=1e-6
    )
    assert not (found.indices == np.arange(len(states))[:, np.newaxis]).any()
    assert all(len(set(row)) == found.k for row in found.indices.tolist())


def test_agrees_with_scikit_learn_on_states_far_from_the_origin(monkeypatch):
    # A common offset of a hundred spreads would cost the products of float32 most of their digits.
    monkeypatch.setattr(nearest, "BLOCK_BYTES", 40_000)  # some 14 blocks
    states = clouds(700) + 100
    distances, indices = NearestNeighbors(n_neighbors=15).fit(states).kneighbors()
    found = neighbour_graph(states.astype(np.float32))
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-4)


@given(st.integers(0, 5))
def test_turning_moving_and_reordering_the_states_changes_no_neighbour(seed):
    rng = np.random.default_rng(seed)
    states = clouds(60, hidden=6, seed=seed)
    order = rng.permutation(60)
    turned = states @ special_ortho_group.rvs(6, random_state=seed) + 5
    found, expected = neighbour_graph(turned[order], k=4), neighbour_graph(states, k=4)
    np.testing.assert_array_equal(order[found.indices], expected.indices[order])
    np.testing.assert_allclose(found.distances, expected.distances[order], rtol=1e-4)


def test_of_equally_near_examples_the_first_are_neighbours():
    # All at one place, as duplicate texts are.
    found = neighbour_graph(np.ones((5, 3)), k=2)
    assert found.indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert not found.distances.any()


def test_approximate_neighbours_say_how_many_are_true():
    states = clouds(3_000, hidden=8)
    truth = neighbour_graph(states, k=10)
    found = neighbour_graph(states, k=10, max_exact=100)
    recall = neighbour_overlap(truth, found)
    assert 0.8 < found.recall < 1
    assert found.recall == pytest.approx(recall.mean(), abs=4 * recall.std() / np.sqrt(neighbours.N_RECALL_EXAMPLES))
    true_distances = np.linalg.norm(states[found.indices] - states[:, np.newaxis], axis=2)
    np.testing.assert_allclose(found.distances, true_distances, rtol=1e-4, atol=1e-5)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert not (found.indices == np.arange(3_000)[:, np.newaxis]).any()
    again = neighbour_graph(states, k=10, max_exact=100)
    np.testing.assert_array_equal(again.indices, found.indices)


def test_an_example_whose_cells_hold_too_few_others_is_searched_for_everywhere():
    # Twenty examples in four cells, of which one is visited: it cannot hold 15 others for all of them.
    states = clouds(20)
    found = neighbour_graph(states, k=15, max_exact=10)
    assert all(len(set(row)) == 15 for row in found.indices.tolist())
    np.testing.assert_array_equal(np.sort(found.indices[found.indices[:, 0] >= 0]).shape, (20, 15))
    assert found.recall > 0.7


def test_approximate_neighbours_of_duplicates():
    found = neighbour_graph(np.repeat(clouds(5), 40, axis=0), k=3, max_exact=10)
    assert not found.distances.any()
    assert all(len(set(row)) == 3 for row in found.indices.tolist())


def test_progress_counts_the_examples(monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK_BYTES", 4 * 100 * 30)
    told: list[tuple[int, int]] = []
    neighbour_graph(clouds(100, hidden=3), progress=lambda done, total: told.append((done, total)))
    assert told == [(51, 100), (92, 100), (100, 100)]  # squares: of 100, 70 and 28 rows with those that are left
    told.clear()
    neighbour_graph(clouds(100), max_exact=10, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


def test_nearest_in_other_states_agrees_with_scikit_learn():
    states, queries = clouds(300), clouds(40, seed=0)[::-1] + 0.01
    distances, indices = NearestNeighbors(n_neighbors=4).fit(states).kneighbors(queries)
    found, far = nearest_in(queries, states, k=4)
    np.testing.assert_array_equal(found, indices)
    np.testing.assert_allclose(far, distances, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_examples", [30, 200])
def test_neighbours_on_a_map_leave_out_the_example_and_nothing_else(n_examples):
    places = np.random.default_rng(0).integers(0, 5, (n_examples, 2)).astype(float)  # many at one place
    found = map_neighbours(places, k=7)
    assert not (found == np.arange(n_examples)[:, np.newaxis]).any()
    assert all(len(set(row)) == 7 for row in found.tolist())
    _, distances = brute_force(places, 7)
    np.testing.assert_allclose(np.linalg.norm(places[found] - places[:, np.newaxis], axis=2), distances)


def test_overlap_by_hand():
    def graph(indices):
        return NeighbourGraph(np.array(indices, np.int32), np.zeros((2, 3), np.float32), recall=1)

    one, other = graph([[1, 2, 3], [4, 5, 6]]), graph([[3, 9, 1], [4, 5, 6]])
    assert neighbour_overlap(one, other).tolist() == pytest.approx([2 / 3, 1])


@given(st.integers(0, 99))
def test_overlap_is_that_of_sets_whichever_comes_first(seed):
    rng = np.random.default_rng(seed)
    graphs = [
        NeighbourGraph(
            np.stack([rng.permutation(9)[:4] for _ in range(6)]).astype(np.int32),
            np.zeros((6, 4), np.float32),
            recall=1,
        )
        for _ in range(2)
    ]
    found = neighbour_overlap(*graphs)
    expected = [len(set(one) & set(other)) / 4 for one, other in zip(*(graph.indices for graph in graphs), strict=True)]
    assert found.tolist() == neighbour_overlap(*graphs[::-1]).tolist() == expected
    assert neighbour_overlap(graphs[0], graphs[0]).tolist() == [1] * 6


@pytest.mark.parametrize(
    ("states", "options", "message"),
    [
        (np.zeros(3), {}, r"states has shape \(3,\) and dtype float64 but must be floating-point"),
        (np.zeros((3, 2), int), {}, "dtype int64"),
        (np.array([[0.0], [np.nan], [np.inf]]), {}, "2 of 3 examples have states that are not finite, example 1"),
        (np.zeros((1, 2)), {}, "1 examples and k=15; neighbours need two examples"),
        (np.zeros((5, 2)), {"k": 0}, "5 examples and k=0"),
    ],
)
def test_errors_say_what_is_wrong(states, options, message):
    with pytest.raises(AnalysisError, match=message):
        neighbour_graph(states, **options)


def test_errors_of_arrays_that_disagree():
    with pytest.raises(AnalysisError, match="queries have 3 columns but states have 2"):
        nearest_in(np.zeros((1, 3)), np.zeros((4, 2)), k=1)
    small, large = neighbour_graph(clouds(5)), neighbour_graph(clouds(6))
    with pytest.raises(AnalysisError, match=r"the graphs have shapes \(5, 4\) and \(6, 5\)"):
        neighbour_overlap(small, large)
