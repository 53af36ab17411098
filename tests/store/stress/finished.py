"""What is on disk when nobody writes: after a death every row that was flushed, in the end all rows and no others."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from t3vis.store.passes import Pass
from t3vis.store.reader import Split, open_run

from .folder import Checkpoint, Folder
from .plan import Ints, Plan, check_owners, epoch_of, origins, visit_steps


def check_flushed(folder: Folder, plan: Plan, checkpoint: Checkpoint, rng: random.Random) -> int:
    """After a death of an attempt that started from a checkpoint, what was flushed is there; returns how many rows."""
    newest, opened = folder.latest()
    if newest < 0 or not (folder.run / "train" / "zarr.json").exists():
        return 0
    if not opened and not folder.notes(0, "opening"):
        return 0  # it has not come to anything: the attempt before is still the newest
    done = [[checkpoint.step, *(note["step"] for note in folder.notes(rank, "flushed"))] for rank in (0, 1)]
    upto = np.array([max(steps) for steps in done])
    train = open_run(folder.run).train
    if "loss" not in train.arrays:
        assert not upto.any()
        return 0
    n_checked = 0
    for epoch in range(-(-int(upto.max()) // plan.steps_per_epoch)):
        visits = epoch_of(plan, epoch)
        origin = equal_origins(plan, train, epoch, layers=[rng.randrange(plan.n_layers)])
        flushed = visits.step < upto[visits.rank]
        lost = flushed & (origin[visits.example] < 0)
        assert not lost.any(), f"{lost.sum()} rows of epoch {epoch} are lost, of steps {set(visits.step[lost])}"
        if opened:
            check_owners(plan, epoch, np.arange(plan.n_examples), origin, folder.owners(plan, newest))
        n_checked += int(flushed.sum())
    return n_checked


def check_finished(folder: Folder, plan: Plan, evaluations: list[dict[str, Any]], *, all_sealed: bool = True) -> None:
    """A run whose last attempt came to its end holds every row of the weights it ended with, and nothing else.

    All of it is sealed, unless the very last sealer was killed.
    """
    run = open_run(folder.run)
    newest, opened = folder.latest()
    assert opened
    owners = folder.owners(plan, newest)
    assert [record.index for record in run.epochs] == list(range(plan.n_epochs))
    sealed = [record.sealed for record in run.epochs]
    assert all(sealed) or not all_sealed, f"epochs are sealed: {sealed}"
    assert run.missing_rows == 0
    for record in run.epochs:
        visits = epoch_of(plan, record.index)
        first = visits.nth == 0
        expected = np.empty(plan.n_examples, np.int64)
        expected[visits.example[first]] = 2 * owners[visits.step[first]]
        assert np.array_equal(complete_rows(plan, run.train, record), expected)
        assert (run.train.visits[record.index] >= np.bincount(visits.example)).all()
        assert (run.train.step[record.index] == visit_steps(plan, record.index)[0]).all()
    by_index = {record.index: record for record in run.evals["eval"].passes} if evaluations else {}
    for known in evaluations:
        record = by_index[known["index"]]
        assert record.sealed or not all_sealed, f"evaluation {record.index} is not sealed"
        assert record.step == known["step"]
        assert set(complete_rows(plan, run.evals["eval"], record)) == {2 * known["attempt"]}


def complete_rows(plan: Plan, split: Split, record: Pass) -> Ints:
    """Origins of the rows of a pass in which every example was seen."""
    origin = equal_origins(plan, split, record.index, layers=range(plan.n_layers))
    assert record.n_never == 0
    assert (origin >= 0).all()
    return origin


def equal_origins(plan: Plan, split: Split, index: int, *, layers: Iterable[int]) -> Ints:
    """Origins of all rows of a pass, the same in all arrays and in these layers."""
    ids, of = np.arange(len(split)), (split.name, index)
    first = origins(plan, "loss", of, ids, split.loss[index])
    others = [origins(plan, "logits", of, ids, split.logits[index])]
    others += [origins(plan, "hidden_states", of, ids, split.hidden_states[index, i], i) for i in layers]
    assert all(np.array_equal(first, other) for other in others), f"{of}: arrays disagree"
    return first


def check_with_zarr(path: Path) -> None:
    """zarr-python walks the finished store without a warning, and reads in its sealed passes what we read."""
    run = open_run(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_group(path, mode="r", use_consolidated=False)
        nodes = dict(root.members(max_depth=None))
        assert len(nodes) > 20
        for split in run.splits.values():
            sealed = [record.index for record in split.passes if record.sealed]
            for name in split.arrays if sealed else []:
                array = nodes[f"{split.name}/{name}"]
                assert isinstance(array, zarr.Array)
                np.testing.assert_array_equal(
                    np.asarray(array[:])[sealed], split.array(name)[sealed], err_msg=f"{split.name}/{name}"
                )
