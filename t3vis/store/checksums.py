"""Checksums of whole files, by which any flipped byte of a shard is found.

The index of a shard has a checksum of its own, its rows have none: without a codec every bit pattern is a row. So
whoever writes shards MAY keep the crc32c of each file beside what vouches for it; ``verify`` compares.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from awscrt.checksums import crc32c

_BLOCK_BYTES = 1 << 20


def checksum(path: Path) -> int:
    """The crc32c of a whole file, read in blocks."""
    crc = 0
    block = np.empty(_BLOCK_BYTES, np.uint8)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block.data):
            crc = crc32c(block[:count], crc)
    return crc


def checksums_below(folders: Sequence[Path], root: Path) -> dict[str, int]:
    """The checksum of every shard below some folders, by its path from ``root``; folders that are not there have none.

    This is what the attribute ``checksums`` of a commit, or of a group of examples, holds.
    """
    files = sorted(file for folder in folders for file in files_below(folder) if is_shard(file))
    return {file.relative_to(root).as_posix(): checksum(file) for file in files}


def is_shard(file: Path) -> bool:
    """Whether a file is a shard, and not metadata or left unfinished."""
    return file.name != "zarr.json" and file.suffix != ".partial"


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and those within it; what vanishes in the meantime is passed over."""
    for path, _, names in os.walk(folder):
        yield from (Path(path) / name for name in names)


def size_of(file: Path) -> int:
    """Bytes of a file, 0 if it has vanished."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
