import math

import numpy as np
import pytest
from cleanlab.multilabel_classification import get_label_quality_scores
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t3vis.analysis.generalised import multi_label_map, regression_map
from t3vis.analysis.generalised_quality import multi_label_suspects, regression_suspects
from t3vis.analysis.label_quality import suspected_errors
from t3vis.analysis.nearest import Neighbours, nearest_neighbours
from t3vis.errors import AnalysisError

NAN = math.nan


class TestMultiLabel:
    def test_by_hand(self):
        # Odds of the labels by epoch, given where marked: 3* and 1, 3* and 1/3: the first is credible at 3/4, the
        # second, not given, at 1/2 and 3/4, mean 5/8: it is the suspicious one. Then 1/4*, the other not known. The
        # third was never seen, the fourth has no label.
        gone = [NAN, NAN]
        logits = np.array(
            [[np.log([3, 1]), np.log([1 / 4, 9]), gone, [0, 0]], [np.log([3, 1 / 3]), gone, gone, [0, 0]]]
        )
        found = multi_label_suspects(logits, np.array([[1, 0], [1, NAN], [1, 0], [NAN, NAN]]))
        assert found.score == pytest.approx([3 / 8, 4 / 5, NAN, NAN], nan_ok=True)
        assert found.suggested_label.tolist() == [1, 0, -1, -1]
        assert found.suggested_prob[:2] == pytest.approx([3 / 8, 4 / 5])
        assert found.self_confidence == pytest.approx([5 / 8, 1 / 5, NAN, NAN], nan_ok=True)
        assert found.aum == pytest.approx([math.log(3) / 2, -math.log(4), NAN, NAN], nan_ok=True)
        assert found.ranking().tolist() == [1, 0, 2, 3]

    def test_neighbours_count_twice_as_much_as_the_model(self):
        # All labels at 3/4; the neighbour of the first example has its first label and not its second.
        near = Neighbours(np.array([[1], [0]]), np.array([[1.0], [1.0]]))
        found = multi_label_suspects(np.full((1, 2, 2), math.log(3)), np.array([[1, 1], [1, 0]]), neighbours=near)
        this, other = (3 / 4 + 1 / 2) * (1 / 2) ** 2, (1 / 4 + 1 / 2) * (3 / 2) ** 2
        assert found.score[0] == pytest.approx(other / (this + other))
        assert found.neighbour_agreement.tolist() == [0, 0]
        assert found.suggested_label.tolist() == [1, 1]

    @given(hnp.arrays(np.float64, (3, 6, 1), elements=st.floats(-30, 30)), st.integers(1, 7))
    def test_one_label_is_a_task_of_two_classes(self, logits, chunk_size):
        targets = np.array([0, 1, 1, 0, 1, 0])
        near = nearest_neighbours(np.random.default_rng(0).normal(size=(6, 2)), k=3)
        found = multi_label_suspects(logits, targets[:, np.newaxis], neighbours=near, chunk_size=chunk_size)
        two_classes = np.concatenate([np.zeros_like(logits), logits], axis=-1)
        expected = suspected_errors(two_classes, targets, neighbours=near).as_columns()
        assert found.suggested_label.tolist() == [0] * 6
        for name in expected.keys() - {"suggested_label"}:
            np.testing.assert_allclose(found.as_columns()[name], expected[name], atol=1e-9, err_msg=name)

    @given(hnp.arrays(np.float64, (2, 5, 3), elements=st.floats(-30, 30)), st.permutations(range(3)))
    def test_the_order_of_the_labels_does_not_matter(self, logits, order):
        targets = np.arange(15).reshape(5, 3) % 2
        found, other = (
            multi_label_suspects(logits, targets),
            multi_label_suspects(logits[..., order], targets[:, order]),
        )
        np.testing.assert_allclose(other.score, found.score, atol=1e-12)
        assert np.all(1 - multi_label_map(logits, targets).confidence <= found.score + 1e-12)

    def test_the_score_is_that_of_cleanlab_s_worst_label(self):
        rng = np.random.default_rng(0)
        logits, targets = rng.normal(size=(1, 40, 4)), rng.integers(0, 2, (40, 4))
        given_labels = [np.flatnonzero(row).tolist() for row in targets]
        probs = 1 / (1 + np.exp(-logits[0]))
        lowest = {"method": "self_confidence", "aggregator_kwargs": {"method": np.min, "axis": 1}}
        theirs = get_label_quality_scores(given_labels, probs, **lowest)
        np.testing.assert_allclose(multi_label_suspects(logits, targets).score, 1 - theirs, rtol=1e-9)

    def test_errors_say_what_disagrees(self):
        with pytest.raises(AnalysisError, match=r"targets has shape \(5, 3\) but logits has shape \(2, 5, 2\)"):
            multi_label_suspects(np.zeros((2, 5, 2)), np.zeros((5, 3)))
        with pytest.raises(AnalysisError, match="values other than 0 and 1"):
            multi_label_suspects(np.zeros((2, 5, 2)), np.full((5, 2), 3))


class TestRegression:
    def test_by_hand(self):
        # Residuals 0 and 2 at scale 2: 1 and exp(-1). The second was never seen, the third has no label.
        predictions = np.array([[[1.0], [NAN], [7.0]], [[3.0], [NAN], [7.0]]])
        found = regression_suspects(predictions, np.array([[1.0], [1.0], [NAN]]), scale=2)
        assert found.score == pytest.approx([1 - (1 + math.exp(-1)) / 2, NAN, NAN], nan_ok=True)
        assert found.suggested_label.tolist() == [-1, -1, -1]
        assert np.isnan(found.aum).all()

    def test_neighbours_count_twice_as_much_as_the_model(self):
        # The model is right; the neighbours, of equal weight and one of them without a label, say 3 on average.
        near = Neighbours(np.array([[1, 2, 3], *[[-1] * 3] * 3]), np.array([[1.0] * 3, *[[NAN] * 3] * 3]))
        targets = np.array([[1.0], [2.0], [4.0], [NAN]])
        found = regression_suspects(targets[np.newaxis], targets, neighbours=near, scale=2)
        assert found.neighbour_agreement == pytest.approx([math.exp(-1), NAN, NAN, NAN], nan_ok=True)
        assert found.score == pytest.approx([2 * (1 - math.exp(-1)) / 3, 0, 0, NAN], nan_ok=True)

    @given(
        hnp.arrays(np.float64, (3, 6, 2), elements=st.floats(-9, 9)), st.floats(0.1, 50), st.floats(-9, 9),
        st.integers(1, 7),
    )  # fmt: skip
    def test_units_do_not_matter(self, predictions, factor, shift, chunk_size):
        targets = np.arange(12.0).reshape(6, 2)
        near = nearest_neighbours(np.random.default_rng(0).normal(size=(6, 2)), k=3)
        found = regression_suspects(predictions, targets, neighbours=near)
        np.testing.assert_allclose(found.self_confidence, regression_map(predictions, targets).confidence, atol=1e-12)
        other = regression_suspects(
            factor * predictions + shift, factor * targets + shift, neighbours=near, chunk_size=chunk_size
        )
        np.testing.assert_allclose(other.score, found.score, atol=1e-9)
        assert np.all((found.score >= 0) & (found.score <= 1))

    def test_planted_wrong_numbers_rank_first(self):
        rng = np.random.default_rng(0)
        truth = rng.normal(size=(200, 1))
        targets = truth.copy()
        wrong = rng.choice(200, 20, replace=False)
        targets[wrong] += 5
        found = regression_suspects(truth + rng.normal(size=(3, 200, 1)) / 2, targets)
        assert set(found.ranking()[:20]) == set(wrong)

    def test_a_scale_that_is_no_distance_is_an_error(self):
        with pytest.raises(AnalysisError, match="scale is 0"):
            regression_suspects(np.zeros((1, 3, 1)), np.ones((3, 1)), scale=0)
