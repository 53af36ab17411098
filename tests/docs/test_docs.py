"""The documentation builds without a warning and loads nothing from elsewhere; its examples run as they stand there."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import pytest

from t3vis import open_run
from t3vis.analyze import analyzed_data_map
from tests.callbacks.attention_models import attention_model
from tests.probing.examples import word_tokenizer
from tests.viewer.asked import N_EXAMPLES, texts_and_labels
from tests.viewer.conftest import TOKEN, serving

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run_page(page: str, names: dict[str, Any]) -> None:
    """Run the examples of a page one after another."""
    found = blocks(page)
    assert found
    for number, block in enumerate(found):
        exec(compile(block, f"{page}, example {number}", "exec"), names)


@pytest.fixture
def names(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader already has: a run with checkpoints beside it, its dataset, and a model."""
    shutil.copytree(asked.parent, tmp_path / "runs")
    (tmp_path / "runs" / asked.name).rename(tmp_path / "runs" / "mine.zarr")
    monkeypatch.chdir(tmp_path)
    texts, labels = texts_and_labels()
    train = datasets.Dataset.from_dict({"text": texts, "labels": labels, **word_tokenizer()(texts)})
    return {"train": train, "model": attention_model("bert")}


def test_label_errors(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run_page("recipes/label_errors.md", names)
    first, *_ = names["suspects"].ranking()
    assert capsys.readouterr().out.startswith(f"{first:6} {names['suspects'].score[first]:.2f} ")
    assert len(names["cleaner"]) == N_EXAMPLES - round(N_EXAMPLES / 10)


def test_pick_a_third(names: dict[str, Any]) -> None:
    run_page("recipes/pick_a_third.md", names)
    assert N_EXAMPLES / 3 - 2 < len(names["third"]) < N_EXAMPLES / 2
    assert abs(len(names["random_third"]) - len(names["third"])) <= 1
    assert names["third"]["text"][:] == [names["train"]["text"][i] for i in names["chosen"]]


def test_compare_checkpoints(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run_page("recipes/compare_checkpoints.md", names)
    said = capsys.readouterr().out
    assert f"{len(names['changed'])} predictions changed" in said
    assert f"steps {names['first'].step} and {names['last'].step}: the weights are" in said
    assert names["distance"] > 0.01


def test_heads(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run_page("recipes/heads.md", names)
    (layer, head), *_ = names["found"].ranking()
    assert f"layer {layer}, head {head}: {names['found'].value.max():.4f}" in capsys.readouterr().out


def test_plain_loop(names: dict[str, Any]) -> None:
    run_page("recipes/plain_loop.md", names)
    run = open_run("runs/loop.zarr")
    assert run.train.logits.shape == (2, N_EXAMPLES, 3)
    assert (run.train.visits[:] == 1).all()


def test_plain_zarr(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(blocks("recipes/plain_zarr.md")[0].splitlines()) <= 12  # ten lines, and the imports
    run_page("recipes/plain_zarr.md", names)
    run = open_run("runs/mine.zarr")
    expected = analyzed_data_map(run, run.train)
    np.testing.assert_allclose(names["confidence"], expected.confidence, rtol=1e-5)
    np.testing.assert_allclose(names["variability"], expected.variability, rtol=1e-4, atol=1e-6)
    assert capsys.readouterr().out.splitlines()[-1] == names["train"]["text"][17]


def test_own_viewer(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("agg")
    titles = []

    def click() -> None:
        """What a user does while the figure is shown."""
        figure = plt.gcf()
        figure.canvas.callbacks.process("pick_event", SimpleNamespace(ind=[3]))
        titles.append(figure.axes[0].get_title())

    monkeypatch.setattr(plt, "show", click)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        run_page("recipes/own_viewer.md", names)
    finally:
        names["server"].kill()
        names["server"].communicate()
        plt.close("all")
    assert titles == [names["train"]["text"][3]]


def test_rest_api(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Path("runs/mine.zarr")) as server:
        names |= {"address": server.address, "token": TOKEN}
        run_page("rest_api.md", names)
    assert f"('train', {N_EXAMPLES})" in capsys.readouterr().out
    table = pq.read_table(io.BytesIO(names["parquet"])).to_pydict()
    assert table["example"] == sorted(names["hardest"].tolist())
    loss = open_run("runs/mine.zarr").train.loss[0]
    assert table["loss@0"] == pytest.approx(loss[table["example"]])


def test_the_paths_of_the_api_are_in_the_documentation() -> None:
    from t3vis.viewer.openapi import WHAT

    page = (ROOT / "docs" / "rest_api.md").read_text()
    named = re.findall(r"^\| `(GET|POST) ([^`?]+)(?:\?[^`]*)?` \|", page, re.MULTILINE)
    assert {(method.lower(), path) for method, path in named} == {(method, path) for path, (method, *_) in WHAT.items()}


def test_the_documentation_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    sources = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert {page.relative_to(tmp_path / "site") for page in pages} >= set(sources)
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"https?:[^>]+", page.read_text())
        assert loaded == [], page
    css = "".join(file.read_text() for file in (tmp_path / "site").rglob("*.css"))
    assert not re.findall(r"url\([\"']?https?:", css)
