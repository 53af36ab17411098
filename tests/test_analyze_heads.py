from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from t3vis import Run, analyze_heads, open_run
from t3vis.analysis.head_importance import head_importance
from t3vis.analyze_heads import (
    HeadScores,
    analyzed_heads,
    analyzed_heads_of_epochs,
    labelled_examples,
    recorded_heads,
)
from t3vis.checkpointed import pass_with_checkpoint
from t3vis.errors import AnalysisError, ProbingError
from t3vis.probing.head_importance import EFFECTS, importances
from t3vis.probing.model import load_model
from t3vis.store.results import read_result
from tests.callbacks.tiny import recorded
from tests.recorded_heads import N_EXAMPLES, run_with_heads


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_with_heads(tmp_path_factory.mktemp("heads"))


def equal(one: HeadScores, other: HeadScores) -> bool:
    assert one.scores.keys() == other.scores.keys()
    for name, score in one.scores.items():
        for part in ("value", "low", "high"):
            np.testing.assert_array_equal(getattr(score, part), getattr(other.scores[name], part))
        assert score.n_examples == other.scores[name].n_examples
    assert one.agreements == other.agreements
    return (one.attention, one.modules, one.source) == (other.attention, other.modules, other.source)


def test_from_what_was_recorded_in_training(kept: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded_heads(kept, kept.train)
    assert list(found) == [0, 1]
    for index, scores in found.items():
        gradients = kept.train.head_gradients[index]
        np.testing.assert_allclose(scores.scores["gate"].value, np.abs(gradients).mean(1), rtol=1e-5)
        np.testing.assert_allclose(scores.scores["removal"].value, head_importance(gradients, "removal").value)
        assert scores.attention == ["self", "self"]
        assert scores.agreements == {}
        assert scores.scores["gate"].n_examples == N_EXAMPLES
        assert "train mode" in scores.source
    monkeypatch.setattr(analyze_heads, "head_importance", None)  # they are in the store
    again = recorded_heads(open_run(kept.path), kept.train)
    assert all(equal(found[index], again[index]) for index in found)


def test_from_a_checkpoint(kept: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = analyzed_heads(kept, kept.train, n_removed=8, keep_examples=True)
    chosen, checkpoint = pass_with_checkpoint(kept.train, None)
    assert chosen.index == 1
    ids, rows = labelled_examples(kept.train, 1000)
    assert ids.tolist() == list(range(N_EXAMPLES))
    expected = importances(load_model(checkpoint.path), rows, n_removed=8)
    for name in ("gate", "removal", "group", *EFFECTS):
        np.testing.assert_allclose(found.scores[name].value, expected.scores[name].value, rtol=1e-4, atol=1e-7)
    assert found.scores["loss_change"].n_examples == 8
    result = read_result(kept.path, "train", "head_gradients_p0001")
    assert result is not None
    np.testing.assert_allclose(result.columns["gradient"], expected.gradients.gradients, rtol=1e-4, atol=1e-7)
    monkeypatch.setattr(analyze_heads, "_probed", None)  # no model is looked at
    again = analyzed_heads(open_run(kept.path), kept.train, n_removed=8)
    assert equal(found, again) or np.isnan(found.agreements["gate"]["score_change"])


def test_gradients_of_other_code_are_not_kept_beside_newer_scores(kept: Run, tmp_path: Path, monkeypatch) -> None:
    copy = tmp_path / "tiny.zarr"
    shutil.copytree(kept.path, copy)
    run, options = open_run(copy), {"n_removed": 2, "max_examples": 6}
    analyzed_heads(run, run.train, keep_examples=True, **options)
    monkeypatch.setattr("t3vis.checkpointed.code_version", lambda: "another")
    analyzed_heads(run, run.train, **options)
    analyzed_heads(run, run.train, keep_examples=True, **options)
    for name in ("head_importance_p0001", "head_gradients_p0001"):
        result = read_result(copy, "train", name)
        assert result is not None
        assert (result.attributes["t3vis"], result.attributes["mode"]) == ("another", "eval")


def test_of_every_epoch_that_has_a_checkpoint(kept: Run, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.zarr"
    shutil.copytree(kept.path, copy)
    run = open_run(copy)
    found = analyzed_heads_of_epochs(run, run.train, n_removed=4, max_examples=10)
    assert list(found) == [0, 1]
    assert not np.allclose(found[0].scores["gate"].value, found[1].scores["gate"].value)
    assert found[0].scores["gate"].n_examples == 10
    checkpoint = run.train.passes[0].checkpoint
    assert checkpoint is not None
    moved = checkpoint.path.rename(checkpoint.path.with_name("elsewhere"))
    try:
        with pytest.raises(ProbingError, match=r"no checkpoint of pass 0 that is still there; passes with one: 1\."):
            analyzed_heads(run, run.train, pass_index=0)
        of_folder = analyzed_heads(run, run.train, model=moved, n_removed=4, max_examples=10)
    finally:
        moved.rename(checkpoint.path)
    np.testing.assert_allclose(of_folder.scores["gate"].value, found[0].scores["gate"].value, rtol=1e-4)
    assert of_folder.source == "elsewhere"


def test_what_the_run_does_not_hold(tmp_path: Path) -> None:
    run = recorded(tmp_path, num_train_epochs=1)
    with pytest.raises(AnalysisError, match=r"record them with RecorderCallback\(heads=True\)"):
        recorded_heads(run, run.train)
    with pytest.raises(ProbingError, match=r"no checkpoint that is still there; passes with one: none\."):
        analyzed_heads(run, run.train)
