"""Which code a result was computed with: two checkouts of one version may differ."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import t3vis


@cache
def code_version() -> str:
    """The version of t3vis and a digest of its modules that compute results."""
    return f"{t3vis.__version__}+{digest_of(Path(__file__).parent)}"


def digest_of(package: Path) -> str:
    """A digest of the sources from which results follow: ``analysis``, ``probing``, and what joins them to a run."""
    digest = hashlib.blake2b(digest_size=8)
    for source in sorted([*package.glob("analysis/*.py"), *package.glob("probing/*.py"), *package.glob("analyze*.py")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()
