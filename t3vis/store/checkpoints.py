"""Checkpoints of the model that were saved beside a run: noted by the writer, looked for again by whoever reads.

Nobody promises that they stay. A note holds where the checkpoint was and the checksum of what it said of itself, so
that one that was deleted, or written over by another training, is not taken for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t3vis.store import segments
from t3vis.store.checksums import checksum

STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is still there: the file or directory, and how many optimizer steps the model had taken.

    ``crc32c`` is the checksum of the Trainer's state in it, ``None`` where there is no such file.
    """

    step: int
    path: Path
    crc32c: int | None


def noted(run: Path, checkpoint: Path, step: int) -> dict[str, Any]:
    """What an attempt keeps of a checkpoint that has just been written.

    Raises
    ------
    OSError
        If there is none.
    """
    whole = checkpoint.resolve(strict=True)
    relative = Path(os.path.relpath(whole, run.resolve())).as_posix()
    return {"step": step, "path": relative, "absolute": str(whole), "crc32c": _crc32c(whole)}


def checkpoints(run: Path) -> list[Checkpoint]:
    """Those of the weights that the newest attempt came through that are still what they were, in order of step."""
    notes = {known["attempt"]: known.get("checkpoints", ()) for known in segments.attempts(run) if known["rank"] == 0}
    found = {}
    for window in segments.lineage(run):
        for note in notes.get(window.attempt, ()):
            path = _place(run, note) if window.start < note["step"] <= window.stop else None
            if path is not None:
                found[note["step"]] = Checkpoint(note["step"], path, note["crc32c"])
    return [found[step] for step in sorted(found)]


def _place(run: Path, note: dict[str, Any]) -> Path | None:
    """Where the checkpoint is: as it lay to the run, which may have moved with it, else where it was."""
    for place in (run / note["path"], Path(note["absolute"])):
        try:
            if place.exists() and _crc32c(place) == note["crc32c"]:
                return Path(os.path.normpath(place))
        except OSError:  # deleted meanwhile, or not to be read
            continue
    return None


def _crc32c(checkpoint: Path) -> int | None:
    """Checksum of the Trainer's state in a checkpoint, which differs from one training to another."""
    state = checkpoint / STATE_FILE
    return checksum(state) if state.is_file() else None
