import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3vis.analysis.data_map import DataMap, regions
from t3vis.analysis.generalised_quality import regression_suspects
from t3vis.analysis.label_quality import Suspects
from t3vis.analysis.selection import dropped, example_weights, kept, select, suspect_ids
from t3vis.errors import AnalysisError

NAN = np.nan
STRATEGIES = [
    "ambiguous",
    "easy",
    "hard",
    "most_correct",
    "least_correct",
    "most_forgotten",
    "least_forgotten",
    "random",
]


def mapped(confidence, variability=None, correctness=None, forgetting=None, never=None) -> DataMap:
    n = len(confidence)
    confidence = np.array(confidence, dtype=float)
    zeros = np.zeros(n)
    return DataMap(
        confidence=confidence,
        variability=zeros if variability is None else np.array(variability, dtype=float),
        correctness=zeros if correctness is None else np.array(correctness, dtype=float),
        threshold_closeness=confidence * (1 - confidence),
        forgetting_events=np.zeros(n, int) if forgetting is None else np.array(forgetting),
        never_learned=np.zeros(n, bool) if never is None else np.array(never, dtype=bool),
        n_seen=np.isfinite(confidence).astype(int),
        n_epochs=1,
    )


SIX = mapped(
    [0.9, 0.1, 0.5, NAN, 0.2, 0.8],
    variability=[0.1, 0.3, 0.4, NAN, 0.2, 0.0],
    correctness=[1.0, 0.0, 0.6, NAN, 0.3, 0.9],
    forgetting=[0, 0, 3, 0, 1, 0],
    never=[0, 1, 0, 0, 0, 0],
)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ambiguous", [1, 2]),
        ("easy", [0, 5]),
        ("hard", [1, 4]),
        ("most_correct", [0, 5]),
        ("least_correct", [1, 4]),
        ("most_forgotten", [1, 2]),  # never learned, and three events
        ("least_forgotten", [0, 5]),
    ],
)
def test_strategies_by_hand(strategy, expected):
    assert select(SIX, strategy, fraction=0.4).tolist() == expected


def test_regions_and_strategies_agree():
    rng = np.random.default_rng(0)
    examples = mapped(rng.random(100), variability=rng.random(100) / 2)
    found = regions(examples, fraction=0.33)
    for strategy, mask in [
        ("easy", found.easy_to_learn),
        ("ambiguous", found.ambiguous),
        ("hard", found.hard_to_learn),
    ]:
        assert select(examples, strategy, fraction=0.33).tolist() == np.flatnonzero(mask).tolist()


@given(st.integers(0, 50), st.sampled_from(STRATEGIES), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_contains_a_smaller_one(seed, strategy, one, other):
    rng = np.random.default_rng(seed)
    examples = mapped(rng.random(40).round(1), forgetting=rng.integers(0, 3, 40))
    labels = rng.integers(0, 3, 40)
    low, high = sorted([one, other])
    for options in ({}, {"labels": labels}):
        small = select(examples, strategy, fraction=low, seed=seed, **options)
        large = select(examples, strategy, fraction=high, seed=seed, **options)
        assert set(small) <= set(large)
        assert np.all(np.diff(large) > 0)


@given(st.integers(0, 50), st.sampled_from(STRATEGIES), st.floats(0, 1))
def test_a_balanced_selection_takes_that_share_of_each_class(seed, strategy, fraction):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 60)
    chosen = select(mapped(rng.random(60)), strategy, fraction=fraction, labels=labels, seed=seed)
    expected = np.rint(fraction * np.bincount(labels, minlength=4))
    assert np.bincount(labels[chosen], minlength=4).tolist() == expected.tolist()


def test_equal_examples_are_taken_at_random_not_from_the_beginning():
    same = mapped(np.full(1000, 0.5))
    chosen = select(same, "easy", fraction=0.5)
    assert 150 < np.count_nonzero(chosen < 500) < 350
    assert chosen.tolist() == select(same, "easy", fraction=0.5).tolist()
    assert chosen.tolist() != select(same, "easy", fraction=0.5, seed=1).tolist()


def test_examples_of_which_nothing_is_known_are_never_selected():
    for strategy in STRATEGIES:
        assert select(SIX, strategy, fraction=1).tolist() == [0, 1, 2, 4, 5]
    assert not select(mapped([NAN, NAN]), "random", fraction=1, labels=np.array([0, 1])).size


def test_what_is_dropped_is_all_that_is_not_kept():
    ids = select(SIX, "hard", fraction=0.4)
    rest = dropped(6, ids)
    assert sorted([*ids, *rest]) == list(range(6))


def test_kept_filters_a_dataset_by_example_id():
    dataset = datasets.Dataset.from_dict({"text": list("abcdef")})
    assert kept(dataset, select(SIX, "easy", fraction=0.4))["text"][:] == ["a", "f"]
    assert kept(dataset, dropped(6, np.array([0, 5])))["text"][:] == ["b", "c", "d", "e"]
    with pytest.raises(AnalysisError, match="ids run from 0 to 6 but the dataset has 6 rows"):
        kept(dataset, np.array([0, 6]))


def suspects(score, suggested_prob) -> Suspects:
    n = len(score)
    rest = dict.fromkeys(
        ("self_confidence", "normalized_margin", "confidence_weighted_entropy", "aum", "neighbour_agreement"),
        np.zeros(n),
    )
    probs = np.array(suggested_prob, dtype=float)
    return Suspects(np.array(score, dtype=float), np.where(np.isnan(probs), -1, 0), probs, **rest)


def test_suspects_are_those_of_which_another_label_is_more_credible():
    found = suspects([0.6, 0.6, 0.9, NAN, 0.5], [0.3, 0.45, 0.2, NAN, 0.5])
    assert suspect_ids(found).tolist() == [1, 2]  # credible: 0.4 and 0.1 of the given; equal is not more
    assert suspect_ids(found, fraction=0.25).tolist() == [2]  # of the four that are known
    assert suspect_ids(found, fraction=1).tolist() == [0, 1, 2, 4]
    assert suspect_ids(suspects([NAN], [NAN])).tolist() == []


def test_suspects_of_numbers_need_a_fraction():
    found = regression_suspects(np.array([[[1.0], [5.0]]]), np.array([[1.0], [1.0]]), scale=2)
    with pytest.raises(AnalysisError, match=r"no other label is suggested .*; pass fraction=0\.05"):
        suspect_ids(found)
    assert suspect_ids(found, fraction=0.5).tolist() == [1]


def test_weights_by_hand():
    # Mean 0.2; (0.1 / 0.2 + 1) / 2 and (0.3 / 0.2 + 1) / 2.
    assert example_weights(np.array([0.1, 0.3, NAN]), smoothing=1) == pytest.approx([0.75, 1.25, 1])
    assert example_weights(np.zeros(3)).tolist() == [1, 1, 1]
    assert example_weights(np.array([NAN])).tolist() == [1]


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30), st.floats(0, 3))
def test_weights_have_mean_one_and_keep_the_order(values, smoothing):
    quantity = np.array(values)
    weights = example_weights(quantity, smoothing=smoothing)
    assert weights.mean() == pytest.approx(1)
    order = np.argsort(quantity, kind="stable")
    assert np.all(np.diff(weights[order]) >= -1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select(SIX, "medium"), "strategy is 'medium' but must be one of ambiguous, easy"),
        (lambda: select(SIX, "easy", fraction=1.5), "fraction is 1.5"),
        (lambda: select(SIX, "easy", labels=np.zeros(3, int)), "labels has 3 examples but the data map has 6"),
        (lambda: suspect_ids(suspects([0.1], [0.2]), fraction=-1), "fraction is -1"),
        (lambda: dropped(3, np.array([3])), "ids run from 3 to 3"),
        (lambda: example_weights(np.array([-1.0])), "at least 0"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(AnalysisError, match=message):
        call()
