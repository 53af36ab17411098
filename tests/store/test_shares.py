"""Sealing that is divided among processes gives what one process gives, whoever of them lives, dies or comes late."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading

import pytest

from t3vis.store import schema, shares
from t3vis.store.checksums import files_below
from t3vis.store.commits import committed_passes, locked
from t3vis.store.reader import open_run
from t3vis.store.repair import repair
from t3vis.store.seal import main, seal_pass, seal_share
from t3vis.store.sealer import Sealer
from t3vis.store.verify import verify
from t3vis.store.writer import create_run, join_run

from .recordings import rows_of, split_attributes, two_epochs


def sealed_files(path):
    """Everything below the split but its segments, by name."""
    split = path / "train"
    return {
        file.relative_to(split).as_posix(): file.read_bytes()
        for file in files_below(split)
        if "segments" not in file.relative_to(split).parts
    }


@pytest.fixture
def runs(tmp_path):
    """A run of two epochs that is not sealed, what it must hold, and what one process makes of it."""
    path, alone = tmp_path / "run", tmp_path / "alone"
    _, expected = two_epochs(path)
    shutil.copytree(path, alone)
    seal_pass(alone, "train", 1)
    return path, expected, sealed_files(alone)


def notes_in(path):
    return sorted(node.parent.parent.name for node in path.glob("train/segments/*/share_*/zarr.json"))


@pytest.mark.parametrize("n_shares", [2, 3, 20])
def test_shares_make_up_the_whole(runs, n_shares):
    path, expected, alone = runs
    for share in range(1, n_shares):
        seal_share(path, "train", 1, share=share, n_shares=n_shares, own=f"a0000_r{share:04d}")
    assert notes_in(path) == [f"a0000_r{share:04d}" for share in range(1, n_shares)]
    assert committed_passes(path / "train") == []
    seal_pass(path, "train", 1, n_shares=n_shares)
    assert sealed_files(path) == alone
    assert notes_in(path) == []
    expected.check(open_run(path).train)
    assert verify(path) == []


def test_a_share_is_taken_from_the_note_and_not_written_again(runs):
    path, _, _ = runs
    seal_share(path, "train", 1, share=1, n_shares=2, own="a0000_r0001")
    before = {file: file.stat().st_ino for file in files_below(path / "train") if "c" in file.parts}
    assert any("hidden_states" in file.parts for file in before)
    seal_pass(path, "train", 1, n_shares=2)
    assert {file: file.stat().st_ino for file in before} == before


def test_what_nobody_does_the_first_process_does(runs):
    path, expected, alone = runs
    seal_share(path, "train", 1, share=2, n_shares=4, own="a0000_r0002")
    seal_pass(path, "train", 1, n_shares=4)
    assert sealed_files(path) == alone
    expected.check(open_run(path).train)


def test_the_first_process_waits_for_a_helper_that_is_at_work(runs):
    path, _, alone = runs
    at_work = shares.join(path / "train")
    first = threading.Thread(target=seal_pass, args=(path, "train", 1), kwargs={"n_shares": 2})
    first.start()
    first.join(0.5)
    assert first.is_alive()
    assert committed_passes(path / "train") == []
    seal_share(path, "train", 1, share=1, n_shares=2, own="a0000_r0001")
    first.join(30)
    assert committed_passes(path / "train") == [1]
    os.close(at_work)
    assert sealed_files(path) == alone


def test_a_helper_that_dies_is_not_waited_for(runs):
    path, _, alone = runs
    at_work = shares.join(path / "train")
    first = threading.Thread(target=seal_pass, args=(path, "train", 1), kwargs={"n_shares": 2})
    first.start()
    first.join(0.3)
    os.close(at_work)  # as the kernel does
    first.join(30)
    assert not first.is_alive()
    assert sealed_files(path) == alone


def test_a_helper_that_comes_late_does_nothing(runs):
    path, _, alone = runs
    with shares.without_helpers(path / "train", wait=False) as is_alone:
        assert is_alone
        assert shares.join(path / "train") is None
        Sealer(path, "a0000_r0001", share=1, n_shares=2).start(["train:1"])
    seal_pass(path, "train", 1, n_shares=2)
    seal_share(path, "train", 1, share=1, n_shares=2, own="a0000_r0001")
    assert notes_in(path) == []
    assert sealed_files(path) == alone


def test_a_note_of_other_rows_is_not_believed(runs):
    """It was left by an attempt that was killed; the one that resumed recorded other rows."""
    path, expected, _ = runs
    seal_share(path, "train", 1, share=1, n_shares=2, own="a0000_r0001")
    resumed = create_run(path, {}, start_step=3, resume=True)
    resumed.begin_pass("train", 1, {"epoch": 1, "step": 3})
    expected.take_back(3, set())
    expected.log(resumed, 1, rows_of([6, 7, 2], 3, seed=1))
    resumed.flush()
    seal_pass(path, "train", 1, n_shares=2)
    expected.check(open_run(path).train)
    assert verify(path) == []


def test_whoever_resumes_waits_for_helpers(runs):
    path, _, _ = runs
    at_work = shares.join(path / "train")
    begun = threading.Event()

    def resume():
        with locked(path):
            begun.set()

    waiting = threading.Thread(target=resume)
    waiting.start()
    assert not begun.wait(0.3)
    os.close(at_work)
    assert begun.wait(30)
    waiting.join()


def test_where_there_are_no_locks_the_first_process_does_everything(runs, monkeypatch):
    path, _, alone = runs

    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert shares.join(path / "train") is None
    seal_pass(path, "train", 1, n_shares=2)
    assert sealed_files(path) == alone


def test_repair_removes_notes_that_were_left(runs):
    path, expected, _ = runs
    main([str(path), "train:1", "--share", "1/2", "--own", "a0000_r0001"])
    assert notes_in(path) == ["a0000_r0001"]
    create_run(path, {}, start_step=None, resume=True).close()  # so that no writer lives
    repair(path, incomplete=True)
    assert notes_in(path) == []
    expected.check(open_run(path).train)


WRITE = """if True:
    import sys
    from pathlib import Path
    from t3vis.store.writer import join_run
    from tests.store.recordings import rows_of
    writer = join_run(Path(sys.argv[1]), rank=1, n_ranks=2)
    writer.begin_pass("train", 0, {"epoch": 0})
    writer.log("train", rows_of([1, 3, 5, 7, 9], 0, seed=1))
    writer.flush()
    print("flushed", flush=True)
    sys.stdin.readline()
    writer.seal("train", 0)
    writer.close()
"""


def test_writers_in_two_processes_seal_together(tmp_path):
    writer = create_run(tmp_path, {}, n_ranks=2)
    writer.add_split("train", split_attributes(10))
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "flushed\n"
        writer.begin_pass("train", 0, {"epoch": 0})
        writer.log("train", rows_of([0, 2, 4, 6, 8], 0))
        writer.flush()
        other.stdin.write("go\n")
        other.stdin.flush()
        writer.seal("train", 0)
        writer.close()
    assert other.returncode == 0
    train = open_run(tmp_path).train
    (record,) = train.passes
    assert (record.sealed, record.n_seen, record.n_repeated) == (True, 10, 0)
    states = train.hidden_states[0]
    for ids, rows in (
        ([0, 2, 4, 6, 8], rows_of([0, 2, 4, 6, 8], 0)),
        ([1, 3, 5, 7, 9], rows_of([1, 3, 5, 7, 9], 0, 1)),
    ):
        assert (states[:, ids] == rows["hidden_states"]).all()
    assert verify(tmp_path) == []
    assert notes_in(tmp_path) == []
    assert len(schema.read_metadata(tmp_path / "train/commits/p0000")["attributes"]["checksums"]) == 8


def test_join_needs_a_run(tmp_path):
    two_epochs(tmp_path)
    other = join_run(tmp_path, rank=1, n_ranks=2)
    other.seal("train", 1)
    other.close()
    assert committed_passes(tmp_path / "train") == []
