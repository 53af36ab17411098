import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from t3vis.analysis.data_map import data_map
from t3vis.analysis.label_quality import Suspects, suspected_errors
from t3vis.analysis.margins import area_under_margin
from t3vis.errors import AnalysisError

NAN = math.nan


@st.composite
def runs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Logits with whole rows missing, and labels of which some are absent."""
    n_epochs, n_examples, n_classes = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(2, 5))
    logits = draw(hnp.arrays(np.float64, (n_epochs, n_examples, n_classes), elements=st.floats(-30, 30)))
    logits[~draw(hnp.arrays(np.bool_, (n_epochs, n_examples)))] = NAN
    labels = draw(hnp.arrays(np.int64, n_examples, elements=st.integers(-1, n_classes - 1)))
    return logits, labels


def suspects(score: list[float], aum: list[float]) -> Suspects:
    """A record of which only the ranking is of interest."""
    unknown = np.full(len(score), NAN)
    return Suspects(
        score=np.array(score), suggested_label=np.zeros(len(score), np.int64), suggested_prob=unknown, aum=np.array(aum)
    )


def assert_same_suspects(found: Suspects, expected: dict[str, np.ndarray]) -> None:
    for name, column in expected.items():
        np.testing.assert_allclose(found.as_columns()[name], column, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("row", [[NAN, 1], [1, math.inf], [-math.inf, 1], [-math.inf, -math.inf]])
def test_a_row_that_is_not_finite_was_not_seen(row):
    # The other epoch: probabilities 1/4 and 3/4, margin -ln 3.
    found = suspected_errors(np.array([[row], [[0, math.log(3)]]]), np.array([0]))
    assert found.score == pytest.approx([3 / 4])
    assert found.suggested_prob == pytest.approx([3 / 4])
    assert found.aum == pytest.approx([-math.log(3)])


@pytest.fixture
def five_suspects() -> Suspects:
    """Two epochs, three classes; probabilities of the classes by example and epoch:

    0, label 0: (8, 1, 1) / 10 and (6, 3, 1) / 10
    1, label 2: (1, 6, 3) / 10 and (5, 4, 1) / 10
    2, label 1: never seen
    3, no label: (2, 3, 5) / 10 and not seen
    4, label 2: (2, 2, 6) / 10 twice
    """
    first = [[8, 1, 1], [1, 6, 3], [NAN] * 3, [2, 3, 5], [2, 2, 6]]
    second = [[6, 3, 1], [5, 4, 1], [NAN] * 3, [NAN] * 3, [2, 2, 6]]
    return suspected_errors(np.log([first, second]), np.array([0, 2, 1, -1, 2]))


def test_suspected_errors_by_hand(five_suspects):
    # Mean probs: 0: (.7, .2, .1); 1: (.3, .5, .2); 3: (.2, .3, .5); 4: (.2, .2, .6), where the tie of the two other
    # classes goes to the first. Margins: 0: ln 8 and ln 2, mean ln 4; 1: ln(3/6) and ln(1/5), mean -ln(10) / 2;
    # 4: ln 3 twice.
    assert five_suspects.score == pytest.approx([0.3, 0.8, NAN, NAN, 0.4], nan_ok=True)
    assert five_suspects.suggested_label.tolist() == [1, 1, -1, 2, 0]
    assert five_suspects.suggested_prob == pytest.approx([0.2, 0.5, NAN, 0.5, 0.2], nan_ok=True)
    aum = [math.log(4), -math.log(10) / 2, NAN, NAN, math.log(3)]
    assert five_suspects.aum == pytest.approx(aum, nan_ok=True)
    assert five_suspects.ranking().tolist() == [1, 4, 0, 2, 3]
    assert five_suspects.n_examples == 5


def test_ranking_breaks_ties_by_aum_and_puts_the_unknown_last():
    found = suspects(score=[0.5, NAN, 1.0, 0.5, 1.0, NAN, 1.0], aum=[-1.0, NAN, -2.0, -3.0, -9.0, NAN, -2.0])
    # Score 1: aum -9, then the two of -2 by id; score 0.5: -3 before -1; then the unknown by id.
    assert found.ranking().tolist() == [4, 2, 6, 3, 0, 1, 5]
    assert found.ranking().dtype == np.int64


def test_scores_saturated_in_float32_are_told_apart_by_their_margin():
    logits = np.array([[[0, 200], [0, 900], [0, 500]]], dtype=np.float32)
    found = suspected_errors(logits, np.array([0, 0, 0]))
    assert found.score.tolist() == [1, 1, 1]
    assert found.ranking().tolist() == [1, 2, 0]


def test_planted_wrong_labels_rank_first_and_get_their_true_label_back():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 400)
    logits = rng.standard_normal((5, 400, 4)) + 6 * np.eye(4)[truth]
    wrong = rng.choice(400, 40, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, 4, 40)) % 4
    found = suspected_errors(logits, labels)
    assert set(found.ranking()[:40]) == set(wrong)
    np.testing.assert_array_equal(found.suggested_label[wrong], truth[wrong])


@given(runs())
def test_the_score_is_one_minus_the_confidence_of_the_data_map(run):
    np.testing.assert_allclose(suspected_errors(*run).score, 1 - data_map(*run).confidence, rtol=0, atol=1e-12)


@given(runs())
def test_a_suggestion_is_the_best_class_but_the_given(run):
    logits, labels = run
    found = suspected_errors(logits, labels)
    for example, label in enumerate(labels):
        epochs = logits[np.isfinite(logits[:, example, 0]), example]
        if not len(epochs):
            assert found.suggested_label[example] == -1
            assert np.isnan(found.suggested_prob[example])
            continue
        probs = softmax(epochs, axis=-1).mean(axis=0)
        others = [prob for class_, prob in enumerate(probs) if class_ != label]
        assert found.suggested_label[example] != label
        assert found.suggested_prob[example] == pytest.approx(max(others), abs=1e-12)
        assert probs[found.suggested_label[example]] == pytest.approx(max(others), abs=1e-12)


@given(runs())
def test_what_is_known_is_in_bounds_and_the_rest_is_nan(run):
    logits, labels = run
    found = suspected_errors(logits, labels)
    known = np.isfinite(logits[..., 0]).any(axis=0) & (labels >= 0)
    assert np.all((found.score[known] >= 0) & (found.score[known] <= 1))
    assert np.all(np.isnan(found.score[~known]) & np.isnan(found.aum[~known]))
    assert set(found.ranking()[: known.sum()]) == set(np.flatnonzero(known))


@given(runs(), st.randoms(use_true_random=False))
def test_permuting_the_examples_permutes_the_suspects(run, random):
    logits, labels = run
    order = random.sample(range(len(labels)), len(labels))
    expected = {name: column[order] for name, column in suspected_errors(logits, labels).as_columns().items()}
    assert_same_suspects(suspected_errors(logits[:, order], labels[order]), expected)


@given(runs(), st.integers(1, 9))
def test_the_chunk_size_changes_nothing(run, chunk_size):
    logits, labels = run
    whole = suspected_errors(logits, labels)
    assert_same_suspects(suspected_errors(logits, labels, chunk_size=chunk_size), whole.as_columns())
    np.testing.assert_allclose(area_under_margin(logits, labels, chunk_size=chunk_size), whole.aum, rtol=1e-9)


@given(runs(), st.floats(-100, 100))
def test_a_constant_added_to_all_logits_changes_no_margin(run, constant):
    logits, labels = run
    np.testing.assert_allclose(
        area_under_margin(logits + constant, labels), area_under_margin(logits, labels), atol=1e-9
    )


def test_logits_in_memory_are_left_as_they_are():
    logits = np.random.default_rng(3).standard_normal((2, 5, 3))
    before = logits.copy()
    suspected_errors(logits, np.array([0, 1, 2, -1, 0]))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("analysis", [suspected_errors, area_under_margin])
def test_lazy_logits_are_never_asked_for_more_than_a_chunk(analysis):
    asked: list[int] = []

    class Lazy:
        shape = (3, 25, 2)

        def __getitem__(self, key: tuple[slice, slice]) -> np.ndarray:
            epochs, examples = (range(*part.indices(size)) for part, size in zip(key, self.shape[:2], strict=True))
            asked.append(len(examples))
            return np.zeros((len(epochs), len(examples), 2))

    analysis(Lazy(), np.zeros(25, dtype=np.int64), chunk_size=10)
    assert asked == [10, 10, 5]


@pytest.mark.parametrize("analysis", [suspected_errors, area_under_margin])
def test_errors_say_what_disagrees(analysis):
    logits, labels = np.zeros((3, 5, 2)), np.zeros(5, dtype=np.int64)
    with pytest.raises(AnalysisError, match="labels has 4 examples but logits has 5"):
        analysis(logits, labels[:4])
    with pytest.raises(AnalysisError, match="logits has 1 classes but this analysis needs at least 2"):
        analysis(logits[..., :1], labels)
    with pytest.raises(AnalysisError, match="chunk_size is 0"):
        analysis(logits, labels, chunk_size=0)
