"""Sealed passes as a whole: which are committed, which should be, and how a commit is taken back.

A pass is sealed once the group ``<split>/commits/<pass>`` stands, whose attributes are its manifest. A run that is
resumed from before the end of a sealed epoch turns the rows that still count into segments again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store import schema, segments
from t3vis.store.buffer import Column
from t3vis.store.layout import RING_BYTES
from t3vis.store.sealed import SealedArray, open_sealed, ragged_rows
from t3vis.store.shares import without_helpers

_COUNTED = ("pass", "n_examples", "n_seen", "n_repeated", "n_never", "first_step", "last_step")
_OF_ROWS = (*_COUNTED, "lineage", "checksums", "dropped")


def committed_passes(split: Path) -> list[int]:
    """Numbers of the passes that are sealed and committed, in increasing order."""
    return sorted(int(node.parent.name[1:]) for node in split.glob("commits/p*/zarr.json"))


def commit_of(split: Path, index: int) -> dict[str, Any]:
    """The manifest of a committed pass.

    Raises
    ------
    FileNotFoundError
        If the pass is not committed.
    """
    manifest: dict[str, Any] = schema.read_metadata(split / "commits" / schema.pass_name(index))["attributes"]
    return manifest


def writer_said(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the writer said of the pass, without what the manifest says of the rows that were sealed."""
    return {key: value for key, value in manifest.items() if key not in _OF_ROWS}


def lineage_within(lineage: Sequence[segments.Window], manifest: dict[str, Any]) -> list[segments.Window]:
    """What of a lineage lies within the steps of a sealed pass."""
    windows = (window.within(manifest["first_step"], manifest["last_step"]) for window in lineage)
    return [window for window in windows if window is not None]


def lineage_of(manifest: dict[str, Any], otherwise: Sequence[segments.Window]) -> list[segments.Window]:
    """The attempts that the rows of a sealed training pass are of; ``otherwise`` where the manifest does not say."""
    if "lineage" in manifest:
        return [segments.Window(*window) for window in manifest["lineage"]]
    return lineage_within(otherwise, manifest)


def complete_passes(run: Path) -> list[str]:
    """Passes that an attempt completed and no later one has gone on with, but that are not sealed: ``split:pass``."""
    found = []
    for attempt in segments.attempts(run):
        for key in attempt["complete"]:
            name, _, number = key.rpartition(":")
            split, index = run / name, int(number)
            attempts = [segment.attempt for segment in segments.list_segments(split, index)]
            stands = index not in committed_passes(split) and index in segments.unsealed_passes(split)
            if stands and max(attempts, default=-1) <= attempt["attempt"]:
                found.append(key)
    return found


def drop_commit(split: Path, index: int) -> None:
    """Take a commit back: the commit first, then the shards that it vouched for."""
    shutil.rmtree(split / "commits" / schema.pass_name(index))
    remove_shards(split, index)


def thin(split: Path, index: int) -> None:
    """Drop the hidden states of a sealed pass; its commit first says that they are gone."""
    manifest = commit_of(split, index)
    dropped = [name for name in schema.THINNED if (split / name / "c" / str(index)).exists()]
    if not dropped:
        return
    kept = {file: crc for file, crc in manifest["checksums"].items() if file.partition("/c/")[0] not in dropped}
    said = sorted({*manifest.get("dropped", ()), *dropped})
    node = split / "commits" / schema.pass_name(index)
    schema.write_metadata(node, schema.group_metadata({**manifest, "checksums": kept, "dropped": said}))
    for name in dropped:
        shutil.rmtree(split / name / "c" / str(index))


def remove_shards(split: Path, index: int) -> None:
    """Delete the sealed rows of a pass that is not committed."""
    for name in schema.STORED_ARRAYS:
        shutil.rmtree(split / name / "c" / str(index), ignore_errors=True)


def sealed_rows(split: Path, index: int) -> Iterator[dict[str, Column]]:
    """Rows of a sealed pass that were seen, in the dimensions of segments, a bounded part at a time."""
    arrays = {
        name: open_sealed(split / name, spec.row_axis)
        for name, spec in schema.STORED_ARRAYS.items()
        if schema.node_exists(split / name) and _has_pass(split, name, index)
    }
    if "step" not in arrays:
        return
    steps = arrays["step"].read_all((index,))
    kept = np.flatnonzero(steps >= 0)
    n_bytes = sum(_bytes_per_example(name, array, len(steps)) for name, array in arrays.items())
    n_rows = max(RING_BYTES // max(n_bytes, 1), 1)
    for start in range(0, len(kept), n_rows):
        ids = kept[start : start + n_rows]
        rows: dict[str, Column] = {"example": ids}
        for name, spec in schema.PASS_ARRAYS.items():
            if spec.parts[0].name in arrays:
                stored = [arrays[part.name] for part in spec.parts]
                if spec.is_ragged:
                    rows[name] = ragged_rows(stored[0], stored[1], index, ids)
                else:
                    rows[name] = _as_in_segment(stored[0], index, ids)
        yield rows


def _has_pass(split: Path, name: str, index: int) -> bool:
    """Whether anything of a pass was sealed in a stored array; the values of a ragged one may be none."""
    parts = (name, name.replace("/values", "/offsets"))
    return any((split / part / "c" / str(index)).exists() for part in parts)


def _bytes_per_example(name: str, array: SealedArray, n_examples: int) -> int:
    n_values = int(np.prod(array.shape[1:], dtype=np.int64)) // max(array.n_rows, 1)
    if schema.STORED_ARRAYS[name].rows == "value":
        n_values = -(-array.n_rows // max(n_examples, 1))
    return array.dtype.itemsize * n_values


def _as_in_segment(array: SealedArray, index: int, ids: NDArray[np.int64]) -> NDArray[Any]:
    if array.row_axis == 1:
        return array.read((index,), ids)
    return np.stack([array.read((index, layer), ids) for layer in range(array.shape[1])])


@contextmanager
def locked(run: Path, *, wait_for_helpers: bool = True) -> Iterator[int]:
    """Hold the run's lock: whoever commits passes has it, and whoever resumes a run waits for it.

    Parameters
    ----------
    wait_for_helpers
        Wait also for those who write shares of a pass for another to commit.

    Yields
    ------
    The descriptor that holds it. A subprocess that inherits it keeps the lock until it ends. Where the file system
    knows no locks there is none.
    """
    descriptor = os.open(run / "zarr.json", os.O_RDWR)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for split in segments.split_names(run) if wait_for_helpers else ():
            with without_helpers(run / split, wait=True):
                pass
        yield descriptor
    finally:
        os.close(descriptor)
