"""The README's Python runs as it stands there, and its commands exist."""

import re
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

from t3vis.cli import parser

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict[str, object]:
    """What a reader of the README already has: a model, its arguments, and a dataset."""
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    columns = {"input_ids": [[2, 3 + i % 40, 5] for i in range(24)], "labels": [i % 3 for i in range(24)]}
    arguments = TrainingArguments(
        "out", num_train_epochs=2, report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True
    )
    return {
        "model": BertForSequenceClassification(config),
        "args": arguments,
        "train": datasets.Dataset.from_dict(columns),
    }


def test_python_examples_run_one_after_another(names: dict[str, object]) -> None:
    examples = blocks("python")
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert names["losses"].shape == (2, 24)
    assert names["last"].shape == (24, 16)
    assert names["group"]["train/logits"].shape == (2, 24, 3)
    assert torch.isfinite(torch.from_numpy(names["losses"])).all()


def test_commands_named_in_the_readme_exist() -> None:
    known = set(re.findall(r"^    (\w+) ", parser().format_help(), re.MULTILINE))
    named = {name for block in blocks("") for name in re.findall(r"^t3vis (\w+)", block, re.MULTILINE)}
    assert {"info", "suspects", "analyze", "plot", "demo"} <= named
    assert named <= known


def test_files_named_in_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
