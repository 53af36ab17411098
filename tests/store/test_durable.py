"""Durability on request: what must be on the disk before what."""

import os
from pathlib import Path

import numpy as np
import pytest

from t3vis.store.options import StorageOptions
from t3vis.store.seal import seal_pass
from t3vis.store.writer import create_run
from tests.store.recordings import rows_of, split_attributes


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """Paths in the order in which they were forced to the disk; they really are."""
    paths: list[Path] = []
    fsync = os.fsync

    def noted(descriptor):
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return paths


def recorded(path: Path, durability: str):
    writer = create_run(path, {}, options=StorageOptions(durability=durability))
    writer.add_split("train", split_attributes(10))
    writer.begin_pass("train", 0, {"epoch": 0})
    writer.log("train", rows_of(np.arange(10), 0))
    writer.flush()
    return writer


def test_by_default_nothing_is_forced_to_the_disk(tmp_path, synced):
    recorded(tmp_path / "run", "process")
    seal_pass(tmp_path / "run", "train", 0)
    assert synced == []


def test_a_segment_is_on_the_disk_before_the_ids_that_vouch_for_it(tmp_path, synced):
    recorded(tmp_path / "run", "fsync")
    segment = tmp_path / "run/train/segments/a0000_r0000/p0000_s000000"
    ids = synced.index(segment / "example/c/0")
    for name in ("logits/c/0/0", "loss/c/0", "step/c/0", "logits/zarr.json", "zarr.json"):
        assert synced.index(segment / name) < ids
    for folder in (segment / "example/c", segment / "example", segment, *segment.parents[:4]):
        assert ids < len(synced) - 1 - synced[::-1].index(folder)  # the entries that lead there, after it


def test_sealed_rows_are_on_the_disk_before_their_commit(tmp_path, synced):
    recorded(tmp_path / "run", "fsync")
    synced.clear()
    seal_pass(tmp_path / "run", "train", 0)
    train = tmp_path / "run/train"
    commit = synced.index(train / "commits/p0000/zarr.json")
    for name in ("logits/c/0/0/0", "loss/c/0/0", "step/c/0/0", "visits/c/0/0"):
        assert synced.index(train / name) < commit
