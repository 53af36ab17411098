import math
import sys

import numpy as np
import pytest
from cleanlab.rank import (
    get_confidence_weighted_entropy_for_each_label,
    get_normalized_margin_for_each_label,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from t3vis.analysis import label_quality
from t3vis.analysis.data_map import data_map
from t3vis.analysis.label_quality import (
    Suspects,
    confidence_weighted_entropy,
    confident_learning,
    credibility,
    neighbour_agreement,
    normalized_margin,
    suspected_errors,
)
from t3vis.analysis.margins import area_under_margin
from t3vis.analysis.nearest import Neighbours, nearest_neighbours
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
        score=np.array(score),
        suggested_label=np.zeros(len(score), np.int64),
        suggested_prob=unknown,
        self_confidence=unknown,
        normalized_margin=unknown,
        confidence_weighted_entropy=unknown,
        aum=np.array(aum),
        neighbour_agreement=unknown,
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


def test_neighbours_count_twice_as_much_as_the_model():
    # Probabilities of class 0: 3/4, 1/4, 1/4; labels 0, 0, 1.
    logits = np.log([[[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]]])
    labels = np.array([0, 0, 1])
    near = Neighbours(np.array([[1, 2], [0, 2], [0, -1]]), np.array([[1.0, 1.0], [1.0, 2.0], [1.0, NAN]]))
    found = suspected_errors(logits, labels, neighbours=near)
    # The median distance is 1. Example 0: one of two equal votes for its label. Example 1: weights 1 and exp(-8), the
    # nearer one for its label. Example 2: its only neighbour says 0.
    near_share = 1 / (1 + math.exp(-8))
    assert found.neighbour_agreement == pytest.approx([1 / 2, near_share, 0])
    # Probability and 1/2, times the square of the share and 1/2, over the sum of both classes.
    credible = []
    for prob, share in [(3 / 4, 1 / 2), (1 / 4, near_share), (3 / 4, 0)]:
        this, other = (prob + 1 / 2) * (share + 1 / 2) ** 2, (3 / 2 - prob) * (3 / 2 - share) ** 2
        credible.append(this / (this + other))
    assert found.score == pytest.approx([1 - each for each in credible])
    assert found.suggested_label.tolist() == [1, 1, 0]
    assert found.suggested_prob == pytest.approx([1 - each for each in credible])
    assert found.self_confidence == pytest.approx([3 / 4, 1 / 4, 3 / 4])


def test_an_example_without_neighbours_is_judged_by_the_model_alone():
    logits, labels = np.log([[[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]]]), np.array([0, 0, -1])
    near = Neighbours(np.array([[-1], [2], [0]]), np.array([[NAN], [1.0], [1.0]]))  # nobody, and one without a label
    found = suspected_errors(logits, labels, neighbours=near)
    assert found.score == pytest.approx([1 / 4, 3 / 4, NAN], nan_ok=True)
    assert np.isnan(found.neighbour_agreement).all()


@given(runs(), st.integers(1, 9))
def test_the_chunk_size_changes_nothing_with_neighbours_either(run, chunk_size):
    logits, labels = run
    states = np.random.default_rng(len(labels)).normal(size=(len(labels), 2))
    near = nearest_neighbours(states, k=3)
    whole = suspected_errors(logits, labels, neighbours=near)
    assert_same_suspects(suspected_errors(logits, labels, neighbours=near, chunk_size=chunk_size), whole.as_columns())
    agreement = neighbour_agreement(near, labels, chunk_size=chunk_size)
    known = ~np.isnan(whole.score)
    np.testing.assert_allclose(agreement[known], whole.neighbour_agreement[known])
    assert np.all((agreement[known & ~np.isnan(agreement)] >= 0) & (agreement[known & ~np.isnan(agreement)] <= 1))


def test_neighbours_find_what_the_model_has_memorised():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    labels = truth.copy()
    wrong = rng.choice(300, 30, replace=False)
    labels[wrong] = (truth[wrong] + 1) % 3
    logits = rng.standard_normal((2, 300, 3)) + 4 * np.eye(3)[labels]  # sure of every label, right or wrong
    near = nearest_neighbours(rng.normal(size=(300, 5)) + 6 * np.eye(5)[truth], k=100)
    assert np.isin(suspected_errors(logits, labels).ranking()[:30], wrong).mean() < 0.4
    assert np.isin(suspected_errors(logits, labels, neighbours=near).ranking()[:30], wrong).mean() > 0.9


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (normalized_margin, get_normalized_margin_for_each_label),
        (confidence_weighted_entropy, get_confidence_weighted_entropy_for_each_label),
    ],
)
def test_scores_of_probabilities_are_those_of_cleanlab(ours, theirs):
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.full(5, 0.3), size=400), rng.integers(0, 5, 400)
    probs[0] = [1, 0, 0, 0, 0]  # no entropy, and no probability of the label
    labels[0] = 3
    np.testing.assert_allclose(ours(probs, labels), theirs(labels, probs), rtol=1e-6, atol=1e-6)
    assert np.isnan(ours(probs, np.full(400, -1))).all()


@given(runs())
def test_scores_of_probabilities_are_in_bounds_and_1_where_only_the_label_is_probable(run):
    logits, labels = run
    probs = softmax(np.nan_to_num(logits[0]), axis=-1)
    certain = np.eye(probs.shape[1])[np.maximum(labels, 0)]
    for score in (normalized_margin, confidence_weighted_entropy):
        found = score(probs, labels)[labels >= 0]
        assert np.all((found >= 0) & (found <= 1 + 1e-12))
        np.testing.assert_allclose(score(certain, labels)[labels >= 0], 1, atol=1e-6)


def test_confident_learning_by_hand():
    # Thresholds are the mean probabilities of each label: 0.6 for label 0 and 0.8 for label 1. Of the five labelled 0,
    # one is above the threshold of class 1 only: the counts are [[4, 1], [0, 5]].
    probs_of_1 = np.array([0.2, 0.2, 0.2, 0.2, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8])
    labels = np.repeat([0, 1], 5)
    found = confident_learning(np.stack([1 - probs_of_1, probs_of_1], axis=1), labels)
    np.testing.assert_allclose(found.joint, [[0.4, 0.1], [0, 0.5]])
    # Of six with the true label 1, five carry it.
    np.testing.assert_allclose(found.noise_matrix, [[1, 1 / 6], [0, 5 / 6]], atol=1e-6)
    assert np.flatnonzero(found.is_error).tolist() == [4]
    assert found.n_errors == 1


@settings(max_examples=15)
@given(st.integers(0, 999))
def test_noise_and_joint_are_distributions(seed):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(3), rng.integers(0, 3, 30)]
    found = confident_learning((rng.dirichlet(np.ones(3), 33) + 2 * np.eye(3)[labels]) / 3, labels)
    assert found.joint.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.noise_matrix.sum(axis=0), 1)
    np.testing.assert_allclose(found.joint.sum(axis=1), np.bincount(labels) / 33)
    assert 0 <= found.n_errors < 33


def test_confident_learning_leaves_out_what_is_not_known():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    probs = 0.7 * np.eye(3)[labels] + 0.3 * rng.dirichlet(np.ones(3), size=200)
    labels[:10] = (labels[:10] + 1) % 3
    whole = confident_learning(probs[:180], labels[:180])
    probs[180:190], labels[190:] = NAN, -1
    part = confident_learning(probs, labels)
    np.testing.assert_array_equal(part.is_error[:180], whole.is_error)
    assert not part.is_error[180:].any()
    np.testing.assert_allclose(part.joint, whole.joint)
    assert part.is_error[:10].mean() > 0.8


def test_confident_learning_refuses_by_name_what_it_cannot_do(monkeypatch):
    with pytest.raises(AnalysisError, match="class 1 has no example"):
        confident_learning(np.full((4, 3), 1 / 3), np.array([0, 2, 0, 2]))
    monkeypatch.setitem(sys.modules, "cleanlab.count", None)
    with pytest.raises(AnalysisError, match=r'cleanlab; install it with: pip install "t3vis\[cleanlab\]"'):
        confident_learning(np.full((2, 2), 1 / 2), np.array([0, 1]))


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


@given(st.integers(0, 999), st.integers(2, 6))
def test_credibility_is_a_distribution_that_only_knowledge_moves(seed, n_classes):
    rng = np.random.default_rng(seed)
    probs, shares = rng.dirichlet(np.ones(n_classes), (2, 5))
    found = credibility(probs, shares)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    order = rng.permutation(n_classes)
    np.testing.assert_allclose(credibility(probs[:, order], shares[:, order]), found[:, order])
    # A model that knows nothing leaves the order of the classes to the neighbours.
    equal = np.full((5, n_classes), 1 / n_classes)
    np.testing.assert_array_equal(credibility(equal, shares).argsort(axis=1), shares.argsort(axis=1))
    np.testing.assert_array_equal(credibility(probs, equal).argsort(axis=1), probs.argsort(axis=1))


def test_of_many_examples_some_give_the_median_distance(monkeypatch):
    monkeypatch.setattr(label_quality, "MAX_FOR_MEDIAN", 2)
    ids, distances = np.array([[1, 2], [0, 2], [0, 1], [0, 1]]), np.array([[1.0, 2], [9, 9], [1, 2], [9, 9]])
    # Of every second example the median is 3/2, of all it is 11/2.
    found = neighbour_agreement(Neighbours(ids, distances), np.array([0, 0, 1, 1]))
    assert found[0] == pytest.approx(1 / (1 + math.exp(-8 / 1.5)))
