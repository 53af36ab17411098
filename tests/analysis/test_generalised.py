import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cleanlab.token_classification.rank import get_label_quality_scores
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t3vis.analysis.data_map import data_map
from t3vis.analysis.generalised import (
    by_sentence,
    multi_label_aum,
    multi_label_map,
    regression_map,
    sequence_scores,
)
from t3vis.analysis.margins import area_under_margin
from t3vis.errors import AnalysisError

NAN = math.nan


class TestMultiLabel:
    def test_by_hand(self):
        # Odds 3 and 1/3 for labels (1, 0): 3/4 each, right. Then odds 1/3 and 1/3: 1/4 and 3/4, wrong. The second
        # example's first label is not known: only 1 - 1/5 counts. The third was never seen, the fourth has no label.
        gone = [NAN, NAN]
        logits = np.array(
            [
                [np.log([3, 1 / 3]), np.log([9, 1 / 4]), gone, [0.0, 0]],
                [np.log([1 / 3, 1 / 3]), gone, gone, [0.0, 0]],
            ]
        )
        targets = np.array([[1, 0], [NAN, 0], [1, 1], [NAN, NAN]])
        found = multi_label_map(logits, targets)
        assert found.confidence == pytest.approx([5 / 8, 4 / 5, NAN, NAN], nan_ok=True)
        assert found.variability == pytest.approx([1 / 8, 0, NAN, NAN], nan_ok=True)
        assert found.correctness == pytest.approx([1 / 2, 1, NAN, NAN], nan_ok=True)
        assert found.forgetting_events.tolist() == [1, 0, 0, 0]
        assert found.n_seen.tolist() == [2, 1, 0, 2]
        aum = multi_label_aum(logits, targets)
        np.testing.assert_allclose(aum[0], [0, math.log(3)], atol=1e-12)
        np.testing.assert_allclose(aum[1], [NAN, math.log(4)])
        assert np.isnan(aum[2:]).all()

    @given(hnp.arrays(np.float64, (3, 6, 1), elements=st.floats(-30, 30)), st.integers(1, 7))
    def test_one_label_is_a_task_of_two_classes(self, logits, chunk_size):
        targets = np.array([0, 1, 1, 0, 1, 0])
        two_classes = np.concatenate([np.zeros_like(logits), logits], axis=-1)
        found = multi_label_map(logits, targets[:, np.newaxis], chunk_size=chunk_size)
        for name, column in data_map(two_classes, targets).as_columns().items():
            np.testing.assert_allclose(found.as_columns()[name], column, atol=1e-9, err_msg=name)
        aum = multi_label_aum(logits, targets[:, np.newaxis], chunk_size=chunk_size)
        np.testing.assert_allclose(aum[:, 0], area_under_margin(two_classes, targets), atol=1e-9)

    def test_the_probability_is_one_minus_what_torch_s_loss_says(self):
        rng = np.random.default_rng(0)
        logits, targets = rng.normal(size=(1, 50, 5)), rng.integers(0, 2, (50, 5)).astype(float)
        loss = F.binary_cross_entropy_with_logits(torch.tensor(logits[0]), torch.tensor(targets), reduction="none")
        expected = torch.exp(-loss).mean(dim=1).numpy()
        np.testing.assert_allclose(multi_label_map(logits, targets).confidence, expected, rtol=1e-9)

    def test_errors_say_what_disagrees(self):
        with pytest.raises(AnalysisError, match=r"targets has shape \(5, 3\) but logits has shape \(2, 5, 2\)"):
            multi_label_map(np.zeros((2, 5, 2)), np.zeros((5, 3)))
        with pytest.raises(AnalysisError, match="values other than 0 and 1"):
            multi_label_map(np.zeros((2, 5, 2)), np.full((5, 2), 0.5))
        with pytest.raises(AnalysisError, match="chunk_size is 0"):
            multi_label_aum(np.zeros((2, 5, 2)), np.zeros((5, 2)), chunk_size=0)


class TestRegression:
    def test_by_hand(self):
        # Residuals 0 and 2 at scale 2: 1 and exp(-1); right, then wrong. Predictions 1 and 3: deviation 1, over 2.
        predictions = np.array([[[1.0], [NAN], [7.0]], [[3.0], [NAN], [7.0]]])
        found = regression_map(predictions, np.array([[1.0], [1.0], [NAN]]), scale=2)
        assert found.confidence == pytest.approx([(1 + math.exp(-1)) / 2, NAN, NAN], nan_ok=True)
        assert found.variability == pytest.approx([1 / 2, NAN, NAN], nan_ok=True)
        assert found.correctness == pytest.approx([1 / 2, NAN, NAN], nan_ok=True)
        assert found.n_seen.tolist() == [2, 0, 2]

    @given(
        hnp.arrays(np.float64, (3, 6, 2), elements=st.floats(-9, 9)), st.floats(0.1, 50), st.floats(-9, 9),
        st.integers(1, 7),
    )  # fmt: skip
    def test_units_do_not_matter(self, predictions, factor, shift, chunk_size):
        targets = np.arange(12.0).reshape(6, 2)
        found = regression_map(predictions, targets)
        other = regression_map(factor * predictions + shift, factor * targets + shift, chunk_size=chunk_size)
        np.testing.assert_allclose(other.confidence, found.confidence, atol=1e-9)
        np.testing.assert_allclose(other.variability, found.variability, atol=1e-9)

    def test_the_default_scale_is_the_spread_of_the_targets(self):
        predictions, targets = np.random.default_rng(0).normal(size=(2, 9, 1)), np.arange(9.0)[:, np.newaxis]
        targets[3] = NAN
        spread = float(np.nanstd(targets))
        np.testing.assert_array_equal(
            regression_map(predictions, targets).confidence,
            regression_map(predictions, targets, scale=spread).confidence,
        )
        # One value for all: the scale is 1.
        assert regression_map(np.zeros((1, 3, 1)), np.ones((3, 1))).confidence == pytest.approx([math.exp(-1)] * 3)

    def test_a_scale_that_is_no_distance_is_an_error(self):
        with pytest.raises(AnalysisError, match="scale is -1"):
            regression_map(np.zeros((1, 3, 1)), np.ones((3, 1)), scale=-1)


class TestSentences:
    def test_by_hand(self):
        values, offsets = np.array([0.9, 0.5, NAN, 0.2, NAN]), np.array([0, 3, 4, 4, 5])
        assert by_sentence(values, offsets, reduction="min") == pytest.approx([0.5, 0.2, NAN, NAN], nan_ok=True)
        # Weights 1 and exp(-0.4 / 0.2) on 0.5 and 0.9.
        soft = (0.5 + 0.9 * math.exp(-2)) / (1 + math.exp(-2))
        assert by_sentence(values, offsets, temperature=0.2) == pytest.approx([soft, 0.2, NAN, NAN], nan_ok=True)

    @pytest.mark.parametrize("reduction", ["min", "softmin"])
    def test_agrees_with_cleanlab(self, reduction):
        rng = np.random.default_rng(0)
        lengths = [3, 1, 7, 2]
        probs = [rng.dirichlet(np.ones(4), size=length) for length in lengths]
        labels = [rng.integers(0, 4, length).tolist() for length in lengths]
        expected, tokens = get_label_quality_scores(labels, probs, sentence_score_method=reduction)
        found = by_sentence(np.concatenate(tokens), np.cumsum([0, *lengths]), reduction=reduction)
        np.testing.assert_allclose(found, expected, rtol=1e-9)

    @given(hnp.arrays(np.float64, 9, elements=st.floats(0, 1)), st.floats(0.01, 5))
    def test_the_softmin_lies_between_minimum_and_mean(self, values, temperature):
        offsets = np.array([0, 4, 9])
        soft = by_sentence(values, offsets, temperature=temperature)
        assert np.all(soft >= by_sentence(values, offsets, reduction="min") - 1e-12)
        assert np.all(soft <= [values[:4].mean() + 1e-12, values[4:].mean() + 1e-12])

    def test_errors_say_what_disagrees(self):
        with pytest.raises(AnalysisError, match="from 0 to the 3 tokens"):
            by_sentence(np.zeros(3), np.array([0, 2]))
        with pytest.raises(AnalysisError, match="temperature is 0"):
            by_sentence(np.zeros(3), np.array([0, 3]), temperature=0)


class TestSequences:
    def test_by_hand(self):
        # Probabilities 1/2 and 1/8 of the labels 0 and 2; margins ln 2 and -ln 6; the padding is left out.
        logits = np.log([[[4.0, 2, 2], [1, 6, 1], [8, 1, 1]]])
        found = sequence_scores(logits, np.array([[0, 2, -100]]), causal=False)
        assert found.mean_prob == pytest.approx([1 / 4])
        assert found.token_accuracy.tolist() == [0.5]
        assert found.mean_margin == pytest.approx([(math.log(2) - math.log(6)) / 2])
        assert found.n_tokens.tolist() == [2]

    @given(hnp.arrays(np.float64, (3, 5, 4), elements=st.floats(-20, 20)), st.integers(0, 99))
    def test_a_causal_model_predicts_the_next_token(self, logits, seed):
        labels = np.random.default_rng(seed).integers(0, 4, (3, 5))
        causal = sequence_scores(logits, labels, causal=True)
        shifted = sequence_scores(logits[:, :-1], labels[:, 1:], causal=False)
        np.testing.assert_array_equal(causal.mean_prob, shifted.mean_prob)
        assert causal.n_tokens.tolist() == [4, 4, 4]

    @given(hnp.arrays(np.float64, (2, 4, 3), elements=st.floats(-20, 20)), st.floats(-100, 100))
    def test_a_constant_added_to_all_logits_changes_nothing(self, logits, constant):
        labels = np.array([[0, 1, 2, -100], [2, 2, -100, -100]])
        found, other = (sequence_scores(each, labels, causal=False) for each in (logits, logits + constant))
        np.testing.assert_allclose(other.mean_prob, found.mean_prob, atol=1e-9)
        np.testing.assert_allclose(other.mean_margin, found.mean_margin, atol=1e-9)
        assert np.all((found.mean_prob >= 0) & (found.mean_prob <= 1))

    def test_minus_the_logarithm_is_torch_s_loss(self):
        rng = np.random.default_rng(0)
        logits, labels = rng.normal(size=(6, 9, 11)), rng.integers(0, 11, (6, 9))
        labels[rng.random((6, 9)) < 0.3] = -100
        expected = [
            float(F.cross_entropy(torch.tensor(x), torch.tensor(y))) for x, y in zip(logits, labels, strict=True)
        ]
        np.testing.assert_allclose(-np.log(sequence_scores(logits, labels, causal=False).mean_prob), expected)

    def test_a_sequence_without_tokens_has_no_scores(self):
        logits = np.zeros((2, 3, 2))
        logits[1] = NAN
        found = sequence_scores(logits, np.array([[-100, -100, -100], [0, 1, 0]]), causal=False)
        assert np.isnan([found.mean_prob, found.token_accuracy, found.mean_margin]).all()
        assert found.n_tokens.tolist() == [0, 0]

    def test_errors_say_what_disagrees(self):
        with pytest.raises(AnalysisError, match=r"labels has shape \(2, 4\) but logits has shape \(2, 3, 5\)"):
            sequence_scores(np.zeros((2, 3, 5)), np.zeros((2, 4), int), causal=False)
        with pytest.raises(AnalysisError, match="labels holds 5 but logits has 5 classes"):
            sequence_scores(np.zeros((2, 3, 5)), np.full((2, 3), 5), causal=False)
