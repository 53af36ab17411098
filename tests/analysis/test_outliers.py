import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group, rankdata
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from t3vis.analysis.nearest import Neighbours, nearest_neighbours
from t3vis.analysis.outliers import knn_distance, mahalanobis, outliers, relative_rank
from t3vis.errors import AnalysisError


def test_knn_distance_averages_what_is_there():
    nothing = np.zeros((3, 2), dtype=int)
    found = knn_distance(Neighbours(nothing, np.array([[1.0, 3.0], [2.0, np.nan], [np.nan, np.nan]])))
    np.testing.assert_array_equal(found, [2, 2, np.nan])


def test_knn_distance_agrees_with_scikit_learn():
    states = np.random.default_rng(0).normal(size=(100, 5))
    expected, _ = NearestNeighbors().fit(states).kneighbors(n_neighbors=4)
    found = knn_distance(nearest_neighbours(states, k=4, metric="euclidean"))
    np.testing.assert_allclose(found, expected.mean(axis=1), rtol=1e-5)


def test_mahalanobis_by_hand():
    # Residuals (+-1, 0) and (0, +-2) in each class: variances 1/2 and 2, no covariance.
    cross = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    states = np.vstack([cross, cross + np.array([10, 0])])
    nearest, own = mahalanobis(states, np.repeat([0, 1], 4), shrinkage=0)
    np.testing.assert_allclose(own, np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(nearest, np.sqrt(2), rtol=1e-6)
    labels = np.array([0, 0, 0, 0, 1, 1, 1, -1])
    nearest, own = mahalanobis(states, labels, shrinkage=0)
    assert np.isnan(own).tolist() == [False] * 7 + [True]
    assert np.isfinite(nearest).all()


def test_mahalanobis_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    states = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) + 3 * rng.normal(size=(3, 5))[labels]
    means = np.stack([states[labels == label].mean(axis=0) for label in range(3)])
    model = EmpiricalCovariance(assume_centered=True).fit(states - means[labels])
    squares = np.stack([model.mahalanobis(states - mean) for mean in means])
    nearest, own = mahalanobis(states, labels, shrinkage=0, chunk_size=33)
    np.testing.assert_allclose(nearest**2, squares.min(axis=0), rtol=1e-4)
    np.testing.assert_allclose(own**2, squares[labels, np.arange(200)], rtol=1e-4)


@given(st.integers(0, 200), st.floats(0.1, 50))
def test_the_nearest_class_is_no_farther_than_the_own_and_turning_changes_nothing(seed, scale):
    rng = np.random.default_rng(seed)
    states, labels = rng.normal(size=(60, 4)), rng.integers(-1, 3, 60)
    nearest, own = mahalanobis(states, labels)
    known = labels >= 0
    assert np.all(nearest[known] <= own[known] * (1 + 1e-6) + 1e-6)
    turned = mahalanobis(scale * states @ ortho_group.rvs(4, random_state=seed), labels)
    np.testing.assert_allclose(turned[0], nearest, rtol=1e-2, atol=1e-3)


def test_a_planted_outlier_leads_every_ranking():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 300)
    states = rng.normal(size=(300, 8)) + 4 * np.eye(8)[labels]
    states[17] = -9
    far = knn_distance(nearest_neighbours(states, k=5, metric="euclidean"))
    nearest, own = mahalanobis(states, labels)
    assert far.argmax() == nearest.argmax() == own.argmax() == 17
    assert outliers(far, nearest, own, np.ones(300)).ranking()[0] == 17


def test_states_without_spread_or_labels_give_an_answer():
    nearest, own = mahalanobis(np.ones((4, 3)), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose([nearest, own], 0, atol=1e-6)
    assert np.isnan(mahalanobis(np.ones((4, 3)), np.full(4, -1))).all()
    states = np.random.default_rng(0).normal(size=(5, 3))
    states[2] = np.nan
    nearest, own = mahalanobis(states, np.zeros(5, dtype=int))
    assert np.flatnonzero(np.isnan(nearest) | np.isnan(own)).tolist() == [2]


@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=20))
def test_relative_ranks_are_those_of_scipy_on_what_is_known(values):
    column = np.array([np.nan if value is None else value for value in values])
    found = relative_rank(column)
    known = ~np.isnan(column)
    assert np.isnan(found).tolist() == (~known).tolist()
    n = max(known.sum() - 1, 1)
    np.testing.assert_allclose(found[known], (rankdata(column[known]) - 1) / n)


def test_the_score_is_the_mean_rank_of_what_is_known():
    nan = np.nan
    found = outliers(
        np.array([1.0, 2, 3, nan]), np.array([1.0, 3, 2, nan]), np.array([nan, 1, 2, nan]), np.array([5.0, 5, 5, nan])
    )
    # Equal losses share the rank 1 / 2.
    np.testing.assert_allclose(found.score, [(0 + 0 + 0.5) / 3, (0.5 + 1 + 0 + 0.5) / 4, (1 + 0.5 + 1 + 0.5) / 4, nan])
    assert found.ranking().tolist() == [2, 1, 0, 3]
    assert list(found.as_columns()) == ["score", "knn_distance", "mahalanobis", "mahalanobis_own", "mean_loss"]


def test_errors_say_what_disagrees():
    with pytest.raises(AnalysisError, match="shrinkage is 2"):
        mahalanobis(np.zeros((3, 2)), np.zeros(3, dtype=int), shrinkage=2)
    with pytest.raises(AnalysisError, match="labels has 2 examples"):
        mahalanobis(np.zeros((3, 2)), np.zeros(2, dtype=int))
    with pytest.raises(AnalysisError, match=r"the columns have shapes \[\(3,\), \(3,\), \(2,\), \(3,\)\]"):
        outliers(np.zeros(3), np.zeros(3), np.zeros(2), np.zeros(3))
