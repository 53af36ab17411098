"""Files that outlive a loss of power: contents and directory entries forced to the disk, where that was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Durability = Literal["process", "fsync"]
"""What a row that was flushed survives: the death of the process, or also a loss of power."""


def sync_tree(path: Path, run: Path) -> None:
    """Force everything below ``path``, and the directories that lead to it from the run, to the disk."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _sync(Path(folder) / name)
        _sync(Path(folder))
    for parent in path.parents:
        _sync(parent)
        if parent == run.parent:
            break


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
