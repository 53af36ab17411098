import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "t3vis"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_of(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: Path) -> set[str]:
    """Full names of the modules that a source imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def loaded_by(*modules: str) -> set[str]:
    """What is in sys.modules of a fresh process that has imported these."""
    code = f"import sys, {', '.join(modules)}; print('\\n'.join(sys.modules))"
    command = [sys.executable, "-W", "error", "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())


def modules_in(folder: str) -> list[str]:
    return [module_of(source) for source in SOURCES if is_within(module_of(source), folder)]


@pytest.mark.parametrize("folder", ["t3vis.store", "t3vis.analysis"])
def test_reading_and_analysing_load_no_torch(folder):
    loaded = loaded_by("t3vis", *modules_in(folder))
    assert not loaded & {"torch", "transformers", "accelerate", "datasets"}


def test_the_package_itself_is_light():
    assert not loaded_by("t3vis") & {"torch", "transformers", "zarr", "sklearn", "scipy", "matplotlib", "openTSNE"}


def test_the_command_line_is_light():
    assert not loaded_by("t3vis.cli") & {"torch", "transformers", "zarr", "sklearn", "scipy", "matplotlib", "openTSNE"}


def test_the_sealing_subprocess_is_light():
    assert not loaded_by("t3vis.store.seal") & {"torch", "transformers", "zarr", "numcodecs", "sklearn", "scipy"}


FORBIDDEN = {
    "t3vis.errors": ["t3vis."],
    "t3vis.store": ["torch", "transformers", "t3vis.callbacks", "t3vis.analysis", "t3vis.probing", "t3vis.plots"],
    "t3vis.callbacks": ["t3vis.analysis", "t3vis.probing", "t3vis.plots", "zarr"],
    "t3vis.analysis": [
        "torch", "transformers", "datasets", "zarr", "matplotlib", "t3vis.store", "t3vis.callbacks", "t3vis.plots",
    ],
    "t3vis.probing": ["t3vis.store", "t3vis.callbacks", "zarr"],
    "t3vis.distributed": ["torch", "transformers", "zarr", "t3vis.store", "t3vis.callbacks", "t3vis.probing"],
    "t3vis.store.schema": ["t3vis.store"],
    "t3vis.store.layout": ["t3vis"],
}  # fmt: skip


@pytest.mark.parametrize("module", FORBIDDEN)
def test_imports_run_one_way(module):
    for source in SOURCES:
        if is_within(module_of(source), module):
            for name in imports_of(source):
                crossed = [forbidden for forbidden in FORBIDDEN[module] if is_within(name, forbidden.rstrip("."))]
                assert not crossed, f"{source} imports {name}"


def test_only_few_modules_join_store_and_analysis():
    """Only the top of the package joins what each can be read without."""
    for source in SOURCES:
        folders = {name.split(".")[1] for name in imports_of(source) if name.startswith("t3vis.")}
        if {"store", "analysis"} <= folders:
            parent = module_of(source).split(".")[1]
            assert parent not in ("store", "analysis", "callbacks", "probing"), source


def test_no_drawer_for_everything():
    assert not [source for source in SOURCES if source.stem in ("utils", "util", "helpers", "misc", "common")]


def test_a_library_does_not_print():
    for source in SOURCES:
        if is_within(module_of(source), "t3vis.commands") or module_of(source) == "t3vis.cli":
            continue
        calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
        printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not printing, f"{source} prints in line {printing}"


def test_these_rules_have_something_to_rule():
    assert {"t3vis.store.reader", "t3vis.callbacks.recorder", "t3vis.analysis.data_map"} <= set(map(module_of, SOURCES))
    assert is_within("t3vis.store.shard.write_rows", "t3vis.store")
    assert "t3vis.store.shard.write_rows" in imports_of(PACKAGE / "store" / "results.py")
