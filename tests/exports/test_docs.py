"""What docs/exports.md says to do can be done: its Python runs as it stands there, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import datasets
import pytest
from transformers import Trainer

import t3vis
from t3vis.cli import main, parser
from tests.callbacks.tiny import LEARNING, tiny_arguments, tiny_model
from tests.viewer.asked import texts_and_labels

PAGE = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.fixture
def names(run, tmp_path, monkeypatch) -> dict[str, object]:
    """What a reader of the page has: a run, its dataset, and a model to train."""
    monkeypatch.chdir(tmp_path)
    texts, labels = texts_and_labels()
    arguments = tiny_arguments(tmp_path / "out", **LEARNING)
    columns = {"input_ids": [[2, 3 + i % 40, 5] for i in range(24)], "labels": [i % 3 for i in range(24)]}
    return {
        "t3vis": t3vis,
        "run": run,
        "dataset": datasets.Dataset.from_dict({"text": texts, "label": labels}),
        "Trainer": Trainer,
        "RecorderCallback": t3vis.RecorderCallback,
        "model": tiny_model(),
        "args": arguments,
        "train": datasets.Dataset.from_dict(columns),
    }


def test_python_examples_run_one_after_another(names, capsys):
    for example in blocks("python"):
        exec(compile(example, "exports.md", "exec"), names)
    assert capsys.readouterr().out.startswith("row 0 of the dataset has another 'text' than example 0 of ")
    assert names["table"].column_names[:2] == ["example", "text"]
    assert len(names["ambiguous"]) == 16
    assert names["means"].shape == (16,)
    assert len(names["logged"]) == 2


def test_commands_print_what_the_page_says(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo.zarr").symlink_to(run.path)
    for block in blocks(""):
        commands = [line for line in block.splitlines() if line.startswith("$ t3vis export")]
        said = [line for line in block.splitlines() if not line.startswith("$")]
        for command in commands:
            assert main(shlex.split(command)[2:]) == 0
            printed = capsys.readouterr().out.partition("open it with:\n\n")[2].splitlines()
            assert printed
            for line, expected in zip(printed, said, strict=True):
                start, _, end = expected.partition(" ... ")
                assert line.startswith(start)
                assert line.endswith(end)


def test_the_table_names_every_tool():
    actions = {action.dest: action for action in _command("export")._actions}
    for tool in actions["to"].choices:
        assert f"--to {tool}" in PAGE


def _command(name: str):
    (commands,) = (action for action in parser()._actions if action.dest == "command" or action.choices)
    return commands.choices[name]
