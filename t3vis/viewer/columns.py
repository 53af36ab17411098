"""Columns on their way to the page: their bytes, held if they were asked for lately, computed once by one thread."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Protocol

CACHE_BYTES = 128_000_000
"""Columns that were asked for lately are held up to this size."""


class Computed(Protocol):
    """What can be read or computed, and sent."""

    @property
    def key(self) -> str:
        """Names the content."""

    @property
    def is_analysis(self) -> bool:
        """Whether it may have to be computed."""

    def to_bytes(self) -> bytes:
        """The content."""


class ColumnCache:
    """Bytes of columns by key; what takes long is computed by one thread, once."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._coming: dict[str, Future[bytes]] = {}
        self._lock = Lock()
        self._reading = ThreadPoolExecutor(2, "t3vis-columns")
        self._computing = ThreadPoolExecutor(1, "t3vis-analysis")  # analyses write into the store: one at a time

    def get(self, column: Computed, seconds: float) -> bytes | None:
        """The bytes of a column, or ``None`` if they take longer than that; then ask again.

        Raises
        ------
        AnalysisError
            If the column cannot be computed.
        """
        with self._lock:
            if column.key in self._held:
                self._held.move_to_end(column.key)
                return self._held[column.key]
            if column.key not in self._coming:
                pool = self._computing if column.is_analysis else self._reading
                self._coming[column.key] = pool.submit(column.to_bytes)
            coming = self._coming[column.key]
        try:
            found = coming.result(seconds)
        except TimeoutError:
            if coming.done():  # it is the reading itself that took too long
                raise
            return None
        finally:
            if coming.done():
                with self._lock:
                    self._coming.pop(column.key, None)
        self._keep(column.key, found)
        return found

    def close(self) -> None:
        """Begin nothing more."""
        for pool in (self._reading, self._computing):
            pool.shutdown(wait=False, cancel_futures=True)

    def _keep(self, key: str, found: bytes) -> None:
        with self._lock:
            self._held[key] = found
            while sum(map(len, self._held.values())) > self._limit and len(self._held) > 1:
                self._held.popitem(last=False)
