import numpy as np
import pytest

from t3vis.errors import RecordingError
from t3vis.store import layout, segments
from t3vis.store.reader import open_run

from .operations import files_of_at_most
from .recordings import Expected, new_run, rows_of

# Blocks and segments


def test_a_batch_larger_than_the_buffer_is_taken_in_parts(tmp_path):
    writer, expected = new_run(tmp_path, 4), Expected(4)
    expected.log(writer, 0, rows_of([3, 1, 0, 2, 1, 1, 0, 0, 3], 0))
    writer.flush()
    assert [segment.n_rows for segment in segments.list_segments(tmp_path / "train", 0)] == [9]
    expected.check(open_run(tmp_path).train)


def test_a_segment_ends_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 600)
    monkeypatch.setattr(layout, "SEGMENT_BYTES", 1200)
    writer, expected = new_run(tmp_path, 100), Expected(100)
    for step in range(10):
        expected.log(writer, 0, rows_of(range(10 * step, 10 * step + 10), step, tokens=False))
    writer.flush()
    n_rows = [segment.n_rows for segment in segments.list_segments(tmp_path / "train", 0)]
    assert sum(n_rows) == 100
    assert len(set(n_rows[:-1])) == 1
    assert 1 < n_rows[0] < 100
    expected.check(open_run(tmp_path).train)


def test_a_segment_ends_when_readers_have_waited_long_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "SEGMENT_SECONDS", 0)
    writer, expected = new_run(tmp_path, 100), Expected(100)
    for step in range(3):
        expected.log(writer, 0, rows_of([step, 10 + step], step))
    writer.close()
    n_rows = [segment.n_rows for segment in segments.list_segments(tmp_path / "train", 0)]
    assert n_rows == [2, 2, 2]
    expected.check(open_run(tmp_path).train)


# When the disk fails


def test_rows_that_the_disk_refuses_are_counted_and_later_ones_recorded(tmp_path):
    writer, expected = new_run(tmp_path, 500), Expected(500)
    expected.log(writer, 0, rows_of(range(200), 0))
    writer.flush()
    writer.log("train", rows_of(range(200, 400), 1))
    with files_of_at_most(2000), pytest.raises(RecordingError, match="200 rows of train could not be written"):
        writer.flush()
    expected.check(open_run(tmp_path).train)
    expected.log(writer, 0, rows_of(range(300, 500), 2))
    writer.seal("train", 0)
    writer.close()
    run = open_run(tmp_path)
    expected.check(run.train)
    assert run.missing_rows == 200
    assert "200 rows could not be recorded: OSError: [Errno 27]" in run.summary()
    assert run.train.passes[0].n_never == 100


def reports(*actions):
    """How many of the actions say that rows were lost: rows are written in the background, the next to act says so."""
    n_reports = 0
    for act in actions:
        try:
            act()
        except RecordingError:
            n_reports += 1
    return n_reports


def test_a_batch_in_the_middle_of_which_the_disk_fails_is_lost_only_as_far_as_that(tmp_path):
    writer = new_run(tmp_path, 200)
    rows = rows_of([*range(200), *range(200), *range(50)], 0)
    with files_of_at_most(2000):
        assert reports(lambda: writer.log("train", rows), writer.flush)
    assert open_run(tmp_path).missing_rows == 400
    np.testing.assert_array_equal(open_run(tmp_path).train.loss[0, :50], rows["loss"][400:])


def test_all_rows_of_a_segment_are_lost_with_one_of_its_blocks(tmp_path):
    writer = new_run(tmp_path, 200)
    writer.log("train", rows_of(range(200), 0))
    with files_of_at_most(2000):
        assert reports(lambda: writer.log("train", rows_of(range(200), 1)), writer.flush)
    rows = rows_of(range(50), 2)
    writer.log("train", rows)
    writer.flush()
    run = open_run(tmp_path)
    assert run.missing_rows == 400
    np.testing.assert_array_equal(run.train.loss[0, :50], rows["loss"])
    assert np.isnan(run.train.loss[0, 50:]).all()


def test_the_rows_that_make_a_failed_flush_necessary_are_not_lost_with_it(tmp_path):
    writer = new_run(tmp_path, 200)
    writer.log("train", rows_of(range(199), 0))
    rows = rows_of([0, 1], 1)
    del rows["loss"]
    with files_of_at_most(2000):
        assert reports(lambda: writer.log("train", rows), writer.flush)
    assert open_run(tmp_path).missing_rows == 199
    np.testing.assert_array_equal(open_run(tmp_path).train.logits[0, :2], rows["logits"])


def test_an_epoch_begins_even_if_the_end_of_the_last_is_lost(tmp_path):
    writer, expected = new_run(tmp_path, 200), Expected(200)
    writer.log("train", rows_of(range(199), 0))
    with files_of_at_most(2000), pytest.raises(RecordingError):
        writer.begin_pass("train", 1, {"epoch": 1, "step": 1})
    expected.log(writer, 1, rows_of([3], 1))
    writer.flush()
    expected.check(open_run(tmp_path).train)


def test_when_the_last_rows_are_lost_the_others_are_sealed(tmp_path):
    writer, expected = new_run(tmp_path, 200), Expected(200)
    expected.log(writer, 0, rows_of(range(10), 0))
    writer.flush()
    writer.seal("train", 0)
    writer.begin_pass("train", 1, {})
    writer.log("train", rows_of(range(199), 1))
    with files_of_at_most(2000), pytest.raises(RecordingError):
        writer.close()
    writer.close()
    assert open_run(tmp_path).train.passes[0].sealed
    expected.check(open_run(tmp_path).train)
