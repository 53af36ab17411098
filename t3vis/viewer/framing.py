"""Answers that are JSON and numbers in one."""

from __future__ import annotations

import json
from typing import Any


def framed(said: dict[str, Any], body: bytes) -> bytes:
    """JSON and numbers in one answer: four bytes of the JSON's length (little-endian), the JSON, the numbers.

    The JSON is padded with blanks, so that the numbers begin at a multiple of four.
    """
    head = json.dumps(said).encode()
    head += b" " * (-len(head) % 4)
    return len(head).to_bytes(4, "little") + head + body
