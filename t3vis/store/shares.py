"""A pass sealed by several processes: each writes its share of the pieces, the first one commits.

Each rank's sealer leaves a note among that rank's own segments once its share is written. The sealer of rank 0 waits
for the notes of those that are at work, does what the others have left, and commits. Who is at work is told by a shared
``flock`` on ``commits/zarr.json`` of the split, a file that is written once and never replaced; the kernel lets go of
it however the process ends. Where the file system knows no locks, rank 0 does everything.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t3vis.store import schema
from t3vis.store.pass_arrays import Written
from t3vis.store.segments import Merge

_LOOK_AGAIN_SECONDS = 0.05


def join(split: Path) -> int | None:
    """Say that a helper is at work on a pass of the split, without waiting.

    Returns
    -------
    The descriptor that says so until it is closed, also by the end of a process that inherits it; ``None`` where the
    work is being ended without help, or where the file system knows no locks.
    """
    descriptor = os.open(split / "commits" / "zarr.json", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def without_helpers(split: Path, *, wait: bool) -> Iterator[bool]:
    """Keep helpers out of a split for a while.

    Parameters
    ----------
    wait
        Whether to wait for those that are at work.

    Yields
    ------
    Whether there are none; ``False`` only if they were not to be waited for.
    """
    try:
        descriptor = os.open(split / "commits" / "zarr.json", os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            alone = False
        except OSError:  # no locks, so no helpers
            alone = True
        else:
            alone = True
        yield alone
    finally:
        os.close(descriptor)


def key_of(merged: Merge) -> str:
    """What tells the notes of this sealing from those that were left by one of other rows."""
    seen = [(segment.path.parent.name, segment.path.name, segment.n_rows) for segment in merged.segments]
    kept = [len(rows) for rows in merged.kept]
    return hashlib.blake2b(repr((seen, kept)).encode(), digest_size=16).hexdigest()


def write_note(split: Path, index: int, own: str, share: int, key: str, written: Written) -> None:
    """Note that a share is written; ``own`` is the name of the rank's directory."""
    said = {"key": key, "share": share, "checksums": written.checksums, "n_rows": written.n_rows}
    schema.write_metadata(_note(split / "segments" / own, index), schema.group_metadata(said))


def notes(split: Path, index: int, key: str) -> dict[int, Written]:
    """Shares that are written, by number."""
    found = {}
    for node in split.glob(f"segments/*/{_note(Path(), index).name}/zarr.json"):
        said = schema.read_metadata(node.parent)["attributes"]
        if said["key"] == key:
            found[int(said["share"])] = Written(said["checksums"], said["n_rows"])
    return found


def remove_notes(split: Path, index: int) -> None:
    """Delete the notes of a pass, which is committed."""
    for node in list(split.glob(f"segments/*/{_note(Path(), index).name}")):
        shutil.rmtree(node, ignore_errors=True)


def pause() -> None:
    """Between two looks at the notes."""
    time.sleep(_LOOK_AGAIN_SECONDS)


def _note(folder: Path, index: int) -> Path:
    return folder / f"share_{schema.pass_name(index)}"
