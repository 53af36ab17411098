"""Texts of a split: pages of them, and which examples contain what is searched for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from t3vis.store.reader import Split

MAX_ROWS = 500
"""Examples of one page."""
BLOCK = 20_000
"""Examples that are searched at a time."""
HELD_BYTES = 150_000_000
"""Texts up to this size together are held after the first search."""


def rows(split: Split, ids: list[int]) -> list[dict[str, str]]:
    """The text columns of some examples, one dictionary each, in the order of the ids.

    Raises
    ------
    IndexError
        If the split has no such example.
    """
    return [{name: column[number] for name, column in split.text.items()} for number in ids]


class TextSearch:
    """Search in all text columns of a split; the texts are read once and held if they are not too large."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._held: list[_Block] | None = None
        self._lock = Lock()

    def find(self, wanted: str) -> NDArray[np.int32]:
        """Ids of the examples that contain a text, in increasing order.

        ASCII letters match in either case, others as they are typed, in capitals and in small letters.
        """
        if not wanted:
            return np.arange(self._split.n_examples, dtype=np.int32)
        if "\0" in wanted:
            return np.empty(0, np.int32)
        forms = {form.encode().lower() for form in (wanted, wanted.lower(), wanted.upper(), wanted.capitalize())}
        found = [block.find(form) for block in self._blocks() for form in forms]
        return np.unique(np.concatenate([np.empty(0, np.int32), *found])).astype(np.int32)

    def _blocks(self) -> Iterator[_Block]:
        with self._lock:
            held = self._held
        if held is not None:
            yield from held
            return
        read: list[_Block] | None = []
        size = 0
        for column in self._split.text.values():
            for start in range(0, len(column), BLOCK):
                block = _Block(start, *column.encoded(start, min(start + BLOCK, len(column))))
                size += len(block.text)
                if read is not None:
                    read.append(block)
                if size > HELD_BYTES:
                    read = None
                yield block
        with self._lock:
            self._held = read


class _Block:
    """Texts of consecutive examples with a zero between them, in small letters as far as they are ASCII."""

    def __init__(self, start: int, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.text = np.insert(text, offsets[1:-1], 0).tobytes().lower()  # of bytes: no length changes
        self._start = start
        self._begins = offsets[:-1] + np.arange(len(offsets) - 1)

    def find(self, wanted: bytes) -> NDArray[np.int32]:
        """Ids of the examples whose text contains these bytes, none of them zero."""
        places = [match.start() for match in re.finditer(re.escape(wanted), self.text)]
        numbers = np.searchsorted(self._begins, np.array(places, np.int64), side="right") - 1
        return (self._start + numbers[np.flatnonzero(np.diff(numbers, prepend=-1))]).astype(np.int32)
