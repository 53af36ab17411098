"""The recorded arrays as a user meets them: one thing over all passes, of which indexing reads what it names."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from t3vis.store import schema
from t3vis.store.indexing import orthogonal
from t3vis.store.passes import PassReader
from t3vis.store.sealed import HeldShards
from t3vis.store.shard import room
from t3vis.store.storage import locate


class _OverPasses:
    """An array over all passes of a split, of rows of one size or ragged."""

    def __init__(self, reader: PassReader, name: str) -> None:
        self.name = name
        self._reader = reader
        self._spec = schema.PASS_ARRAYS[name]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(self._spec.dtype)

    @property
    def attributes(self) -> dict[str, Any]:
        """Meaning, mode, and what was chosen when recording."""
        return self._reader.array_attributes(self._spec)

    def __len__(self) -> int:
        return self._reader.n_passes()


class RunArray(_OverPasses):
    """One array over all passes of a split, with the dimensions of ``dims``; NumPy indexing reads what it names.

    Examples
    --------
    ``run.train.logits[-1]`` is the last epoch, ``run.train.hidden_states[0, -1, 17]`` one example's last layer in
    the first, ``run.train.loss[:, ids]`` the trajectories of chosen examples.
    """

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        return self._spec.dims(self._reader.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions, as of now."""
        leading, trailing = self._reader.row_shape(self.name)
        return (self._reader.n_passes(), *leading, self._reader.n_examples, *trailing)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    def __getitem__(self, key: Any) -> Any:
        found = self._reader.read_directly(self._spec, key)
        if found is not None:
            return found
        n_leading = 1 + len(self._spec.leading)
        shape = self.shape
        wanted, remainder = orthogonal(key, shape)
        block = room((*map(len, wanted[: n_leading + 1]), *shape[n_leading + 1 :]), self.dtype)
        layers = list(product(*wanted[1:n_leading]))
        self._reader.read_all(self._spec, wanted[0], layers, wanted[n_leading], block)
        for axis in range(n_leading + 1, len(shape)):
            if not isinstance(wanted[axis], range) or wanted[axis] != range(shape[axis]):
                block = np.take(block, wanted[axis], axis)
        return block[remainder]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the run anew; there it has to lie at the same path or URL."""
        return recorded_array, (self._reader.run_location, self._reader.name, self.name)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.name} is read from disk; a NumPy array of it is always a copy.")
        return np.asarray(self[:], dtype=dtype)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in zip(self.dims, self.shape, strict=True))
        return f"<{self.name} ({sizes}) {self.dtype}>"


def recorded_array(location: str, split: str, name: str) -> RunArray:
    """One array of the run at an absolute path or a URL, which is opened once in this process."""
    return RunArray(_reader_of(location, split), name)


@lru_cache(maxsize=16)
def _reader_of(location: str, split: str) -> PassReader:
    return PassReader(locate(location), split, HeldShards())


class RaggedRunArray(_OverPasses):
    """One ragged array over all passes of a split, such as one value per token of each example.

    Examples
    --------
    ``run.train.ragged("token_logprob")[-1]`` is the last epoch as ``Ragged`` rows, ``[-1, 17]`` the values of one
    example in it, ``[-1, [3, 5]]`` the rows of two, and ``[:, 17]`` a list of its values in every pass.
    """

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions; the length of the last one differs from row to row."""
        return (*self._spec.dims(self._reader.kind), "token")

    @property
    def shape(self) -> tuple[int, int]:
        """Passes and examples, as of now."""
        return self._reader.n_passes(), self._reader.n_examples

    def __getitem__(self, key: Any) -> Any:
        passes, examples = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if isinstance(passes, slice):
            return [self[index, examples] for index in range(len(self))[passes]]
        if not isinstance(passes, int | np.integer):
            raise IndexError(f"{key!r} is no index: expected a pass, or a pass and examples")
        wanted, remainder = orthogonal((passes, examples), self.shape)
        if len(wanted) != 2 or np.ndim(remainder[1]) > 1:
            raise IndexError(f"{key!r} is no index: expected a pass, or a pass and one dimension of examples")
        return self._reader.read_ragged(self._spec, int(wanted[0][0]), wanted[1])[remainder[1]]

    def __repr__(self) -> str:
        n_passes, n_examples = self.shape
        return f"<{self.name} ({self.dims[0]}: {n_passes}, example: {n_examples}, token: ragged) {self.dtype}>"
