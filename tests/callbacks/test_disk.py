"""What a recording will need is said before the first step, and refused where it does not fit."""

import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3vis import RecorderCallback, open_run
from t3vis.callbacks.disk import Need, need
from t3vis.errors import ConfigurationError
from t3vis.store.verify import verify

from .tiny import NumberedStream, held_out, tiny_model, tiny_rows, tiny_trainer

Usage = namedtuple("Usage", "total used free")


@given(
    light=st.integers(0, 10**6), heavy=st.integers(0, 10**9), n=st.integers(1, 50), keep=st.none() | st.integers(1, 60)
)
def test_more_is_never_needed_for_fewer_epochs(light, heavy, n, keep):
    now, later = need(light, heavy, n, keep), need(light, heavy, n + 1, keep)
    assert now.final <= now.peak
    assert now.final <= later.final
    assert now.peak <= later.peak
    if keep is not None:
        assert now.final <= need(light, heavy, n, None).final
        assert now.peak <= need(light, heavy, n, None).peak


def test_what_passes_need_by_hand():
    """Three sealed, and the segments of two."""
    assert need(10, 100, 3, None) == Need(330, 550)
    assert need(10, 100, 1, None) == Need(110, 220)
    assert need(10, 100, 5, 2) == Need(250, 50 + 300 + 220)


def test_the_estimate_is_what_is_written(tmp_path, capfd):
    recorder = RecorderCallback(tmp_path / "run.zarr")
    tiny_trainer(tmp_path / "out", recorder, num_train_epochs=3).train()
    said = re.search(
        r"t3vis: .*run.zarr will take about ([\d.]+) kB \(3 epochs of (\d+) examples", capfd.readouterr().err
    )
    train = open_run(tmp_path / "run.zarr").train
    stored = [train.array(name)[:].nbytes for name in train.arrays if name not in ("visits",)]
    assert int(said[2]) == train.n_examples
    ids = 3 * 8 * train.n_examples  # segments have the ids too
    assert float(said[1]) * 1000 == pytest.approx(sum(stored) + ids, rel=0.1)


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_disk_that_is_too_small_is_refused_before_the_first_step(tmp_path, monkeypatch, evaluated):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**6, 10**6 - 5000, 5000))
    recorder, model = RecorderCallback(tmp_path / "run.zarr"), tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"eval_strategy": "epoch", "eval_dataset": held_out()} if evaluated else {}
    trainer = tiny_trainer(tmp_path / "out", recorder, model=model, **settings)
    expected = r"recording will need about [\d.]+ kB on the disk of .*, which has 5 kB free; .*keep_epochs=1"
    with pytest.raises(ConfigurationError, match=expected):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "run.zarr").exists()


def test_evaluations_count(tmp_path, capfd):
    figures = []
    for name, strategy in (("a", "no"), ("b", "epoch"), ("c", "steps")):
        recorder = RecorderCallback(tmp_path / f"{name}.zarr")
        settings = {"eval_strategy": strategy, "eval_steps": 1, "eval_dataset": held_out()}
        tiny_trainer(tmp_path / name, recorder, num_train_epochs=2, **settings).train()
        figures.append(float(re.search(r"take about ([\d.]+) kB", capfd.readouterr().err)[1]))
    assert figures[0] < figures[1] < figures[2]


def test_hidden_states_of_the_last_epochs_are_kept(tmp_path: Path):
    recorder = RecorderCallback(tmp_path / "run.zarr", keep_epochs=2)
    settings = {"eval_strategy": "epoch", "eval_dataset": held_out()}
    tiny_trainer(tmp_path / "out", recorder, num_train_epochs=4, **settings).train()
    run = open_run(tmp_path / "run.zarr")
    for split in (run.train, run.evals["eval"]):
        assert np.isnan(split.hidden_states[:2]).all()
        assert np.isfinite(split.hidden_states[2:]).all()
        assert np.isfinite(split.logits).all()
        assert [record.attributes.get("dropped") for record in split.passes] == [["hidden_states"]] * 2 + [None] * 2
    assert len(run.train.logits) == 4
    assert len(tiny_rows()) == run.train.n_examples
    assert run.train.summary().count("without hidden_states") == 2
    assert verify(tmp_path / "run.zarr") == []


@pytest.mark.parametrize("keep", [0, -1, "2", True, 1.5])
def test_what_cannot_be_kept_is_refused(tmp_path, keep):
    with pytest.raises(ConfigurationError, match=r"keep_epochs=.*: expected a number of epochs, at least 1, or None"):
        RecorderCallback(tmp_path / "run.zarr", keep_epochs=keep)


def test_of_a_stream_all_that_will_be_seen_counts(tmp_path, capfd):
    stream = NumberedStream(tiny_rows(), range(41))
    recorder = RecorderCallback(tmp_path / "run.zarr", id_column="id")
    tiny_trainer(tmp_path / "out", recorder, train=stream, max_steps=5, per_device_train_batch_size=4).train()
    assert "(1 epoch of 20 examples" in capfd.readouterr().err
