import numpy as np
import pytest

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


def test_shapes_that_disagree_are_refused():
    with pytest.raises(AnalysisError, match="labels has 2 examples but logits has 3"):
        pass_figures(np.zeros((1, 3, 2)), np.zeros(2, int))
