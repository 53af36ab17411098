"""One sealed array as it lies on disk or in a copy, read without zarr-python."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.layout import RowLayout
from t3vis.store.ragged import Ragged, positions
from t3vis.store.shard import Buffer, Codec, RowNumbers, Shard, ShardFile, pieces, read_from_shard, room
from t3vis.store.storage import RemotePath, open_shard

N_REMOTE_THREADS = 8  # requests at a time; from a directory one thread reads as fast as memory is copied


class HeldShards:
    """Shards that are kept open for the next read.

    When there are too many in the process all are let go; each is closed when its last user is done.
    """

    LIMIT = 64
    _all: ClassVar[WeakSet[HeldShards]] = WeakSet()
    _lock: ClassVar[Lock] = Lock()

    def __init__(self) -> None:
        self._shards: dict[Hashable, Shard] = {}
        with self._lock:
            self._all.add(self)
        self.n_missed = 0
        """How often a shard was asked for that was not kept."""

    def get(self, key: Hashable) -> Shard | None:
        """The shard that was kept under this key."""
        shard = self._shards.get(key)
        self.n_missed += shard is None
        return shard

    def keep(self, key: Hashable, shard: Shard) -> None:
        """Keep an open shard."""
        with self._lock:
            everywhere = list(self._all)
        if sum(map(len, everywhere)) >= self.LIMIT:
            for held in everywhere:
                held.clear()
        self._shards[key] = shard

    def clear(self) -> None:
        """Let all of them go."""
        self._shards = {}

    def __len__(self) -> int:
        return len(self._shards)


@dataclass(frozen=True)
class SealedArray:
    """An array of whole shards whose leading axes are chunked by one and whose trailing axes are whole.

    Shards that were read stay open: the array goes on to see what was there when it read first, also when it is
    deleted or replaced.
    """

    path: schema.Node
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float | int
    dims: tuple[str, ...]
    attributes: dict[str, Any]
    layout: RowLayout
    row_axis: int
    decode: Codec | None
    held: HeldShards = field(default_factory=HeldShards, repr=False, compare=False)
    _token: object = field(default_factory=object, repr=False, compare=False)  # shards are kept for this one only

    @property
    def n_rows(self) -> int:
        """Length of the axis that counts rows."""
        return self.shape[self.row_axis]

    @property
    def trailing(self) -> tuple[int, ...]:
        """Sizes of one row."""
        return self.shape[self.row_axis + 1 :]

    def read(self, leading: tuple[int, ...], rows: RowNumbers, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows (in increasing order, or a range of step 1) of one leading index.

        Parameters
        ----------
        out
            Where they go, C-contiguous, of the array's type; a new array if there is none.

        Returns
        -------
        Shape (n, *trailing). Rows of a shard that was never written are fill value.

        Raises
        ------
        StoreError
            If a shard is damaged; the message names the file and what it holds.
        """
        if out is None:
            out = room((len(rows), *self.trailing), self.dtype)
        parts = [(leading, number, within, out[at]) for number, within, at in pieces(rows, self.layout.shard_rows)]
        if len(parts) > 1 and isinstance(self.path, RemotePath):
            with ThreadPoolExecutor(N_REMOTE_THREADS) as pool:
                for task in [pool.submit(self._read_shard, *part) for part in parts]:
                    task.result()
        else:
            for part in parts:
                self._read_shard(*part)
        return out

    def read_all(self, leading: tuple[int, ...] = ()) -> NDArray[Any]:
        """All rows of one leading index."""
        return self.read(leading, range(self.n_rows))

    def row(self, leading: tuple[int, ...], number: int) -> NDArray[Any]:
        """One row of one leading index, shape ``trailing``."""
        shard_number, within = divmod(number, self.layout.shard_rows)
        if self.decode is None:
            rows = self._mapped_rows(leading, shard_number)
            if within < len(rows):
                row: NDArray[Any] = rows[within].copy()
                return row
        out = np.empty(self.trailing, self.dtype)
        self._read_shard(leading, shard_number, range(within, within + 1), out[None])
        return out

    def take(self, leading: tuple[int, ...], rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows of one leading index in any order, also more than once; shape (n, *trailing)."""
        if self.decode is not None or isinstance(self.path, RemotePath):
            wanted, inverse = np.unique(rows, return_inverse=True)
            return self.read(leading, wanted)[inverse]
        out = room((len(rows), *self.trailing), self.dtype)
        numbers = rows // self.layout.shard_rows
        for number in np.flatnonzero(np.bincount(numbers)).tolist():
            at = np.flatnonzero(numbers == number)
            within = rows[at] - number * self.layout.shard_rows
            mapped = self._mapped_rows(leading, number)
            if within.max() < len(mapped):
                out[at] = mapped[within]
            else:  # some of it was never written, or its chunks lie in another order
                wanted, inverse = np.unique(within, return_inverse=True)
                part = np.empty((len(wanted), *self.trailing), self.dtype)
                self._read_shard(leading, number, wanted, part)
                out[at] = part[inverse]
        return out

    def _mapped_rows(self, leading: tuple[int, ...], number: int) -> NDArray[Any]:
        shard = self._shard(leading, number)
        if not isinstance(shard, ShardFile):
            return np.empty((0, *self.trailing), self.dtype)
        try:
            return shard.mapped_rows(self.dtype, self.shape[self.row_axis + 1 :], self.layout.chunk_rows)
        except StoreError as error:
            raise self._damaged(error, leading, number) from error

    def _read_shard(self, leading: tuple[int, ...], number: int, rows: RowNumbers, out: NDArray[Any]) -> None:
        shard = self._shard(leading, number)
        if shard is None:
            out[...] = self.fill
            return
        try:
            read_from_shard(shard, rows, out, self.layout.chunk_rows, self.fill, self.decode)
        except StoreError as error:
            raise self._damaged(error, leading, number) from error

    def _shard(self, leading: tuple[int, ...], number: int) -> Shard | None:
        key = self._token, leading, number
        shard = self.held.get(key)
        if shard is None:
            file = self.path.joinpath("c", *map(str, leading), str(number), *("0" for _ in self.trailing))
            try:
                shard = open_shard(file, self.layout.chunks_per_shard)
            except FileNotFoundError:
                return None
            except StoreError as error:
                raise self._damaged(error, leading, number) from error
            self.held.keep(key, shard)
        return shard

    def _damaged(self, error: StoreError, leading: tuple[int, ...], number: int) -> StoreError:
        """The same error, which also says what the shard holds."""
        first = number * self.layout.shard_rows
        last = min(first + self.layout.shard_rows, self.n_rows) - 1
        where = "".join(f"{dim} {index}, " for dim, index in zip(self.dims, leading, strict=False))
        dim = "rows" if self.dims[self.row_axis] == "row" else f"{self.dims[self.row_axis]}s"
        return StoreError(f"{error} It holds {self.path.name}, {where}{dim} {first} to {last}.")


def ragged_rows(values: SealedArray, offsets: SealedArray, index: int, rows: RowNumbers) -> Ragged:
    """Rows of one pass of a ragged array, in increasing order; those beyond what the pass has are empty.

    Raises
    ------
    StoreError
        If a shard is damaged, or what is there are not offsets.
    """
    numbers = np.asarray(rows, np.int64)
    edges = np.union1d(numbers, numbers + 1)
    bounds = np.full(len(edges), -1, np.int64)
    inside = edges < offsets.n_rows
    bounds[inside] = offsets.take((index,), edges[inside])
    starts, stops = (bounds[np.searchsorted(edges, numbers + end)] for end in (0, 1))
    starts = np.where(stops < 0, 0, starts)
    lengths = np.where(stops < 0, 0, stops - starts)
    if min(lengths.min(initial=0), starts.min(initial=0)) < 0 or stops.max(initial=0) > values.n_rows:
        raise StoreError(f"{offsets.path}, pass {index}, holds no offsets of {values.n_rows} values; it is damaged.")
    if len(edges) == len(numbers) + 1:  # neighbours
        begin = int(starts[0])
        content = values.read((index,), range(begin, begin + int(lengths.sum())))
    else:
        content = values.take((index,), positions(starts, lengths))
    return Ragged.with_lengths(content, lengths)


def open_sealed(path: schema.Node, row_axis: int, *, held: HeldShards | None = None) -> SealedArray:
    """Open the array at ``path``, whose axis ``row_axis`` counts rows.

    Parameters
    ----------
    held
        Where its shards are kept open, together with those of other arrays; its own if there is none.

    Raises
    ------
    FileNotFoundError
        If no array is there.
    StoreError
        If it is laid out in a way that t3vis does not write.
    """
    metadata = schema.read_metadata(path)
    try:
        sharding = metadata["codecs"][0]["configuration"]
        names = [codec["name"] for codec in sharding["codecs"]]
        shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][row_axis]
        layout = RowLayout(sharding["chunk_shape"][row_axis], shard_rows)
    except (KeyError, IndexError, TypeError) as error:
        raise StoreError(f"{path} is not an array of sharding_indexed shards, as t3vis writes them.") from error
    fill = metadata["fill_value"]
    return SealedArray(
        path=path,
        shape=tuple(metadata["shape"]),
        dtype=np.dtype(metadata["data_type"]).newbyteorder("<"),
        fill=float("nan") if fill == "NaN" else fill,
        dims=tuple(metadata["dimension_names"]),
        attributes=metadata["attributes"],
        layout=layout,
        row_axis=row_axis,
        decode=_decoder(path, names[1:]),
        held=HeldShards() if held is None else held,
    )


def _decoder(path: schema.Node, names: list[str]) -> Codec | None:
    """What decodes a chunk; the codecs themselves are imported only where they are needed, since that is slow."""
    if not names:
        return None
    if names == ["zstd"]:
        from numcodecs.zstd import Zstd

        return partial(_as_bytes, Zstd().decode)
    if names == ["blosc"]:
        from numcodecs.blosc import Blosc

        return partial(_as_bytes, Blosc().decode)
    raise StoreError(f"{path} is encoded with {names}; this version of t3vis reads zstd, blosc or no codec.")


def _as_bytes(decode: Callable[[Buffer], Any], data: Buffer) -> bytes:
    return bytes(decode(data))
