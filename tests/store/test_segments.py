import re

import numpy as np
import pytest
import zarr

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.open_segment import write_segment
from t3vis.store.ragged import Ragged
from t3vis.store.reader import open_run
from t3vis.store.writer import create_run

from .operations import killed_before_each
from .recordings import new_run, rows_of, split_attributes, two_epochs


def write(split, name, *, pass_=0, attempt=0, rank=0, sequence=0, of_pass=None, **rows):
    path = split / "segments" / schema.rank_name(attempt, rank) / name
    attributes = {
        "pass": pass_,
        "attempt": attempt,
        "rank": rank,
        "sequence": sequence,
        "n_rows": len(rows["example"]),
        "of_pass": of_pass or {},
    }
    columns = {key: value if isinstance(value, Ragged) else np.asarray(value) for key, value in rows.items()}
    write_segment(path, columns, attributes)
    return path


def merged(split, limits=None, n_examples=5, kind="train"):
    return segments.merge(segments.list_segments(split, 0), limits or {}, n_examples, kind)


def test_rows_come_back_as_they_were_written_and_zarr_reads_them_too(tmp_path):
    rows = rows_of([4, 0, 2], step=7)
    path = write(tmp_path, "p0000_s000000", **rows)
    (segment,) = segments.list_segments(tmp_path, 0)
    for name, array in rows.items():
        parts = {name: array}
        if isinstance(array, Ragged):
            parts = {f"{name}/values": array.values, f"{name}/offsets": array.offsets}
            assert segment.read_ragged(schema.PASS_ARRAYS[name])[2].tolist() == array[2].tolist()
        for part, values in parts.items():
            np.testing.assert_array_equal(zarr.open_array(path / part, mode="r")[...], values)
    for name in ("logits", "loss", "step"):
        np.testing.assert_array_equal(segment.read(schema.PASS_ARRAYS[name]), rows[name])
    for layer in range(2):
        np.testing.assert_array_equal(
            segment.read(schema.PASS_ARRAYS["hidden_states"], layer), rows["hidden_states"][layer]
        )


def test_the_first_visit_in_order_of_steps_counts_and_all_are_counted(tmp_path):
    write(tmp_path, "p0000_s000000", example=[1, 3, 1], step=[5, 5, 5], loss=[0.1, 0.3, 0.9])
    write(tmp_path, "p0000_s000000", rank=1, example=[3, 0], step=[4, 5], loss=[0.4, 0.0])
    merge = merged(tmp_path)
    np.testing.assert_array_equal(merge.visits, [1, 2, 0, 2, 0])
    np.testing.assert_array_equal(merge.gather("loss", ()), np.array([0, 0.1, np.nan, 0.4, np.nan], np.float32))
    assert merge.coverage() == {
        "n_examples": 5,
        "n_seen": 3,
        "n_repeated": 2,
        "n_never": 2,
        "first_step": 4,
        "last_step": 5,
    }


def test_rows_that_a_later_attempt_took_again_do_not_count(tmp_path):
    write(tmp_path, "p0000_s000000", example=[0, 1, 2], step=[0, 1, 2], loss=[0.0, 0.1, 0.2])
    write(tmp_path, "p0000_s000000", attempt=1, example=[3, 2], step=[1, 2], loss=[1.3, 1.2])
    write(tmp_path, "p0000_s000000", attempt=2, example=[4], step=[2], loss=[2.4])
    merge = merged(tmp_path, {0: 1, 1: 2})
    np.testing.assert_array_equal(merge.gather("loss", ()), np.array([0, np.nan, np.nan, 1.3, 2.4], np.float32))
    np.testing.assert_array_equal(merge.visits, [1, 0, 0, 1, 1])
    everything = merged(tmp_path, {0: 1, 1: 2}, kind="eval")
    np.testing.assert_array_equal(everything.visits, [1, 1, 2, 1, 1])


def test_a_row_may_stand_for_several_visits(tmp_path):
    write(tmp_path, "p0000_s000000", example=[0, 1], step=[0, 0], visits=[3, 1])
    write(tmp_path, "p0000_s000001", sequence=1, example=[0], step=[1])
    np.testing.assert_array_equal(merged(tmp_path).visits, [4, 1, 0, 0, 0])


def test_arrays_that_only_some_segments_have_are_fill_elsewhere(tmp_path):
    write(tmp_path, "p0000_s000000", example=[0], step=[0], length=[9])
    write(tmp_path, "p0000_s000001", sequence=1, example=[1], step=[1], loss=[0.5])
    merge = merged(tmp_path)
    assert merge.arrays() == {"visits": (), "step": (), "length": (), "loss": ()}
    np.testing.assert_array_equal(merge.gather("length", ()), [9, -1, -1, -1, -1])


def test_the_first_attempt_says_what_the_pass_is(tmp_path):
    write(tmp_path, "p0000_s000000", example=[0], step=[0], of_pass={"epoch": 0, "step": 0})
    write(tmp_path, "p0000_s000000", attempt=1, example=[1], step=[1], of_pass={"epoch": 0, "step": 1, "more": 2})
    assert merged(tmp_path, {0: 0, 1: 1}).of_pass() == {"epoch": 0, "step": 0, "more": 2}


def test_segments_come_in_order_and_incomplete_ones_not_at_all(tmp_path):
    for attempt, rank, sequence in [(1, 0, 0), (0, 1, 0), (0, 0, 11), (0, 0, 2)]:
        write(tmp_path, f"p0000_s{sequence:06d}", attempt=attempt, rank=rank, sequence=sequence, example=[0], step=[0])
    incomplete = write(tmp_path, "p0003_s000012", pass_=3, sequence=12, example=[0], step=[0])
    (incomplete / "example/c/0").unlink()
    found = [(segment.attempt, segment.rank, segment.sequence) for segment in segments.list_segments(tmp_path, 0)]
    assert found == [(0, 0, 2), (0, 0, 11), (0, 1, 0), (1, 0, 0)]
    assert segments.unsealed_passes(tmp_path) == [0]
    assert segments.passes_with_remains(tmp_path) == [0, 3]


def test_nothing_at_all_can_be_merged(tmp_path):
    merge = merged(tmp_path)
    assert (merge.visits == np.zeros(5)).all()
    assert merge.coverage() | {"n_never": 5, "first_step": -1, "last_step": -1} == merge.coverage()
    assert merged(tmp_path, n_examples=None).n_examples == 0


def test_a_segment_that_vanishes_is_told_from_one_that_lacks_an_array(tmp_path):
    path = write(tmp_path, "p0000_s000000", example=[0], step=[0])
    (segment,) = segments.list_segments(tmp_path, 0)
    assert segment.has("step")
    assert not segment.has("loss")
    segments.remove_segments(tmp_path, 0)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        segment.has("loss")


def test_a_segment_with_too_few_bytes_is_an_error_that_names_the_file(tmp_path):
    path = write(tmp_path, "p0000_s000000", example=[0, 1], step=[0, 0], loss=[0.0, 0.1])
    other = write(tmp_path / "other", "p0000_s000000", example=[0], step=[0], loss=[0.0])
    (other / "loss/c/0").replace(path / "loss/c/0")
    with pytest.raises(StoreError, match=re.escape(str(path / "loss"))):
        merged(tmp_path).gather("loss", ())


def test_an_attempt_that_is_just_being_described_is_not_counted(tmp_path):
    _, expected = two_epochs(tmp_path / "run")
    (tmp_path / "run/attempts/a0001_r0000").mkdir()
    assert list(segments.limits(tmp_path / "run")) == [0]
    expected.check(open_run(tmp_path / "run").train)
    resumed = create_run(tmp_path / "run", {}, start_step=4, resume=True)
    assert resumed.attempt == 1


def test_a_segment_is_there_whole_or_not_at_all_whenever_its_writer_is_killed(tmp_path):
    def start(number):
        new_run(tmp_path / f"{number}")
        return tmp_path / f"{number}"

    rows = rows_of([3, 1], step=0)

    def act(path):
        attributes = {"pass": 0, "attempt": 0, "rank": 0, "sequence": 0, "n_rows": 2, "of_pass": {}}
        write_segment(path / "train/segments/a0000_r0000/p0000_s000000", rows, attributes)

    seen = set()
    for path in killed_before_each(start, act):
        train = open_run(path).train
        seen.add(len(train.passes))
        if train.passes:
            np.testing.assert_array_equal(train.logits[0, [3, 1]], rows["logits"])
        else:
            assert train.arrays == []
        resumed = create_run(path, {}, resume=True)
        resumed.begin_pass("train", resumed.next_pass("train"), {})
        resumed.log("train", rows)
        resumed.flush()
        np.testing.assert_array_equal(open_run(path).train.loss[0, [3, 1]], rows["loss"])
    assert seen == {0, 1}


def test_row_shapes_are_known_from_segments_and_from_sealed_arrays(tmp_path):
    for seal in (False, True):
        two_epochs(tmp_path / str(seal), seal=seal)
        split = tmp_path / str(seal) / "train"
        assert segments.row_shape(split, "hidden_states") == ((2,), (4,))
        assert segments.row_shape(split, "visits") == ((), ())
        assert segments.row_shape(split, "length") is None


def test_splits_are_told_from_other_groups(tmp_path):
    writer = new_run(tmp_path / "run")
    for name in ("eval_b", "eval_a"):
        writer.add_split(name, split_attributes(3, "eval"))
    schema.write_metadata(tmp_path / "run/analysis", schema.group_metadata({"made": "by somebody"}))
    assert segments.split_names(tmp_path / "run") == ["train", "eval_a", "eval_b"]
