"""Copying what is sealed of a run to a URL, from where others read it.

A copy says in its root what it holds, as consolidated metadata, because web servers have no lists of files. What a
node vouches for is there before the node is, and a node is taken back before that is changed, so whoever reads the
copy meanwhile sees passes as they were sealed, or does not see them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from awscrt.checksums import crc32c

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.checksums import checksum
from t3vis.store.commits import committed_passes
from t3vis.store.storage import (
    PUSHED,
    consolidated,
    file_stamp,
    file_system_of,
    is_local,
    is_web,
    listed_sizes,
    needs_directories,
)

Progress = Callable[[int, int], None]

_BATCH_BYTES = 256 << 20  # after each, the copy notes what it holds: an interrupted push sends no more than this again
_N_THREADS = 4


@dataclass(frozen=True)
class Pushed:
    """Shards that were copied, and those that the copy had already."""

    n_copied: int
    bytes_copied: int
    n_skipped: int
    bytes_skipped: int


def push(run: Path, url: str, *, progress: Progress | None = None) -> Pushed:
    """Copy what is sealed of a run, which may still be training, to a URL; an interrupted push goes on where it was.

    Passes that have been taken back since the last push, because training was resumed, are taken back from the copy
    too; those that were deleted for want of space stay there.

    Parameters
    ----------
    url
        Anything that fsspec can write to, such as ``s3://bucket/run.zarr``, or a directory. Empty, or a copy of this
        run.
    progress
        Is called with the bytes that are done and those that there are.

    Raises
    ------
    StoreError
        If there is no run, if another run or anything else is at the URL, if fsspec cannot open it, or if a shard of
        the run is damaged.
    """
    root = schema.read_metadata(run) if schema.run_attributes(run) else {}
    target = _Target.open(url, root, run)
    passes = [part for split in segments.split_names(run) for part in _passes(run, split)]
    fixed, results = _fixed(run), list(_results(run))
    target.forget_superseded(run)
    parts = [fixed, *passes, *results]
    copying = _Copying(run, target, sum(_size(run / file) for part in parts for file in part.files), progress)
    for part in parts:
        copying.copy(part)
    return Pushed(copying.n_copied, copying.bytes_copied, copying.n_skipped, copying.bytes_skipped)


@dataclass(frozen=True)
class _Part:
    """What is copied as one: shards, and the nodes that vouch for them.

    ``stamp`` is that of the node ``guard`` when the part was listed. If it is another one after the files were read,
    they may be of two kinds, and the nodes are not copied. ``below`` are the paths that belong to nothing else.
    """

    nodes: list[str]
    files: list[str]
    guard: str = ""
    stamp: object = None
    below: tuple[str, ...] = ()

    @property
    def is_pass(self) -> bool:
        """Whether it is a sealed pass, with its commit as guard."""
        return "/commits/" in self.guard


def _passes(run: Path, split: str) -> Iterator[_Part]:
    for index in committed_passes(run / split):
        commit = f"{split}/commits/{schema.pass_name(index)}"
        stamp = file_stamp(str(run / commit / "zarr.json"))
        below, files, nodes = [], [], []
        for spec in schema.PASS_ARRAYS.values():
            folders = [f"{split}/{part.name}/c/{index}/" for part in spec.parts]
            found = [file for folder in folders for file in _shards(run, run / folder)]
            if found:
                nodes += sorted({f"{split}/{name}" for name in (spec.name, *(part.name for part in spec.parts))})
            below += folders
            files += found
        yield _Part([*nodes, f"{split}/commits", commit], files, commit, stamp, tuple(below))


def _results(run: Path) -> Iterator[_Part]:
    for node in sorted(run.glob("analysis/*/*/zarr.json")):
        group = node.parent.relative_to(run).as_posix()
        stamp = file_stamp(str(node))
        columns = [column.parent.relative_to(run).as_posix() for column in sorted(node.parent.glob("*/zarr.json"))]
        above = ["/".join(group.split("/")[:depth]) for depth in (1, 2)]
        yield _Part([*above, *columns, group], _shards(run, node.parent), group, stamp, (f"{group}/",))


def _fixed(run: Path) -> _Part:
    """What is written once: what describes the run, its splits, examples and tokens."""
    nodes, files = [], []
    for node in sorted(run.rglob("zarr.json")):
        name = node.parent.relative_to(run).as_posix()
        parts = name.split("/")
        of_pass = len(parts) > 1 and (parts[1] in schema.PASS_ARRAYS or parts[1] in ("segments", "commits"))
        if name == "." or of_pass or parts[0] in ("analysis", PUSHED):
            continue
        nodes.append(name)
        files += _shards(run, node.parent / "c")
    return _Part(nodes, files)


def _shards(run: Path, folder: Path) -> list[str]:
    """Paths of the shards below a folder, as they are now."""
    files = sorted(file for file in folder.rglob("*") if file.name != "zarr.json" and file.suffix != ".partial")
    return [file.relative_to(run).as_posix() for file in files if file.is_file()]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


class _Target:
    """A copy as it is known to be: its nodes, its shards, and what is really there."""

    def __init__(self, url: str, file_system: Any, path: str, root: dict[str, Any]) -> None:
        self.url, self._file_system, self._path, self._root = url.rstrip("/"), file_system, path, root
        self.nodes: dict[str, dict[str, Any]] = {}
        self.files: dict[str, list[int]] = {}
        self.present: dict[str, int] = {}

    @classmethod
    def open(cls, url: str, root: dict[str, Any], run: Path) -> _Target:
        """The copy at a URL, which is made if nothing is there."""
        file_system, path = file_system_of(url)
        if is_web(file_system):
            raise StoreError(f"{url} cannot be written to; push to where that web server takes its files from.")
        if is_local(file_system) and Path(path).resolve() == run.resolve():
            raise StoreError(f"{url} is the run itself; give another place to copy it to.")
        target = cls(url, file_system, path, root)
        target.present = listed_sizes(file_system, path, url)
        if "zarr.json" in target.present:
            content = file_system.cat_file(f"{path}/zarr.json")
            if json.loads(content).get("attributes") != root["attributes"]:
                raise StoreError(f"{url} holds another run; nothing was copied: give another place.")
            target.nodes = consolidated(content)
            target.files = target.nodes.pop(PUSHED, schema.group_metadata({"files": {}}))["attributes"]["files"]
        elif target.present:
            raise StoreError(f"{url} is not empty and holds no run; nothing was copied: give another place.")
        else:
            target.write_root()
        return target

    def forget_superseded(self, run: Path) -> None:
        """Take back passes that the run does not have any more, because an attempt that came later took them back."""
        known = [node["attributes"]["attempt"] for name, node in self.nodes.items() if name.startswith("attempts/")]
        later = [
            attempt["start_step"]
            for attempt in segments.attempts(run)
            if attempt["start_step"] is not None and attempt["attempt"] > max(known, default=-1)
        ]
        for node, metadata in list(self.nodes.items()):
            split, _, name = node.partition("/commits/")
            if name and not schema.node_exists(run / node) and later:
                manifest, kind = metadata["attributes"], self.nodes[split]["attributes"]["kind"]
                step = manifest["last_step"] if kind == "train" else manifest["step"] - 1
                if step >= min(later):
                    below = tuple(f"{split}/{array}/c/{manifest['pass']}/" for array in schema.STORED_ARRAYS)
                    self.take_back(_Part([node], [], node, None, below))

    def take_back(self, part: _Part) -> None:
        """Let the copy no longer have a part: first its root, then the guard, then what it vouched for."""
        gone = [name for name in self.nodes if name == part.guard or name.startswith(f"{part.guard}/")]
        self.nodes = {name: metadata for name, metadata in self.nodes.items() if name not in gone}
        if gone:
            self.write_root()
        for name in sorted(gone):
            self._file_system.rm_file(f"{self._path}/{name}/zarr.json")
            self.present.pop(f"{name}/zarr.json", None)
        stale = [file for file in self.files if file.startswith(part.below) and file not in set(part.files)]
        for file in stale:
            del self.files[file]
            if file in self.present:
                self._file_system.rm_file(f"{self._path}/{file}")

    def write(self, name: str, content: bytes) -> None:
        """Put a file in its place."""
        path = f"{self._path}/{name}"
        if needs_directories(self._file_system):
            self._file_system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._file_system.pipe_file(path, content)

    def write_nodes(self, nodes: dict[str, dict[str, Any]]) -> None:
        """Add nodes, then let the root say so."""
        for name, metadata in nodes.items():
            if self.nodes.get(name) != metadata or f"{name}/zarr.json" not in self.present:
                self.write(f"{name}/zarr.json", json.dumps(metadata).encode())
        self.nodes.update(nodes)
        self.write_root()

    def write_root(self) -> None:
        """Let the copy say what it holds."""
        pushed = schema.group_metadata({"files": self.files})
        metadata = {"kind": "inline", "must_understand": False, "metadata": {**self.nodes, PUSHED: pushed}}
        self.write("zarr.json", json.dumps({**self._root, "consolidated_metadata": metadata}).encode())
        self.write(f"{PUSHED}/zarr.json", json.dumps(pushed).encode())


class _Copying:
    """Copies part after part, and counts."""

    def __init__(self, run: Path, target: _Target, n_bytes: int, progress: Progress | None) -> None:
        self._run, self._target, self._n_bytes, self._progress = run, target, n_bytes, progress
        self.n_copied = self.bytes_copied = self.n_skipped = self.bytes_skipped = 0

    def copy(self, part: _Part) -> None:
        """Copy what the copy does not have of a part; nothing, where it is replaced or taken back meanwhile."""
        try:
            missing = [file for file in part.files if not self._has(file)]
            nodes = {name: schema.read_metadata(self._run / name) for name in part.nodes}
            expected = self._checksums(part, nodes)
            if part.guard and (missing or _plain(self._target.nodes.get(part.guard)) != _plain(nodes[part.guard])):
                self._target.take_back(part)
            for batch in _batches(self._run, missing):
                with ThreadPoolExecutor(_N_THREADS) as pool:
                    sent = pool.map(partial(self._send, part, expected), batch)
                    for file, known in zip(batch, sent, strict=True):
                        self._target.files[file] = known
                        self._count(known[0], copied=True)
                self._target.write_root()
        except FileNotFoundError:
            if part.guard:
                return
            raise
        if not part.guard or file_stamp(str(self._run / part.guard / "zarr.json")) == part.stamp:
            if part.is_pass:  # so that a commit of other shards is never the same, and the copy can be verified
                checksums = {file.partition("/")[2]: self._target.files[file][1] for file in part.files}
                nodes[part.guard]["attributes"]["checksums"] = checksums
            self._target.write_nodes(nodes)

    def _checksums(self, part: _Part, nodes: dict[str, dict[str, Any]]) -> dict[str, int]:
        """Those that the run kept of the shards of a pass, by path."""
        if not part.is_pass:
            return {}
        split = part.guard.partition("/")[0]
        kept = nodes[part.guard]["attributes"].get("checksums", {})
        expected = {f"{split}/{file}": crc for file, crc in kept.items()}
        lost = sorted(set(expected) - set(part.files))
        if lost and file_stamp(str(self._run / part.guard / "zarr.json")) == part.stamp:
            raise StoreError(f"{self._run / lost[0]} is lost; see what else is with t3vis verify.")
        return expected

    def _has(self, file: str) -> bool:
        """Whether the copy has this very file: by size and time of change, else by size and checksum."""
        size, changed = _size_and_time(self._run / file)
        known = self._target.files.get(file)
        if known is None or known[0] != size or self._target.present.get(file) != size:
            return False
        if known[2] != changed and checksum(self._run / file) != known[1]:
            return False
        known[2] = changed
        self._count(size, copied=False)
        return True

    def _send(self, part: _Part, checksums: dict[str, int], file: str) -> list[int]:
        size, changed = _size_and_time(self._run / file)
        content = (self._run / file).read_bytes()
        crc = crc32c(content)
        if crc != checksums.get(file, crc):
            if file_stamp(str(self._run / part.guard / "zarr.json")) != part.stamp:
                raise FileNotFoundError(f"{self._run / file} has been replaced since the pass was listed")
            raise StoreError(f"{self._run / file} does not have the checksum that was kept of it; it is damaged.")
        self._target.write(file, content)
        return [len(content), crc, changed if len(content) == size else -1]

    def _count(self, size: int, *, copied: bool) -> None:
        if copied:
            self.n_copied, self.bytes_copied = self.n_copied + 1, self.bytes_copied + size
        else:
            self.n_skipped, self.bytes_skipped = self.n_skipped + 1, self.bytes_skipped + size
        if self._progress is not None:
            self._progress(self.bytes_copied + self.bytes_skipped, self._n_bytes)


def _plain(commit: dict[str, Any] | None) -> dict[str, Any] | None:
    """A commit without the checksums, which the copy has in any case."""
    if commit is None:
        return None
    return {**commit, "attributes": {key: value for key, value in commit["attributes"].items() if key != "checksums"}}


def _size_and_time(file: Path) -> tuple[int, int]:
    """Size in bytes, and time of change in microseconds: nanoseconds are more than a number in JSON holds."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns // 1000


def _batches(run: Path, files: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    n_bytes = 0
    for file in files:
        batch.append(file)
        n_bytes += _size(run / file)
        if n_bytes >= _BATCH_BYTES:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch
