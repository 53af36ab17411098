"""Drift: how the model changed between two passes, by layer and by example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.nearest import Neighbours
from t3vis.analysis.states import StatesLike, state_chunks
from t3vis.analysis.trajectories import is_seen
from t3vis.errors import AnalysisError

CHUNK_SIZE = 8_192
"""Examples read at a time from every layer of both passes: at 7 layers of 384, 176 MB in float32."""


def cka(
    before: Sequence[StatesLike], after: Sequence[StatesLike], *, chunk_size: int = CHUNK_SIZE
) -> NDArray[np.float64]:
    """Linear CKA between every layer of one pass and every layer of another.

    Parameters
    ----------
    before, after
        The layers of each pass, of shape (n_examples, hidden) each; the number of layers and their width may differ.
    chunk_size
        Examples held in memory at a time; the result depends on it by rounding only.

    Returns
    -------
    Shape (n_layers_before, n_layers_after), in [0, 1]: 1 for states that are equal but for a rotation, a common
    factor and a shift. NaN for a layer in which nothing varies.

    Raises
    ------
    AnalysisError
        If there is no layer, or the layers have not the same examples.

    Notes
    -----
    Examples that were not seen in one of the layers are left out of all. The products are those of the hidden
    dimensions, ``X.T @ Y``, summed over chunks in float64, of chunks in float32: nothing of size
    (n_examples, n_examples) is ever there. This is the biased estimator of the paper: with fewer examples than hidden
    dimensions it is high for any two layers.

    References
    ----------
    Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited", equation 5.

    Examples
    --------
    >>> states = np.random.default_rng(0).normal(size=(50, 3))
    >>> turned = 2 * states[:, [1, 0, 2]] + 5
    >>> cka([states], [turned, states**2]).round(3)
    array([[1.   , 0.224]])
    """
    n_examples = _common_length([*before, *after])
    sizes = [layer.shape[1] for layer in (*before, *after)]
    ends = np.cumsum(sizes)
    columns = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    n_before = len(before)
    width = int(ends[n_before - 1])
    cross, shift = np.zeros((width, int(ends[-1]) - width)), None
    own = [np.zeros((size, size)) for size in sizes]
    sums, n_seen = np.zeros(int(ends[-1])), 0
    for start in range(0, n_examples, chunk_size):
        values = _side_by_side([*before, *after], slice(start, min(start + chunk_size, n_examples)))
        if not len(values):
            continue
        if shift is None:
            shift = values.mean(axis=0)  # products of centred values lose nothing to a large mean
        values -= shift
        cross += values[:, :width].T @ values[:, width:]
        for gram, column in zip(own, columns, strict=True):
            gram += values[:, column].T @ values[:, column]
        sums += values.sum(axis=0, dtype=np.float64)
        n_seen += len(values)
    norms = [_centred_norm(gram, sums[c], sums[c], n_seen) for gram, c in zip(own, columns, strict=True)]
    found = np.full((n_before, len(after)), np.nan)
    for i, j in np.ndindex(found.shape):
        rows, cols = columns[i], columns[n_before + j]
        product = cross[rows, cols.start - width : cols.stop - width]
        scale = norms[i] * norms[n_before + j]
        if scale > 0:
            found[i, j] = _centred_norm(product, sums[rows], sums[cols], n_seen) ** 2 / scale
    return found


@dataclass(frozen=True, eq=False)
class Displacement:
    """How far every example moved between two passes, what all did in common taken off."""

    distance: NDArray[np.float64]
    """Shape (n_examples,), in units of the root mean square distance of a state to the mean, so that 1 is as far as
    the examples lie from their centre. NaN where an example was not seen in both."""
    rotation: NDArray[np.float64]
    """Shape (hidden, hidden): what takes the centred states before to those after."""


def displacement(before: StatesLike, after: StatesLike) -> Displacement:
    """How far every example moved from one pass to another, after the best rotation of all.

    Parameters
    ----------
    before, after
        States of one layer in two passes, shape (n_examples, hidden) each, read a chunk at a time.

    Returns
    -------
    Distances between the centred, scaled and aligned states, and the rotation.

    Raises
    ------
    AnalysisError
        If the shapes differ.

    Notes
    -----
    Both passes are centred and scaled to unit root mean square distance from the mean, and the orthogonal matrix
    (reflections included) that brings the first closest to the second is applied: a turn or a swelling of the whole
    space is not movement.

    References
    ----------
    Schönemann (1966), "A Generalized Solution of the Orthogonal Procrustes Problem".

    Examples
    --------
    A quarter turn of the whole moves nothing; the last example has moved besides:

    >>> before = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> turned = before @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> displacement(before, turned).distance.round(6) + 0
    array([0., 0., 0., 0.])
    >>> turned[3] *= 3
    >>> displacement(before, turned).distance.argmax() == 3
    np.True_
    """
    if tuple(before.shape) != tuple(after.shape):
        raise AnalysisError(
            f"the states have shape {tuple(before.shape)} before and {tuple(after.shape)} after; "
            "pass one layer of the same examples in two passes."
        )
    first, second, product = _moments(before, after)
    left, _, right = np.linalg.svd(product)
    rotation: NDArray[np.float64] = left @ right
    distance = np.full(before.shape[0], np.nan)
    for rows, old, new, seen in _paired_chunks(before, after):
        moved = first.scaled(old) @ rotation - second.scaled(new)
        distance[rows.start + np.flatnonzero(seen)] = np.linalg.norm(moved[seen], axis=1)
    return Displacement(distance, rotation)


def neighbourhood_change(before: Neighbours, after: Neighbours) -> NDArray[np.float64]:
    """Share of the nearest neighbours of every example that are others than before.

    Parameters
    ----------
    before, after
        Neighbours of the same examples among the same references.

    Returns
    -------
    Shape (n_examples,), in [0, 1]; NaN for an example that has no neighbours in one of the two.

    Raises
    ------
    AnalysisError
        If the two have not the same shape.

    Examples
    --------
    >>> from t3vis.analysis.nearest import nearest_neighbours
    >>> line, moved = np.array([[0.0], [1.0], [5.0]]), np.array([[0.0], [4.0], [5.0]])
    >>> near = [nearest_neighbours(states, k=1, metric="euclidean") for states in (line, moved)]
    >>> neighbourhood_change(*near)
    array([0., 1., 0.])
    """
    if before.ids.shape != after.ids.shape:
        raise AnalysisError(
            f"the neighbours have shape {before.ids.shape} before and {after.ids.shape} after; "
            "search for as many, of the same examples."
        )
    n_known = np.minimum(np.count_nonzero(before.ids >= 0, axis=1), np.count_nonzero(after.ids >= 0, axis=1))
    # Ids of both in one row: those that are in both stand next to each other once sorted.
    both = np.sort(np.concatenate([before.ids, after.ids], axis=1), axis=1)
    n_kept = np.count_nonzero((both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0), axis=1)
    change = np.full(len(n_known), np.nan)
    np.divide(n_known - n_kept, n_known, out=change, where=n_known > 0)
    return change


def flips(logits: NDArray[Any]) -> NDArray[np.int64]:
    """How often the predicted class changed from one pass in which an example was seen to the next.

    Parameters
    ----------
    logits
        Shape (n_epochs, n_examples, n_classes), in memory; a row that is not finite was not seen.

    Returns
    -------
    Shape (n_examples,), in ``[0, n_epochs - 1]``. Labels play no part.

    Examples
    --------
    >>> logits = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[np.nan, np.nan]], [[0.0, 2.0]], [[3.0, 2.0]]])
    >>> flips(logits)
    array([2])
    """
    last = np.full(logits.shape[1], -1)
    changes = np.zeros(logits.shape[1], dtype=np.int64)
    for epoch_logits in logits:
        seen = is_seen(epoch_logits)
        predicted = epoch_logits.argmax(axis=-1)
        changes += seen & (last >= 0) & (predicted != last)
        last = np.where(seen, predicted, last)
    return changes


@dataclass(frozen=True, eq=False)
class _Centred:
    """Mean and root mean square distance from it."""

    mean: NDArray[np.float64]
    size: float

    def scaled(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        return (values - self.mean) / self.size


def _moments(before: StatesLike, after: StatesLike) -> tuple[_Centred, _Centred, NDArray[np.float64]]:
    """Centre and size of both, and the product of the centred states; over examples that were seen in both."""
    hidden = before.shape[1]
    sums, squares, n_seen = np.zeros((2, hidden)), np.zeros(2), 0
    product, shift = np.zeros((hidden, hidden)), None
    for _, old, new, seen in _paired_chunks(before, after):
        if not seen.any():
            continue
        both = np.stack([old[seen], new[seen]]).astype(np.float64)
        if shift is None:
            shift = both.mean(axis=1, keepdims=True)
        both -= shift
        sums += both.sum(axis=1)
        squares += (both**2).sum(axis=(1, 2))
        product += both[0].T @ both[1]
        n_seen += both.shape[1]
    if shift is None:
        nowhere = _Centred(np.zeros(hidden), 1.0)
        return nowhere, nowhere, product
    means = sums / n_seen
    # Where all states are one the size is zero, and so is all that is divided by it.
    sizes = np.sqrt(np.maximum(squares / n_seen - (means**2).sum(axis=1), 0))
    first, second = (_Centred(shift[i, 0] + means[i], float(sizes[i]) or 1.0) for i in range(2))
    return first, second, product - n_seen * np.outer(*means)


def _paired_chunks(before: StatesLike, after: StatesLike) -> Any:
    """Which rows, the states before and after, and which examples were seen in both."""
    for (rows, old, seen_before), (_, new, seen_after) in zip(state_chunks(before), state_chunks(after), strict=True):
        yield rows, old, new, seen_before & seen_after


def _side_by_side(layers: Sequence[StatesLike], rows: slice) -> NDArray[np.float32]:
    """All layers of some examples, shape (n, sum of hidden), those not seen everywhere left out."""
    values = np.concatenate([np.asarray(layer[rows], dtype=np.float32) for layer in layers], axis=1)
    seen = np.isfinite(values).all(axis=1)
    return values if seen.all() else values[seen]


def _centred_norm(
    product: NDArray[np.float64], sums: NDArray[np.float64], other_sums: NDArray[np.float64], n: int
) -> float:
    """Frobenius norm of a product of states, their means taken off."""
    return float(np.linalg.norm(product - np.outer(sums, other_sums) / max(n, 1)))


def _common_length(layers: Sequence[StatesLike]) -> int:
    lengths = {layer.shape[0] for layer in layers}
    if len(lengths) != 1:
        raise AnalysisError(
            f"the layers have {sorted(lengths) or 'no'} examples; pass at least one layer before and after, "
            "of the same examples in the same order."
        )
    return lengths.pop()
