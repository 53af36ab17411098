"""Whole ``sharding_indexed`` shards, encoded and decoded directly.

A shard of Zarr v3 is its inner chunks, then an index of one (offset, nbytes) pair of unsigned 64-bit integers per
chunk, then the crc32c of that index. Written in one go it costs what a raw file costs, and every Zarr v3 reader
reads it.

References
----------
Zarr v3 specification, "Sharding codec" version 1.0, and "CRC32C checksum codec".
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from awscrt.checksums import crc32c
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store.layout import RowLayout

Buffer = bytes | memoryview
Codec = Callable[[Buffer], bytes]
RowNumbers = NDArray[np.int64] | range
Span = tuple[int, int]
"""Offset and length in bytes of an encoded chunk within its shard."""

_MISSING = 2**64 - 1
_MAX_BUFFERS = 512  # in one writev; POSIX guarantees 16, Linux and macOS take 1024
_BLOCK_BYTES = 512 << 10  # written at a time, at most: what the checksum was taken of is still in the cache then
_RESERVED_FROM = 512 << 10  # bytes; below, reserving space costs more than it saves
_N_THREADS = 2
_AHEAD = 4  # chunks


def shard_path(array: Path, leading: tuple[int, ...], shard: int, n_trailing: int) -> Path:
    """File of one shard: ``c/<leading...>/<shard>/<a zero for each trailing dimension>``."""
    return array.joinpath("c", *map(str, leading), str(shard), *("0" for _ in range(n_trailing)))


def index_of(spans: Sequence[Span | None]) -> bytes:
    """Index and checksum of chunks that lie at these places; ``None`` stands for one left out."""
    pairs = [(_MISSING, _MISSING) if span is None else span for span in spans]
    index = np.array(pairs, "<u8").tobytes()
    checksum: int = crc32c(index)
    return index + checksum.to_bytes(4, "little")


def one_after_another(lengths: Iterable[int | None]) -> list[Span | None]:
    """Where chunks of these lengths lie; ``None`` stands for one left out."""
    spans: list[Span | None] = []
    offset = 0
    for length in lengths:
        spans.append(None if length is None else (offset, length))
        offset += length or 0
    return spans


class PartialFile:
    """A file in the making: it appears under ``path`` only when it is complete.

    Raises
    ------
    OSError
        If the disk refuses, here or in any method; the path is attached as a note.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._reserved = 0
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with self._noting():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def reserve(self, n_bytes: int) -> None:
        """Tell the file system what comes next: ext4 then writes it in a third less time; where it cannot, so be it."""
        if self.size + n_bytes <= self._reserved or n_bytes < _RESERVED_FROM or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._descriptor, self.size, n_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENOSPC):
                error.add_note(f"while writing {self.path}")
                raise
        self._reserved = self.size + n_bytes

    def append(self, buffers: Sequence[Buffer]) -> None:
        """Write behind what is there; ``writev`` until everything is on its way, since a call may write less."""
        views = [memoryview(buffer) for buffer in buffers]
        try:
            while views:
                written = os.writev(self._descriptor, views[:_MAX_BUFFERS])
                self.size += written
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if written:
                    views[0] = views[0][written:]
        except OSError as error:
            error.add_note(f"while writing {self.path}")
            raise

    def complete(self) -> None:
        """Nothing is to follow: let the file appear."""
        with self._noting():
            if self._reserved > self.size:
                os.ftruncate(self._descriptor, self.size)
            self._close()
            self._partial.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind, as far as the disk lets it be removed; what is complete stays."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._partial.unlink()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.add_note(f"while writing {self.path}")
            raise


def _write_file(path: Path, blocks: Iterable[Sequence[Buffer]], n_bytes: int) -> None:
    """Write a file, whole or not at all; it will be about ``n_bytes`` long."""
    file = PartialFile(path)
    try:
        file.reserve(n_bytes)
        for block in blocks:
            file.append(block)
        file.complete()
    except BaseException:
        file.discard()
        raise


def write_rows(
    array: Path,
    leading: tuple[int, ...],
    rows: NDArray[Any],
    layout: RowLayout,
    fill: float | int,
    codec: Codec | None = None,
    first_shard: int = 0,
) -> dict[Path, int]:
    """Write rows of one leading index (an epoch and a layer, say) as shards; a codec runs in a few threads.

    Without one the caller's thread writes: a second thread takes a fifth more CPU time and saves a sixth of the seconds
    (benchmarks/bench_store.py), and it is CPU time that the training beside it needs.

    Parameters
    ----------
    rows
        Shape (n_rows, *trailing), C-contiguous. The last chunk is padded with ``fill``.
    codec
        Encodes the bytes of one chunk; none leaves them as they are.
    first_shard
        Number of the shard that the first of the rows begins.

    Returns
    -------
    The crc32c of each file.
    """
    starts = range(0, len(rows), layout.shard_rows)
    shards = [rows[start : start + layout.shard_rows] for start in starts]
    paths = [shard_path(array, leading, first_shard + number, rows.ndim - 1) for number in range(len(shards))]
    if codec is None:
        return {path: _write_plain(path, shard, layout, fill) for path, shard in zip(paths, shards, strict=True)}
    with ThreadPoolExecutor(_N_THREADS, thread_name_prefix="t3vis-shards") as pool:
        encoded = _in_order(pool, codec, chunks_of(rows, layout.chunk_rows, fill))

        def write_all() -> dict[Path, int]:
            return {
                path: _write_encoded(path, encoded, -(-len(shard) // layout.chunk_rows), layout, shard.nbytes)
                for path, shard in zip(paths, shards, strict=True)
            }

        return pool.submit(write_all).result()  # encodes too, in a thread where blosc has no threads of its own


def _write_plain(path: Path, rows: NDArray[Any], layout: RowLayout, fill: float | int) -> int:
    """Write the rows of one shard as they are; returns the crc32c of the file."""
    n_whole = len(rows) - len(rows) % layout.chunk_rows
    padded = list(chunks_of(rows[n_whole:], layout.chunk_rows, fill))
    chunk_bytes = layout.chunk_rows * rows.itemsize * math.prod(rows.shape[1:])
    n_written = n_whole // layout.chunk_rows + len(padded)
    n_left_out = layout.chunks_per_shard - n_written
    index = index_of(one_after_another([chunk_bytes] * n_written + [None] * n_left_out))
    checked = _Checked([as_bytes(rows[:n_whole]), *padded, index])
    _write_file(path, checked, n_written * chunk_bytes)
    return checked.crc


def _write_encoded(path: Path, encoded: Iterator[bytes], n_written: int, layout: RowLayout, n_bytes: int) -> int:
    """Write a shard of the next chunks, ``n_bytes`` before they were encoded; returns the crc32c of the file."""
    lengths: list[int | None] = []

    def content() -> Iterator[Buffer]:
        for chunk in islice(encoded, n_written):
            lengths.append(len(chunk))
            yield chunk
        yield index_of(one_after_another(lengths + [None] * (layout.chunks_per_shard - n_written)))

    checked = _Checked(content())
    _write_file(path, checked, n_bytes)
    return checked.crc


@dataclass
class _Checked:
    """Buffers cut into blocks that are in the cache when they are written, since their checksum was just taken."""

    buffers: Iterable[Buffer]
    crc: int = 0

    def __iter__(self) -> Iterator[list[memoryview]]:
        for buffer in self.buffers:
            view = memoryview(buffer)
            for start in range(0, len(view), _BLOCK_BYTES):
                block = view[start : start + _BLOCK_BYTES]
                self.crc = crc32c(block, self.crc)
                yield [block]


def _in_order(pool: ThreadPoolExecutor, codec: Codec, chunks: Iterable[Buffer]) -> Iterator[bytes]:
    """The chunks encoded, in their order; a few of them ahead, however many there are.

    Whoever takes them encodes what nobody has begun with rather than wait, so that no core is idle.
    """
    waiting: deque[tuple[Buffer, Future[bytes]]] = deque()

    def first() -> bytes:
        chunk, future = waiting.popleft()
        if future.cancel():
            return codec(chunk)
        for place, (later, others) in enumerate(waiting):
            if future.done():
                break
            if others.cancel():
                own: Future[bytes] = Future()
                own.set_result(codec(later))
                waiting[place] = later, own
        return future.result()

    for chunk in chunks:
        waiting.append((chunk, pool.submit(codec, chunk)))
        if len(waiting) > _AHEAD:
            yield first()
    while waiting:
        yield first()


def chunks_of(rows: NDArray[Any], chunk_rows: int, fill: float | int) -> Iterator[Buffer]:
    """The bytes of each chunk; the last one is padded."""
    for start in range(0, len(rows), chunk_rows):
        chunk = rows[start : start + chunk_rows]
        if len(chunk) < chunk_rows:
            padded = np.empty((chunk_rows, *rows.shape[1:]), rows.dtype)
            padded[: len(chunk)], padded[len(chunk) :] = chunk, fill
            chunk = padded
        yield as_bytes(chunk)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The array's bytes in C order, without a copy where it is contiguous."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


_WORTH_ALIGNING = 1 << 20

Range = tuple[int, int, int]
"""Bytes to read: their offset in the file, where they go in the target, and how many they are."""


class Shard(Protocol):
    """An open shard: where its chunks lie, and reads of its bytes."""

    @property
    def path(self) -> object:
        """What names it."""

    @property
    def spans(self) -> Sequence[Span | None]:
        """Where each chunk lies; ``None`` where it is all fill value."""

    def read_ranges(self, ranges: Sequence[Range], target: memoryview) -> None:
        """Fill parts of ``target`` with the bytes at given offsets."""


class ShardFile:
    """One open shard in a directory: its checked index, and reads of byte ranges of its chunks.

    It goes on to hold what it held when it was opened: files of a run are replaced or deleted, never changed.
    """

    def __init__(self, path: Path, n_chunks: int) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self._rows: NDArray[Any] | None = None
        self._n_mapped = 0
        try:
            length = index_length(n_chunks)
            end = os.fstat(self._descriptor).st_size
            raw = os.pread(self._descriptor, length, end - length) if end >= length else b""
            self.spans = parse_index(raw, n_chunks, path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; rows that are mapped stay until their last user is done."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    def chunk_span(self, chunk: int) -> Span | None:
        """Offset and length in bytes of a chunk, or ``None`` where it is all fill value."""
        return self.spans[chunk]

    def read_into(self, target: NDArray[Any], offset: int) -> None:
        """Fill the contiguous ``target`` with the bytes at ``offset``."""
        if os.preadv(self._descriptor, [target.data], offset) < target.nbytes:  # seldom; perhaps there is more to come
            view = bytes_of(target)
            self.read_ranges([(offset, 0, len(view))], view)

    def read_ranges(self, ranges: Sequence[Range], target: memoryview) -> None:
        """Fill parts of ``target`` with the bytes at given offsets."""
        for offset, start, length in ranges:
            done = os.preadv(self._descriptor, [target[start : start + length]], offset)
            while done < length:
                count = os.preadv(self._descriptor, [target[start + done : start + length]], offset + done)
                if not count:
                    raise StoreError(f"{self.path} ends before byte {offset + length}; the shard is damaged.")
                done += count

    def mapped_rows(self, dtype: np.dtype[Any], trailing: tuple[int, ...], chunk_rows: int) -> NDArray[Any]:
        """The rows that lie one after another from the first byte on, mapped into memory, read-only.

        Shape (n, *trailing): all rows of the chunks that were written, if no codec encodes them and their order is
        that of the rows, as t3vis writes them; else n may be 0.
        """
        rows = self._rows
        if rows is None:
            chunk_bytes = chunk_rows * dtype.itemsize * math.prod(trailing)
            n_rows = chunk_rows * plain_chunks(self.spans, chunk_bytes)
            if n_rows:
                memory = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
                rows = np.ndarray((n_rows, *trailing), dtype, memory)
            else:
                rows = np.empty((0, *trailing), dtype)
            self._rows, self._n_mapped = rows, rows.nbytes
        if os.lseek(self._descriptor, 0, os.SEEK_END) < self._n_mapped:  # touching what was cut off would be fatal
            raise StoreError(f"{self.path} ends before byte {self._n_mapped}; the shard was cut short.")
        return rows


def index_length(n_chunks: int) -> int:
    """Bytes at the end of a shard that hold its index and the checksum of it."""
    return 16 * n_chunks + 4


def parse_index(raw: bytes, n_chunks: int, path: object) -> list[Span | None]:
    """Where each chunk lies, given the last ``index_length(n_chunks)`` bytes of the shard at ``path``.

    Raises
    ------
    StoreError
        If the checksum is not that of the index.
    """
    if len(raw) != index_length(n_chunks) or crc32c(raw[:-4]).to_bytes(4, "little") != raw[-4:]:
        raise StoreError(
            f"{path} does not end in an index of {n_chunks} chunks with the right checksum; "
            "the shard is damaged or was cut short."
        )
    pairs = np.frombuffer(raw[:-4], "<u8").reshape(n_chunks, 2).tolist()
    return [None if offset == _MISSING else (offset, length) for offset, length in pairs]


def plain_chunks(spans: Sequence[Span | None], chunk_bytes: int) -> int:
    """How many chunks lie one after another from the first byte of a shard on, each of ``chunk_bytes``.

    Examples
    --------
    >>> plain_chunks([(0, 8), (8, 8), None, (16, 8)], 8)
    2
    """
    expected = ((number * chunk_bytes, chunk_bytes) for number in range(len(spans)))
    return next((n for n, (span, plain) in enumerate(zip(spans, expected, strict=True)) if span != plain), len(spans))


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of a C-contiguous array, to be written into."""
    return memoryview(array.reshape(-1).view(np.uint8).data)


def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array to read into, not initialized.

    It begins at a multiple of 64 bytes: the kernel copies a tenth faster there than to where malloc puts large arrays.
    """
    n_bytes = dtype.itemsize * math.prod(shape)
    if n_bytes < _WORTH_ALIGNING:
        return np.empty(shape, dtype)
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def pieces(rows: RowNumbers, size: int) -> Iterator[tuple[int, RowNumbers, slice]]:
    """Cut increasing row numbers at the multiples of ``size``: number of the piece, rows within it, place in all.

    Examples
    --------
    >>> [(number, list(within), at) for number, within, at in pieces(range(2, 6), 4)]
    [(0, [2, 3], slice(0, 2, None)), (1, [0, 1], slice(2, 4, None))]
    """
    if isinstance(rows, range):
        for number in range(rows.start // size, -(-rows.stop // size)):
            begin = number * size
            part = range(max(rows.start, begin), min(rows.stop, begin + size))
            if part:
                at = slice(part.start - rows.start, part.stop - rows.start)
                yield number, range(part.start - begin, part.stop - begin), at
    elif len(rows):
        numbers = rows // size
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        for first, last in pairwise(edges):
            number = int(numbers[first])
            yield number, rows[first:last] - number * size, slice(first, last)


def read_from_shard(
    shard: Shard,
    rows: RowNumbers,
    out: NDArray[Any],
    chunk_rows: int,
    fill: float | int,
    decode: Codec | None = None,
) -> None:
    """Read chosen rows of one shard into ``out``, in as few reads as there are runs of neighbours.

    Parameters
    ----------
    rows
        n row numbers within the shard in increasing order, or a range of them with step 1.
    out
        Shape (n, *trailing), C-contiguous, of the array's type.

    Raises
    ------
    StoreError
        If the shard is damaged; the message names the file.
    """
    row_bytes = out.itemsize * math.prod(out.shape[1:])
    if decode is None and isinstance(rows, range):
        n_touched = -(-rows.stop // chunk_rows)
        if plain_chunks(shard.spans[:n_touched], chunk_rows * row_bytes) == n_touched:
            shard.read_ranges([(rows.start * row_bytes, 0, len(rows) * row_bytes)], bytes_of(out))
            return
    ranges: list[Range] = []
    encoded: list[tuple[Range, RowNumbers, slice]] = []
    n_encoded = 0
    for number, within, at in pieces(rows, chunk_rows):
        span = shard.spans[number]
        if span is None:
            out[at] = fill
        elif decode is None:
            for first, run in _runs(within):
                start = (at.start + run.start) * row_bytes
                _append(ranges, (span[0] + first * row_bytes, start, (run.stop - run.start) * row_bytes))
        else:
            encoded.append(((span[0], n_encoded, span[1]), within, at))
            _append(ranges, encoded[-1][0])
            n_encoded += span[1]
    if decode is None:
        shard.read_ranges(ranges, bytes_of(out))
    elif encoded:
        buffer = memoryview(_room_for(n_encoded, shard))
        shard.read_ranges(ranges, buffer)
        for (offset, start, length), within, at in encoded:
            shape = (chunk_rows, *out.shape[1:])
            chunk = _decoded(buffer[start : start + length], decode, shape, out.dtype, f"{shard.path}, byte {offset}")
            out[at] = chunk[within.start : within.stop] if isinstance(within, range) else chunk[within]


def _append(ranges: list[Range], added: Range) -> None:
    """Add a range, to the last one where it follows it both in the file and in the target."""
    if ranges:
        offset, start, length = ranges[-1]
        if (offset + length, start + length) == added[:2]:
            ranges[-1] = (offset, start, length + added[2])
            return
    ranges.append(added)


def _runs(rows: RowNumbers) -> Iterator[tuple[int, slice]]:
    """Runs of neighbouring rows: the first of each, and where it lies among all."""
    if isinstance(rows, range):
        yield rows.start, slice(0, len(rows))
        return
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for first, last in pairwise(edges):
        yield int(rows[first]), slice(first, last)


def _room_for(n_bytes: int, shard: Shard) -> bytearray:
    try:
        return bytearray(n_bytes)
    except (MemoryError, OverflowError) as error:
        raise StoreError(f"{shard.path} speaks of {n_bytes} bytes of chunks; the shard is damaged.") from error


def _decoded(
    encoded: memoryview, decode: Codec, shape: tuple[int, ...], dtype: np.dtype[Any], where: str
) -> NDArray[Any]:
    try:
        return np.frombuffer(decode(encoded), dtype).reshape(shape)
    except (RuntimeError, ValueError) as error:
        raise StoreError(
            f"{where} holds {len(encoded)} bytes that cannot be decoded ({error}); the shard is damaged."
        ) from error
