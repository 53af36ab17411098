import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.store import schema, segments
from t3vis.store.open_segment import OpenSegment, write_segment
from t3vis.store.ragged import Ragged
from t3vis.store.verify import verify

from .recordings import new_run, rows_of

ATTRIBUTES = {"pass": 0, "attempt": 0, "rank": 0, "sequence": 0, "of_pass": {}}


def columns_of(segment, rows):
    """What a segment holds, and what it should hold, of each thing recorded; hidden states by layer."""
    for name, column in rows.items():
        spec = schema.spec_of(name)
        if isinstance(column, Ragged):
            found = segment.read_ragged(spec)
            yield np.concatenate([found.values, found.offsets]), np.concatenate([column.values, column.offsets])
        elif spec.leading:
            yield from ((segment.read(spec, layer), column[layer]) for layer in range(len(column)))
        else:
            yield segment.read(spec), column


def part(rows, chosen):
    """Some of the rows."""
    return {name: rows[name][:, chosen] if name == "hidden_states" else rows[name][chosen] for name in rows}


@given(block=st.integers(1, 7), n_rows=st.integers(0, 30), n_layers=st.integers(0, 3), classes=st.integers(1, 3))
@settings(max_examples=40)
def test_blocks_come_back_as_one_and_zarr_reads_them_too(tmp_path_factory, block, n_rows, n_layers, classes):
    split = tmp_path_factory.mktemp("run") / "train"
    rows = rows_of(np.arange(n_rows)[::-1], 3, n_layers=n_layers, n_classes=classes)
    segment = OpenSegment(split / "segments/a0000_r0000/p0000_s000000")
    for start in range(0, max(n_rows, 1), block):
        segment.put(part(rows, slice(start, start + block)))
        assert segments.list_segments(split, 0) == []
    segment.commit(ATTRIBUTES)
    (found,) = segments.list_segments(split, 0)
    assert found.n_rows == n_rows
    for one, other in columns_of(found, rows):
        np.testing.assert_array_equal(one, other)
    if n_layers:
        array = zarr.open_array(segment.path / "hidden_states", mode="r")
        np.testing.assert_array_equal(array[...], rows["hidden_states"])
        if n_rows:
            assert array.chunks == (1, min(block, n_rows), 4)
    assert not list(split.rglob("*.partial"))


def test_room_that_was_reserved_and_not_needed_is_given_back(tmp_path):
    split, n_rows, width = tmp_path / "train", 256, 1024
    rows = rows_of(np.arange(3 * n_rows), 0)
    rows["hidden_states"] = np.random.default_rng(0).normal(size=(1, 3 * n_rows, width)).astype(np.float16)
    block = rows["hidden_states"].nbytes // 3
    segment = OpenSegment(split / "segments/a0000_r0000/p0000_s000000")
    for start in range(0, 3 * n_rows, n_rows):
        segment.put(part(rows, slice(start, start + n_rows)))
    (growing,) = (segment.path / "hidden_states").rglob("*.partial")
    assert growing.stat().st_size > 3 * block + 4096  # this size of block is one that room is reserved for
    segment.commit(ATTRIBUTES)
    (found,) = segments.list_segments(split, 0)
    for one, other in columns_of(found, rows):
        np.testing.assert_array_equal(one, other)
    (shard,) = (file for file in (segment.path / "hidden_states" / "c").rglob("*") if file.is_file())
    assert 3 * block < shard.stat().st_size < 3 * block + 4096
    np.testing.assert_array_equal(zarr.open_array(segment.path / "hidden_states", mode="r")[...], rows["hidden_states"])


def test_a_segment_of_blocks_verifies_and_what_is_damaged_is_named(tmp_path):
    writer = new_run(tmp_path, 4)
    writer.log("train", rows_of([3, 1, 0, 2, 1, 1, 0, 0, 3], 0))
    writer.flush()
    assert verify(tmp_path) == []
    file = next(tmp_path.glob("train/segments/*/*/hidden_states/c/0/0/0"))
    content = file.read_bytes()
    file.write_bytes(content[:-4] + bytes(4))
    (problem,) = verify(tmp_path)
    assert "6 chunks" in problem.what
    assert (problem.file, problem.array, problem.rows) == (file, "hidden_states", range(9))


def test_what_is_discarded_is_gone_and_rows_may_be_put_again(tmp_path):
    path = tmp_path / "train/segments/a0000_r0000/p0000_s000000"
    segment = OpenSegment(path)
    segment.put(rows_of([0, 1], 0))
    assert path.exists()
    segment.discard()
    assert not path.exists()
    again = rows_of([2, 3, 4], 1)
    segment.put(again)
    segment.commit(ATTRIBUTES)
    (found,) = segments.list_segments(tmp_path / "train", 0)
    assert (found.attributes["first_step"], found.attributes["last_step"], found.n_rows) == (1, 1, 3)
    for one, other in columns_of(found, again):
        np.testing.assert_array_equal(one, other)


def test_a_segment_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "train").write_text("")
    with pytest.raises(NotADirectoryError):
        write_segment(tmp_path / "train/segments/a0000_r0000/p0000_s000000", rows_of([0], 0), ATTRIBUTES)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
