import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from t3vis.analysis import all_nearest as module
from t3vis.analysis import nearest
from t3vis.analysis.all_nearest import all_nearest


def test_four_points_by_hand():
    found, distances = all_nearest(np.array([[0, 0], [3, 4], [0, 1], [0, 0]], np.float32), k=3)
    assert found.tolist() == [[3, 2, 1], [2, 0, 3], [0, 3, 1], [0, 2, 1]]
    np.testing.assert_allclose(distances, [[0, 1, 5], [18**0.5, 5, 5], [1, 1, 18**0.5], [0, 1, 5]], rtol=1e-6)


@pytest.mark.parametrize("many", [0, 4, 1_000])
@given(
    seed=st.integers(0, 999), n_rows=st.integers(2, 90), n_values=st.sampled_from([1, 3, 99]), k=st.integers(1, 5),
    block=st.sampled_from([1, 7, 30, 10_000]),
)  # fmt: skip
def test_they_are_the_first_of_a_stable_order_of_all_distances(many, seed, n_rows, n_values, k, block):
    # Few different values have many ties; integers lose no digit in the products.
    rows = np.random.default_rng(seed).integers(0, n_values, (n_rows, 2)).astype(np.float32)
    k = min(k, n_rows - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "BLOCK_BYTES", 4 * block * n_rows)
        patch.setattr(module, "MANY", many)
        found, distances = all_nearest(rows, k=k)
    expected = cdist(rows, rows)
    np.fill_diagonal(expected, np.inf)
    order = np.argsort(expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found, order)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, order, axis=1), rtol=1e-6)


def test_agrees_with_scikit_learn_over_several_blocks(monkeypatch):
    monkeypatch.setattr(nearest, "BLOCK_BYTES", 4 * 50 * 3_000)
    rows = np.random.default_rng(0).normal(size=(3_000, 20)).astype(np.float32)
    told: list[tuple[int, int]] = []
    found, distances = all_nearest(rows, k=15, progress=lambda done, total: told.append((done, total)))
    expected, ids = NearestNeighbors().fit(rows.astype(np.float64)).kneighbors(n_neighbors=15)
    assert np.mean(found == ids) > 0.999
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    assert told == sorted(set(told))
    assert told[-1] == (3_000, 3_000)
    assert len(told) > 20
