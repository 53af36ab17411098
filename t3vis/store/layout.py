"""From sizes to chunk and shard shapes. Pure arithmetic; nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_BYTES = 1 << 20
SHARD_BYTES = 32 << 20
SEGMENT_BYTES = 256 << 20
SEGMENT_SECONDS = 30.0  # readers see no rows before their segment ends
BLOCK_BYTES = 4 << 20  # of rows copied, then written: they are still in the cache by then
RING_BYTES = 32 << 20
MIN_CHUNK_ROWS = 256
MAX_CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class RowLayout:
    """How many examples an inner chunk and a shard of one array hold; a shard is a whole number of chunks."""

    chunk_rows: int
    shard_rows: int

    @property
    def chunks_per_shard(self) -> int:
        """Inner chunks in a shard."""
        return self.shard_rows // self.chunk_rows


def row_layout(row_bytes: int, n_rows: int | None) -> RowLayout:
    """Chunks of about 1 MiB in shards of at most about 32 MiB.

    Parameters
    ----------
    row_bytes
        Bytes of one example's row, at least 1.
    n_rows
        Examples of the split; ``None`` where the number is not known beforehand.

    Examples
    --------
    >>> row_layout(768, 100_000)  # 384 values of float16
    RowLayout(chunk_rows=1024, shard_rows=43008)
    >>> row_layout(4, 500)  # a loss in a small dataset
    RowLayout(chunk_rows=500, shard_rows=500)
    """
    chunk_rows = 1 << max((CHUNK_BYTES // row_bytes).bit_length() - 1, 0)
    chunk_rows = min(max(chunk_rows, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS)
    if n_rows is not None:
        chunk_rows = min(chunk_rows, max(n_rows, 1))
    chunks = max(SHARD_BYTES // (chunk_rows * row_bytes), 1)
    if n_rows is not None:
        chunks = min(chunks, max(-(-n_rows // chunk_rows), 1))
    return RowLayout(chunk_rows, chunk_rows * chunks)


def segment_rows(row_bytes: int) -> int:
    """Rows of a segment, given the bytes of one row over all its arrays.

    Examples
    --------
    >>> segment_rows(5_408)  # 7 layers of 384 in float16 and a few numbers
    49636
    """
    return max(SEGMENT_BYTES // row_bytes, 1)


def block_rows(row_bytes: int, n_rows: int | None) -> int:
    """Rows that are written to a segment at a time, given the bytes of one row over all its arrays.

    Examples
    --------
    >>> block_rows(5_408, 100_000)
    775
    """
    rows = max(min(BLOCK_BYTES, SEGMENT_BYTES) // row_bytes, 1)
    return rows if n_rows is None else max(min(rows, n_rows), 1)


def ring_blocks(block_bytes: int) -> int:
    """Blocks that may wait to be written, the one that is being filled among them: at least two.

    Examples
    --------
    >>> ring_blocks(4 << 20), ring_blocks(100 << 20)
    (8, 2)
    """
    return max(RING_BYTES // max(block_bytes, 1), 2)
