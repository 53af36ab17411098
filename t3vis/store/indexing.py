"""NumPy indexing of an array that is read block by block. Pure; nothing here touches the disk."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = range | NDArray[np.int64]


def orthogonal(key: Any, shape: tuple[int, ...]) -> tuple[list[Indices], tuple[Any, ...]]:
    """Split NumPy indexing into the indices wanted on each axis and the indexing that remains on that block.

    Reading the block ``wanted[0] x wanted[1] x ...`` and applying the remainder gives what NumPy would give. The
    indices wanted on each axis are in increasing order.
    """
    parts = list(key) if isinstance(key, tuple) else [key]
    n_given = sum(np.ndim(part) if _is_mask(part) else 1 for part in parts if part is not None and part is not Ellipsis)
    if sum(part is Ellipsis for part in parts) > 1:
        raise IndexError("an index can only have a single ellipsis")
    if n_given > len(shape):
        raise IndexError(f"too many indices: the array has {len(shape)} dimensions, {n_given} were given")
    if Ellipsis not in [part if part is Ellipsis else None for part in parts]:
        parts.append(Ellipsis)
    at = next(i for i, part in enumerate(parts) if part is Ellipsis)
    parts[at : at + 1] = [slice(None)] * (len(shape) - n_given)
    wanted: list[Indices] = []
    remainder: list[Any] = []
    for part in parts:
        if part is None:
            remainder.append(None)
            continue
        size = shape[len(wanted)]
        if isinstance(part, slice):
            indices = range(size)[part]
            wanted.append(indices if indices.step > 0 else indices[::-1])
            remainder.append(slice(None) if indices.step > 0 else slice(None, None, -1))
        elif isinstance(part, int | np.integer) and not isinstance(part, bool | np.bool_):
            number = _checked(int(part), size)
            wanted.append(range(number, number + 1))
            remainder.append(0)
        else:
            for array in _advanced(part, shape[len(wanted) :]):
                size = shape[len(wanted)]
                if array.size and (array.min() < -size or array.max() >= size):
                    outside = array.min() if array.min() < -size else array.max()
                    raise IndexError(f"index {outside} is out of bounds for a dimension of size {size}")
                unique, inverse = np.unique(array % max(size, 1), return_inverse=True)
                wanted.append(unique)
                remainder.append(inverse.reshape(array.shape))
    return wanted, tuple(remainder)


def _advanced(part: Any, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """Arrays of indices, one for each dimension that a list, an array of integers or a mask speaks of."""
    array = np.asarray(part)
    if _is_mask(part):
        if array.shape != shape[: array.ndim]:
            raise IndexError(f"a mask of shape {array.shape} does not match dimensions of sizes {shape[: array.ndim]}")
        return np.nonzero(array)
    if array.dtype.kind not in "iu" and not (isinstance(part, list) and array.size == 0):
        raise IndexError(f"{part!r} is no index: expected integers, slices, masks, ... or None")
    return (array.astype(np.int64),)


def _is_mask(part: Any) -> bool:
    array = np.asarray(part) if isinstance(part, np.ndarray | list) else None
    return array is not None and array.dtype == bool and array.ndim > 0


def _checked(index: int, size: int) -> int:
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of bounds for a dimension of size {size}")
    return index % size
