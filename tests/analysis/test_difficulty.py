import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import softmax

from t3vis.analysis.difficulty import el2n, last_layer_grand, learning, loss_trajectories
from t3vis.analysis.drift import flips
from t3vis.errors import AnalysisError

NAN = math.nan


def test_el2n_by_hand():
    # Probabilities (3/4, 1/4) and label 0: errors -1/4 and 1/4. Then (1/4, 3/4): -3/4 and 3/4. Mean of sqrt(2) times.
    logits = np.log([[[3.0, 1.0]], [[1.0, 3.0]], [[NAN, 1.0]]])
    assert el2n(logits, np.array([0])) == pytest.approx([math.sqrt(2) / 2])
    assert el2n(logits, np.array([0]), epochs=slice(1)) == pytest.approx([math.sqrt(2) / 4])
    assert np.isnan(el2n(logits, np.array([-1]))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_el2n_is_the_length_of_softmax_minus_one_hot(dtype):
    rng = np.random.default_rng(0)
    logits, labels = (4 * rng.normal(size=(3, 200, 7))).astype(dtype), rng.integers(0, 7, 200)
    error = softmax(logits.astype(np.float64), axis=-1) - np.eye(7)[labels]
    expected = np.linalg.norm(error, axis=-1).mean(axis=0)
    np.testing.assert_allclose(el2n(logits, labels, chunk_size=33), expected, atol=1e-6)


@given(hnp.arrays(np.float64, (2, 5, 3), elements=st.floats(-50, 50)), st.floats(-100, 100))
def test_el2n_is_bounded_and_does_not_see_a_common_constant(logits, constant):
    labels = np.array([0, 1, 2, 0, 1])
    found = el2n(logits, labels)
    assert np.all((found >= 0) & (found <= math.sqrt(2) + 1e-9))
    np.testing.assert_allclose(el2n(logits + constant, labels), found, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_grand_of_the_last_layer_is_what_autograd_says(bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4, bias=bias, dtype=torch.float64)
    states, labels = torch.randn(9, 6, dtype=torch.float64), torch.randint(4, (9,))
    expected = []
    for state, label in zip(states, labels, strict=True):
        layer.zero_grad()
        F.cross_entropy(layer(state[None]), label[None]).backward()
        expected.append(math.sqrt(sum(float((each.grad**2).sum()) for each in layer.parameters())))
    logits = layer(states).detach().numpy()
    found = last_layer_grand(logits, labels.numpy(), states.numpy(), bias=bias)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@given(hnp.arrays(np.float64, (4, 3), elements=st.floats(-20, 20)), st.floats(-9, 9))
def test_without_bias_grand_grows_as_the_states_do(logits, factor):
    states, labels = np.arange(8.0).reshape(4, 2), np.array([0, 1, 2, 0])
    found = last_layer_grand(logits, labels, states, bias=False)
    np.testing.assert_allclose(
        last_layer_grand(logits, labels, factor * states, bias=False), abs(factor) * found, atol=1e-9
    )


def test_grand_of_what_was_not_seen_is_not_known():
    states = np.array([[1.0], [NAN], [1.0], [1.0]])
    logits = np.array([[0.0, 0], [0, 0], [NAN, 0], [0, 0]])
    found = last_layer_grand(logits, np.array([0, 0, 0, -1]), states)
    # Errors of 1/2 in both classes, times the length of (1, 1).
    assert found == pytest.approx([1, NAN, NAN, NAN], nan_ok=True)


def test_learning_joins_what_the_single_functions_say():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 40, 3)), rng.integers(-1, 3, 40)
    logits[rng.random((5, 40)) < 0.2] = NAN
    found = learning(logits, labels, chunk_size=7)
    np.testing.assert_array_equal(found.el2n, el2n(logits, labels))
    np.testing.assert_array_equal(found.flips, flips(logits))
    correct = (logits.argmax(axis=-1) == labels) & np.isfinite(logits[..., 0])
    for example, first in enumerate(found.first_learned):
        assert first == (correct[:, example].argmax() if correct[:, example].any() else -1)


@given(hnp.arrays(np.float64, (4, 5, 3), elements=st.floats(-20, 20)), st.floats(-9, 9), st.randoms())
def test_learning_does_not_see_a_constant_or_the_order_of_the_examples(logits, constant, random):
    labels, order = np.array([0, 1, 2, 0, -1]), list(range(5))
    random.shuffle(order)
    logits = logits.round(3)
    found, other = learning(logits, labels), learning((logits + round(constant, 3))[:, order], labels[order])
    for name, values in found.as_columns().items():
        np.testing.assert_allclose(other.as_columns()[name], values[order], atol=1e-6, err_msg=name)
    assert np.all(found.first_learned < 4)
    assert found.first_learned[4] == -1


def test_loss_trajectories_by_hand():
    # 4, 2, (not seen), 1 at epochs 0, 1, 3: mean 7/3; epochs from their mean 4/3: -4/3, -1/3, 5/3, squares 42/9;
    # products -16/3 - 2/3 + 5/3 = -13/3: slope -13/14. Seen once: a slope is not known. Never seen: nothing is.
    loss = np.array([[4.0, NAN, NAN], [2.0, 3.0, NAN], [NAN, NAN, NAN], [1.0, NAN, NAN]])
    found = loss_trajectories(loss)
    assert found.mean == pytest.approx([7 / 3, 3, NAN], nan_ok=True)
    assert found.first == pytest.approx([4, 3, NAN], nan_ok=True)
    assert found.last == pytest.approx([1, 3, NAN], nan_ok=True)
    assert found.slope == pytest.approx([-13 / 14, NAN, NAN], nan_ok=True)
    assert list(found.as_columns()) == ["mean", "first", "last", "slope"]


@given(hnp.arrays(np.float64, (5, 4), elements=st.floats(-9, 9)), st.floats(-3, 3))
def test_slopes_are_those_of_a_least_squares_line(loss, tilt):
    slopes = np.polyfit(np.arange(5), loss, 1)[0]
    np.testing.assert_allclose(loss_trajectories(loss).slope, slopes, atol=1e-9)
    tilted = loss + tilt * np.arange(5)[:, np.newaxis]
    np.testing.assert_allclose(loss_trajectories(tilted).slope, slopes + tilt, atol=1e-9)


def test_errors_say_what_disagrees():
    with pytest.raises(AnalysisError, match="labels has 4 examples but logits has 5"):
        el2n(np.zeros((3, 5, 2)), np.zeros(4, dtype=int))
    with pytest.raises(AnalysisError, match=r"the hidden states have shape \(4, 2\) but labels has 5"):
        last_layer_grand(np.zeros((5, 2)), np.zeros(5, dtype=int), np.zeros((4, 2)))
    with pytest.raises(AnalysisError, match=r"loss has shape \(3,\)"):
        loss_trajectories(np.zeros(3))
