"""A run is read while it is recorded, sealed, sealed again, moved or replaced."""

import os
import shutil
import threading
from functools import partial

import numpy as np
import pytest

from t3vis.errors import StoreError
from t3vis.store.reader import open_run
from t3vis.store.run_arrays import RunArray
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.storage import HeldFile, file_stamp
from t3vis.store.writer import create_run

from .operations import READING, before_operation
from .recordings import Expected, new_run, rows_of, split_attributes, two_epochs


def test_an_open_run_grows(tmp_path):
    writer = create_run(tmp_path, {})
    run = open_run(tmp_path)
    with pytest.raises(StoreError, match="no training pass"):
        run.train  # noqa: B018
    assert list(run.evals) == []
    writer.add_split("train", split_attributes(10))
    train, expected = run.train, Expected(10)
    with pytest.raises(StoreError, match="no logits"):
        train.logits  # noqa: B018
    step = 0
    logits: RunArray | None = None
    for index in range(3):
        writer.begin_pass("train", index, {"epoch": index, "step": step})
        for ids in ([3, 1], [2, 2], [9, 0]):
            expected.log(writer, index, rows_of(ids, step))
            writer.flush()
            step += 1
            expected.check(train)
            logits = logits or train.logits
            np.testing.assert_array_equal(logits, expected.array("logits"))
        if index:
            seal_pass(tmp_path, "train", index - 1)
            expected.check(train)
            remove_sealed_segments(tmp_path, "train", before=index)
            expected.check(train)
    assert [record.sealed for record in train.passes] == [True, True, False]


def test_a_resumed_attempt_is_seen_before_its_first_row(tmp_path):
    _, expected = two_epochs(tmp_path)
    train = open_run(tmp_path).train
    np.testing.assert_array_equal(train.loss[1], expected.array("loss")[1])
    create_run(tmp_path, {}, start_step=3, resume=True)
    expected.take_back(3, set())
    np.testing.assert_array_equal(train.loss[1], expected.array("loss")[1])


READS = {
    "logits": lambda train: train.logits[:],
    "layer": lambda train: train.hidden_states[1, 1],
    "visits": lambda train: train.visits[:],
    "coverage": lambda train: [(record.n_seen, record.n_repeated, record.step) for record in train.passes],
    "arrays": lambda train: train.arrays,
}


@pytest.mark.parametrize("what", READS)
def test_a_pass_may_be_sealed_and_its_segments_removed_at_any_moment_of_reading(tmp_path, what):
    template = tmp_path / "template"
    two_epochs(template)
    expected = READS[what](open_run(template).train)
    moments = 0
    while True:
        path = shutil.copytree(template, tmp_path / f"{moments}")

        def seal(path=path):
            for index in range(2):
                seal_pass(path, "train", index)
            remove_sealed_segments(path, "train")

        with before_operation(moments, path, seal, READING) as watch:
            np.testing.assert_array_equal(READS[what](open_run(path).train), expected)
        shutil.rmtree(path)
        if not watch.happened:
            break
        moments += 1
    assert moments > 5


def test_a_pass_may_be_taken_back_at_any_moment_of_reading(tmp_path):
    template = tmp_path / "template"
    _, expected = two_epochs(template, seal=True)
    before = expected.array("logits")
    expected.take_back(3, {1})
    after = expected.array("logits")
    moments = 0
    while True:
        path = shutil.copytree(template, tmp_path / f"{moments}")

        def resume(path=path):
            create_run(path, {}, start_step=3, resume=True)

        with before_operation(moments, path, resume, READING) as watch:
            found = open_run(path).train.logits[1]
        assert any(np.array_equal(found, whole[1], equal_nan=True) for whole in (before, after)), moments
        shutil.rmtree(path)
        if not watch.happened:
            break
        moments += 1
    assert moments > 5


def test_a_reader_in_a_thread_never_sees_a_torn_epoch(tmp_path):
    """A writer records, seals and removes; whatever the reader sees of an example is its row, or nothing yet."""
    writer = new_run(tmp_path, 6)
    n_epochs, faults, finished = 12, [], threading.Event()

    def read():
        last = False
        while not last:
            last = finished.is_set()
            if not run.train.arrays:
                continue
            loss = run.train.loss[:]
            for index, epoch in enumerate(loss):
                seen = np.isfinite(epoch)
                if not (epoch[seen] == 10 * index + np.flatnonzero(seen)).all():
                    faults.append((index, epoch))
                if index < len(loss) - 1 and not seen.all():
                    faults.append((index, epoch))

    run = open_run(tmp_path)
    reader = threading.Thread(target=read)
    reader.start()
    for index in range(n_epochs):
        writer.begin_pass("train", index, {})
        for ids in ([5, 0, 3], [1, 4, 2]):
            rows = rows_of(ids, index, n_layers=0)
            writer.log("train", {**rows, "loss": np.float32(10 * index) + np.array(ids, np.float32)})
            writer.flush()
        seal_pass(tmp_path, "train", index)
        remove_sealed_segments(tmp_path, "train")
    finished.set()
    reader.join()
    assert faults == []
    assert run.train.loss.shape == (n_epochs, 6)


def resume_and_seal_again(path):
    """Training goes on from the middle of a sealed epoch, with other rows, and the epoch is sealed again."""
    writer = create_run(path, {}, start_step=3, resume=True)
    writer.begin_pass("train", 1, {"epoch": 1, "step": 2})
    writer.log("train", rows_of([5, 9, 0, 4, 3], 3, seed=1))
    writer.flush()
    seal_pass(path, "train", 1)
    remove_sealed_segments(path, "train")


def test_all_layers_are_those_of_one_sealing(tmp_path):
    """The epoch is sealed again before each operation on files of reading two of its layers."""
    template = tmp_path / "template"
    two_epochs(template, seal=True)
    changed = shutil.copytree(template, tmp_path / "changed")
    resume_and_seal_again(changed)
    wanted = [open_run(path).train.hidden_states[1] for path in (template, changed)]
    moments = 0
    while True:
        path = shutil.copytree(template, tmp_path / f"{moments}")
        with before_operation(moments, path, partial(resume_and_seal_again, path), READING) as watch:
            found = open_run(path).train.hidden_states[1]
        assert any(np.array_equal(found, whole, equal_nan=True) for whole in wanted), moments
        shutil.rmtree(path)
        if not watch.happened:
            break
        moments += 1
    assert moments > 5


KEYS = {
    "row": (1, 5),
    "matrix": 1,
    "rows": (1, [5, 2, 5]),
    "trajectory": (slice(None), 5),
    "mask": (1, np.arange(10) > 4),
}


@pytest.mark.parametrize("key", KEYS)
def test_what_was_held_open_is_not_what_is_read_once_the_epoch_was_sealed_again(tmp_path, monkeypatch, key):
    two_epochs(tmp_path, seal=True)
    monkeypatch.setattr("t3vis.store.storage._LOOK_AGAIN_SECONDS", 1000)
    logits = open_run(tmp_path).train.logits
    before = logits[KEYS[key]]
    np.testing.assert_array_equal(logits[KEYS[key]], before)
    resume_and_seal_again(tmp_path)
    after = logits[KEYS[key]]
    assert not np.array_equal(after, before, equal_nan=True)
    np.testing.assert_array_equal(after, open_run(tmp_path).train.logits[:][KEYS[key]])


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_an_epoch_may_be_sealed_again_at_any_look_at_its_commit(tmp_path, monkeypatch, key, is_warm):
    """Looks at a commit are no operations that the tests above interrupt."""
    template = tmp_path / "template"
    two_epochs(template, seal=True)
    changed = shutil.copytree(template, tmp_path / "changed")
    resume_and_seal_again(changed)
    wanted = [open_run(path).train.logits[:][KEYS[key]] for path in (template, changed)]
    number = 0
    while True:
        path = shutil.copytree(template, tmp_path / f"{number}")
        logits = open_run(path).train.logits
        if is_warm:
            logits[KEYS[key]]
        looks = iter(range(1000))

        def look(file, looks=looks, path=path, number=number):
            if "p0001" in file and next(looks) == number:
                resume_and_seal_again(path)
            return file_stamp(file)

        def is_current(held, look=look, original=HeldFile.is_current):
            look(held._path)
            return original(held)

        with monkeypatch.context() as patch:
            patch.setattr("t3vis.store.passes.file_stamp", look)
            patch.setattr("t3vis.store.storage.file_stamp", look)
            patch.setattr(HeldFile, "is_current", is_current)
            found = logits[KEYS[key]]
        assert any(np.array_equal(found, whole, equal_nan=True) for whole in wanted), number
        if next(looks) <= number:
            break
        number += 1
    assert number >= (1 if is_warm else 2)


def test_a_run_that_replaces_another_is_seen_by_who_has_that_open(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    run = open_run(tmp_path / "run")
    hidden, train = run.train.hidden_states, run.train
    assert hidden[1, 1, 3].shape == (4,)
    shutil.rmtree(tmp_path / "run")
    writer = new_run(tmp_path / "run", 7)
    for index in range(2):
        writer.begin_pass("train", index, {"epoch": index, "step": index})
        writer.log("train", rows_of(range(7), index, seed=5, hidden=3))
        writer.flush()
    for _ in range(2):
        expected = open_run(tmp_path / "run").train.hidden_states[:]
        assert expected.shape == (2, 2, 7, 3)
        np.testing.assert_array_equal(hidden[1, 1, 3], expected[1, 1, 3])
        np.testing.assert_array_equal(train.hidden_states, expected)
        for index in range(2):
            seal_pass(tmp_path / "run", "train", index)


def test_a_run_that_was_moved_away_for_another_is_not_read_for_long(tmp_path, monkeypatch):
    for name, seed in (("run", 0), ("other", 1)):
        writer = new_run(tmp_path / name)
        writer.log("train", rows_of(range(10), 0, seed=seed))
        writer.close()
        seal_pass(tmp_path / name, "train", 0)
    logits = open_run(tmp_path / "run").train.logits
    expected = open_run(tmp_path / "other").train.logits[:]
    assert logits[0, 3].tolist() != expected[0, 3].tolist()
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "run")
    monkeypatch.setattr("t3vis.store.storage._LOOK_AGAIN_SECONDS", 0)
    assert logits[0, 3].tolist() == expected[0, 3].tolist()


def test_a_backup_by_hard_links_does_not_keep_an_epoch_alive(tmp_path, monkeypatch):
    two_epochs(tmp_path / "run", seal=True)
    logits = open_run(tmp_path / "run").train.logits
    before = logits[1, 5]
    shutil.copytree(tmp_path / "run", tmp_path / "backup", copy_function=os.link)
    np.testing.assert_array_equal(logits[1, 5], before)
    monkeypatch.setattr("t3vis.store.storage._LOOK_AGAIN_SECONDS", 1000)
    resume_and_seal_again(tmp_path / "run")
    assert logits[1, 5].tolist() != before.tolist()
    assert open_run(tmp_path / "backup").train.logits[1, 5].tolist() == before.tolist()
