"""``t3vis heads``, run as a user runs it, on a run with checkpoints."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from t3vis import Run
from t3vis.cli import main
from t3vis.store.results import read_result
from tests.recorded_heads import run_with_heads


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_with_heads(tmp_path_factory.mktemp("command"))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["heads", *arguments]) == 0
    return capsys.readouterr().out


def test_the_heads_of_the_last_checkpoint(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, str(run.path), "--removed", "8", "--top", "3", "--per-example")
    assert "train: 24 examples, checkpoint of epoch 1" in out
    assert len(re.findall(r"^\d\.\d +self +\d", out, re.MULTILINE)) == 3
    assert re.search(r"truly removing each head \(8 examples\): importance with KL -?[01]\.\d\d", out)
    assert (Path(run.path).parent / "tiny-train-heads.png").stat().st_size > 5000
    assert read_result(run.path, "train", "head_gradients_p0001") is not None


def test_what_was_recorded_and_how_it_changed(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "recorded.svg"
    out = said(capsys, str(run.path), "--recorded", "--output", str(output))
    assert "epoch 1, gradients recorded in train mode" in out
    assert "no head was removed: what is said here of the loss without a head is an estimate" in out
    assert re.search(r"^0 +(\d\.\d ?){8}$", out, re.MULTILINE)
    assert "<svg" in output.read_text()


def test_what_pruning_does(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = said(capsys, str(run.path), "--epoch", "0", "--prune", "0.1", "1.3")
    assert "checkpoint of epoch 0, without the heads 0.1 1.3" in out
    assert re.search(r"loss +\d\.\d{4} -> \d\.\d{4} +[+-]\d\.\d{4} \([+-]\d\.\d{4} to [+-]\d\.\d{4}\)", out)
    output = tmp_path / "curve.png"
    folder = tmp_path / "model"
    checkpoint = run.train.passes[0].checkpoint
    assert checkpoint is not None
    shutil.copytree(checkpoint.path, folder)
    out = said(capsys, str(run.path), "--model", str(folder), "--curve", "3", "--output", str(output))
    assert re.search(r"greedy, by the true loss: (\d\.\d ?){3}$", out, re.MULTILINE)
    assert output.stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recorded", "--prune", "0.1"], "--prune, --curve and --per-example need a model"),
        (["--epoch", "7"], "no checkpoint of pass 7"),
        (["--prune", "5.0"], r"there is no head \(5, 0\)"),
    ],
)
def test_what_cannot_be_done(run: Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", str(run.path), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["heads", str(run.path), "--prune", "3"])
    assert "'3' is no head; write layer and head, such as 3.7" in capsys.readouterr().err
