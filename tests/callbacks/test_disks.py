"""A disk that fills up or turns read-only in mid-epoch, and the run that is on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t3vis import open_run
from t3vis.store.repair import repair
from t3vis.store.verify import verify

IN_OWN_NAMESPACE = ["unshare", "--map-root-user", "--mount"]
SAYS = {"full": "[Errno 28] No space left on device", "read-only": "[Errno 30] Read-only file system"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``disks.py`` has trained with one disk after another."""
    folder = tmp_path_factory.mktemp("disks")
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
    try:
        subprocess.run([*IN_OWN_NAMESPACE, *mount], check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this system does not let us mount a disk: {getattr(error, 'stderr', error)}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("disks.py")), str(folder)]
    done = subprocess.run([*IN_OWN_NAMESPACE, *command], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def said_of(folder: Path) -> dict[str, Any]:
    """What was said; whatever happened, nothing on the disk was damaged and no weight was another."""
    said: dict[str, Any] = json.loads((folder / "said.json").read_text())
    assert said["problems"] == []
    return said


def check_rows(folder: Path, n_seen: list[int]) -> None:
    """The run holds so many rows of each epoch, every one as it was recorded to a good disk."""
    found, good = open_run(folder / "run.zarr").train, open_run(folder.parent / "good.zarr").train
    assert [record.n_seen for record in found.passes] == n_seen
    for record in found.passes:
        seen = found.visits[record.index] > 0
        assert seen.sum() == record.n_seen
        for name in ("logits", "loss", "step"):
            np.testing.assert_array_equal(found.array(name)[record.index][seen], good.array(name)[record.index][seen])
        rows, expected = found.hidden_states[record.index], good.hidden_states[record.index]
        np.testing.assert_array_equal(rows[:, seen], expected[:, seen])


@pytest.mark.parametrize("disk", SAYS)
def test_a_disk_that_fails_for_a_while_costs_the_rows_of_that_while(trained: Path, disk: str) -> None:
    folder = trained / f"{disk} recovers"
    said = said_of(folder)
    assert said["same_weights"]
    assert said["raised"] is None
    (error,) = said["errors"]
    assert f"37 rows of train could not be written to {folder}/disk/run.zarr: {SAYS[disk]}" in error
    assert "free the disk or record elsewhere" in error
    assert "attempts group. Training goes on; rows that are missing are counted in the store" in error
    check_rows(folder, [41, 4, 41])
    run = open_run(folder / "run.zarr")
    assert run.missing_rows == 37
    assert [record.sealed for record in run.epochs] == [True, True, True]


@pytest.mark.parametrize("disk", SAYS)
def test_a_disk_that_has_failed_for_good_keeps_what_was_flushed(trained: Path, disk: str) -> None:
    folder = trained / f"{disk} stays"
    said = said_of(folder)
    assert said["same_weights"]
    assert said["raised"] is None
    assert len(said["errors"]) == 1
    assert SAYS[disk] in said["errors"][0]
    assert said["n_seen"] == [41, 4]  # opened where it was, on the disk that takes no more
    check_rows(folder, [41, 4])
    repair(folder / "run.zarr")
    assert verify(folder / "run.zarr") == []
    check_rows(folder, [41, 4])


@pytest.mark.parametrize("disk", SAYS)
def test_training_stops_if_that_was_asked_for_and_says_what_to_do(trained: Path, disk: str) -> None:
    folder = trained / f"{disk} raises"
    said = said_of(folder)
    assert said["steps"] == 22  # the end of the epoch, when rows are written
    assert f"37 rows of train could not be written to {folder}/disk/run.zarr: {SAYS[disk]}" in said["raised"]
    assert "free the disk or record elsewhere" in said["raised"]
    assert said["errors"] == []
    check_rows(folder, [41, 4])
