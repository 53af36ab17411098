"""Blocks of examples, each read and worked on by one task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.nearest import References
from t3vis.errors import AnalysisError

if TYPE_CHECKING:
    from dask.array import Array
    from distributed import Client, Future

T = TypeVar("T")

BLOCK_BYTES = 32 << 20
"""Of an array, that one task reads; it computes with a few times as much."""
NEIGHBOUR_BYTES = 64
"""Of a neighbour while it is looked for and asked: its id, distance and weight, and what they are made of."""
_TASKS_PER_THREAD = 2


@dataclass(frozen=True)
class Block:
    """Part of a Dask array, which the worker that needs it reads."""

    array: Array

    def read(self) -> NDArray[Any]:
        """The values, read by the calling thread."""
        found: NDArray[Any] = self.array.compute(scheduler="synchronous")
        return found


def blocks(array: Array, rows: Iterable[slice], *, axis: int) -> Iterator[Block]:
    """Some rows after the other along an axis; each block knows no more of the graph than it needs."""
    from dask import optimize

    before = (slice(None),) * axis
    for part in rows:
        yield Block(optimize(array[(*before, part)])[0])


def row_slices(array: Array, *, axis: int, item_bytes: int | None = None, n_neighbours: int = 0) -> list[slice]:
    """Slices along an axis of which each takes at most `BLOCK_BYTES`; one at least.

    Parameters
    ----------
    item_bytes
        Of a value; by default as it is stored.
    n_neighbours
        Neighbours that are looked for of each row.
    """
    n_rows = array.shape[axis]
    row_bytes = array.size // max(n_rows, 1) * (item_bytes or array.dtype.itemsize) + n_neighbours * NEIGHBOUR_BYTES
    size = max(BLOCK_BYTES // max(row_bytes, 1), 1)
    return [slice(start, min(start + size, n_rows)) for start in range(0, max(n_rows, 1), size)]


def in_order(client: Client, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Results of a function on the cluster, in the order of what it is called with.

    A `Block` among the arguments is read where the function runs. No more tasks wait than keep the workers busy, so
    that what they have done does not pile up.

    Raises
    ------
    AnalysisError
        If the client is none, or its cluster has no worker.
    """
    limit = _TASKS_PER_THREAD * n_threads(client)
    waiting: deque[Future[T]] = deque()
    try:
        for arguments in tasks:
            if len(waiting) >= limit:
                yield waiting.popleft().result()
            waiting.append(client.submit(_called, function, *arguments, pure=False))
        while waiting:
            yield waiting.popleft().result()
    finally:
        client.cancel(list(waiting))


def n_threads(client: Client) -> int:
    """Threads of all workers.

    Raises
    ------
    AnalysisError
        If the client is none, or its cluster has no worker.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise AnalysisError("a cluster needs dask.distributed; install it with: pip install 't3vis[dask]'.") from error
    if not isinstance(client, Client):
        raise AnalysisError(f"client is a {type(client).__name__} but must be a dask.distributed.Client.")
    found = sum(client.nthreads().values())
    if not found:
        raise AnalysisError(f"the cluster at {client.scheduler.address} has no worker; start some, or wait for them.")
    return int(found)


def as_dask(array: Any, what: str) -> Array:
    """The array, if it is one of Dask.

    Raises
    ------
    AnalysisError
        If it is not.
    """
    from dask.array import Array

    if not isinstance(array, Array):
        raise AnalysisError(
            f"{what} is a {type(array).__name__} but must be a Dask array; pass split.to_dask(...), or call the "
            "function of that name in t3vis.analysis."
        )
    return array


def gathered_references(
    client: Client,
    states: Array,
    ids: NDArray[np.integer],
    rows: Iterable[slice],
    states_of: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> References:
    """Some examples among which neighbours are looked for; those that were not seen are left out.

    Parameters
    ----------
    states
        Examples along the last axis but one.
    ids
        Of the examples.
    rows
        Examples of each block.
    states_of
        Makes states of shape (n_examples, hidden) of what was read of some examples.
    """
    chosen = np.unique(np.asarray(ids, dtype=np.int64))
    own = {(part.start, part.stop): chosen[(chosen >= part.start) & (chosen < part.stop)] for part in rows}
    parts = [slice(*part) for part, found in own.items() if len(found)]
    tasks = (
        (block, own[part.start, part.stop] - part.start, states_of)
        for block, part in zip(blocks(states, parts, axis=states.ndim - 2), parts, strict=True)
    )
    found = list(in_order(client, _chosen_rows, tasks))
    values = np.concatenate(found) if found else np.empty((0, 0), np.float32)
    seen = np.isfinite(values).all(axis=1)
    return References.of(chosen[seen], values[seen])


def _called(function: Callable[..., T], *arguments: Any) -> T:
    return function(*(given.read() if isinstance(given, Block) else given for given in arguments))


def _chosen_rows(
    block: NDArray[Any], ids: NDArray[np.int64], states_of: Callable[[NDArray[Any]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    return states_of(block[..., ids, :])
