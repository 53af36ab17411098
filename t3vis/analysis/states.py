"""Hidden states as the analyses read them: the rows of one pass and layer, a chunk of examples at a time."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import AnalysisError

CHUNK_SIZE = 16_384
"""Examples read at a time: at 384 values, 25 MB in float32."""


class StatesLike(Protocol):
    """Hidden states of one pass and layer, in memory or on disk: a shape, and rows by slice or ids as NumPy arrays.

    A row with NaN is an example that was not seen.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Always (n_examples, hidden)."""

    def __getitem__(self, key: slice | NDArray[np.int64], /) -> NDArray[Any]: ...


def state_chunks(
    states: StatesLike, *, chunk_size: int = CHUNK_SIZE
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield which rows, their values in float32 and which of them were seen; what was not seen is zero.

    Raises
    ------
    AnalysisError
        If `states` is not two-dimensional or `chunk_size` is below one.
    """
    if len(states.shape) != 2:
        raise AnalysisError(
            f"the hidden states have shape {tuple(states.shape)} but must be (n_examples, hidden); "
            "pass those of one pass and one layer."
        )
    if chunk_size < 1:
        raise AnalysisError(
            f"chunk_size is {chunk_size} but must be at least 1 example; leave it out for {CHUNK_SIZE}."
        )
    for start in range(0, states.shape[0], chunk_size):
        rows = slice(start, min(start + chunk_size, states.shape[0]))
        # A copy in any case: what was not seen is overwritten below.
        values = np.array(states[rows], dtype=np.float32)
        seen = np.asarray(np.isfinite(values).all(axis=1))
        values[~seen] = 0
        yield rows, values, seen


def check_states_and_labels(states: StatesLike, labels: NDArray[np.integer]) -> None:
    """Raise `AnalysisError` unless there is one integer label for each row of `states`."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise AnalysisError(
            f"labels has shape {labels.shape} and dtype {labels.dtype} but must be integers of shape "
            "(n_examples,); pass one class index per example, -1 where there is none."
        )
    if len(states.shape) != 2 or len(labels) != states.shape[0]:
        raise AnalysisError(
            f"labels has {len(labels)} examples but the hidden states have shape {tuple(states.shape)}; "
            "pass (n_examples, hidden) for the same examples in the same order."
        )
