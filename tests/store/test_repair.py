"""What dead processes leave behind is put in order, what counts stays, and a run that is being written is refused."""

import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.commits import committed_passes
from t3vis.store.liveness import WriterMark, without_writers
from t3vis.store.reader import open_run
from t3vis.store.repair import repair
from t3vis.store.seal import seal_pass
from t3vis.store.verify import verify
from t3vis.store.writer import create_run

from .operations import killed_before_each
from .recordings import Expected, new_run, rows_of, two_epochs


def died(path: Path) -> Expected:
    """A run whose trainer died in its third epoch, and its sealer before it had sealed the second one."""
    writer, expected = two_epochs(path)
    seal_pass(path, "train", 0)
    say_complete(path, ["train:0", "train:1"])
    writer.begin_pass("train", 2, {"epoch": 2, "step": 4})
    expected.log(writer, 2, rows_of([6, 1], 4))
    writer.flush()
    return expected


def say_complete(path: Path, passes: list[str]) -> None:
    """What the writer notes before it starts the sealer."""
    attempt = path / "attempts/a0000_r0000"
    metadata = schema.read_metadata(attempt)
    metadata["attributes"]["complete"] = passes
    schema.write_metadata(attempt, metadata)


def leftovers(path: Path) -> list[Path]:
    """What processes that died may leave: each counts for nothing."""
    train = path / "train"
    unfinished = train / "segments/a0000_r0000/p0002_s000099"
    shutil.copytree(next(train.glob("segments/a0000_r0000/p0002_*")), unfinished)
    (unfinished / "example/c/0").unlink()
    shutil.copytree(train / "logits/c/0", train / "logits/c/5")
    (train / "loss/c/0/0.123.partial").write_bytes(b"half a sha")
    (path / "zarr.json.7.partial").write_text("{")
    (train / "commits/p0004").mkdir()
    sealed = list(train.glob("segments/a0000_r0000/p0000_*"))
    assert sealed
    return [
        unfinished,
        train / "logits/c/5",
        train / "loss/c/0/0.123.partial",
        path / "zarr.json.7.partial",
        train / "commits/p0004",
        *sealed,
    ]


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_complete_passes_are_sealed_and_leftovers_removed(tmp_path):
    expected = died(tmp_path)
    extra = leftovers(tmp_path)
    heard = []
    done = repair(tmp_path, progress=lambda *now: heard.append(now))
    assert (done.sealed, done.incomplete, done.failed) == (("train:1",), ("train:2",), {})
    assert set(extra) <= set(done.removed)
    assert not any(path.exists() for path in extra)
    assert heard == [(0, 1), (1, 1)]
    assert committed_passes(tmp_path / "train") == [0, 1]
    assert segments.passes_with_remains(tmp_path / "train") == [2]
    expected.check(open_run(tmp_path).train)
    assert verify(tmp_path) == []


def test_a_second_repair_finds_nothing_to_do(tmp_path):
    died(tmp_path)
    leftovers(tmp_path)
    repair(tmp_path)
    before = files(tmp_path)
    again = repair(tmp_path)
    assert (again.sealed, again.removed, again.incomplete) == ((), (), ("train:2",))
    assert files(tmp_path) == before


def test_incomplete_passes_are_sealed_on_request_and_can_be_gone_on_with(tmp_path):
    expected = died(tmp_path)
    assert repair(tmp_path, incomplete=True).sealed == ("train:1", "train:2")
    expected.check(open_run(tmp_path).train)
    assert [record.sealed for record in open_run(tmp_path).train.passes] == [True] * 3
    assert repair(tmp_path, incomplete=True).sealed == ()
    writer = create_run(tmp_path, {}, start_step=5, resume=True)
    writer.begin_pass("train", 2, {"epoch": 2, "step": 4})
    expected.log(writer, 2, rows_of([0, 3], 5))
    writer.flush()
    expected.check(open_run(tmp_path).train)


def test_a_run_in_order_is_not_touched(tmp_path):
    writer, _ = two_epochs(tmp_path)
    for index in range(2):
        writer.seal("train", index)
    writer.close()
    del writer
    before = files(tmp_path)
    done = repair(tmp_path, incomplete=True)
    assert (done.sealed, done.removed, done.incomplete, done.failed) == ((), (), (), {})
    assert files(tmp_path) == before


def test_a_pass_that_cannot_be_sealed_is_named_and_the_others_are_sealed(tmp_path):
    died(tmp_path)
    file = next((tmp_path / "train/segments/a0000_r0000").glob("p0001_*")) / "loss/c/0"
    os.truncate(file, 3)
    done = repair(tmp_path, incomplete=True)
    assert done.sealed == ("train:2",)
    assert list(done.failed) == ["train:1"]
    assert str(file) in done.failed["train:1"]
    assert file.exists()


def test_repair_killed_at_any_moment_loses_nothing(tmp_path):
    template = tmp_path / "template"
    writer, expected = new_run(template), Expected(10)
    for index in range(2):
        writer.begin_pass("train", index, {"epoch": index, "step": index})
        expected.log(writer, index, rows_of([3, 1, index], index, n_layers=0))
        writer.flush()
    seal_pass(template, "train", 0)
    say_complete(template, ["train:0", "train:1"])
    (template / "train/commits/p0004").mkdir()
    (template / "train/loss/c/5").mkdir()
    (template / "train/loss/c/5/0.7.partial").touch()

    def copy(number):
        return shutil.copytree(template, tmp_path / f"{number}")

    for path in killed_before_each(copy, repair):
        expected.check(open_run(path).train)
        repair(path)
        assert committed_passes(path / "train") == [0, 1]
        assert segments.passes_with_remains(path / "train") == []
        expected.check(open_run(path).train)
        assert repair(path).removed == ()
        shutil.rmtree(path)


def test_a_run_of_which_nothing_was_recorded_yet_can_be_repaired(tmp_path):
    own = {"t3vis": {"format": schema.FORMAT, "version": schema.FORMAT_VERSION, "created": ""}}
    schema.write_metadata(tmp_path / "run", schema.group_metadata(own))
    assert repair(tmp_path / "run").sealed == ()
    with pytest.raises(StoreError, match="found nothing"):
        repair(tmp_path / "other")


# Whether a writer lives


def test_a_run_that_is_being_written_is_refused_and_not_touched(tmp_path):
    died(tmp_path)
    leftovers(tmp_path)
    before = files(tmp_path)
    marks = [WriterMark(tmp_path), WriterMark(tmp_path)]  # two ranks
    for mark in marks:
        mark.hold()
        mark.hold()
    for mark in marks:
        with pytest.raises(StoreError, match="being written by another process"):
            repair(tmp_path)
        assert files(tmp_path) == before
        mark.release()
        mark.release()
    assert repair(tmp_path).sealed == ("train:1",)


def test_a_mark_goes_with_the_writer_that_holds_it(tmp_path):
    new_run(tmp_path)
    mark = WriterMark(tmp_path)
    mark.hold()
    del mark
    with without_writers(tmp_path):
        pass


HOLD = """
import sys, time, pathlib
from t3vis.store.liveness import WriterMark
mark = WriterMark(pathlib.Path(sys.argv[1]))
mark.hold()
print("held", flush=True)
time.sleep(60)
"""


def test_a_writer_that_was_killed_is_not_alive(tmp_path):
    new_run(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="being written"):
            repair(tmp_path)
        process.kill()
        process.wait()
    assert repair(tmp_path).sealed == ()


FORK = (
    HOLD.replace("time.sleep(60)", "")
    + """
import os
if not os.fork():
    print("forked", flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
)


def test_a_worker_that_outlives_its_writer_does_not_keep_the_mark(tmp_path):
    new_run(tmp_path)
    code = [sys.executable, "-c", FORK, str(tmp_path)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["held\n", "forked\n"]
        with pytest.raises(StoreError, match="being written"):
            repair(tmp_path)
        process.kill()
        process.wait()
        assert repair(tmp_path).sealed == ()
        os.killpg(process.pid, signal.SIGKILL)


def test_a_writer_that_starts_during_a_repair_waits_for_it(tmp_path):
    new_run(tmp_path)
    with ExitStack() as stack:
        with without_writers(tmp_path):
            code = [sys.executable, "-c", HOLD, str(tmp_path)]
            process = stack.enter_context(subprocess.Popen(code, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            output = select.poll()
            output.register(process.stdout, select.POLLIN)
            assert output.poll(1000) == []
        assert process.stdout.readline() == "held\n"


@pytest.mark.parametrize("finished", [True, False])
def test_where_there_are_no_locks_only_a_run_that_has_ended_is_repaired(tmp_path, monkeypatch, finished):
    writer, _ = two_epochs(tmp_path)
    if finished:
        writer.close()

    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    WriterMark(tmp_path).hold()
    if finished:
        assert repair(tmp_path, incomplete=True).sealed == ("train:0", "train:1")
    else:
        with pytest.raises(StoreError, match=r"knows no locks .*copy the run to a local disk"):
            repair(tmp_path)
