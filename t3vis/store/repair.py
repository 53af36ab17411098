"""Put in order what a process that died has left behind: seal what is complete, remove what counts for nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.checksums import files_below
from t3vis.store.commits import commit_of, committed_passes, complete_passes, lineage_of, locked
from t3vis.store.liveness import without_writers
from t3vis.store.seal import seal_pass


@dataclass(frozen=True)
class Repaired:
    """What was done: passes as ``split:pass``, and paths.

    ``incomplete`` were recorded in part only and stay as segments, since training may be resumed; ``failed`` could
    not be sealed, and why. Both stay readable as far as they are not damaged.
    """

    sealed: tuple[str, ...]
    incomplete: tuple[str, ...]
    failed: dict[str, str]
    removed: tuple[Path, ...]


def repair(path: Path, *, incomplete: bool = False, progress: Callable[[int, int], None] | None = None) -> Repaired:
    """Seal the passes of a run that are complete, and remove what dead processes left there.

    Nothing that counts is touched, so a repair can be interrupted and repeated. A run that is to be resumed needs
    none: its next writer does the same.

    Parameters
    ----------
    incomplete
        Seal also the passes that were recorded in part, when training is not going to be resumed. If it is after
        all, they are opened again.
    progress
        Called with the passes sealed so far, and all that are to be.

    Raises
    ------
    StoreError
        If there is no run, or if a process is writing it.
    """
    schema.run_attributes(path)
    with without_writers(path), locked(path):  # a sealer may have outlived its trainer: wait for it
        complete = complete_passes(path)
        partial = [key for key in _unsealed(path) if key not in complete]
        to_seal = [*dict.fromkeys(complete), *(partial if incomplete else ())]
        sealed, failed = [], {}
        for number, key in enumerate(to_seal):
            if progress is not None:
                progress(number, len(to_seal))
            name, _, index = key.rpartition(":")
            try:
                seal_pass(path, name, int(index))
                sealed.append(key)
            except StoreError as error:
                failed[key] = str(error)
        if progress is not None:
            progress(len(to_seal), len(to_seal))
        removed = tuple(_remove(path))
    return Repaired(tuple(sealed), () if incomplete else tuple(partial), failed, removed)


def _unsealed(path: Path) -> list[str]:
    """Passes that only segments hold."""
    return [
        f"{name}:{index}"
        for name in segments.split_names(path)
        for index in segments.unsealed_passes(path / name)
        if index not in committed_passes(path / name)
    ]


def _remove(path: Path) -> Iterator[Path]:
    """Delete what no reader looks at; yields each thing once it is gone."""
    for file in [file for file in files_below(path) if file.suffix == ".partial"]:
        file.unlink()
        yield file
    for name in segments.split_names(path):
        split, committed = path / name, committed_passes(path / name)
        for commit in split.glob("commits/p*"):
            if not schema.node_exists(commit):
                yield _without(commit)
        yield from (_without(note.parent) for note in list(split.glob("segments/*/share_*/zarr.json")))
        yield from segments.remove_unfinished(split)
        for index in committed:
            sealed = lineage_of(commit_of(split, index), segments.lineage(path))
            yield from segments.remove_sealed(split, index, sealed)
        for array in schema.STORED_ARRAYS:
            for shards in (split / array / "c").glob("*"):
                if shards.name.isdecimal() and int(shards.name) not in committed:
                    yield _without(shards)


def _without(folder: Path) -> Path:
    shutil.rmtree(folder)
    return folder
