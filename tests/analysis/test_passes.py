import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import accuracy_score

from t3vis.analysis.passes import pass_figures
from t3vis.errors import AnalysisError


def test_figures_are_means_over_what_was_seen_and_has_a_label():
    logits = np.log(np.array([[[3, 1], [1, 3], [1, 1], [3, 1]], [[1, 3], [1, 3], [3, 1], [3, 1]]], float))
    logits[1, 0] = np.nan
    found = pass_figures(logits, np.array([0, 0, 0, -1]))
    assert found.n_known.tolist() == [3, 2]
    np.testing.assert_allclose(found.accuracy, [2 / 3, 1 / 2])  # of equal logits the first class is the prediction
    np.testing.assert_allclose(found.gold_prob, [(0.75 + 0.25 + 0.5) / 3, (0.25 + 0.75) / 2])


def test_a_pass_of_which_nothing_is_known_is_nan():
    found = pass_figures(np.full((2, 3, 2), np.nan), np.zeros(3, int))
    assert np.isnan(found.accuracy).all()
    assert np.isnan(found.gold_prob).all()


def test_chunks_change_nothing():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 50, 4)), rng.integers(0, 4, 50)
    whole, chunked = (pass_figures(logits, labels, chunk_size=size).as_columns() for size in (100, 7))
    for name in whole:
        np.testing.assert_allclose(whole[name], chunked[name])
    np.testing.assert_allclose(whole["accuracy"], (logits.argmax(-1) == labels).mean(axis=1))


def test_figures_agree_with_scikit_learn_and_scipy():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(2, 60, 5)), rng.integers(0, 5, 60)
    found = pass_figures(logits, labels)
    for epoch, of_epoch in enumerate(logits):
        assert found.accuracy[epoch] == pytest.approx(accuracy_score(labels, of_epoch.argmax(axis=1)))
        assert found.gold_prob[epoch] == pytest.approx(softmax(of_epoch, axis=1)[np.arange(60), labels].mean())


@given(st.integers(0, 99), st.integers(1, 19))
def test_the_figures_of_all_are_those_of_the_parts_by_their_sizes(seed, n_first):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(2, 20, 3)), rng.integers(-1, 3, 20)
    whole, *parts = (
        pass_figures(logits[:, part], labels[part]) for part in (slice(None), slice(n_first), slice(n_first, None))
    )
    assert whole.n_known.tolist() == sum(part.n_known for part in parts).tolist()
    for name in ("accuracy", "gold_prob"):
        sums = [np.nan_to_num(getattr(part, name)) * part.n_known for part in parts]
        np.testing.assert_allclose(getattr(whole, name) * whole.n_known, sum(sums))


def test_shapes_that_disagree_are_refused():
    with pytest.raises(AnalysisError, match="labels has 2 examples but logits has 3"):
        pass_figures(np.zeros((1, 3, 2)), np.zeros(2, int))
