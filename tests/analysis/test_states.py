import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3vis.analysis.drift import cka, displacement
from t3vis.analysis.nearest import nearest_neighbours
from t3vis.analysis.outliers import mahalanobis
from t3vis.analysis.separability import separability
from t3vis.analysis.states import CHUNK_SIZE, MeanDirection, SideBySide, state_chunks, unit_rows
from t3vis.errors import AnalysisError


def test_mean_direction_by_hand():
    # (3, 4) and (0, 2) have the directions (0.6, 0.8) and (0, 1); the second was seen once, the third never, and the
    # fourth is zero in one pass.
    nan = np.nan
    first = np.array([[3.0, 4], [nan, 1], [nan, nan], [0, 0]], dtype=np.float16)
    second = np.array([[0.0, 2], [5, 0], [nan, nan], [0, 3]], dtype=np.float16)
    mean = MeanDirection([first, second])
    assert mean.shape == (4, 2)
    np.testing.assert_allclose(mean[:], [[0.3, 0.9], [1, 0], [nan, nan], [0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(mean[np.array([1, 0])], [[1, 0], [0.3, 0.9]], atol=1e-6)
    np.testing.assert_array_equal(first[1], [nan, 1])  # what was given stays


@given(st.integers(0, 99), st.floats(0.1, 100))
def test_the_length_of_the_states_does_not_matter(seed, factor):
    passes = list(np.random.default_rng(seed).normal(size=(3, 5, 4)))
    np.testing.assert_allclose(MeanDirection(passes)[:], MeanDirection([factor * passes[0], *passes[1:]])[:], atol=1e-5)


def test_side_by_side_by_hand():
    nan = np.nan
    first = np.array([[3.0, 4], [0, 2], [nan, 1]], dtype=np.float16)
    second = np.array([[-7.0], [0], [1]])
    both = SideBySide([first, second])
    assert both.shape == (3, 3)
    np.testing.assert_allclose(both[:], [[0.6, 0.8, -1], [0, 1, 0], [nan, nan, 1]], atol=1e-6)
    np.testing.assert_allclose(both[np.array([1])], [[0, 1, 0]], atol=1e-6)
    assert nearest_neighbours(both, k=1).ids.tolist() == [[1], [0], [-1]]  # the third was not seen in one of the parts
    with pytest.raises(AnalysisError, match=r"the parts hold \[2, 3\] examples"):
        SideBySide([first, second[:2]])


@given(st.integers(0, 99))
def test_the_cosine_side_by_side_is_the_mean_of_the_cosines(seed):
    parts = np.random.default_rng(seed).normal(size=(3, 5, 4))
    together = SideBySide(list(parts))[:]
    unit = parts / np.linalg.norm(parts, axis=-1, keepdims=True)
    mean = np.einsum("pnd,pmd->nm", unit, unit) / 3
    np.testing.assert_allclose(together @ together.T / 3, mean, atol=1e-5)


def test_chunks_cover_every_row_once_and_mask_what_was_not_seen():
    states = np.arange(14.0).reshape(7, 2)
    states[[2, 5], 0] = np.nan
    chunks = list(state_chunks(states, chunk_size=3))
    assert [rows for rows, _, _ in chunks] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    np.testing.assert_array_equal(np.concatenate([seen for _, _, seen in chunks]), np.isfinite(states[:, 0]))
    values = np.concatenate([values for _, values, _ in chunks])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.where(np.isfinite(states).all(axis=1, keepdims=True), states, 0))
    assert np.isnan(states[2, 0])


class Lazy:
    """States on a pretended disk: no array, only rows; remembers how many were asked for at a time."""

    def __init__(self, states: np.ndarray):
        self._states = states
        self.shape = states.shape
        self.asked: list[int] = []

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        rows = self._states[key].copy()
        self.asked.append(len(rows))
        return rows


@pytest.mark.parametrize(
    "analysis",
    [
        lambda states, labels: separability(states, labels, max_queries=500, max_references=1000),
        mahalanobis,
        lambda states, labels: nearest_neighbours(states, references=np.arange(1000)),
        lambda states, labels: cka([states], [states]),
        lambda states, labels: displacement(states, states),
        lambda states, labels: nearest_neighbours(MeanDirection([states, states]), references=np.arange(1000)),
    ],
    ids=["separability", "mahalanobis", "neighbours", "cka", "displacement", "mean direction"],
)
def test_states_on_disk_are_never_read_whole(analysis):
    rng = np.random.default_rng(0)
    states = Lazy(rng.normal(size=(40_000, 3)).astype(np.float16))
    analysis(states, rng.integers(0, 3, 40_000))
    assert 0 < max(states.asked) <= CHUNK_SIZE
    assert sum(states.asked) >= 40_000


def test_unit_rows_have_length_one_whatever_their_size():
    tiny, huge = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    states = np.array([[3.0, 4.0], [tiny, tiny], [huge, -huge], [0.0, 0.0]], dtype=np.float32)
    found = unit_rows(states)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found, [[0.6, 0.8], [half, half], [half, -half], [0, 0]], rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(unit_rows(np.array([[60_000.0, 60_000.0]], np.float16)), [[half, half]], rtol=1e-6)


def test_errors_say_what_disagrees():
    with pytest.raises(AnalysisError, match=r"the passes have shapes \[\(2, 3\), \(4, 3\)\]"):
        MeanDirection([np.zeros((2, 3)), np.zeros((4, 3))])
    with pytest.raises(AnalysisError, match="pass at least one"):
        MeanDirection([])
