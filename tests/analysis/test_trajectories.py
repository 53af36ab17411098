import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax as scipy_softmax

from t3vis.analysis import trajectories as module
from t3vis.analysis.trajectories import by_example, classes_first, of_labels, softmax, trajectories


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 60))
def test_whatever_the_chunks_and_the_blocks_every_example_is_there_once_and_in_order(n_examples, chunk_size, block):
    logits = np.arange(2 * n_examples * 3.0).reshape(2, n_examples, 3)
    labels = np.arange(n_examples)

    def seen_by_function(some, of_some, examples):
        assert some.shape[1] == len(of_some) == len(range(n_examples)[examples])
        np.testing.assert_array_equal(some, logits[:, examples])
        return {"label": of_some, "sum": some.sum(axis=-1)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_VALUES", block)
        found = by_example(seen_by_function, logits, labels, chunk_size=chunk_size)
    np.testing.assert_array_equal(found["label"], labels)
    np.testing.assert_array_equal(found["sum"], logits.sum(axis=-1))


def test_the_logits_are_read_by_the_calling_thread_and_never_far_ahead():
    readers, computed, lead = set(), [], []

    class Lazy:
        shape = (1, 400, 2)

        def __getitem__(self, key):
            readers.add(threading.current_thread())
            lead.append(key[1].start // 10 - len(computed))
            return np.zeros((1, key[1].stop - key[1].start, 2))

    def count(some, of_some, examples):
        computed.append(examples)
        return {"label": of_some}

    by_example(count, Lazy(), np.arange(400), chunk_size=10)
    assert readers == {threading.current_thread()}
    assert len(lead) == 40
    assert max(lead) <= module.N_THREADS + 1


def test_what_goes_wrong_in_a_thread_is_raised():
    def refuse(some, of_some, examples):
        raise ValueError(f"no {examples.start}")

    with pytest.raises(ValueError, match="no 0"):
        by_example(refuse, np.zeros((1, 30, 2)), np.zeros(30, np.int64), chunk_size=10)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_classes_first_is_a_copy_whose_softmax_is_scipy_s(dtype):
    logits = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(dtype)
    logits[1, 2, 3] = np.inf
    before = logits.copy()
    values, top, seen = classes_first(logits)
    assert values.dtype == np.result_type(dtype, np.float32)
    np.testing.assert_array_equal(top, logits.max(axis=-1))
    np.testing.assert_array_equal(seen, np.isfinite(logits).all(axis=-1))
    labels = np.array([0, 1, 2, 3, -1, 1, 0])
    np.testing.assert_array_equal(of_labels(values, labels)[:, :4], logits[:, np.arange(4), labels[:4]])
    softmax(values, top)
    expected = scipy_softmax(before[seen].astype(np.float64), axis=-1)
    np.testing.assert_allclose(np.moveaxis(values, 0, -1)[seen], expected, atol=1e-6)
    np.testing.assert_array_equal(logits, before)


@given(st.integers(0, 99))
def test_with_ties_the_prediction_is_argmax(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(0, 3, (2, 9, 4)).astype(float), rng.integers(0, 4, 9)
    found = trajectories(logits, labels)
    np.testing.assert_array_equal(found.correct, logits.argmax(axis=-1) == labels)
    np.testing.assert_allclose(found.gold_probs, scipy_softmax(logits, axis=-1)[:, np.arange(9), labels])
