from hypothesis import given
from hypothesis import strategies as st

from t3vis.store.layout import (
    BLOCK_BYTES,
    MIN_CHUNK_ROWS,
    RING_BYTES,
    SEGMENT_BYTES,
    SHARD_BYTES,
    block_rows,
    ring_blocks,
    row_layout,
    segment_rows,
)

sizes = st.one_of(st.none(), st.integers(0, 10**7))


@given(row_bytes=st.integers(1, 1 << 22), n_rows=sizes)
def test_a_shard_is_a_whole_number_of_chunks_and_not_much_larger_than_asked(row_bytes, n_rows):
    layout = row_layout(row_bytes, n_rows)
    assert layout.chunk_rows > 0
    assert layout.shard_rows == layout.chunk_rows * layout.chunks_per_shard
    assert layout.chunks_per_shard == 1 or layout.shard_rows * row_bytes <= SHARD_BYTES
    if n_rows is not None:
        assert layout.shard_rows < max(n_rows, 1) + layout.chunk_rows


@given(row_bytes=st.integers(1, 1 << 16), n_rows=st.integers(0, 10**7), more=st.integers(0, 10**6))
def test_the_layout_does_not_depend_on_the_number_of_rows_where_that_is_unknown(row_bytes, n_rows, more):
    grown = row_layout(row_bytes, n_rows + more)
    assert row_layout(row_bytes, None).chunk_rows >= grown.chunk_rows
    assert row_layout(row_bytes, None).chunk_rows >= MIN_CHUNK_ROWS


@given(row_bytes=st.integers(1, 1 << 26), n_rows=sizes)
def test_a_block_holds_at_least_a_row_and_no_more_than_a_segment_or_the_split(row_bytes, n_rows):
    rows = block_rows(row_bytes, n_rows)
    assert 1 <= rows <= max(BLOCK_BYTES // row_bytes, 1)
    assert rows <= segment_rows(row_bytes) <= max(SEGMENT_BYTES // row_bytes, 1)
    assert n_rows is None or rows <= max(n_rows, 1)
    assert ring_blocks(rows * row_bytes) * rows * row_bytes <= max(RING_BYTES, 2 * rows * row_bytes)
