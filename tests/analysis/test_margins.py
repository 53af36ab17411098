import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import scoreatpercentile

from t3vis.analysis.margins import area_under_margin, aum_threshold, below_threshold, threshold_samples
from t3vis.errors import AnalysisError

NAN = math.nan


def test_area_under_margin_of_three_examples_by_hand():
    # The case that Pleiss et al. publish, classes permuted so that each example keeps one label:
    #   first, seen once, label 1:   2 - max(1, 3) = -1
    #   second, seen twice, label 0: (6 - max(5, 4)) = 1 and (9 - max(8, 7)) = 1, mean 1
    #   third, seen once, label 1:   11 - max(12, 10) = -1
    gone = [NAN, NAN, NAN]
    logits = np.array([[[1, 2, 3], [6, 5, 4], gone], [gone, [9, 8, 7], [12, 11, 10]]])
    assert area_under_margin(logits, np.array([1, 0, 1])).tolist() == [-1, 1, -1]


def test_area_under_margin_averages_over_the_epochs_seen():
    # 4 - 1 = 3 and 0 - 5 = -5, mean -1; two classes are enough.
    logits = np.array([[[4.0, 1.0]], [[NAN, NAN]], [[0.0, 5.0]]])
    assert area_under_margin(logits, np.array([0])).tolist() == [-1]
    assert area_under_margin(logits, np.array([1])).tolist() == [1]
    assert np.isnan(area_under_margin(logits, np.array([-1]))).all()


@given(hnp.arrays(np.float64, (3, 4, 2), elements=st.floats(-50, 50)), st.floats(-9, 9))
def test_of_two_classes_one_wins_by_what_the_other_loses(logits, constant):
    first, second = (area_under_margin(logits, np.full(4, label)) for label in (0, 1))
    np.testing.assert_array_equal(first, -second)
    np.testing.assert_allclose(area_under_margin(logits + constant, np.zeros(4, int)), first, atol=1e-9)


@given(hnp.arrays(np.float64, 30, elements=st.floats(-9, 9)), st.integers(0, 100), st.integers(0, 100))
def test_a_higher_percentile_suspects_no_fewer(aum, one, other):
    ids = np.arange(10)
    low, high = (below_threshold([aum], [ids], percentile=percentile) for percentile in sorted([one, other]))
    assert np.all(high[low])
    assert not high[ids].any()
    assert aum_threshold(aum, ids, percentile=one) == pytest.approx(scoreatpercentile(aum[ids], one))


@given(st.integers(2, 200), st.integers(1, 30), st.integers(0, 99))
def test_threshold_samples_are_two_disjoint_sets_of_the_size_of_a_class(n_examples, n_classes, seed):
    labels = np.arange(n_examples) % n_classes
    labels[::7] = -1
    n_known = np.count_nonzero(labels >= 0)
    if n_known < 2:
        return
    first, second = threshold_samples(labels, n_classes, seed=seed)
    assert len(first) == len(second) == np.clip(round(n_known / (n_classes + 1)), 1, n_known // 2)
    assert not set(first) & set(second)
    assert np.all(labels[first] >= 0)
    assert np.all(labels[second] >= 0)
    again = threshold_samples(labels, n_classes, seed=seed)
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([first, second]))


def test_the_threshold_is_the_percentile_of_the_samples():
    # 99 % of the way from -100 to 0 in steps of one: between the ranks 98 and 99 of 0 to 100, which are -2 and -1.
    aum = np.r_[np.arange(-100.0, 1), 50]
    assert aum_threshold(aum, np.arange(101)) == pytest.approx(-1)
    assert aum_threshold(np.r_[aum, NAN], np.array([0, 102]), percentile=0) == -100
    assert math.isnan(aum_threshold(np.array([NAN]), np.array([0])))


def test_the_whole_procedure_finds_planted_errors_and_spares_the_samples():
    # Two trainings whose areas are drawn around +5 for right labels and -5 for wrong ones and for threshold samples.
    rng = np.random.default_rng(0)
    wrong = np.zeros(600, dtype=bool)
    wrong[rng.choice(600, 60, replace=False)] = True
    labels = rng.integers(0, 4, 600)
    sets = threshold_samples(labels, 4, seed=1)
    aums = []
    for ids in sets:
        bad = wrong.copy()
        bad[ids] = True
        aums.append(np.where(bad, -5, 5) + rng.standard_normal(600))
    found = below_threshold(aums, sets)
    assert found[wrong].mean() > 0.9
    assert not found[~wrong].any()


def test_what_is_unknown_is_below_no_threshold():
    assert below_threshold([np.array([NAN, -9.0, 0.0])], [np.array([2])]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: threshold_samples(np.array([0, -1]), 2), "1 labelled examples of 2 classes"),
        (lambda: aum_threshold(np.zeros(3), np.array([0]), percentile=101), "percentile is 101"),
        (lambda: aum_threshold(np.zeros(3), np.array([], dtype=int)), "0 threshold samples"),
        (lambda: below_threshold([np.zeros(3)], []), "areas of 1 trainings but 0 sets"),
    ],
)
def test_errors_say_what_disagrees(call, message):
    with pytest.raises(AnalysisError, match=message):
        call()
