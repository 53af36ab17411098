"""What is selected on the page, for the notebook that shows it."""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import NDArray


class Selection:
    """The split that is shown and the ids that are selected in it; written by the server, read by the notebook."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._split: str | None = None
        self._ids = np.empty(0, np.int64)

    def put(self, split: str, ids: NDArray[np.int64]) -> None:
        """Another selection."""
        with self._lock:
            self._split, self._ids = split, ids

    @property
    def split(self) -> str | None:
        """Name of the split that is shown, ``None`` before the page is there."""
        with self._lock:
            return self._split

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the examples that are selected, in increasing order."""
        with self._lock:
            return self._ids.copy()
