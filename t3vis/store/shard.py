"""Whole ``sharding_indexed`` shards, encoded and decoded directly.

A shard of Zarr v3 is its inner chunks, then an index of one (offset, nbytes) pair of unsigned 64-bit integers per
chunk, then the crc32c of that index. Written in one go it costs what a raw file costs, and every Zarr v3 reader
reads it.

References
----------
Zarr v3 specification, "Sharding codec" version 1.0, and "CRC32C checksum codec".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store.layout import RowLayout

Buffer = bytes | memoryview
Codec = Callable[[Buffer], bytes]
RowNumbers = NDArray[np.int64] | range

_MISSING = np.uint64(2**64 - 1)
_MAX_BUFFERS = 512  # buffers in one writev; POSIX guarantees 16, Linux and macOS take 1024


def shard_path(array: Path, leading: tuple[int, ...], shard: int, n_trailing: int) -> Path:
    """File of one shard: ``c/<leading...>/<shard>/<a zero for each trailing dimension>``."""
    return array.joinpath("c", *map(str, leading), str(shard), *("0" for _ in range(n_trailing)))


def write_shard(path: Path, chunks: Sequence[Buffer | None]) -> None:
    """Write one shard, whole or not at all; ``None`` stands for a chunk that is all fill value.

    Raises
    ------
    OSError
        If the disk refuses; the path is attached as a note and nothing is left behind under the final name.
    """
    index = np.full((len(chunks), 2), _MISSING, "<u8")
    offset = 0
    for i, chunk in enumerate(chunks):
        if chunk is not None:
            index[i] = offset, len(chunk)
            offset += len(chunk)
    index_bytes = index.tobytes()
    checksum = google_crc32c.value(index_bytes).to_bytes(4, "little")
    write_file(path, [*(chunk for chunk in chunks if chunk is not None), index_bytes, checksum])


def write_file(path: Path, buffers: Sequence[Buffer]) -> None:
    """Write ``buffers`` after one another to a file that appears under ``path`` only when it is complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(descriptor, [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)])
        finally:
            os.close(descriptor)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        error.add_note(f"while writing {path}")
        raise


def _write_all(descriptor: int, views: list[memoryview]) -> None:
    """``writev`` until everything is on its way; a single call may write less than it was given."""
    while views:
        written = os.writev(descriptor, views[:_MAX_BUFFERS])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


def write_rows(
    array: Path,
    leading: tuple[int, ...],
    rows: NDArray[Any],
    layout: RowLayout,
    fill: float | int,
    codec: Codec | None = None,
    first_shard: int = 0,
) -> None:
    """Write rows of one leading index (an epoch and a layer, say) as shards.

    Parameters
    ----------
    rows
        Shape (n_rows, *trailing), C-contiguous. The last chunk is padded with ``fill``.
    codec
        Encodes the bytes of one chunk; none leaves them as they are.
    first_shard
        Number of the shard that the first of the rows begins.
    """
    for shard in range(-(-len(rows) // layout.shard_rows)):
        part = rows[shard * layout.shard_rows : (shard + 1) * layout.shard_rows]
        chunks: list[Buffer | None] = []
        for start in range(0, len(part), layout.chunk_rows):
            chunk = part[start : start + layout.chunk_rows]
            if len(chunk) < layout.chunk_rows:
                padded = np.full((layout.chunk_rows, *rows.shape[1:]), fill, rows.dtype)
                padded[: len(chunk)] = chunk
                chunk = padded
            data = as_bytes(chunk)
            chunks.append(data if codec is None else codec(data))
        chunks += [None] * (layout.chunks_per_shard - len(chunks))
        write_shard(shard_path(array, leading, first_shard + shard, rows.ndim - 1), chunks)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The array's bytes in C order, without a copy where it is contiguous."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class ShardFile:
    """One open shard: its checked index, and reads of byte ranges of its chunks."""

    def __init__(self, path: Path, n_chunks: int) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        try:
            self._index = self._read_index(n_chunks)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def chunk_span(self, chunk: int) -> tuple[int, int] | None:
        """Offset and length in bytes of a chunk, or ``None`` where it is all fill value."""
        offset, length = self._index[chunk]
        return None if offset == _MISSING else (int(offset), int(length))

    def read_into(self, target: NDArray[Any], offset: int) -> None:
        """Fill the contiguous ``target`` with the bytes at ``offset``."""
        view = memoryview(target.reshape(-1).view(np.uint8).data)
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if not count:
                raise StoreError(f"{self.path} ends before byte {offset + len(view)}; the shard is damaged.")
            done += count

    def _read_index(self, n_chunks: int) -> NDArray[np.uint64]:
        length = 16 * n_chunks
        end = os.fstat(self._descriptor).st_size
        raw = os.pread(self._descriptor, length + 4, end - length - 4) if end >= length + 4 else b""
        if len(raw) < length + 4 or google_crc32c.value(raw[:-4]).to_bytes(4, "little") != raw[-4:]:
            raise StoreError(
                f"{self.path} does not end in an index of {n_chunks} chunks with the right checksum; "
                "the shard is damaged or was cut short."
            )
        return np.frombuffer(raw[:-4], "<u8").reshape(n_chunks, 2)


def read_rows(
    array: Path,
    leading: tuple[int, ...],
    rows: RowNumbers,
    out: NDArray[Any],
    layout: RowLayout,
    fill: float | int,
    decode: Codec | None = None,
) -> None:
    """Read chosen rows of one leading index into ``out``; rows of a shard that was never written are ``fill``.

    Parameters
    ----------
    rows
        n row numbers in increasing order, or a range of them with step 1.
    out
        Shape (n, *trailing), C-contiguous, of the array's type.

    Raises
    ------
    StoreError
        If a shard is damaged; the message names the file.
    """
    for number, within, at in _pieces(rows, layout.shard_rows):
        path = shard_path(array, leading, number, out.ndim - 1)
        try:
            shard = ShardFile(path, layout.chunks_per_shard)
        except FileNotFoundError:
            out[at] = fill
            continue
        with shard:
            _read_from_shard(shard, within, out[at], layout, fill, decode)


def _pieces(rows: RowNumbers, size: int) -> Iterator[tuple[int, RowNumbers, slice]]:
    """Cut increasing row numbers at the multiples of ``size``: number of the piece, rows within it, place in all."""
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


def _read_from_shard(
    shard: ShardFile,
    rows: RowNumbers,
    out: NDArray[Any],
    layout: RowLayout,
    fill: float | int,
    decode: Codec | None,
) -> None:
    """Read increasing ``rows`` of one shard, in as few reads as there are runs of neighbours in a chunk."""
    row_bytes = out.itemsize * int(np.prod(out.shape[1:], dtype=np.int64))
    for number, within, at in _pieces(rows, layout.chunk_rows):
        span = shard.chunk_span(number)
        if span is None:
            out[at] = fill
        elif decode is None:
            for first, run in _runs(within):
                shard.read_into(out[at][run], span[0] + first * row_bytes)
        else:
            chunk = _decoded(shard, span, decode, (layout.chunk_rows, *out.shape[1:]), out.dtype)
            out[at] = chunk[within.start : within.stop] if isinstance(within, range) else chunk[within]


def _runs(rows: RowNumbers) -> Iterator[tuple[int, slice]]:
    """Runs of neighbouring rows: the first of each, and where it lies among all."""
    if isinstance(rows, range):
        yield rows.start, slice(0, len(rows))
        return
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for first, last in pairwise(edges):
        yield int(rows[first]), slice(first, last)


def _decoded(
    shard: ShardFile, span: tuple[int, int], decode: Codec, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    encoded = np.empty(span[1], np.uint8)
    shard.read_into(encoded, span[0])
    try:
        return np.frombuffer(decode(encoded.tobytes()), dtype).reshape(shape)
    except (RuntimeError, ValueError) as error:
        raise StoreError(
            f"{shard.path} holds {span[1]} bytes at {span[0]} that cannot be decoded ({error}); the shard is damaged."
        ) from error
