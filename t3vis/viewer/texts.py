"""Texts of a split: pages of them, and which examples contain what is searched for."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
        forms = {form.encode().lower() for form in (wanted, wanted.lower(), wanted.upper(), wanted.capitalize())}
        passes = np.zeros(self._split.n_examples, np.bool_)
        for block in self._blocks() if wanted else ():
            for form in forms:
                passes[block.examples] |= block.contains(form)
        return np.flatnonzero(passes | (not wanted)).astype(np.int32)

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
                size += block.n_bytes
                if read is not None:
                    read.append(block)
                if size > HELD_BYTES:
                    read = None
                yield block
        with self._lock:
            self._held = read


class _Block:
    """Texts of consecutive examples, in small letters as far as they are ASCII."""

    def __init__(self, start: int, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.n_bytes = len(text)
        n = len(offsets) - 1
        self.examples = slice(start, start + n)
        small = text.tobytes().lower()  # of bytes: no length changes
        parts = [None, pa.py_buffer(np.ascontiguousarray(offsets, np.int64)), pa.py_buffer(small)]
        self._texts = pa.Array.from_buffers(pa.large_binary(), n, parts)

    def contains(self, wanted: bytes) -> NDArray[np.bool_]:
        """Of each example whether its text contains these bytes."""
        found: NDArray[np.bool_] = pc.match_substring(self._texts, wanted).to_numpy(zero_copy_only=False)
        return found
