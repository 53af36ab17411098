"""Files that outlive a loss of power: contents and directory entries forced to the disk, where that was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Durability = Literal["process", "fsync"]
"""What a row that was flushed survives: the death of the process, or also a loss of power."""


def sync_tree(path: Path, run: Path) -> None:
    """Force everything below ``path``, if it exists, and the directories that lead to it from the run, to the disk."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            sync_file(Path(folder) / name)
        sync_file(Path(folder))
    for parent in filter(Path.exists, path.parents):
        sync_file(parent)
        if parent == run.parent:
            break


def sync_file(path: Path) -> None:
    """Force one file, or the names in one directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
