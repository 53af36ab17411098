"""Checkpoints: each epoch names the one that belongs to it, as long as it is there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from t3vis import RecorderCallback, open_run
from tests.callbacks.tiny import LEARNING, Stops, alone, held_out, tiny_model, tiny_rows, tiny_trainer


def trained(tmp_path: Path, *, name: str = "run", resume: Any = None, **settings: Any) -> Any:
    """Train with the recorder, saving checkpoints beside the run."""
    recorder = RecorderCallback(tmp_path / f"{name}.zarr", probe=held_out(), resume=resume is not None)
    trainer = tiny_trainer(tmp_path / "out", recorder, **{"save_strategy": "epoch", **LEARNING, **settings})
    trainer.train(resume_from_checkpoint=resume)
    return open_run(recorder.path)


def steps(passes: Any) -> list[int | None]:
    return [None if p.checkpoint is None else p.checkpoint.step for p in passes]


def test_each_epoch_names_the_checkpoint_at_its_end(tmp_path: Path) -> None:
    """A viewer that loads it has the model that the probe of that moment saw."""
    run = trained(tmp_path)
    assert steps(run.epochs) == [11, 22]
    probe = run.evals["probe"]
    assert steps(probe.passes) == [None, 11, 22]
    for index in (1, 2):
        checkpoint = probe.passes[index].checkpoint
        assert checkpoint.path == tmp_path / "out" / f"checkpoint-{checkpoint.step}"
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint.path)
        logits, _ = alone(model, tiny_rows(9, seed=1)[4])
        np.testing.assert_allclose(probe.logits[index, 4], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "epochs", "probes"),
    [
        ({"save_strategy": "no"}, [None, None], [None, None, None]),
        ({"save_strategy": "steps", "save_steps": 4, "max_steps": 20}, [8, 20], [None, None, 20]),
        ({"save_strategy": "steps", "save_steps": 15, "max_steps": 30}, [None, 15, 30], [None, None, None, 30]),
        ({"save_total_limit": 1}, [None, 22], [None, None, 22]),
        ({"gradient_accumulation_steps": 4}, [3, 6], [None, 3, 6]),
    ],
    ids=["none", "by steps", "none in the first epoch", "only the last is kept", "accumulation"],
)
def test_what_is_there_is_named(settings: Any, epochs: Any, probes: Any, tmp_path: Path) -> None:
    run = trained(tmp_path, **settings)
    assert steps(run.epochs) == epochs
    assert steps(run.evals["probe"].passes) == probes


def test_a_checkpoint_that_was_deleted_or_written_over_is_not_promised(tmp_path: Path) -> None:
    run = trained(tmp_path)
    shutil.rmtree(tmp_path / "out" / "checkpoint-11")
    assert steps(run.epochs) == [None, 22]
    other = trained(tmp_path, name="other", model=tiny_model(seed=3), logging_steps=2)
    assert steps(other.epochs) == [11, 22]
    assert steps(run.epochs) == [None, None]


def test_checkpoints_may_move_with_the_run_or_without_it(tmp_path: Path) -> None:
    trained(tmp_path / "before")
    shutil.copytree(tmp_path / "before" / "run.zarr", tmp_path / "elsewhere" / "deeper" / "run.zarr")
    stayed = open_run(tmp_path / "elsewhere" / "deeper" / "run.zarr").epochs[0].checkpoint
    assert stayed is not None
    assert stayed.path == tmp_path / "before" / "out" / "checkpoint-11"
    (tmp_path / "before").rename(tmp_path / "after")
    moved = open_run(tmp_path / "after" / "run.zarr").epochs[0].checkpoint
    assert moved is not None
    assert moved.path == tmp_path / "after" / "out" / "checkpoint-11"


def test_those_of_weights_that_were_given_up_do_not_count(tmp_path: Path) -> None:
    by_steps = {"save_strategy": "steps", "save_steps": 4}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=[Stops(18)], **by_steps)
    run = open_run(tmp_path / "run.zarr")  # as after a kill: what was noted is there
    assert steps(run.epochs) == [8, 16]
    trained(tmp_path, resume=str(tmp_path / "out" / "checkpoint-8"), save_strategy="no")
    assert (tmp_path / "out" / "checkpoint-16").exists()
    assert steps(run.epochs) == [8, None]
