import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from t3vis.analysis.data_map import (
    DataMap,
    confidence,
    correctness,
    data_map,
    gold_probs,
    regions,
    threshold_closeness,
    trajectories,
    variability,
)
from t3vis.errors import AnalysisError

NAN = math.nan


class LazyLogits:
    """Logits on a pretended disk: no array, only slices; remembers every slice asked for."""

    def __init__(self, logits: np.ndarray):
        self._logits = logits
        self.shape = logits.shape
        self.slices: list[tuple[slice, slice]] = []

    def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
        self.slices.append(key)
        return self._logits[key].copy()


@st.composite
def runs(draw: st.DrawFn, min_classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits with whole rows missing, and labels of which some are absent."""
    n_epochs, n_examples = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    n_classes = draw(st.integers(min_classes, 5))
    logits = draw(hnp.arrays(np.float64, (n_epochs, n_examples, n_classes), elements=st.floats(-30, 30)))
    logits[~draw(hnp.arrays(np.bool_, (n_epochs, n_examples)))] = NAN
    labels = draw(hnp.arrays(np.int64, n_examples, elements=st.integers(-1, n_classes - 1)))
    return logits, labels


def assert_same_map(found: DataMap, expected: DataMap) -> None:
    assert found.n_epochs == expected.n_epochs
    for name, column in expected.as_columns().items():
        np.testing.assert_allclose(found.as_columns()[name], column, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.fixture
def five_examples() -> DataMap:
    """Three epochs, two classes, logits chosen so that every probability is a round fraction.

    ============  =====================  ======
    example       gold-label probs       label
    ============  =====================  ======
    0             3/4, 1/4, 1/2          0
    1             1/5, (not seen), 3/5   1
    2             never seen             0
    3             1/2 for class 0        none
    4             1/10, 1/10, 1/10       1
    ============  =====================  ======
    """
    probs_of_class_0 = np.array(
        [[3 / 4, 4 / 5, NAN, 1 / 2, 9 / 10], [1 / 4, NAN, NAN, 1 / 2, 9 / 10], [1 / 2, 2 / 5, NAN, 1 / 2, 9 / 10]]
    )
    logits = np.log(np.stack([probs_of_class_0, 1 - probs_of_class_0], axis=-1))
    return data_map(logits, np.array([0, 1, 0, -1, 1]))


def test_data_map_by_hand(five_examples):
    # 0: mean 1/2; deviations 1/4, -1/4, 0: variance 2/16/3 = 1/24. Right at 3/4, wrong at 1/4, and at 1/2 both
    #    logits are equal, where argmax takes class 0, its label: 2 of 3 right, forgotten once.
    # 1: mean 2/5; deviations 1/5 twice: standard deviation 1/5. Wrong, then right.
    # 4: constant 1/10, never right.
    assert five_examples.confidence == pytest.approx([1 / 2, 2 / 5, NAN, NAN, 1 / 10], nan_ok=True)
    assert five_examples.variability == pytest.approx([math.sqrt(1 / 24), 1 / 5, NAN, NAN, 0], nan_ok=True)
    assert five_examples.correctness == pytest.approx([2 / 3, 1 / 2, NAN, NAN, 0], nan_ok=True)
    assert five_examples.threshold_closeness == pytest.approx([1 / 4, 6 / 25, NAN, NAN, 9 / 100], nan_ok=True)
    assert five_examples.forgetting_events.tolist() == [1, 0, 0, 0, 0]
    assert five_examples.never_learned.tolist() == [False, False, False, False, True]
    assert five_examples.n_seen.tolist() == [3, 2, 0, 3, 3]


def test_the_map_counts_what_was_not_seen(five_examples):
    assert (five_examples.n_epochs, five_examples.n_examples) == (3, 5)
    assert (five_examples.n_never_seen, five_examples.n_partly_seen) == (1, 1)


def test_as_columns_holds_one_value_per_example(five_examples):
    columns = five_examples.as_columns()
    assert list(columns) == [
        "confidence",
        "variability",
        "correctness",
        "threshold_closeness",
        "forgetting_events",
        "never_learned",
        "n_seen",
    ]
    assert {len(column) for column in columns.values()} == {5}


def test_equal_logits_predict_the_first_class():
    # Untrained heads emit equal logits: were a tie right for every label, such an example would count as learned.
    found = data_map(np.zeros((1, 3, 3)), np.array([0, 1, 2]))
    assert found.correctness.tolist() == [1, 0, 0]
    assert found.confidence == pytest.approx([1 / 3] * 3)


def test_huge_logits_neither_overflow_nor_vanish():
    # exp(1e4) overflows, and so does 3e38 - (-3e38) in float32.
    logits = np.array([[[1e4, 1e4], [1e4, -1e4], [3e38, -3e38]]], dtype=np.float32)
    assert data_map(logits, np.array([1, 1, 0])).confidence.tolist() == [0.5, 0, 1]


@pytest.mark.parametrize("row", [[NAN, 1], [1, math.inf], [1, -math.inf], [-math.inf, -math.inf]])
def test_a_row_that_is_not_finite_was_not_seen(row):
    logits = np.array([[row], [[math.log(3), 0]]])
    found = data_map(logits, np.array([0]))
    assert found.n_seen.tolist() == [1]
    assert found.confidence == pytest.approx([3 / 4])
    assert found.correctness.tolist() == [1]


def test_what_was_not_seen_or_has_no_label_is_not_correct():
    # argmax of a row of NaN is class 0, which is the label here.
    found = trajectories(np.array([[[NAN, NAN], [1, 0]], [[1, 0], [1, 0]]]), np.array([0, -1]))
    assert found.seen.tolist() == [[False, True], [True, True]]
    assert found.correct.tolist() == [[False, False], [True, False]]
    assert np.isnan(found.gold_probs).tolist() == [[True, True], [False, True]]


def test_burn_in_and_burn_out_bound_the_epochs():
    # Gold-label probabilities 1/10, 1/5, 2/5, 9/10.
    gold = np.array([1 / 10, 1 / 5, 2 / 5, 9 / 10])
    logits = np.log(np.stack([gold, 1 - gold], axis=-1))[:, np.newaxis]
    label = np.array([0])
    assert data_map(logits, label, burn_in=1).confidence == pytest.approx([1 / 2])  # (1/5 + 2/5 + 9/10) / 3
    assert data_map(logits, label, burn_out=2).confidence == pytest.approx([3 / 20])  # (1/10 + 1/5) / 2
    middle = data_map(logits, label, burn_in=1, burn_out=3)
    assert middle.confidence == pytest.approx([3 / 10])
    assert (middle.n_epochs, middle.n_seen.tolist()) == (2, [2])


def test_every_step_of_the_way_can_be_taken_alone():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 50, 4)), rng.integers(0, 4, 50)
    logits[rng.random((6, 50)) < 0.3] = NAN
    gold = gold_probs(logits, labels)
    correct, seen = logits.argmax(axis=-1) == labels, ~np.isnan(gold)
    found = data_map(logits, labels)
    np.testing.assert_array_equal(confidence(gold), found.confidence)
    np.testing.assert_array_equal(variability(gold), found.variability)
    np.testing.assert_array_equal(correctness(correct, seen), found.correctness)
    np.testing.assert_array_equal(threshold_closeness(found.confidence), found.threshold_closeness)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("n_classes", [3, 20, 1000])
def test_reduced_precision_agrees_with_a_float64_softmax(dtype, n_classes):
    rng = np.random.default_rng(1)
    logits = (8 * rng.standard_normal((4, 300, n_classes))).astype(dtype)
    labels = np.where(rng.random(300) < 0.5, logits[0].argmax(axis=-1), rng.integers(0, n_classes, 300))
    gold = softmax(logits.astype(np.float64), axis=-1)[:, np.arange(300), labels]
    found = data_map(logits, labels)
    np.testing.assert_allclose(found.confidence, gold.mean(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.variability, gold.std(axis=0), rtol=0, atol=1e-6)


@given(runs())
def test_bounds(run):
    found = data_map(*run)
    known = ~np.isnan(found.confidence)
    np.testing.assert_array_equal(known, (found.n_seen > 0) & (run[1] >= 0))
    for column, highest in [
        (found.confidence, 1),
        (found.variability, 0.5 + 1e-12),
        (found.correctness, 1),
        (found.threshold_closeness, 0.25),
    ]:
        assert np.all((column[known] >= 0) & (column[known] <= highest))
        assert np.all(np.isnan(column[~known]))


@given(runs(), st.randoms(use_true_random=False))
def test_permuting_the_examples_permutes_the_map(run, random):
    logits, labels = run
    order = random.sample(range(len(labels)), len(labels))
    expected = {name: column[order] for name, column in data_map(logits, labels).as_columns().items()}
    assert_same_map(data_map(logits[:, order], labels[order]), DataMap(n_epochs=len(logits), **expected))


@given(runs(), st.integers(1, 9))
def test_the_chunk_size_changes_nothing(run, chunk_size):
    assert_same_map(data_map(*run, chunk_size=chunk_size), data_map(*run))


@given(runs(), st.floats(-100, 100))
def test_a_constant_added_to_all_logits_changes_no_prob(run, constant):
    logits, labels = run
    np.testing.assert_allclose(gold_probs(logits + constant, labels), gold_probs(logits, labels), atol=1e-9)


@given(runs())
def test_an_epoch_not_seen_is_an_epoch_left_out(run):
    logits, labels = run
    whole = data_map(logits, labels)
    for example in range(len(labels)):
        kept = logits[np.isfinite(logits[:, example, 0]), example]
        if len(kept):
            alone = data_map(kept[:, np.newaxis], labels[[example]])
            columns = {name: column[[example]] for name, column in whole.as_columns().items()}
            assert_same_map(alone, DataMap(n_epochs=len(kept), **columns))


def test_lazy_logits_are_read_once_and_a_chunk_at_a_time():
    rng = np.random.default_rng(2)
    logits, labels = rng.standard_normal((4, 103, 3)), rng.integers(0, 3, 103)
    lazy = LazyLogits(logits)
    assert_same_map(data_map(lazy, labels, burn_in=1, chunk_size=10), data_map(logits, labels, burn_in=1))
    starts = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert lazy.slices == [(slice(1, 4), slice(start, min(start + 10, 103))) for start in starts]


def test_logits_in_memory_are_left_as_they_are():
    logits = np.random.default_rng(3).standard_normal((2, 5, 3))
    before = logits.copy()
    data_map(logits, np.array([0, 1, 2, -1, 0]))
    np.testing.assert_array_equal(logits, before)


def test_no_examples_give_an_empty_map():
    found = data_map(np.zeros((2, 0, 3)), np.zeros(0, dtype=np.int64))
    assert (found.n_examples, found.n_epochs) == (0, 2)
    assert not regions(found).ambiguous.size


@pytest.fixture
def six_points() -> DataMap:
    """Only confidence and variability matter to the regions; the fourth example was never seen."""
    return DataMap(
        confidence=np.array([0.9, 0.1, 0.5, NAN, 0.2, 0.8, 0.6]),
        variability=np.array([0.1, 0.3, 0.4, NAN, 0.1, 0.2, 0.0]),
        correctness=np.zeros(7),
        threshold_closeness=np.zeros(7),
        forgetting_events=np.zeros(7, dtype=np.int64),
        never_learned=np.zeros(7, dtype=bool),
        n_seen=np.array([1, 1, 1, 0, 1, 1, 1]),
        n_epochs=1,
    )


def test_regions_by_hand(six_points):
    # A third of the six known examples is two; example 1 is both ambiguous and hard, example 6 is in none.
    found = regions(six_points)
    assert np.flatnonzero(found.easy_to_learn).tolist() == [0, 5]
    assert np.flatnonzero(found.ambiguous).tolist() == [1, 2]
    assert np.flatnonzero(found.hard_to_learn).tolist() == [1, 4]


def test_regions_leave_out_what_is_not_known(six_points):
    found = regions(six_points, fraction=1)
    known = [True, True, True, False, True, True, True]
    assert found.easy_to_learn.tolist() == found.ambiguous.tolist() == found.hard_to_learn.tolist() == known


def test_equal_values_are_taken_by_example_id():
    found = regions(data_map(np.zeros((1, 4, 2)), np.zeros(4, dtype=np.int64)), fraction=0.5)
    assert found.easy_to_learn.tolist() == found.hard_to_learn.tolist() == [True, True, False, False]


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, NAN])
def test_a_fraction_outside_its_range_is_an_error(six_points, fraction):
    with pytest.raises(AnalysisError, match=rf"fraction is {fraction} but must be in \(0, 1\]"):
        regions(six_points, fraction=fraction)


LOGITS = np.zeros((3, 5, 2))
LABELS = np.zeros(5, dtype=np.int64)


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (LOGITS, LABELS[:4], {}, "labels has 4 examples but logits has 5; pass arrays for the same examples"),
        (LOGITS[0], LABELS, {}, r"logits has shape \(5, 2\) but must have the three dimensions"),
        (LOGITS[..., :0], LABELS, {}, "logits has 0 classes but this analysis needs at least 1"),
        (LOGITS, LABELS[:, np.newaxis], {}, r"labels has shape \(5, 1\) and dtype int64"),
        (LOGITS, LABELS.astype(float), {}, r"labels has shape \(5,\) and dtype float64"),
        (LOGITS, np.array([0, 1, 0, 7, 2]), {}, "example 3 has label 7 but logits has 2 classes, 0 to 1"),
        (LOGITS, LABELS, {"burn_in": 3}, "burn_in=3 and burn_out=None are no range of the 3 epochs"),
        (LOGITS, LABELS, {"burn_in": -1}, "pass 0 <= burn_in < burn_out <= 3"),
        (LOGITS, LABELS, {"burn_out": 4}, "burn_in=0 and burn_out=4"),
        (LOGITS, LABELS, {"burn_in": 1, "burn_out": 1}, "burn_in=1 and burn_out=1"),
        (LOGITS, LABELS, {"chunk_size": 0}, "chunk_size is 0 but must be at least 1"),
    ],
)
def test_errors_say_what_disagrees(logits, labels, options, message):
    with pytest.raises(AnalysisError, match=message):
        data_map(logits, labels, **options)


def test_quantities_check_the_shapes_they_share():
    with pytest.raises(AnalysisError, match=r"correct has shape \(2, 3\) and seen has shape \(3, 2\)"):
        correctness(np.zeros((2, 3), dtype=bool), np.zeros((3, 2), dtype=bool))
    with pytest.raises(AnalysisError, match="labels has 4 examples but logits has 5"):
        gold_probs(LOGITS, LABELS[:4])


def test_the_analyses_of_trajectories_load_no_torch():
    program = (
        "import sys, t3vis.analysis.data_map, t3vis.analysis.forgetting, t3vis.analysis.label_quality\n"
        "print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
