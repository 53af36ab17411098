"""Training goes on from a checkpoint of a branch that had been left: its rows count again, those in between do not."""

import shutil

import numpy as np
import pytest

from t3vis.store import schema
from t3vis.store.commits import commit_of, committed_passes
from t3vis.store.reader import open_run
from t3vis.store.repair import repair
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.verify import verify
from t3vis.store.writer import create_run

from .operations import killed_before_each
from .recordings import split_attributes

PER_EPOCH = 4  # steps; step s sees the examples 2 * (s % 4) and the next, and their loss is the attempt


def train(path, start, stop, *, saves=()):
    """An attempt that begins with a checkpoint after ``start`` steps and dies after ``stop``."""
    writer = create_run(path, {}, start_step=start, resume=True)
    writer.add_split("train", split_attributes(2 * PER_EPOCH))
    for step in range(start, stop):
        if step == start or step % PER_EPOCH == 0:
            writer.begin_pass("train", step // PER_EPOCH, {"epoch": step // PER_EPOCH, "step": step})
        ids = 2 * (step % PER_EPOCH) + np.arange(2)
        writer.log("train", {"example": ids, "step": np.full(2, step), "loss": np.full(2, writer.attempt, np.float32)})
        if step + 1 in saves:
            writer.save_point(step + 1)
    writer.flush()


def attempts_of(path):
    """Which attempt's row each step of the first epoch has, -1 where there is none."""
    loss = open_run(path).train.loss[0]
    assert np.array_equal(loss[::2], loss[1::2], equal_nan=True)
    return np.nan_to_num(loss[::2], nan=-1).tolist()


@pytest.fixture
def branches(tmp_path):
    """A first epoch of which attempt 1 took the last two steps again, sealed; it left a checkpoint after step 3."""
    path = tmp_path / "run"
    train(path, 0, 4, saves=[2, 4])
    train(path, 2, 4, saves=[3])
    seal_pass(path, "train", 0)
    remove_sealed_segments(path, "train")
    assert attempts_of(path) == [0, 0, 1, 1]
    return path


@pytest.mark.parametrize("repaired", [False, True])
def test_a_sealed_epoch_of_a_branch_that_was_left_is_opened_again(branches, repaired):
    if repaired:
        repair(branches)
    train(branches, 4, 6)
    assert attempts_of(branches) == [0, 0, 0, 0]
    seal_pass(branches, "train", 0)
    assert attempts_of(branches) == [0, 0, 0, 0]
    train(branches, 3, 3)
    assert attempts_of(branches) == [0, 0, 1, -1]


def test_a_sealed_epoch_of_the_same_branch_stays_sealed(branches):
    train(branches, 3, 5, saves=[4])
    seal_pass(branches, "train", 0)
    before = commit_of(branches / "train", 0)
    train(branches, 4, 6)
    assert committed_passes(branches / "train") == [0]
    assert commit_of(branches / "train", 0) == before
    assert attempts_of(branches) == [0, 0, 1, 2]


@pytest.mark.parametrize(("then", "expected"), [(3, [0, 0, 1, -1]), (4, [0, 0, 0, 0])])
def test_killed_at_any_moment_of_going_back_the_next_attempt_may_go_to_either_branch(
    branches, tmp_path, then, expected
):
    def fresh(number):
        return shutil.copytree(branches, tmp_path / f"{number}")

    for path in killed_before_each(fresh, lambda path: create_run(path, {}, start_step=4, resume=True)):
        train(path, then, then)
        assert attempts_of(path) == expected, path
        assert verify(path) == []


def test_a_commit_without_a_lineage_is_taken_to_be_of_the_branch_before(branches):
    """As earlier versions wrote it."""
    manifest = commit_of(branches / "train", 0)
    assert manifest.pop("lineage") == [[1, 2, 4], [0, 0, 2]]
    schema.write_metadata(branches / "train/commits/p0000", schema.group_metadata(manifest))
    train(branches, 4, 4)
    assert attempts_of(branches) == [0, 0, 0, 0]


def test_an_epoch_that_nobody_said_was_over_is_sealed_by_whoever_goes_on_after_it(tmp_path):
    """If the sealer fails, by whoever comes next."""
    path = tmp_path / "run"
    train(path, 0, 4, saves=[4])
    train(path, 4, 6, saves=[6])
    writer = create_run(path, {}, start_step=6, resume=True)
    (path / "train/step").write_text("in the way")
    writer.seal_before("train", 1)
    writer.close()
    assert committed_passes(path / "train") == []
    (path / "train/step").unlink()
    assert repair(path).sealed == ("train:0",)
    assert committed_passes(path / "train") == [0]
    assert attempts_of(path) == [0, 0, 0, 0]


def test_checksums_of_a_pass_that_is_opened_again_are_forgotten(branches):
    manifest = commit_of(branches / "train", 0)
    old = manifest | {"checksums": {"loss/c/0/0": 1}}
    schema.write_metadata(branches / "train/commits/p0000", schema.group_metadata(old))
    train(branches, 3, 4)
    seal_pass(branches, "train", 0)
    assert verify(branches) == []
