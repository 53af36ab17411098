"""Rows of different lengths: in memory, in segments, sealed, and in everything that is done to a run."""

from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.buffer import Buffer
from t3vis.store.compact import compact
from t3vis.store.options import StorageOptions
from t3vis.store.push import push
from t3vis.store.ragged import Ragged, offsets_of, positions
from t3vis.store.reader import open_run
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.verify import verify
from t3vis.store.writer import create_run

from .recordings import Expected, new_run, rows_of, split_attributes, two_epochs
from .test_verify import without_checksums

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=5), max_size=8)


def as_lists(rows):
    return [row.tolist() for row in rows]


@given(rows=ROWS, data=st.data())
def test_rows_are_those_of_a_list_of_lists(rows, data):
    ragged = Ragged.of(rows, np.int32)
    assert as_lists(ragged) == rows
    assert ragged.lengths.tolist() == list(map(len, rows))
    assert len(ragged) == len(rows) == ragged.shape[0]
    start, stop, step = (data.draw(st.none() | st.integers(-9, 9)) for _ in range(3))
    chosen = slice(start, stop, step or None)
    assert as_lists(ragged[chosen]) == rows[chosen]
    if rows:
        ids = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1)))
        assert as_lists(ragged[np.array(ids, np.int64)]) == [rows[i] for i in ids]
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
        assert as_lists(ragged[mask]) == [row for row, kept in zip(rows, mask, strict=True) if kept]
        assert ragged[-1].tolist() == rows[-1]
    with pytest.raises(IndexError, match=f"of {len(rows)}"):
        ragged[len(rows)]


@given(rows=ROWS)
def test_positions_are_where_the_values_are(rows):
    ragged = Ragged.of(rows, np.int32)
    assert positions(ragged.offsets[:-1], ragged.lengths).tolist() == list(range(len(ragged.values)))
    assert offsets_of(ragged.lengths).tolist() == ragged.offsets.tolist()


@given(batches=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_buffer_hands_every_value_over_however_long_its_rows(batches):
    """Room is made for rows four times as long as those of the first batch; longer ones fill a block early."""
    buffer = Buffer(n_examples=4)
    written = Future()
    written.set_result(None)
    given_rows, handed_over, number = [], [], 0

    def hand_over():
        filled = buffer.filled()
        assert len(filled["token_rank"]) == len(filled["example"]) == buffer.n_rows > 0
        handed_over.extend(zip(filled["example"].tolist(), as_lists(filled["token_rank"]), strict=True))
        buffer.turn(written)

    for lengths in batches:
        ids = np.arange(number, number + len(lengths))
        number += len(lengths)
        tokens = Ragged.with_lengths(np.arange(sum(lengths), dtype=np.int32), np.array(lengths))
        given_rows += list(zip(ids.tolist(), as_lists(tokens), strict=True))
        rows = {"example": ids, "step": ids, "token_rank": tokens}
        if not buffer.fits(rows):
            buffer.allocate(rows)
        taken = 0
        while taken < len(ids):
            taken += buffer.take(rows, taken)
            if buffer.is_full:
                hand_over()
    if buffer.n_rows:
        hand_over()
    assert handed_over == given_rows


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_what_is_indexed_is_read_from_segments_and_from_the_sealed_arrays(tmp_path, compression):
    writer = create_run(tmp_path, {}, options=StorageOptions(compression=compression))
    writer.add_split("train", split_attributes(10))
    expected = Expected(10)
    for index, order in enumerate(([3, 1, 4, 0, 5, 9, 2, 6, 8, 7], [2, 7, 1, 8, 2])):
        writer.begin_pass("train", index, {"epoch": index})
        expected.log(writer, index, rows_of(order, index))
        writer.flush()
    for _ in ("in segments", "sealed"):
        array = open_run(tmp_path).train.ragged("token_logprob")
        rows = [expected.ragged("token_logprob", index) for index in (0, 1)]
        assert array.dims == ("epoch", "example", "token")
        assert array.shape == (2, 10)
        assert array.dtype == np.float32
        assert array.attributes["mode"] == "train"
        assert as_lists(array[-1]) == rows[1]
        assert array[0, 3].tolist() == rows[0][3]
        assert [row.tolist() for row in array[:, 7]] == [rows[0][7], rows[1][7]]
        for key in ([8, 2, 2, -1], slice(2, 7), slice(None, None, -3), np.arange(10) % 3 == 0, [], [9]):
            wanted = Ragged.of(rows[0], np.float32)[np.array(key) if isinstance(key, list) and key else key]
            assert as_lists(array[0, key]) == as_lists(wanted), key
        with pytest.raises(IndexError):
            array[0, 10]
        with pytest.raises(IndexError):
            array[2]
        with pytest.raises(IndexError, match="expected a pass"):
            array[[0, 1]]
        with pytest.raises(IndexError, match="one dimension"):
            array[0, [[1, 2]]]
        assert "token: ragged" in repr(array)
        for index in (0, 1):
            seal_pass(tmp_path, "train", index)
    example = open_run(tmp_path).train.example(3)
    assert [values.tolist() for values in example.ragged["token_logprob"]] == [rows[0][3], rows[1][3]]


def test_an_array_is_asked_for_by_its_kind(tmp_path):
    two_epochs(tmp_path)
    train = open_run(tmp_path).train
    with pytest.raises(StoreError, match=r"token_logprob is asked for by ragged\('token_logprob'\)"):
        train.array("token_logprob")
    with pytest.raises(StoreError, match=r"loss is asked for by array\('loss'\)"):
        train.ragged("loss")
    with pytest.raises(StoreError, match=r"holds no token_rank \(yet\) among its ragged arrays: token_logprob"):
        train.ragged("token_rank")


@pytest.mark.parametrize("n_examples", [10, None])
def test_passes_of_any_number_of_values_are_sealed(tmp_path, n_examples, monkeypatch):
    """Few first, then many: chunks and shards stay what the first pass made them."""
    monkeypatch.setattr("t3vis.store.layout.MIN_CHUNK_ROWS", 2)
    monkeypatch.setattr("t3vis.store.layout.MAX_CHUNK_ROWS", 4)
    monkeypatch.setattr("t3vis.store.layout.SHARD_BYTES", 64)
    run = tmp_path / "run"
    writer, expected = new_run(run, n_examples), Expected(n_examples)
    rng = np.random.default_rng(0)
    for index, n_tokens in enumerate((0, 1, 40, 3)):
        writer.begin_pass("train", index, {"epoch": index})
        ids = rng.permutation(10)[: 10 - 2 * (index == 1)]
        lengths = np.full(len(ids), n_tokens)
        rows = rows_of(ids, index)
        rows["token_logprob"] = Ragged.with_lengths(rng.random(lengths.sum()).astype(np.float32), lengths)
        expected.log(writer, index, rows)
        writer.flush()
        seal_pass(run, "train", index)
        remove_sealed_segments(run, "train")
    expected.check(open_run(run).train)
    assert verify(run) == []
    compact(run, tmp_path / "compacted", compression="lz4")
    expected.check(open_run(tmp_path / "compacted").train)
    push(run, str(tmp_path / "copy"))
    expected.check(open_run(tmp_path / "copy").train)


def test_offsets_that_are_none_are_damage_that_is_named(tmp_path):
    _, expected = two_epochs(tmp_path, seal=True)
    remove_sealed_segments(tmp_path, "train")
    shard = tmp_path / "train/token_logprob/offsets/c/1/0"
    content = bytearray(shard.read_bytes())
    content[8:16] = (1 << 40).to_bytes(8, "little")
    shard.write_bytes(content)
    train = open_run(tmp_path).train
    with pytest.raises(StoreError, match=r"token_logprob/offsets, pass 1, holds no offsets of \d+ values"):
        train.ragged("token_logprob")[1]
    assert as_lists(train.ragged("token_logprob")[0]) == expected.ragged("token_logprob", 0)
    assert [problem.array for problem in verify(tmp_path)] == ["token_logprob/offsets"]
    without_checksums(tmp_path)
    (problem,) = verify(tmp_path)
    assert (problem.array, problem.index, problem.what) == (
        "token_logprob/offsets",
        1,
        "its offsets do not rise from 0 on",
    )


def test_a_lost_shard_of_values_is_named(tmp_path):
    two_epochs(tmp_path, seal=True)
    (tmp_path / "train/token_logprob/values/c/0/0").unlink()
    (problem,) = verify(tmp_path)
    assert (problem.array, problem.index, problem.what) == ("token_logprob/values", 0, "this shard is missing")


def test_parts_of_ragged_arrays_are_arrays_like_any_other():
    for name, spec in schema.STORED_ARRAYS.items():
        assert spec.name == name
        assert not spec.is_ragged
    ragged = [spec for spec in schema.PASS_ARRAYS.values() if spec.is_ragged]
    assert ragged
    for spec in ragged:
        values, offsets = spec.parts
        assert values.dims("train") == ("epoch", "value")
        assert offsets.dims("eval") == ("evaluation", "offset")
        assert (values.dtype, values.n_rows(3), offsets.n_rows(3)) == (spec.dtype, None, 4)
