from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from t3vis.analysis.head_importance import (
    FORMS,
    agreement,
    head_importance,
    mean_importance,
    quadratic_importance,
)
from t3vis.errors import AnalysisError


def gradients(n_examples: int = 50, *, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(3, n_examples, 4)).astype(np.float32)


def test_forms_by_hand() -> None:
    found = gradients()
    by_hand = {
        "gate": np.abs(found).mean(1),
        "removal": (-found + found**2 / 2).mean(1),
        "group": found.mean(1) ** 2,
    }
    for form in FORMS:
        score = head_importance(found, form)
        np.testing.assert_allclose(score.value, by_hand[form], rtol=1e-4, atol=1e-8)
        assert score.n_examples == 50
        assert score.normalised[np.unravel_index(np.abs(score.value).argmax(), (3, 4))] in (1, -1)


def test_removal_is_exact_to_second_order_for_a_softmax_of_two() -> None:
    """The mean of the squared gradient over labels drawn from the model is the second derivative of the loss."""
    rng = np.random.default_rng(0)
    logit, part = rng.normal(size=200_000), 0.1 * rng.normal(size=200_000)  # part: what the head adds to the logit
    labels = rng.random(200_000) < 1 / (1 + np.exp(-logit))
    sign = np.where(labels, 1, -1)
    slope = -sign * part / (1 + np.exp(sign * logit))  # dL/dg of L = log(1 + exp(-sign * (logit + (g - 1) * part)))
    truth = np.mean(np.log1p(np.exp(-sign * (logit - part))) - np.log1p(np.exp(-sign * logit)))
    estimate = head_importance(slope[None, :, None], "removal", n_resamples=0).value.item()
    assert estimate == pytest.approx(truth, abs=2e-5)
    assert -slope.mean() != pytest.approx(truth, abs=5e-4)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    covered = []
    for seed in range(120):
        score = mean_importance(gradients(40, seed=seed) + 1.0, n_resamples=200, level=0.9, seed=seed)
        covered.append((score.low <= 1) & (score.high >= 1))
    assert 0.84 < np.mean(covered) < 0.93


def test_intervals_are_those_of_the_quantity_itself() -> None:
    values = gradients(400)
    score = mean_importance(values, n_resamples=2000)
    error = values.std(1) / np.sqrt(400)
    np.testing.assert_allclose(score.high - score.low, 2 * 1.96 * error, rtol=0.1)
    assert (score.low < score.value).all()
    assert (score.value < score.high).all()
    again = mean_importance(values, n_resamples=2000)
    np.testing.assert_array_equal(score.low, again.low)


def test_what_is_not_known_is_left_out() -> None:
    values = gradients(6)
    values[0, :, 3] = np.nan  # a layer with fewer heads
    values[:, 4] = np.nan  # an example that was not seen
    values[1, 0] = np.nan  # a layer that no gradient came back to
    score = mean_importance(values)
    assert np.argwhere(np.isnan(score.value)).tolist() == [[0, 3]]
    assert np.isnan(score.low[0, 3])
    np.testing.assert_allclose(score.value[1], np.nanmean(values[1], axis=0), rtol=1e-6)
    assert score.n_examples == 5
    assert (0, 3) not in score.ranking()
    assert len(score.ranking()) == 11
    nothing = mean_importance(np.full((1, 2, 2), np.nan))
    assert np.isnan(nothing.value).all()
    assert nothing.ranking() == []


def test_the_ranking_begins_with_the_largest() -> None:
    values = np.array([[[0.1, 3.0]], [[2.0, -5.0]]])
    assert mean_importance(values, n_resamples=0).ranking() == [(0, 1), (1, 0), (0, 0), (1, 1)]


def test_squares_of_sums_of_groups() -> None:
    rng = np.random.default_rng(0)
    terms, sizes = rng.normal(size=(2, 3, 5, 7)), np.array([4, 4, 4, 4, 2])  # layers, heads, groups, parameters
    products = np.einsum("lhjp,lhkp->lhjk", terms, terms)
    found = quadratic_importance(products, sizes)
    np.testing.assert_allclose(found.value, np.square(terms.sum(2) / 18).sum(-1))
    assert found.n_examples == 18
    assert (found.low < found.high).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_agreement_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    one, other = np.array(pairs, float).T
    found = agreement(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(one, other).statistic)


def test_agreement_needs_three() -> None:
    assert np.isnan(agreement(np.array([1.0, 2, np.nan]), np.array([1.0, 2, 3])))


def test_what_is_refused() -> None:
    with pytest.raises(AnalysisError, match=r"expected values of shape .*, found \(2, 3\)"):
        head_importance(np.ones((2, 3)))
    with pytest.raises(AnalysisError, match="there is no importance 'worth'; choose one of gate"):
        head_importance(gradients(), "worth")  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="level=2: expected a share"):
        head_importance(gradients(), level=2)
