import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from t3vis.analysis.drift import cka, displacement, flips, neighbourhood_change
from t3vis.analysis.nearest import Neighbours
from t3vis.errors import AnalysisError


def cka_of_examples(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA from the similarities of the examples, as the paper introduces it: HSIC of the centred kernels."""
    n = len(x)
    centering = np.eye(n) - 1 / n
    k, m = centering @ x @ x.T @ centering, centering @ y @ y.T @ centering
    return float(np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m)))


def layers(seed: int, n: int = 60, sizes: tuple[int, ...] = (5, 3)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, 4))
    return [base @ rng.normal(size=(4, size)) + 0.3 * rng.normal(size=(n, size)) + rng.normal(0, 9) for size in sizes]


def test_cka_of_two_coordinates_by_hand():
    # Centred columns (-1, 0, 1) and (1, -2, 1): orthogonal to each other, so alone they share nothing. Together with
    # the first, Y = [a b]: ||Y'a||^2 = 4, ||a'a|| = 2, ||Y'Y|| = sqrt(4 + 36) since a'a = 2 and b'b = 6.
    a, b = np.array([[-1.0], [0], [1]]), np.array([[1.0], [-2], [1]])
    found = cka([a], [a, b, np.hstack([a, b])])
    np.testing.assert_allclose(found, [[1, 0, 4 / (2 * np.sqrt(40))]], atol=1e-7)


@pytest.mark.parametrize("chunk_size", [7, 60])
def test_cka_agrees_with_its_definition_by_similarities_of_examples(chunk_size):
    before, after = layers(0), layers(0)[::-1] + layers(1)
    found = cka(before, after, chunk_size=chunk_size)
    expected = [[cka_of_examples(x, y) for y in after] for x in before]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-20, 20))
def test_cka_does_not_see_rotation_scale_and_shift(seed, scale, shift):
    x, y = layers(seed)
    moved = scale * x @ ortho_group.rvs(x.shape[1], random_state=seed) + shift
    np.testing.assert_allclose(cka([x], [y, x]), cka([moved], [y, x]), rtol=2e-3, atol=1e-5)
    assert cka([x], [moved])[0, 0] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(cka([x], [y]), cka([y], [x]), rtol=1e-6)


def test_cka_leaves_out_what_was_not_seen_anywhere():
    x, y = layers(2)
    gaps = x.copy()
    gaps[[3, 17]] = np.nan
    kept = np.isfinite(gaps[:, 0])
    np.testing.assert_allclose(cka([gaps], [y]), cka([x[kept]], [y[kept]]), rtol=1e-5)


def test_cka_of_states_that_never_vary_is_not_known():
    x, _ = layers(3)
    assert np.isnan(cka([np.ones((60, 2))], [x])).all()
    assert np.isnan(cka([np.full((60, 2), np.nan)], [x])).all()


def test_displacement_of_one_example_by_hand():
    # On a line about its mean: -1 and 1 before, and after. The size is 1 and nothing moves. Then -1, 1, -1, 1 against
    # -1, 1, 1, -1: the means are 0, the sizes 1, the product 0, and two examples have moved by 2.
    line = np.array([[-1.0], [1], [-1], [1]])
    np.testing.assert_allclose(displacement(line, 5 * line + 3).distance, 0, atol=1e-6)
    np.testing.assert_allclose(displacement(line, -line).distance, 0, atol=1e-6)  # a reflection
    moved = displacement(line, line * [[1], [1], [-1], [-1]]).distance
    assert sorted(moved) == pytest.approx([0, 0, 2, 2], abs=1e-6)


def test_displacement_agrees_with_scipy_s_procrustes():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(80, 6)) + 4, rng.normal(size=(80, 6)) - 2
    after += before @ ortho_group.rvs(6, random_state=1)
    first, second = (values - values.mean(axis=0) for values in (before, after))
    first /= np.sqrt((first**2).sum(axis=1).mean())
    second /= np.sqrt((second**2).sum(axis=1).mean())
    rotation, _ = orthogonal_procrustes(first, second)
    found = displacement(before, after)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-4)
    np.testing.assert_allclose(found.distance, np.linalg.norm(first @ rotation - second, axis=1), atol=1e-4)


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-5, 5))
def test_a_motion_of_the_whole_space_displaces_nothing(seed, scale, shift):
    states = np.random.default_rng(seed).normal(size=(30, 4))
    turned = scale * states @ ortho_group.rvs(4, random_state=seed) + shift
    np.testing.assert_allclose(displacement(states, turned).distance, 0, atol=1e-3)


def test_an_example_seen_once_has_not_moved_anywhere():
    before, after = np.random.default_rng(0).normal(size=(2, 10, 3))
    before[2], after[5] = np.nan, np.nan
    found = displacement(before, after).distance
    assert np.flatnonzero(np.isnan(found)).tolist() == [2, 5]
    kept = [i for i in range(10) if i not in (2, 5)]
    np.testing.assert_allclose(found[kept], displacement(before[kept], after[kept]).distance, atol=1e-6)


def test_neighbourhood_change_by_hand():
    nothing = np.full((4, 2), np.nan)
    before = Neighbours(np.array([[1, 2], [0, 3], [3, -1], [-1, -1]]), nothing)
    after = Neighbours(np.array([[2, 1], [0, 2], [3, 0], [0, 1]]), nothing)
    # The same in another order; one of two kept; the only one kept; nothing known before.
    np.testing.assert_array_equal(neighbourhood_change(before, after), [0, 0.5, 0, np.nan])


@given(st.integers(0, 1000))
def test_neighbourhood_change_counts_sets(seed):
    rng = np.random.default_rng(seed)
    ids = [np.stack([rng.permutation(9)[:4] for _ in range(6)]) for _ in range(2)]
    found = neighbourhood_change(*(Neighbours(each, each.astype(float)) for each in ids))
    assert found.tolist() == [1 - len(set(a) & set(b)) / 4 for a, b in zip(*ids, strict=True)]


def test_flips_skip_what_was_not_seen():
    # 0, (not seen), 1, 1, 0: two flips. Never seen: none.
    zero, one, gone = [1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]
    logits = np.array([[zero, gone], [gone, gone], [one, gone], [one, gone], [zero, gone]])
    assert flips(logits).tolist() == [2, 0]


@given(st.integers(0, 1000), st.floats(-5, 5))
def test_flips_are_the_ends_of_runs_of_one_prediction(seed, constant):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, 5, 3))
    logits[rng.random((6, 5)) < 0.3] = np.nan
    predicted = [[row.argmax() for row in rows if np.isfinite(row).all()] for rows in logits.swapaxes(0, 1)]
    expected = [max(sum(1 for _ in itertools.groupby(classes)) - 1, 0) for classes in predicted]
    assert flips(logits).tolist() == expected
    assert flips(3 * logits + constant).tolist() == expected


def test_errors_say_what_disagrees():
    with pytest.raises(AnalysisError, match=r"the layers have \[3, 4\] examples"):
        cka([np.zeros((3, 2))], [np.zeros((4, 2))])
    with pytest.raises(AnalysisError, match="no examples; pass at least one layer"):
        cka([], [])
    with pytest.raises(AnalysisError, match=r"shape \(3, 2\) before and \(3, 4\) after"):
        displacement(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(AnalysisError, match=r"shape \(3, 2\) before and \(3, 1\) after"):
        neighbourhood_change(*(Neighbours(np.zeros((3, k), int), np.zeros((3, k))) for k in (2, 1)))
