"""One run from the parts that the machines of a training without a common disk recorded."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from t3vis.errors import ConfigurationError, StoreError
from t3vis.store import schema, segments
from t3vis.store.buffer import chosen_rows
from t3vis.store.commits import commit_of, committed_passes, lineage_of, sealed_rows, writer_said
from t3vis.store.options import StorageOptions
from t3vis.store.passes import as_path
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.segment_thread import SegmentThread
from t3vis.store.segments import Window, split_names
from t3vis.store.storage import RemotePath, locate

Progress = Callable[[int, int], None]

_SAME = ("kind", "mode", "n_examples", "fingerprint", "task", "class_names", "arrays")  # of a split in every part


def merge_parts(
    parts: Sequence[str | os.PathLike[str]], into: Path, *, progress: Progress | None = None
) -> dict[str, list[int]]:
    """Make one run of the parts of a training; it equals what its processes would have recorded to one directory.

    The parts stay as they are. One that is interrupted leaves nothing under ``into``, and can be run again.

    Parameters
    ----------
    parts
        Paths, or URLs of copies made by ``push``, of all the runs that processes of one training recorded with
        ``shared=False``, in any order.
    into
        Where the run goes; nothing may be there.
    progress
        Called with the passes that are merged and those that there are.

    Returns
    -------
    Numbers of the passes of each split.

    Raises
    ------
    ConfigurationError
        If the parts are not those of one training, one is missing or given twice, something is at ``into`` already, or
        it cannot be written.
    StoreError
        If a pass of a part is not sealed, or a part is damaged.
    """
    opened = _checked([_part(part) for part in parts])
    if into.exists():
        raise ConfigurationError(f"{into} already exists; choose another path, or remove it.")
    passes = {name: _common_passes(opened, name) for name in _common_splits(opened)}
    partial = into.with_name(f"{into.name}.{os.getpid()}.partial")
    total, done = sum(map(len, passes.values())), 0
    try:
        _write_root(partial, opened)
        for name, indices in passes.items():
            _write_split(partial, opened, name)
            for index in indices:
                _merge_pass(partial, opened, name, index)
                done += 1
                if progress is not None:
                    progress(done, total)
        partial.rename(into)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ConfigurationError(
            f"{into} cannot be written: {error}; choose a path on a disk that you may write to and that has room."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return passes


@dataclass(frozen=True)
class _Part:
    """A part: where it lies, and what its root says."""

    path: schema.Node
    attributes: dict[str, Any]

    @property
    def said(self) -> dict[str, Any]:
        """Of which training it is, which of its processes recorded it, and how many there were."""
        said: dict[str, Any] = self.attributes["part"]
        return said

    def split(self, name: str) -> Path:
        """A split, for functions that use no more of a path than every node has."""
        return as_path(self.path / name)


def _part(path: str | os.PathLike[str]) -> _Part:
    node = locate(path)
    attributes = schema.run_attributes(node)
    if "part" not in attributes:
        raise ConfigurationError(
            f"{node} is no part of a run: all processes of its training recorded to it. Parts are recorded with "
            "RecorderCallback(..., shared=False)."
        )
    return _Part(node, attributes)


def _checked(parts: list[_Part]) -> list[_Part]:
    """The parts of one training, all of them, in the order of their processes."""
    if not parts:
        raise ConfigurationError("no part was given; give all runs that the processes of one training recorded.")
    first = parts[0]
    for part in parts[1:]:
        if part.said["training"] != first.said["training"]:
            raise ConfigurationError(
                f"{part.path} is of another training than {first.path} (begun {part.attributes['t3vis']['created']} "
                f"and {first.attributes['t3vis']['created']}); give parts of one training."
            )
    ranks = [rank for part in parts for rank in part.said["ranks"]]
    twice = sorted({rank for rank in ranks if ranks.count(rank) > 1})
    if twice:
        raise ConfigurationError(f"process {twice[0]} is in two of the parts; give each part once.")
    missing = sorted(set(range(first.said["of"])) - set(ranks))
    if missing:
        raise ConfigurationError(
            f"of {first.said['of']} processes of the training, {missing} are in none of the parts; give all of them."
        )
    return sorted(parts, key=lambda part: part.said["ranks"])


def _common_splits(parts: list[_Part]) -> list[str]:
    """Names of the splits, which are the same in every part."""
    names = split_names(as_path(parts[0].path))
    for part in parts[1:]:
        found = split_names(as_path(part.path))
        if found != names:
            raise ConfigurationError(f"{part.path} holds the splits {found}, {parts[0].path} holds {names}.")
        for name in names:
            expected, said = (schema.read_metadata(known.path / name)["attributes"] for known in (parts[0], part))
            other = [key for key in _SAME if said.get(key) != expected.get(key)]
            if other:
                raise ConfigurationError(
                    f"{name} of {part.path} has {other[0]}={said.get(other[0])!r}, but {parts[0].path} has "
                    f"{expected.get(other[0])!r}; these parts are not of the same data, recorded in the same way."
                )
    return names


def _common_passes(parts: list[_Part], name: str) -> list[int]:
    """Passes of a split, which are sealed in every part."""
    for part in parts:
        split = part.split(name)
        left = [] if isinstance(part.path, RemotePath) else segments.unsealed_passes(split)
        unsealed = sorted(set(left) - set(committed_passes(split)))
        if unsealed:
            raise StoreError(
                f"passes {unsealed} of {split} are not sealed; wait until they are, or seal them with t3vis repair "
                "(with --incomplete if training is not going to be resumed)."
            )
    found = committed_passes(parts[0].split(name))
    for part in parts[1:]:
        other = committed_passes(part.split(name))
        if other != found:
            raise StoreError(
                f"{part.path} holds the passes {other} of {name}, {parts[0].path} holds {found}; a pass is merged of "
                "all parts."
            )
    return found


def _write_root(run: Path, parts: list[_Part]) -> None:
    attributes = {key: value for key, value in parts[0].attributes.items() if key != "part"}
    made = {
        "from": [str(part.path) for part in parts],
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    schema.write_metadata(run, schema.group_metadata({**attributes, "merged": made}))
    schema.write_metadata(run / "attempts", schema.group_metadata())
    for part in parts:
        for attempt in segments.attempts(as_path(part.path)):
            rank = part.said["ranks"][attempt["rank"]] if attempt["rank"] < len(part.said["ranks"]) else 0
            node = run / "attempts" / schema.rank_name(attempt["attempt"], rank)
            schema.write_metadata(node, schema.group_metadata({**attempt, "rank": rank}))
    _copy(parts[0].path, run, "tokenizer")


def _write_split(run: Path, parts: list[_Part], name: str) -> None:
    """What is said of a split and its examples, which every part knows."""
    schema.write_metadata(run / name, schema.read_metadata(parts[0].path / name))
    for group in ("segments", "commits"):
        schema.write_metadata(run / name / group, schema.group_metadata())
    _copy(parts[0].path, run, f"{name}/examples")


def _merge_pass(run: Path, parts: list[_Part], name: str, index: int) -> None:
    """Seal a pass of the rows of all parts: of an example that several saw, the first row counts, and all visits."""
    split, dropped = run / name, set()
    writer = SegmentThread(run, attempt=0, rank=0, options=StorageOptions.of(run))
    for part in parts:
        manifest = commit_of(part.split(name), index)
        dropped |= set(manifest.get("dropped", ()))
        windows = [Window(0, 0, _NO_LIMIT)]
        if schema.read_metadata(split)["attributes"]["kind"] == "train":
            windows = lineage_of(manifest, segments.lineage(as_path(part.path)))
        for sequence, rows in enumerate(sealed_rows(part.split(name), index)):
            steps = np.asarray(rows["step"])
            for window in windows:
                chosen = (steps >= window.start) & (steps < window.stop)
                if chosen.any():
                    attributes = {
                        "pass": index,
                        "attempt": window.attempt,
                        "rank": part.said["ranks"][0],
                        "sequence": sequence,
                        "of_pass": writer_said(manifest),
                    }
                    kept = {key: chosen_rows(key, column, chosen) for key, column in rows.items()}
                    writer.write_now(segments.segment_path(split, attributes), kept, attributes)
    manifest = seal_pass(run, name, index)
    if dropped:
        node = split / "commits" / schema.pass_name(index)
        schema.write_metadata(node, schema.group_metadata({**manifest, "dropped": sorted(dropped)}))
    remove_sealed_segments(run, name)


_NO_LIMIT = int(np.iinfo(np.int64).max)


def _copy(source: schema.Node, target: Path, name: str) -> None:
    """Copy all below a group of a part, if it is there."""
    if not schema.node_exists(source / name):
        return
    if not isinstance(source, RemotePath):
        shutil.copytree(as_path(source / name), target / name, ignore=shutil.ignore_patterns("*.partial"))
        return
    for file in (*source.copy.documents, *source.copy.sizes):
        if file.startswith(f"{name}/"):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (target / file).write_bytes(source.copy.fetch(file))
