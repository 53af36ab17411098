"""Two processes, launched by torchrun on this machine's CPU: each example's row is its own, whoever saw it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t3vis import RecorderCallback, open_run
from tests.callbacks.attention_models import check_heads
from tests.callbacks.tiny import check_pass, tiny_model, tiny_rows, tiny_trainer


def launch(directory: Path, what: str) -> Path:
    """Run ``two_processes.py`` as a user would, with torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [*command, str(script), str(directory), what], capture_output=True, text=True, env=environment, timeout=480
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return directory


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("ddp"), "ddp")


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


def test_fsdp2(tmp_path: Path) -> None:
    run, model = open_run(launch(tmp_path, "fsdp") / "fsdp" / "run.zarr"), tiny_model()
    for epoch in (0, 1):
        check_pass(run.train, epoch, model, tiny_rows())
        check_pass(run.evals["eval"], epoch, model, tiny_rows(9, seed=1))
    for index in (0, 1, 2):
        check_pass(run.evals["probe"], index, model, tiny_rows())
    assert run.train.visits[:].sum() == 2 * 48
    check_heads(run.train, model, tiny_rows())
