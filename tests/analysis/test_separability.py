import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge
from sklearn.metrics import davies_bouldin_score, silhouette_score
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from t3vis.analysis.nearest import nearest_neighbours
from t3vis.analysis.separability import class_geometry, knn_accuracy, neighbour_votes, probe_accuracy, separability
from t3vis.errors import AnalysisError


def blobs(n: int = 240, *, n_classes: int = 4, hidden: int = 6, apart: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    centers = rng.normal(size=(n_classes, hidden))
    return apart * centers[labels] + rng.normal(size=(n, hidden)), labels


def test_knn_accuracy_by_hand():
    # On a line 0, 1, 2, 9 with labels a, a, b, b: the nearest of 0 is 1 (right), of 1 is 0 (the lower id of two at
    # distance 1, right), of 2 is 1 (wrong), of 9 is 2 (right).
    states, labels = np.array([[0.0], [1], [2], [9]]), np.array([0, 0, 1, 1])
    near = nearest_neighbours(states, k=1, metric="euclidean")
    assert knn_accuracy(near, labels) == 0.75
    assert neighbour_votes(near, labels).tolist() == [[1, 0], [1, 0], [1, 0], [0, 1]]


def test_neighbours_without_a_label_do_not_vote():
    near = nearest_neighbours(np.array([[0.0], [1], [2]]), k=2, metric="euclidean")
    assert neighbour_votes(near, np.array([0, -1, 1])).tolist() == [[0, 1], [1, 1], [1, 0]]
    assert math.isnan(knn_accuracy(near, np.array([-1, -1, -1])))


def test_knn_accuracy_agrees_with_scikit_learn():
    states, labels = blobs(120)
    model = KNeighborsClassifier(7)
    expected = cross_val_score(model, states, labels, cv=LeaveOneOut()).mean()
    assert knn_accuracy(nearest_neighbours(states, k=7, metric="euclidean"), labels) == pytest.approx(expected)


@pytest.mark.parametrize("chunk_size", [17, 1000])
def test_the_probe_is_ridge_regression_to_one_hot_labels(chunk_size):
    states, labels = blobs(150, apart=0.7)
    states[4] = np.nan
    labels[9] = -1
    known = np.flatnonzero(np.isfinite(states[:, 0]) & (labels >= 0))
    fold_of = np.random.default_rng(3).permutation(150) % 5
    penalty = 1e-3 * ((states[known] - states[known].mean(axis=0)) ** 2).sum() / states.shape[1]
    right = 0
    for fold in range(5):
        fit, judge = known[fold_of[known] != fold], known[fold_of[known] == fold]
        model = Ridge(alpha=penalty).fit(states[fit], np.eye(4)[labels[fit]])
        right += (model.predict(states[judge]).argmax(axis=1) == labels[judge]).sum()
    assert probe_accuracy(states, labels, seed=3, chunk_size=chunk_size) == pytest.approx(right / len(known))


@given(st.integers(0, 200), st.floats(0.1, 100), st.floats(-50, 50))
def test_figures_do_not_see_rotation_scale_and_shift(seed, scale, shift):
    states, labels = blobs(80, apart=2, seed=seed)
    moved = scale * states @ ortho_group.rvs(6, random_state=seed) + shift
    first, second = class_geometry(states, labels), class_geometry(moved, labels)
    for name in ("fisher_ratio", "mean_cosine", "davies_bouldin"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-2, abs=1e-3)
    assert second.within == pytest.approx(scale**2 * first.within, rel=1e-2)


def test_geometry_by_hand():
    # Two classes at (0, +-1) and (4, +-1): each example is 1 from its mean, each mean 2 from the middle, and the
    # two means lie opposite each other. Davies-Bouldin: (1 + 1) / 4.
    states = np.array([[0.0, 1], [0, -1], [4, 1], [4, -1]])
    found = class_geometry(states, np.array([0, 0, 2, 2]))
    assert found.counts.tolist() == [2, 0, 2]
    assert (found.within, found.between, found.fisher_ratio) == (1, 4, 4)
    assert found.mean_cosine == pytest.approx(-1)
    assert found.davies_bouldin == pytest.approx(0.5)


def test_scatter_within_and_between_add_up_to_all():
    states, labels = blobs()
    found = class_geometry(states, labels, chunk_size=31)
    total = ((states - states.mean(axis=0)) ** 2).sum(axis=1).mean()
    assert found.within + found.between == pytest.approx(total, rel=1e-5)


def test_davies_bouldin_and_silhouette_agree_with_scikit_learn():
    states, labels = blobs()
    found = separability(states, labels)
    assert found.davies_bouldin == pytest.approx(davies_bouldin_score(states, labels), rel=1e-5)
    assert found.silhouette == pytest.approx(silhouette_score(states, labels), rel=1e-5)


def test_classes_farther_apart_are_told_apart_better():
    near, far = (separability(*blobs(apart=apart)) for apart in (0.2, 3))
    assert far.knn_accuracy > near.knn_accuracy + 0.3
    assert far.probe_accuracy > near.probe_accuracy + 0.3
    assert far.fisher_ratio > near.fisher_ratio
    assert far.davies_bouldin < near.davies_bouldin
    assert far.silhouette > near.silhouette


def test_a_sample_of_queries_estimates_the_whole():
    states, labels = blobs(3000)
    whole, part = separability(states, labels), separability(states, labels, max_queries=1000)
    assert (whole.n_queries, part.n_queries) == (3000, 1000)
    assert abs(whole.knn_accuracy - part.knn_accuracy) < 4 * 0.5 / math.sqrt(1000)


@pytest.mark.parametrize(
    "labels", [np.zeros(5, dtype=int), np.full(5, -1), np.array([0, -1, -1, -1, -1])], ids=["one class", "none", "one"]
)
def test_what_needs_two_classes_is_not_known_with_fewer(labels):
    row = separability(np.random.default_rng(0).normal(size=(5, 3)), labels).as_row()
    for name in ("probe_accuracy", "silhouette", "davies_bouldin", "fisher_ratio", "mean_cosine"):
        assert math.isnan(row[name]), name


def test_three_examples_and_states_that_never_vary_give_an_answer():
    few = separability(np.array([[0.0], [1], [5]]), np.array([0, 0, 1]))
    assert few.n_queries == 3
    same = separability(np.ones((20, 3)), np.arange(20) % 2)
    assert math.isnan(same.fisher_ratio)
    assert 0 <= same.probe_accuracy <= 1
    assert math.isnan(separability(np.full((5, 2), np.nan), np.arange(5) % 2).probe_accuracy)


def test_errors_say_what_disagrees():
    with pytest.raises(AnalysisError, match=r"labels has 4 examples but the hidden states have shape \(5, 2\)"):
        separability(np.zeros((5, 2)), np.zeros(4, dtype=int))
    with pytest.raises(AnalysisError, match="dtype float64"):
        class_geometry(np.zeros((5, 2)), np.zeros(5))
    with pytest.raises(AnalysisError, match="n_folds is 1"):
        probe_accuracy(np.zeros((5, 2)), np.zeros(5, dtype=int), n_folds=1)
    with pytest.raises(AnalysisError, match="chunk_size is 0"):
        class_geometry(np.zeros((5, 2)), np.zeros(5, dtype=int), chunk_size=0)
