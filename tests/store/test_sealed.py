import os
import re
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.errors import StoreError
from t3vis.store.layout import RowLayout
from t3vis.store.reader import open_run
from t3vis.store.sealed import HeldShards, open_sealed
from t3vis.store.shard import shard_path

from .recordings import two_epochs
from .test_shard import write_array, written


def test_leading_indices_choose_pass_and_layer(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    array = open_sealed(tmp_path / "run" / "train" / "hidden_states", 2)
    assert array.dims == ("epoch", "layer", "example", "hidden")
    assert array.shape == (2, 2, 10, 4)
    expected = zarr.open_array(array.path, mode="r")[...]
    for index in range(2):
        for layer in range(2):
            np.testing.assert_array_equal(array.read_all((index, layer)), expected[index, layer])
            np.testing.assert_array_equal(array.read((index, layer), range(3, 8)), expected[index, layer, 3:8])


def test_a_pass_that_was_never_written_is_fill(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    assert (open_sealed(tmp_path / "run" / "train" / "step", 1).read_all((7,)) == -1).all()


def test_an_absent_array_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_sealed(tmp_path / "nothing", 0)


@pytest.mark.parametrize("codec", [None, "gzip"])
def test_arrays_in_another_layout_are_refused_by_name(tmp_path, codec):
    compressor = None if codec is None else zarr.codecs.GzipCodec()
    shards = None if codec is None else (4,)
    zarr.create_array(
        tmp_path / "a",
        shape=(8,),
        dtype="i4",
        chunks=(2,),
        shards=shards,
        compressors=compressor,
        dimension_names=("x",),
    )
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "a"))):
        open_sealed(tmp_path / "a", 0)


def test_a_damaged_shard_is_named_by_whoever_reads_the_run(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    shard = tmp_path / "run/train/logits/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    run = open_run(tmp_path / "run")
    assert np.isfinite(run.train.logits[0]).all()
    with pytest.raises(StoreError, match=re.escape(str(shard))):
        run.train.logits[1]


def test_a_damaged_shard_says_what_it_holds(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    shard = tmp_path / "run/train/hidden_states/c/1/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    train = open_run(tmp_path / "run").train
    for key in ((1, 0), (1, 0, 3), (1, 0, [3, 1]), (slice(None), 0)):
        with pytest.raises(StoreError, match="It holds hidden_states, epoch 1, layer 0, examples 0 to 9"):
            train.hidden_states[key]
    assert np.isfinite(train.hidden_states[1, 1, 0]).all()


# Rows in any order, and what is held open for them


@given(case=written(), data=st.data())
@settings(max_examples=60)
def test_rows_in_any_order_are_those_of_numpy(tmp_path_factory, case, data):
    rows, layout, zstd = case
    path = tmp_path_factory.mktemp("shard") / "a"
    write_array(path, rows, layout, zstd=zstd)
    array = open_sealed(path, 0)
    numbers = st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=20 if len(rows) else 0)
    for chosen in data.draw(st.lists(numbers, max_size=3)):
        ids = np.array(chosen, np.int64)
        np.testing.assert_array_equal(array.take((), ids).tobytes(), rows[ids].tobytes())
        for i in chosen[:3]:
            assert array.row((), i).tobytes() == rows[i].tobytes()


@pytest.mark.parametrize("order", [["C", "A"], ["A", None, "C"]])
def test_chunks_in_another_order_or_missing_are_read_as_zarr_reads_them(tmp_path, order):
    rows = np.arange(24, dtype="<i4").reshape(12, 2)
    layout = RowLayout(4, 12)
    write_array(tmp_path / "a", rows, layout)
    chunks = {name: rows[4 * i : 4 * i + 4].tobytes() for i, name in enumerate("ABC")}
    index, offset = np.full((3, 2), 2**64 - 1, "<u8"), 0
    for name in filter(None, order):
        index["ABC".index(name)] = offset, 32
        offset += 32
    content = b"".join(chunks[name] for name in filter(None, order)) + index.tobytes()
    file = shard_path(tmp_path / "a", (), 0, 1)
    file.write_bytes(content + google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
    expected = zarr.open_array(tmp_path / "a", mode="r")[...]
    assert (expected[4:8] == 0).all()
    array = open_sealed(tmp_path / "a", 0)
    ids = np.array([11, 0, 5, 0])
    np.testing.assert_array_equal(array.read_all(), expected)
    np.testing.assert_array_equal(array.take((), ids), expected[ids])
    np.testing.assert_array_equal(np.stack([array.row((), i) for i in range(12)]), expected)


@pytest.mark.parametrize("shuffle", ["bitshuffle", "shuffle", "noshuffle"])
def test_blosc_as_zarr_python_writes_it(tmp_path, shuffle):
    rows = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float16)
    array = zarr.create_array(
        tmp_path / "a",
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(4, 3),
        shards=(8, 3),
        compressors=zarr.codecs.BloscCodec(cname="lz4", shuffle=shuffle),
        dimension_names=("example", "hidden"),
    )
    array[...] = rows
    sealed = open_sealed(tmp_path / "a", 0)
    assert sealed.read_all().tobytes() == rows.tobytes()
    assert sealed.take((), np.array([22, 3, 3])).tobytes() == rows[[22, 3, 3]].tobytes()
    assert sealed.row((), 9).tobytes() == rows[9].tobytes()


def test_large_arrays_are_read_whole(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2**15, (5000, 300)).astype("<i2")
    write_array(tmp_path / "a", rows, RowLayout(64, 1024))
    array = open_sealed(tmp_path / "a", 0)
    found = array.read_all()
    np.testing.assert_array_equal(found, rows, strict=True)
    found[0] = 0  # it is the reader's own
    np.testing.assert_array_equal(array.read_all(), rows)


def n_open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_more_shards_are_held_open_than_the_limit(tmp_path):
    n_open = n_open_files()
    rows = np.arange(3 * HeldShards.LIMIT, dtype="<i8")
    write_array(tmp_path / "a", rows, RowLayout(1, 1))
    array = open_sealed(tmp_path / "a", 0)
    ids = np.arange(len(rows))[::-1]
    np.testing.assert_array_equal(array.take((), ids), rows[::-1])
    np.testing.assert_array_equal(array.read_all(), rows)
    assert 0 < len(array.held) <= HeldShards.LIMIT
    assert n_open_files() - n_open <= 2 * HeldShards.LIMIT  # each may be mapped as well
    del array
    assert n_open_files() == n_open


def test_what_is_held_for_one_array_is_not_taken_for_that_of_another(tmp_path):
    held = HeldShards()
    for rows in (np.arange(12, dtype="<i8"), np.arange(12, dtype="<i8")[::-1]):
        write_array(tmp_path / "a", rows, RowLayout(4, 12))
        array = open_sealed(tmp_path / "a", 0, held=held)
        np.testing.assert_array_equal(array.read_all(), rows)


def test_an_array_that_was_read_goes_on_seeing_what_was_deleted(tmp_path):
    rows = np.arange(12, dtype="<i8")
    write_array(tmp_path / "a", rows, RowLayout(4, 12))
    array = open_sealed(tmp_path / "a", 0)
    array.row((), 0)
    shard_path(tmp_path / "a", (), 0, 0).unlink()
    np.testing.assert_array_equal(array.read_all(), rows)
    np.testing.assert_array_equal(array.take((), np.array([3, 2])), [3, 2])
    assert (open_sealed(tmp_path / "a", 0).read_all() == 0).all()


def test_a_shard_that_is_cut_short_while_it_is_held_open_is_an_error(tmp_path):
    write_array(tmp_path / "a", np.arange(3000, dtype="<i8"), RowLayout(1000, 3000))
    array, file = open_sealed(tmp_path / "a", 0), shard_path(tmp_path / "a", (), 0, 0)
    array.take((), np.array([5, 4]))
    os.truncate(file, 8000)
    np.testing.assert_array_equal(array.read((), range(1000)), np.arange(1000))
    for read in (array.read_all, lambda: array.row((), 2999), lambda: array.take((), np.array([2999, 1]))):
        with pytest.raises(StoreError, match=re.escape(str(file))):
            read()
