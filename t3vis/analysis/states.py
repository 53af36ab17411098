"""Hidden states as the analyses read them: the rows of one pass and layer, a chunk of examples at a time."""

from collections.abc import Iterator, Sequence
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


class MeanDirection:
    """The mean over some passes of each example's states, brought to unit length; rows are made when they are read.

    Parameters
    ----------
    passes
        States of one layer in each pass, of the same examples. An example that was not seen in a pass has the mean
        over the others, and NaN if it was seen in none.

    Raises
    ------
    AnalysisError
        If there is no pass, or their shapes differ.

    Examples
    --------
    >>> MeanDirection([np.array([[3.0, 4.0]]), np.array([[0.0, 2.0]])])[:1]
    array([[0.3, 0.9]], dtype=float32)
    """

    def __init__(self, passes: Sequence[StatesLike]) -> None:
        shapes = {tuple(states.shape) for states in passes}
        if len(shapes) != 1:
            raise AnalysisError(
                f"the passes have shapes {sorted(shapes)}; pass at least one, of the same examples and layer."
            )
        self._passes = passes
        self.shape = shapes.pop()

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        first, *others = self._passes
        total, seen = _unit_or_zero(np.array(first[key], dtype=np.float32))
        n_seen = seen.astype(np.int64)
        for states in others:
            unit, seen = _unit_or_zero(np.array(states[key], dtype=np.float32))
            total += unit
            n_seen += seen
        total[n_seen == 0] = np.nan
        total /= np.maximum(n_seen, 1)[:, np.newaxis]
        return total


class SideBySide:
    """The directions of several states of each example as one long state; rows are made when they are read.

    By cosine two examples are then as alike as they are in the mean of the parts. An example that was not seen in one
    of the parts is NaN.

    Parameters
    ----------
    parts
        States of the same examples, such as those of several layers.

    Raises
    ------
    AnalysisError
        If there is no part, or they are not of as many examples.

    Examples
    --------
    >>> SideBySide([np.array([[3.0, 4.0]]), np.array([[2.0]])])[:1]
    array([[0.6, 0.8, 1. ]], dtype=float32)
    """

    def __init__(self, parts: Sequence[StatesLike]) -> None:
        counts = {states.shape[0] for states in parts}
        if len(counts) != 1:
            raise AnalysisError(f"the parts hold {sorted(counts)} examples; pass at least one, of the same examples.")
        self._parts = parts
        self.shape = counts.pop(), sum(states.shape[1] for states in parts)

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        found = []
        for states in self._parts:
            unit, seen = _unit_or_zero(np.array(states[key], dtype=np.float32))
            unit[~seen] = np.nan
            found.append(unit)
        return np.concatenate(found, axis=1)


def unit_rows(states: NDArray[np.floating]) -> NDArray[np.float32]:
    """Hidden states scaled to length one, on which Euclidean distance and cosine similarity give one order.

    Parameters
    ----------
    states
        Shape (n_examples, hidden), finite.

    Returns
    -------
    Shape (n_examples, hidden). A row of zeros, which has no direction, stays as it is.

    Raises
    ------
    AnalysisError
        If `states` is not two-dimensional or not finite.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    check_states(states)
    rows = states.astype(np.float32)
    largest = np.abs(rows).max(axis=1, initial=0, keepdims=True)
    rows /= np.where(largest > 0, largest, 1)  # else squares overflow, or vanish
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, np.newaxis]
    rows /= np.where(length > 0, length, 1)
    return rows


def _unit_or_zero(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Rows of unit length and which of them were seen; what was not seen is zero. Overwrites `values`."""
    seen = np.asarray(np.isfinite(values).all(axis=1))
    values[~seen] = 0
    return unit_rows(values), seen


def state_chunks(
    states: StatesLike, *, chunk_size: int = CHUNK_SIZE
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield which rows, their values in float32 and which of them were seen; what was not seen is zero.

    Raises
    ------
    AnalysisError
        If `states` is not two-dimensional or `chunk_size` is below one.

    Examples
    --------
    >>> [(rows, seen.tolist()) for rows, _, seen in state_chunks(np.array([[1.0], [np.nan], [2.0]]), chunk_size=2)]
    [(slice(0, 2, None), [True, False]), (slice(2, 3, None), [True])]
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


def check_states(states: NDArray[np.floating]) -> None:
    """Raise `AnalysisError` unless `states` are finite numbers of shape (n_examples, hidden)."""
    if states.ndim != 2 or not np.issubdtype(states.dtype, np.floating):
        raise AnalysisError(
            f"states has shape {states.shape} and dtype {states.dtype} but must be floating-point numbers of shape "
            "(n_examples, hidden); pass one layer of one epoch."
        )
    finite = np.isfinite(states).all(axis=1)
    if not finite.all():
        raise AnalysisError(
            f"{np.count_nonzero(~finite):,} of {len(states):,} examples have states that are not finite, example "
            f"{int(finite.argmin())} the first; leave out those that were not seen."
        )
