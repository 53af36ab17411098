from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t3vis.analysis.forgetting import first_learned, forgetting_events, never_learned
from t3vis.errors import AnalysisError

BOOLS = hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


def one_example(*trend: int) -> np.ndarray:
    """A single example's epochs as a column of booleans."""
    return np.array(trend, dtype=bool)[:, np.newaxis]


def events_by_definition(trend: list[bool]) -> int:
    """Pairs of successive presentations that go from right to wrong."""
    return sum(before and not after for before, after in pairwise(trend))


@pytest.mark.parametrize(
    ("trend", "events"),
    [
        ((1, 0, 1, 0, 0, 1), 2),  # right-wrong at epochs 0-1 and 2-3; 3-4 stays wrong
        ((0, 0, 0), 0),  # never right, so nothing to forget
        ((1, 1, 1), 0),
        ((0, 1, 1, 0), 1),
        ((1, 0), 1),
        ((0,), 0),
    ],
)
def test_forgetting_events_counts_right_to_wrong(trend, events):
    correct = one_example(*trend)
    assert forgetting_events(correct, np.ones_like(correct)).tolist() == [events]


def test_an_epoch_not_seen_carries_the_last_state_over():
    # right, (not seen), wrong: one event, in the last epoch. The middle epoch itself is neither right nor wrong.
    assert forgetting_events(one_example(1, 0, 0), one_example(1, 0, 1)).tolist() == [1]
    # right, (not seen), right: nothing was forgotten in between.
    assert forgetting_events(one_example(1, 0, 1), one_example(1, 0, 1)).tolist() == [0]
    # wrong, (not seen, though marked right), wrong: what was not seen cannot have been learned.
    assert forgetting_events(one_example(0, 1, 0), one_example(1, 0, 1)).tolist() == [0]


def test_never_learned_needs_a_presentation():
    correct = np.array([[0, 0, 1, 0], [0, 1, 0, 1]], dtype=bool)
    seen = np.array([[1, 1, 1, 0], [1, 1, 1, 0]], dtype=bool)
    assert never_learned(correct, seen).tolist() == [True, False, False, False]


@given(BOOLS)
def test_each_example_alone_and_without_its_unseen_epochs_gives_the_same(arrays):
    correct, seen = arrays
    kept = [correct[seen[:, example], example].tolist() for example in range(correct.shape[1])]
    assert forgetting_events(correct, seen).tolist() == [events_by_definition(trend) for trend in kept]
    assert never_learned(correct, seen).tolist() == [bool(trend) and not any(trend) for trend in kept]


@pytest.mark.parametrize(
    ("correct", "seen", "epoch"),
    [
        ((0, 1, 1), (1, 1, 1), 1),
        ((1, 0, 0), (1, 1, 1), 0),
        ((0, 0), (1, 1), -1),
        ((1, 0, 1), (0, 1, 1), 2),  # what was not seen cannot have been learned
    ],
)
def test_first_learned_by_hand(correct, seen, epoch):
    assert first_learned(one_example(*correct), one_example(*seen)).tolist() == [epoch]


@given(BOOLS)
def test_before_it_was_first_learned_an_example_was_never_right(arrays):
    correct, seen = arrays
    epoch = first_learned(correct, seen)
    for example, first in enumerate(epoch):
        right = np.flatnonzero(correct[:, example] & seen[:, example])
        assert first == (right[0] if len(right) else -1)
    assert np.all((epoch == -1)[never_learned(correct, seen)])


@given(BOOLS)
def test_at_most_every_second_presentation_is_forgotten(arrays):
    correct, seen = arrays
    events = forgetting_events(correct, seen)
    assert events.dtype == np.int64
    assert np.all(events <= seen.sum(axis=0) // 2)
    assert not np.any(events[never_learned(correct, seen)])


@pytest.mark.parametrize("quantity", [first_learned, forgetting_events, never_learned])
def test_errors_say_what_disagrees(quantity):
    correct = np.zeros((3, 5), dtype=bool)
    with pytest.raises(AnalysisError, match=r"correct has shape \(3, 5\) and seen has shape \(3, 4\)"):
        quantity(correct, correct[:, :4])
    with pytest.raises(AnalysisError, match=r"must be \(n_epochs, n_examples\)"):
        quantity(correct[0], correct[0])
    with pytest.raises(AnalysisError, match=r"correct has dtype float64 .* must be bool"):
        quantity(correct.astype(float), correct)
