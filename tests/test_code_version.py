"""A result is of the code that it was computed with, not only of its version."""

import shutil
from pathlib import Path

import t3vis
from t3vis.code_version import code_version, digest_of

PACKAGE = Path(t3vis.__file__).parent


def test_it_begins_with_the_version_and_names_the_code():
    assert code_version() == f"{t3vis.__version__}+{digest_of(PACKAGE)}"


def test_any_module_that_computes_counts_and_no_other(tmp_path):
    copy = tmp_path / "t3vis"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = digest_of(copy)
    assert before == digest_of(PACKAGE)
    for name in ("analysis/data_map.py", "probing/relevance.py", "analyze.py"):
        source = (copy / name).read_text()
        (copy / name).write_text(f"{source}# changed\n")
        assert digest_of(copy) != before, name
        (copy / name).write_text(source)
    (copy / "cli.py").write_text("")
    assert digest_of(copy) == before
