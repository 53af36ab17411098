"""Where a run lies: a directory, or a copy of one at a URL that fsspec opens.

Everything that reads takes a ``schema.Node``: a ``Path`` of a directory, read directly, or a ``RemotePath``, which
has the part of a path that reading needs. A copy's metadata is fetched once, rows as ranges of bytes when they are
asked for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from weakref import WeakSet

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.shard import Range, Shard, ShardFile, index_length, parse_index

PUSHED = "pushed"
"""Group of a copy whose attribute ``files`` holds for each shard its size, crc32c and time of change."""

_GAP_BYTES = 64 << 10  # what lies between two ranges is fetched with them up to here: a request costs more
_BLOCK_BYTES = 8 << 20
_LOOK_AGAIN_SECONDS = 0.05


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is a URL rather than a path.

    Examples
    --------
    >>> is_url("s3://bucket/run.zarr"), is_url("runs/sst2.zarr")
    (True, False)
    """
    return isinstance(path, str) and "://" in path


def locate(path: str | os.PathLike[str]) -> Path | RemotePath:
    """The root of the run at a path or URL; what is there has not been looked at yet.

    Raises
    ------
    StoreError
        If the protocol of a URL is not known, or needs a package that is not installed.
    """
    if not is_url(path):
        return Path(path)
    file_system, root = file_system_of(str(path))
    if is_local(file_system):
        return Path(root)
    return RemotePath(RemoteCopy(str(path), file_system, root))


def file_system_of(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or path, and the path there.

    Raises
    ------
    StoreError
        If the protocol is not known, or needs a package that is not installed.
    """
    try:
        from fsspec.core import url_to_fs  # not needed for runs in a directory
    except ImportError as error:
        raise StoreError(f"{url} cannot be opened without the package fsspec; install t3vis[remote].") from error
    try:
        file_system, root = url_to_fs(url)
    except ImportError as error:  # fsspec names the package
        raise StoreError(f"{url} cannot be opened: {error}. Install it, or t3vis[remote] for http.") from error
    except ValueError as error:
        raise StoreError(f"{url} cannot be opened: {error}.") from error
    return file_system, root.rstrip("/")


def is_local(file_system: Any) -> bool:
    """Whether an fsspec file system is that of this machine, which is read directly."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(file_system, LocalFileSystem)


def is_web(file_system: Any) -> bool:
    """Whether an fsspec file system is a web server, which can neither be listed nor written to."""
    protocol = file_system.protocol
    return "http" in ((protocol,) if isinstance(protocol, str) else protocol)


def needs_directories(file_system: Any) -> bool:
    """Whether directories must be made before files are put there; object stores, which are asynchronous, have none."""
    return not file_system.async_impl


class RemoteCopy:
    """A copy of a run: its metadata and the sizes of its shards as of one moment, and reads of bytes."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self.url = url.rstrip("/")
        self._file_system, self._root = file_system, root
        self.documents: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look again at what the copy holds; nothing at all where there is no copy.

        Raises
        ------
        StoreError
            If the copy does not say what it holds, and cannot be listed.
        """
        try:
            root = self.fetch("zarr.json")
        except FileNotFoundError:
            self.documents, self.sizes = {}, {}
            return
        found = consolidated(root)
        if PUSHED in found:
            documents = {f"{node}/zarr.json": json.dumps(metadata).encode() for node, metadata in found.items()}
            self.documents = {"zarr.json": root, **documents}
            self.sizes = {name: known[0] for name, known in found[PUSHED]["attributes"]["files"].items()}
        else:
            self.documents, self.sizes = self._listed()

    def _listed(self) -> tuple[dict[str, bytes], dict[str, int]]:
        sizes = listed_sizes(self._file_system, self._root, self.url)
        sizes = {name: size for name, size in sizes.items() if "segments" not in PurePosixPath(name).parts[:2]}
        nodes = [name for name in sizes if PurePosixPath(name).name == "zarr.json"]
        contents = self._file_system.cat([f"{self._root}/{name}" for name in nodes])
        by_name = {self._relative(path): content for path, content in contents.items()}
        return by_name, {name: size for name, size in sizes.items() if name not in by_name}

    def _relative(self, path: str) -> str:
        return relative_to(path, self._root)

    def fetch(self, name: str) -> bytes:
        """The whole of a small file, as it is now."""
        with _named(f"{self.url}/{name}"):
            content: bytes = self._file_system.cat_file(f"{self._root}/{name}")
        return content

    def fetch_ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of a file, for each offset and length.

        A server that does not know ranges sends the whole file each time; what was asked for is cut out of it.

        Raises
        ------
        StoreError
            If there are fewer bytes than that.
        """
        path, url = f"{self._root}/{name}", f"{self.url}/{name}"
        starts, ends = [offset for offset, _ in spans], [offset + length for offset, length in spans]
        with _named(url):
            found: list[bytes] = self._file_system.cat_ranges([path] * len(spans), starts, ends, on_error="raise")
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            if len(found[i]) > end - start:
                found[i] = found[i][start:end]
            if len(found[i]) != end - start:
                raise StoreError(f"{url} ends before byte {end}; the copy is damaged.")
        return found


class _named:  # noqa: N801  reads as a statement
    """Adds where it happened to errors of the network."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and not isinstance(error, FileNotFoundError):
            error.add_note(f"while reading {self._url}")


def consolidated(root: bytes) -> dict[str, dict[str, Any]]:
    """The metadata of all nodes by path, where the ``zarr.json`` of the root holds them."""
    return dict((json.loads(root).get("consolidated_metadata") or {}).get("metadata", {}))


def listed_sizes(file_system: Any, root: str, url: str) -> dict[str, int]:
    """Size of each file below ``root``, by its path from there.

    Raises
    ------
    StoreError
        If the file system does not tell.
    """
    if is_web(file_system):
        raise StoreError(
            f"{url} cannot be listed, and its root does not say what is there; put a copy there that t3vis push made."
        )
    file_system.invalidate_cache()
    found = file_system.find(root, detail=True)
    sizes = {relative_to(path, root): info["size"] for path, info in found.items()}
    return {name: int(size) for name, size in sizes.items() if not name.endswith(".partial")}


def relative_to(path: str, root: str) -> str:
    """Path below the root, whether or not either of them begins with a slash."""
    return path.lstrip("/").removeprefix(root.lstrip("/")).lstrip("/")


class RemotePath:
    """A node or file of a copy: the part of ``pathlib.Path`` that reading a run needs.

    Metadata is that of the moment when the copy was looked at, ``root.copy.refresh()`` looks again.
    """

    def __init__(self, copy: RemoteCopy, key: str = "") -> None:
        self.copy = copy
        self._key = key

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(self._key or self.copy.url).name

    @property
    def parent(self) -> RemotePath:
        """The node that this one is in; the root is its own."""
        return RemotePath(self.copy, self._key.rpartition("/")[0])

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.copy, f"{self._key}/{name}" if self._key else name)

    def __lt__(self, other: RemotePath) -> bool:
        return self._key.split("/") < other._key.split("/")

    def joinpath(self, *names: str) -> RemotePath:
        """The path below this one."""
        return self / "/".join(names)

    def exists(self) -> bool:
        """Whether there is a file, or a node that has one."""
        return self.is_file() or any(name.startswith(f"{self._key}/" if self._key else "") for name in self._names())

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self._key in self.copy.documents or self._key in self.copy.sizes

    def read_bytes(self) -> bytes:
        """The content of a metadata file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        if self._key not in self.copy.documents:
            raise FileNotFoundError(f"there is no {self}")
        return self.copy.documents[self._key]

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Files below this node whose path from here matches, part by part."""
        n_own = len(PurePosixPath(self._key).parts)
        n_parts = len(PurePosixPath(pattern).parts)
        prefix = f"{self._key}/" if self._key else ""
        for name in self._names():
            path = PurePosixPath(name)
            if name.startswith(prefix) and len(path.parts) == n_own + n_parts and path.match(pattern):
                yield RemotePath(self.copy, name)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: ARG002
        """Refuse: copies are made by ``push``, and read only."""
        raise StoreError(f"{self} is part of a copy, which is read only; open the run itself to write to it.")

    def open_shard(self, n_chunks: int) -> RemoteShard:
        """The shard in this file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        return RemoteShard(self.copy, self._key, n_chunks)

    def _names(self) -> list[str]:
        return [*self.copy.documents, *self.copy.sizes]

    def __str__(self) -> str:
        return f"{self.copy.url}/{self._key}" if self._key else self.copy.url

    __repr__ = __str__


class RemoteShard:
    """One shard of a copy: its checked index, and reads of ranges of its bytes."""

    def __init__(self, copy: RemoteCopy, name: str, n_chunks: int) -> None:
        if name not in copy.sizes:
            raise FileNotFoundError(f"there is no {copy.url}/{name}")
        self.path = f"{copy.url}/{name}"
        self._copy, self._name = copy, name
        length = index_length(n_chunks)
        start = copy.sizes[name] - length
        raw = copy.fetch_ranges(name, [(start, length)])[0] if start >= 0 else b""
        self.spans = parse_index(raw, n_chunks, self.path)

    def read_ranges(self, ranges: Sequence[Range], target: memoryview) -> None:
        """Fill parts of ``target`` with the bytes at given offsets; ranges that lie near are fetched as one."""
        blocks = list(_blocks(sorted(ranges)))
        contents = self._copy.fetch_ranges(self._name, [(start, end - start) for start, end, _ in blocks])
        for (begin, _, parts), content in zip(blocks, contents, strict=True):
            for offset, start, length in parts:
                target[start : start + length] = content[offset - begin : offset - begin + length]


def _blocks(ranges: Sequence[Range]) -> Iterator[tuple[int, int, list[Range]]]:
    """Ranges in order of offset, those together that are fetched together: first byte, byte after the last, ranges."""
    parts: list[Range] = []
    begin = end = 0
    for part in ranges:
        offset, _, length = part
        if not length:
            continue
        if parts and offset - end <= _GAP_BYTES and offset + length - begin <= _BLOCK_BYTES:
            parts.append(part)
            end = max(end, offset + length)
            continue
        if parts:
            yield begin, end, parts
        parts, begin, end = [part], offset, offset + length
    if parts:
        yield begin, end, parts


def open_shard(path: schema.Node, n_chunks: int) -> Shard:
    """The shard at ``path``.

    Raises
    ------
    FileNotFoundError
        If there is none.
    StoreError
        If it is damaged.
    """
    return path.open_shard(n_chunks) if isinstance(path, RemotePath) else ShardFile(as_path(path), n_chunks)


def stamp(node: schema.Node, *, fresh: bool = True) -> Hashable:
    """Something that changes whenever the metadata of ``node`` is written again; ``None`` where there is none.

    Parameters
    ----------
    fresh
        For a copy: ask it again rather than what was fetched last. A directory is always asked.
    """
    if isinstance(node, RemotePath):
        file = node / "zarr.json"
        try:
            return node.copy.fetch(str(file)[len(node.copy.url) + 1 :]) if fresh else file.read_bytes()
        except FileNotFoundError:
            return None
    return file_stamp(f"{node}/zarr.json")


def file_stamp(path: str) -> tuple[int, int, int] | None:
    """Changes whenever the file is replaced; ``None`` where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  several times as fast
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class HeldFile:
    """A file that was read and is held open, to be told quickly whether it is still what stands under its name."""

    LIMIT = 128
    _all: ClassVar[WeakSet[HeldFile]] = WeakSet()

    @classmethod
    def hold(cls, path: str) -> HeldFile | None:
        """Hold the file, unless too many are held in this process."""
        return cls(path) if len(cls._all) < cls.LIMIT else None

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        found = os.fstat(self._descriptor)
        self._links, self._looked = (found.st_nlink, found.st_ctime_ns), time.monotonic()
        self._all.add(self)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def is_current(self) -> bool:
        """Whether the file has been neither deleted nor replaced.

        That a directory above it was moved away is noticed a twentieth of a second later; looking for the name takes
        twice as long as asking the open file.
        """
        now = time.monotonic()
        found = os.fstat(self._descriptor)
        if now - self._looked > _LOOK_AGAIN_SECONDS:
            self._looked = now
            if file_stamp(self._path) != (found.st_ino, found.st_mtime_ns, found.st_size):
                return False
        return (found.st_nlink, found.st_ctime_ns) == self._links


def names_in(folder: str) -> list[str]:
    """Names of what is in a directory, none where it does not exist; several times as fast as ``Path.iterdir``."""
    try:
        return os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def as_path(node: schema.Node) -> Path:
    """The directory that a node is.

    Raises
    ------
    TypeError
        If it is a node of a copy at a URL.
    """
    if not isinstance(node, Path):
        raise TypeError(f"expected a run in a directory, found {node}")
    return node
