import os

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from t3vis.errors import StoreError
from t3vis.store import schema, shard
from t3vis.store.checksums import checksum
from t3vis.store.layout import RowLayout
from t3vis.store.sealed import open_sealed
from t3vis.store.shard import PartialFile, index_of, shard_path, write_rows

LAYOUTS = [RowLayout(1, 1), RowLayout(4, 4), RowLayout(4, 12), RowLayout(3, 9)]
ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


def write_array(path, rows, layout, *, fill=0, zstd=False, n_rows=None):
    metadata = schema.array_metadata(
        shape=(len(rows) if n_rows is None else n_rows, *rows.shape[1:]),
        shard_shape=(layout.shard_rows, *rows.shape[1:]),
        chunk_shape=(layout.chunk_rows, *rows.shape[1:]),
        dtype=rows.dtype.str,
        fill=fill,
        dims=("example", "class")[: rows.ndim],
        attributes={"description": "rows"},
        codecs=(ZSTD,) if zstd else (),
    )
    schema.write_metadata(path, metadata)
    return write_rows(path, (), rows, layout, fill, Zstd(level=1).encode if zstd else None)


@st.composite
def written(draw):
    """Rows, the layout they are written in, and whether they are compressed; sizes about chunk and shard edges."""
    layout = draw(st.sampled_from(LAYOUTS))
    edges = {0, 1, 2 * layout.shard_rows + 1}
    edges |= {size + more for size in (layout.chunk_rows, layout.shard_rows) for more in (-1, 0, 1)}
    n_rows = draw(st.sampled_from(sorted(edges)))
    dtype = draw(st.sampled_from(["<f2", "<f4", "<i4", "<i8", "|u1"]))
    trailing = draw(st.sampled_from([(), (1,), (5,)]))
    bits = np.random.default_rng(draw(st.integers(0, 99))).bytes(
        n_rows * int(np.prod(trailing)) * np.dtype(dtype).itemsize
    )
    return np.frombuffer(bits, dtype).reshape(n_rows, *trailing), layout, draw(st.booleans())


@given(case=written(), data=st.data())
@settings(max_examples=80)
def test_zarr_python_and_we_read_the_same_bits(tmp_path_factory, case, data):
    rows, layout, zstd = case
    path = tmp_path_factory.mktemp("shard") / "a"
    write_array(path, rows, layout, zstd=zstd)
    array = open_sealed(path, 0)
    assert zarr.open_array(path, mode="r")[...].tobytes() == rows.tobytes()
    assert array.read_all().tobytes() == rows.tobytes()
    chosen = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    assert array.read((), chosen).tobytes() == rows[chosen].tobytes()
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    assert array.read((), range(start, stop)).tobytes() == rows[start:stop].tobytes()


@given(case=written())
@settings(max_examples=20)
def test_we_read_what_zarr_python_writes(tmp_path_factory, case):
    rows, layout, zstd = case
    path = tmp_path_factory.mktemp("shard") / "a"
    array = zarr.create_array(
        path,
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(layout.chunk_rows, *rows.shape[1:]),
        shards=(layout.shard_rows, *rows.shape[1:]),
        compressors=zarr.codecs.ZstdCodec(level=1) if zstd else None,
        dimension_names=("example", "class")[: rows.ndim],
    )
    array[...] = rows
    assert open_sealed(path, 0).read_all().tobytes() == rows.tobytes()


@pytest.mark.parametrize("zstd", [False, True])
def test_chunks_and_shards_that_were_not_written_are_fill(tmp_path, zstd):
    layout = RowLayout(2, 6)
    rows = np.arange(9, dtype="<i4")
    write_array(tmp_path / "a", rows, layout, fill=-1, zstd=zstd, n_rows=20)
    expected = np.full(20, -1)
    expected[:9] = rows
    array = open_sealed(tmp_path / "a", 0)
    np.testing.assert_array_equal(array.read_all(), expected)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], expected)
    some = np.array([0, 5, 8, 9, 11, 12, 19])
    np.testing.assert_array_equal(array.read((), some), expected[some])


def test_a_shard_is_its_chunks_then_an_index_then_its_checksum(tmp_path):
    file = PartialFile(tmp_path / "0")
    file.append([b"ab"])
    file.append([b"c", index_of([(0, 2), None, (2, 1)])])
    assert not (tmp_path / "0").exists()
    file.complete()
    content = (tmp_path / "0").read_bytes()
    index = np.array([[0, 2], [2**64 - 1, 2**64 - 1], [2, 1]], "<u8").tobytes()
    assert content == b"abc" + index + google_crc32c.value(index).to_bytes(4, "little")


def test_more_chunks_than_one_writev_takes(tmp_path):
    rows = np.arange(3000, dtype="<i8")
    write_array(tmp_path / "a", rows, RowLayout(1, 3000))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], rows)


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 7, 64, 10_000])
def test_files_are_what_their_checksums_say_however_they_are_cut(tmp_path, monkeypatch, block_bytes, zstd):
    monkeypatch.setattr(shard, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(shard, "_RESERVED_FROM", 5)
    rows = np.random.default_rng(0).integers(0, 99, (70, 3), np.int32)
    written = write_array(tmp_path / "a", rows, RowLayout(4, 32), zstd=zstd)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], rows)
    files = [shard_path(tmp_path / "a", (), number, 1) for number in range(3)]
    assert written == {file: checksum(file) for file in files}


@pytest.fixture
def damaged(tmp_path):
    """An array of one shard, and its file."""
    write_array(tmp_path / "a", np.arange(12, dtype="<i8"), RowLayout(4, 12))
    return tmp_path / "a", shard_path(tmp_path / "a", (), 0, 0)


@pytest.mark.parametrize("kept", [0, 3, 51, 100, 147])
def test_a_truncated_shard_is_an_error_that_names_the_file(damaged, kept):
    array, file = damaged
    os.truncate(file, kept)
    with pytest.raises(StoreError, match=str(file)):
        open_sealed(array, 0).read_all()


@pytest.mark.parametrize("byte", [1, 4, 5, 20, 52])
def test_a_flipped_byte_in_the_index_is_an_error_that_names_the_file(damaged, byte):
    array, file = damaged
    content = bytearray(file.read_bytes())
    content[-byte] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match=str(file)):
        open_sealed(array, 0).read_all()


def test_an_index_that_points_behind_the_end_is_an_error_that_names_the_file(damaged):
    array, file = damaged
    index = np.array([[0, 32], [32, 32], [1 << 40, 32]], "<u8").tobytes()
    file.write_bytes(bytes(96) + index + google_crc32c.value(index).to_bytes(4, "little"))
    np.testing.assert_array_equal(open_sealed(array, 0).read((), range(8)), np.zeros(8))
    with pytest.raises(StoreError, match=str(file)):
        open_sealed(array, 0).read_all()


def test_compressed_bytes_that_make_no_sense_are_an_error_that_names_the_file(tmp_path):
    write_array(tmp_path / "a", np.arange(12, dtype="<i8"), RowLayout(4, 12), zstd=True)
    file = shard_path(tmp_path / "a", (), 0, 0)
    content = bytearray(file.read_bytes())
    content[:8] = bytes(8)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=str(file)):
        open_sealed(tmp_path / "a", 0).read_all()


def test_a_failed_write_keeps_the_error_and_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as caught:
        PartialFile(tmp_path / "file" / "c" / "0")
    assert str(tmp_path / "file" / "c" / "0") in caught.value.__notes__[0]
