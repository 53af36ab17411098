"""Two processes, launched by torchrun on this machine's CPU: each example's row is its own, whoever saw it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from t3vis import ConfigurationError, RecorderCallback, StoreError, open_run
from t3vis.cli import main
from t3vis.store import schema
from t3vis.store.merge import merge_parts
from t3vis.store.passes import Pass
from t3vis.store.push import push
from t3vis.store.verify import verify
from tests.callbacks.attention_models import check_heads
from tests.callbacks.tiny import as_dataset, check_pass, tiny_model, tiny_rows, tiny_trainer


def launch(directory: Path) -> None:
    """Run ``two_processes.py`` as a user would, with torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [*command, str(script), str(directory)], capture_output=True, text=True, env=environment, timeout=480
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes have recorded; where tests run in parallel they are launched once for all."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory, is_done = folder / "ddp", folder / "ddp is done"
    with FileLock(folder / "ddp.lock"):
        if not is_done.exists():
            directory.mkdir(exist_ok=True)
            launch(directory)
            is_done.touch()
    return directory


def test_the_life_of_two_processes(launched: Path) -> None:
    """41 examples for two: the last batches are filled up with the first examples, which are seen twice then."""
    run, model = open_run(launched / "life" / "run.zarr"), tiny_model()
    assert [p.epoch for p in run.epochs] == [0, 1]
    for epoch in (0, 1):
        check_pass(run.train, epoch, model, tiny_rows())
        assert run.train.visits[epoch].sum() == 48  # 6 batches of 4 for each of the two
        assert set(run.train.step[epoch]) == set(range(6 * epoch, 6 * epoch + 6))
    assert len(run.evals["eval"].passes) == 2
    for index in (0, 1):
        check_pass(run.evals["eval"], index, model, tiny_rows(9, seed=1))
    check_pass(run.evals["test"], 0, model, tiny_rows(9, seed=1))
    names = {path.name for path in (launched / "life" / "run.zarr" / "attempts").iterdir() if path.is_dir()}
    assert names == {"a0000_r0000", "a0000_r0001"}
    again = open_run(launched / "life" / "run-2.zarr")  # a second training, which both of them record at the same place
    check_pass(again.train, 0, model, tiny_rows())
    assert (launched / "refused").read_text().startswith("2 processes: ")


N_STEPS = {  # optimizer steps per epoch of each setting in two_processes.py, and visits of an epoch
    "even": (5, 40),
    "uneven": (6, 48),
    "drop_last": (5, 40),
    "accumulation": (2, 48),
    "group_by_length": (6, 48),
    "batch_rebalance": (6, None),
    "workers": (6, 48),
    "dispatch": (6, 42),
    "split": (11, 44),
    "dispatch and split": (11, 42),
    "stream, dispatched": (6, 42),
    "stream, sharded": (6, 48),
}


@pytest.mark.parametrize("name", N_STEPS)
def test_two_processes(name: str, launched: Path) -> None:
    n_steps, n_visits = N_STEPS[name]
    run, model = open_run(launched / name / "run.zarr"), tiny_model()
    rows = tiny_rows(40 if name == "even" else 41)
    assert [p.epoch for p in run.epochs] == [0, 1]
    assert run.missing_rows == 0
    for epoch in (0, 1):
        visits, steps = run.train.visits[epoch], run.train.step[epoch]
        seen = set(visits.nonzero()[0].tolist())
        assert len(seen) == (40 if name in ("even", "drop_last") else 41)
        check_pass(run.train, epoch, model, rows, seen=sorted(seen))
        assert visits.sum() == (n_visits or visits.sum())
        assert set(steps[steps >= 0]) == set(range(n_steps * epoch, n_steps * (epoch + 1)))
    if name == "accumulation":
        check_heads(run.train, model, rows)


def test_resumed_by_two_processes(launched: Path) -> None:
    run, model = open_run(launched / "resumed" / "run.zarr"), tiny_model()
    assert [(p.epoch, p.n_seen, p.sealed) for p in run.epochs] == [(0, 41, True), (1, 41, True)]
    for epoch in (0, 1):
        check_pass(run.train, epoch, model, tiny_rows())
        assert run.train.visits[epoch].sum() == 48
        assert set(run.train.step[epoch]) == set(range(6 * epoch, 6 * epoch + 6))


def test_one_process_goes_on_from_a_checkpoint_of_two(launched: Path) -> None:
    """Batches twice as large: the steps of an epoch are as many, and hold the same examples."""
    directory, model = launched / "for one process", tiny_model()
    recorder = RecorderCallback(directory / "run.zarr", resume=True)
    trainer = tiny_trainer(directory / "out", recorder, model=model, per_device_train_batch_size=8)
    trainer.train(resume_from_checkpoint=str(directory / "out" / "checkpoint-8"))
    run = open_run(directory / "run.zarr")
    assert [(p.epoch, p.n_seen, p.sealed) for p in run.epochs] == [(0, 41, True), (1, 41, True)]
    for epoch in (0, 1):
        check_pass(run.train, epoch, model, tiny_rows())
        assert set(run.train.step[epoch]) == set(range(6 * epoch, 6 * epoch + 6))
    assert run.train.visits[1].sum() == 41
    attempts = {path.name for path in (directory / "run.zarr" / "attempts").iterdir() if path.is_dir()}
    assert attempts == {"a0000_r0000", "a0000_r0001", "a0001_r0000"}


def test_fsdp2(launched: Path) -> None:
    run, model = open_run(launched / "fsdp" / "run.zarr"), tiny_model()
    for epoch in (0, 1):
        check_pass(run.train, epoch, model, tiny_rows())
        check_pass(run.evals["eval"], epoch, model, tiny_rows(9, seed=1))
    for index in (0, 1, 2):
        check_pass(run.evals["probe"], index, model, tiny_rows())
    assert run.train.visits[:].sum() == 2 * 48
    check_heads(run.train, model, tiny_rows())


def test_probes_disturb_no_process(launched: Path) -> None:
    for rank in (0, 1):
        plain, probed = (torch.load(launched / name / f"rank{rank}.pt") for name in ("plain", "probed"))
        assert all(torch.equal(plain["weights"][name], probed["weights"][name]) for name in plain["weights"])
        assert torch.equal(plain["random"], probed["random"])
        assert plain["history"] == probed["history"]
    assert len(plain["history"]) > 6
    split, model = open_run(launched / "probed" / "run.zarr").evals["probe"], tiny_model()
    assert [p.step for p in split.passes] == [0, 3, 6]
    model.load_state_dict(probed["weights"])
    check_pass(split, 2, model, tiny_rows())


def runs_of_parts(launched: Path) -> list[Path]:
    return [launched / f"part{rank}" / "run.zarr" for rank in (0, 1)]


def test_parts_of_two_processes_are_merged_to_what_a_common_directory_holds(launched: Path, tmp_path: Path) -> None:
    parts = [open_run(path) for path in runs_of_parts(launched)]
    assert [part.train.visits[0].sum() for part in parts] == [24, 24]  # each holds what its process saw
    copy = tmp_path / "copy.zarr"
    push(parts[1].path, str(copy))
    passes = merge_parts([copy, parts[0].path], tmp_path / "merged.zarr")  # in any order
    assert passes == {"train": [0, 1], "eval": [0, 1], "test": [0]}
    merged, whole = open_run(tmp_path / "merged.zarr"), open_run(launched / "life" / "run.zarr")
    assert verify(merged.path) == []
    assert merged.splits.keys() == whole.splits.keys()
    for name, split in whole.splits.items():
        found = merged.splits[name]
        assert (found.arrays, found.attributes) == (split.arrays, split.attributes)
        assert [vars(one) for one in map(as_said, found.passes)] == [vars(one) for one in map(as_said, split.passes)]
        assert found.text["text"][:] == split.text["text"][:]
        np.testing.assert_array_equal(found.labels, split.labels)
        for array in split.arrays:
            np.testing.assert_array_equal(found.array(array)[:], split.array(array)[:], err_msg=f"{name} {array}")
    attempts = {path.name for path in (merged.path / "attempts").iterdir() if path.is_dir()}
    assert attempts == {"a0000_r0000", "a0000_r0001"}
    assert "part" not in merged.attributes
    assert [path for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


def as_said(record: Pass) -> SimpleNamespace:
    """What is known of a pass, but for what tells its files apart."""
    said = {key: value for key, value in record.attributes.items() if key != "checksums"}
    return SimpleNamespace(**{**vars(record), "attributes": said, "_reader": None})


def test_a_merge_that_was_interrupted_is_run_again(launched: Path, tmp_path: Path) -> None:
    class InterruptionError(BaseException):
        pass

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise InterruptionError

    parts = runs_of_parts(launched)
    with pytest.raises(InterruptionError):
        merge_parts(parts, tmp_path / "merged.zarr", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    done: list[tuple[int, int]] = []
    merge_parts(parts, tmp_path / "merged.zarr", progress=lambda *step: done.append(step))
    assert done == [(number, 5) for number in range(1, 6)]


def test_what_is_not_merged(launched: Path, tmp_path: Path) -> None:
    one, other = runs_of_parts(launched)
    into = tmp_path / "merged.zarr"
    with pytest.raises(ConfigurationError, match=r"of 2 processes of the training, \[1\] are in none of the parts"):
        merge_parts([one], into)
    with pytest.raises(ConfigurationError, match="process 1 is in two of the parts"):
        merge_parts([one, other, other], into)
    with pytest.raises(ConfigurationError, match=r"life/run.zarr is no part of a run.*shared=False"):
        merge_parts([one, launched / "life" / "run.zarr"], into)
    with pytest.raises(ConfigurationError, match="no part was given"):
        merge_parts([], into)
    stranger = changed(other, tmp_path / "stranger.zarr", "", "part", {"training": "x", "ranks": [1], "of": 2})
    with pytest.raises(ConfigurationError, match=r"stranger.zarr is of another training than"):
        merge_parts([one, stranger], into)
    differs = changed(other, tmp_path / "differs.zarr", "train", "fingerprint", "another")
    with pytest.raises(ConfigurationError, match=r"train of .*differs.zarr has fingerprint='another'"):
        merge_parts([one, differs], into)
    shutil.rmtree(changed(other, tmp_path / "short.zarr", "", "created", "") / "train/commits/p0001")
    with pytest.raises(StoreError, match=r"short.zarr holds the passes \[0\] of train, .* holds \[0, 1\]"):
        merge_parts([one, tmp_path / "short.zarr"], into)
    assert not into.exists()
    into.mkdir()
    with pytest.raises(ConfigurationError, match="already exists"):
        merge_parts([one, other], into)
    assert list(into.iterdir()) == []


def changed(run: Path, copy: Path, node: str, key: str, value: object) -> Path:
    """A copy of a run in which a node says something else."""
    shutil.copytree(run, copy)
    metadata = schema.read_metadata(copy / node)
    schema.write_metadata(copy / node, {**metadata, "attributes": {**metadata["attributes"], key: value}})
    return copy


def test_a_part_is_not_gone_on_with_by_others(launched: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_of_parts(launched)[1], tmp_path / "run.zarr")
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr", resume=True))
    with pytest.raises(ConfigurationError, match=r"was recorded by processes \[1\], found processes that all see it"):
        trainer.evaluate(as_dataset(tiny_rows(9, seed=1)))


def test_the_command_merges(launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = map(str, runs_of_parts(launched))
    assert main(["merge", one, other, "--into", str(tmp_path / "merged.zarr")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/merged.zarr: 2 passes of train, 2 of eval, 1 of test, of 2 parts\n"
    assert main(["merge", one, "--into", str(tmp_path / "again.zarr")]) == 1
    assert "are in none of the parts" in capsys.readouterr().err


def test_a_loop_of_two_processes_is_refused(launched: Path) -> None:
    messages = [(launched / f"loop{rank}").read_text() for rank in (0, 1)]
    assert all(message.startswith("a loop of 2 processes cannot be recorded by Recorder") for message in messages)
    assert not (launched / "loop.zarr").exists()
