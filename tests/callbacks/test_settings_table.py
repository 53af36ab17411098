"""The page of settings names every test of them, and no other; the other pages name tests that there are."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "settings.md").read_text()
SECTIONS = dict(re.findall(r"^## \w+: `(test_\w+)\.py`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"tests.callbacks.{name}")


def names_in(section: str) -> list[tuple[str, str]]:
    """Tests in the last column of the tables, each with its parameter, which may be empty."""
    cells = [line.rsplit("|", 2)[1] for line in section.splitlines() if line.startswith("|")][2:]
    assert all("`test_" in cell for cell in cells)
    return [pair for cell in cells for pair in re.findall(r"`(test_\w+)(?:\[(.*?)\])?`", cell)]


def parameters(test: object) -> set[str]:
    """The values a test is run with, as pytest names them."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return {str(value) for mark in marks for value in mark.args[1]}


def test_every_kind_of_setting_has_a_section() -> None:
    kinds = ("sampling", "loaders", "loop", "losses", "models", "processes", "trainers", "task_oracle", "trackers")
    assert list(SECTIONS) == [f"test_{kind}" for kind in kinds]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_and_the_tests_agree(section: str) -> None:
    named, tests = names_in(SECTIONS[section]), vars(module(section))
    assert {test for test, _ in named} == {name for name in tests if name.startswith("test_")}
    for test, parameter in named:
        assert not parameter or parameter in parameters(tests[test]), f"{test}[{parameter}]"
    for test in {test for test, parameter in named if parameter}:
        assert {parameter for name, parameter in named if name == test} == parameters(tests[test]), test


@pytest.mark.parametrize("page", ["heads", "plain_loop", "probes", "tasks"])
def test_the_tests_that_other_pages_name_exist(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)(?:\[.*?\])?`", (DOCS / f"{page}.md").read_text()))
    sources = "".join(path.read_text() for path in DOCS.parent.glob("tests/**/test_*.py"))
    assert named
    assert named <= set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))
