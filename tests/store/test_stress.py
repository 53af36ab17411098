"""Processes killed at random moments; ``benchmarks/stress_store.py`` does the same for longer."""

import sys

import numpy as np
import pytest

from t3vis.store import schema
from t3vis.store.reader import open_run
from t3vis.store.verify import verify

from .stress.folder import Checkpoint, Folder
from .stress.killing import Stress
from .stress.plan import Plan, epoch_of, origins
from .stress.processes import PATIENCE, Attempt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sealers are found in /proc")


def test_whoever_is_killed_no_flushed_row_is_lost_and_no_wrong_one_read(tmp_path):
    wanted = {"trainer": 2, "writer": 2, "sealer": 2}
    stress = Stress(tmp_path, 1, wanted)
    stress.run()
    assert all(stress.killed[kind] >= number for kind, number in wanted.items())
    assert stress.counts["stores verified"] == stress.counts["runs"]
    assert stress.counts["flushed rows checked"] > 1000
    assert stress.counts["read: rows"] > 1000


def test_a_rank_that_dies_leaves_a_run_that_says_what_is_missing(tmp_path):
    """The other one goes on to the end, as if nothing waited for both."""
    plan, folder = Plan(n_epochs=3, pace=0.002), Folder(tmp_path)
    died = plan.steps_per_epoch + 5
    attempt = Attempt(folder, plan, folder.announce(Checkpoint()), alone=True, dies_at=died)
    try:
        assert [rank.wait(PATIENCE) for rank in attempt.ranks] == [0, -9], folder.log
    finally:
        attempt.kill()
    flushed = max(note["step"] for note in folder.notes(1, "flushed"))
    train = open_run(folder.run).train
    assert plan.steps_per_epoch <= flushed <= died
    assert [record.sealed for record in train.passes] == [True] * 3
    for record in train.passes:
        visits = epoch_of(plan, record.index)
        kept = (visits.rank == 0) | (visits.step < flushed)
        lost = (visits.rank == 1) & (visits.step >= died)
        origin = origins(plan, "loss", ("train", record.index), np.arange(plan.n_examples), train.loss[record.index])
        assert (origin[visits.example[kept]] >= 0).all()
        assert (origin[np.setdiff1d(visits.example[lost], visits.example[~lost])] < 0).all()
        assert record.n_never == np.count_nonzero(origin < 0)
        assert record.n_never > 0 or record.index == 0
    finished = [attempt_said(folder, rank)["finished"] for rank in (0, 1)]
    assert finished[0] is not None
    assert finished[1] is None
    assert verify(folder.run) == []


def attempt_said(folder, rank):
    return schema.read_metadata(folder.run / "attempts" / schema.rank_name(0, rank))["attributes"]
