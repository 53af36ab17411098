"""The viewer without a server: a folder for any static host, or one HTML file that opens by itself.

Everything that the page asks a server for is written down beforehand; what takes a lasting computation is there as far
as it has been computed, and the model is asked about a few examples.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t3vis.analyze import analyzed_suspects
from t3vis.analyze_projection import last_map
from t3vis.errors import AnalysisError, ConfigurationError, ProbingError
from t3vis.example_columns import Column, columns_of
from t3vis.store.reader import Run, Split
from t3vis.store.results import result_names
from t3vis.viewer.app import described
from t3vis.viewer.examples import example
from t3vis.viewer.figures import FIGURE_KINDS, Figures
from t3vis.viewer.heads import importance, patterns
from t3vis.viewer.page import STATIC
from t3vis.viewer.texts import rows

if TYPE_CHECKING:
    from t3vis.viewer.kept_answers import KeptAnswers
    from t3vis.viewer.models import Models

MAX_IN_FILE = 200_000
"""Examples that one HTML file may hold; browsers open more of them slowly, or not at all."""
PAGE = 1000
"""Texts of one file of a folder."""
N_CHOSEN = 300
"""Examples of a split whose tokens and trajectories are written down, if none are chosen."""
N_ASKED = 20
"""Of these, those about which the model is asked."""

Resources = Iterator[tuple[str, bytes]]
POLICY = {
    "folder": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'",
    "file": "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data: blob:",
}
_IMPORT = re.compile(r'(\bfrom\s*|\bimport\s*)"\./([\w./-]+\.js)"')


def export_viewer(
    run: Run,
    path: Path,
    *,
    examples: Sequence[int] | None = None,
    model: Path | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the viewer of a run, as it is now, to a new folder, or to a file if `path` ends with ``.html``.

    Parameters
    ----------
    run
        What is shown.
    path
        Must not exist.
    examples
        Ids, in every split that has them, whose tokens and trajectories can be looked at, and what the model predicts,
        on which tokens that rests and what its heads attend to. By default tokens and trajectories of the 300 most
        suspicious labels and the model's answers about the first 20 of these. Texts, labels and columns are there of
        all.
    model
        Folder of the model that is asked; by default the last checkpoint is, where there is one.
    trust_remote_code
        Whether code that lies beside its weights may run.
    say
        Is told what is left out.

    Raises
    ------
    ConfigurationError
        If there is something at `path`, no split has one of `examples`, or one file would have to hold more than
        200,000 examples.
    ProbingError
        If the model that was named cannot be loaded; a checkpoint that cannot be is left out.
    """
    if path.exists():
        raise ConfigurationError(f"{path} is there already; remove it, or export to another path.")
    most = max((split.n_examples for split in run.splits.values()), default=0)
    unknown = next((number for number in examples or () if not 0 <= number < most), None)
    if unknown is not None:
        raise ConfigurationError(f"no split of {run.path} has an example {unknown}; ids go from 0 to {most - 1}.")
    is_file = path.suffix == ".html"
    n_examples = sum(split.n_examples for split in run.splits.values())
    if is_file and n_examples > MAX_IN_FILE:
        raise ConfigurationError(
            f"{run.path} has {n_examples:,} examples, and one file may hold {MAX_IN_FILE:,}; export to a folder."
        )
    asked = _Asked(model, trust_remote_code)
    asked.check(run)
    found = _resources(run, examples, asked, say)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_file:
        path.write_text(_one_file(found), encoding="utf-8")
    else:
        _write_folder(path, found)


def _resources(run: Run, examples: Sequence[int] | None, asked: _Asked, say: Callable[[str], None]) -> Resources:
    """What the page will ask for, by name."""
    about = described(run)
    kept = {}
    for number, split in enumerate(run.splits.values()):
        chosen = (
            _chosen(run, split) if examples is None else [i for i in dict.fromkeys(examples) if i < split.n_examples]
        )
        yield from _of_split(run, split, f"splits/{number}", sorted(chosen), say)
        answers = asked.answers(run, split, say)
        if answers is not None:
            of_model = chosen[:N_ASKED] if examples is None else chosen
            yield from ((f"splits/{number}/answers/{name}", content) for name, content in answers.resources(of_model))
            kept[split.name] = answers.described()
    about["probing"] = {"model": None, "methods": [], "kept": kept}
    for described_split in about["splits"]:
        for record in described_split["passes"]:
            record["has_checkpoint"] = False  # the page has nobody who could load it
    yield "run.json", _json(about)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Which model is asked before the page is there."""

    model: Path | None
    trust_remote_code: bool

    @cached_property
    def _models(self) -> Models:
        from t3vis.viewer.models import Models  # torch takes seconds to load

        return Models(self.model, trust_remote_code=self.trust_remote_code)

    def check(self, run: Run) -> None:
        """See that a model that was named can be loaded, before anything is written."""
        if self.model is not None:
            for split in run.splits.values():
                self._models.of(split, None)

    def answers(self, run: Run, split: Split, say: Callable[[str], None]) -> KeptAnswers | None:
        if self.model is None and not any(record.checkpoint for record in split.passes):
            say(f"left out: what the model says to examples of {split.name} (no model; name its folder)")
            return None
        from t3vis.viewer.kept_answers import KeptAnswers  # torch takes seconds to load

        try:
            return KeptAnswers(run, split, self._models, named=self.model is not None, say=say)
        except ProbingError as error:
            say(f"left out: what the model says to examples of {split.name} ({error})")
            return None


def _of_split(run: Run, split: Split, root: str, chosen: Sequence[int], say: Callable[[str], None]) -> Resources:
    catalogue = []
    for column in _columns(run, split):
        try:
            values = column.to_bytes()
        except AnalysisError as error:
            say(f"left out: {column.id} of {split.name} ({error})")
            continue
        catalogue.append(column.described())
        yield f"columns/{column.key}.bin", values
    yield f"{root}/columns.json", _json({"n": split.n_examples, "columns": catalogue})
    for kind in FIGURE_KINDS:
        try:
            yield f"{root}/figures/{kind}.json", Figures(run, split, kind).to_bytes()
        except AnalysisError as error:
            yield f"{root}/figures/{kind}.json", _json({"error": str(error)})
    for record in split.passes:
        yield f"{root}/heads/importance-{record.index}.json", _json(importance(run, split, record, []))
        yield f"{root}/heads/pattern-{record.index}.json", _json(patterns(run, split, record))
    for start in range(0, split.n_examples, PAGE):
        ids = list(range(start, min(start + PAGE, split.n_examples)))
        yield f"{root}/texts/{start // PAGE}.json", _json(rows(split, ids))
    yield f"{root}/examples.json", _json({str(number): example(run, split, number) for number in chosen})


def _columns(run: Run, split: Split) -> list[Column]:
    """All columns but those of maps that nobody has looked at yet; of these the last."""
    if "hidden_states" in split.arrays and split.passes:
        last_map(run, split)
    there = set()
    for name in result_names(run.path, split.name):
        said = re.fullmatch(r"(tsne|pca)_p(\d+)_l(\d+)", name)
        if said:
            there.add(f"{said[1]}:{int(said[3])}@{int(said[2])}")
    columns = columns_of(run, split)
    return [column for column in columns if column.layer is None or column.id.partition(":")[2] in there]


def _chosen(run: Run, split: Split) -> list[int]:
    """The most suspicious examples, first of all; of a task without suspects any are as good."""
    try:
        ranking = analyzed_suspects(run, split).ranking()
    except AnalysisError:
        ranking = np.arange(split.n_examples)
    chosen: list[int] = ranking[:N_CHOSEN].tolist()
    return chosen


def _write_folder(path: Path, found: Resources) -> None:
    for file in STATIC.rglob("*"):
        if file.is_file():
            target = path / file.relative_to(STATIC)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    (path / "index.html").write_text(page.replace("<title>", f"{_head('folder')}<title>"), encoding="utf-8")
    (path / ".nojekyll").touch()  # GitHub Pages leaves files alone then
    for name, content in found:
        target = path / "data" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _one_file(found: Resources) -> str:
    modules = {
        f"t3vis/{file.relative_to(STATIC).as_posix()}": _as_data(_with_bare_imports(file.read_text(encoding="utf-8")))
        for file in sorted(STATIC.rglob("*.js"))
    }
    embedded = "\n".join(
        f'<script type="application/gzip" data-name="{html.escape(name)}">'
        f"{base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()}</script>"
        for name, content in found
    )
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    licences = "\n".join(file.read_text(encoding="utf-8") for file in sorted((STATIC / "vendor").glob("LICENSE*")))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{_head("file")}
<title>t3vis</title>
<style>
{style}</style>
<script type="importmap">{json.dumps({"imports": modules})}</script>
</head>
<body><div id="app" aria-busy="true"><p class="waiting">Opening the run…</p></div>
<script type="text/plain">{html.escape(licences)}</script>
{embedded}
<script type="module">import "t3vis/main.js";</script>
</body>
</html>
"""


def _head(kind: str) -> str:
    return (
        f'<meta http-equiv="content-security-policy" content="{POLICY[kind]}">\n'
        f'<meta name="t3vis-export" content="{kind}">\n'
    )


def _with_bare_imports(source: str) -> str:
    """A module whose imports are found by the import map, since addresses of data have nothing beside them."""
    return _IMPORT.sub(r'\1"t3vis/\2"', source)


def _as_data(source: str) -> str:
    return f"data:text/javascript;base64,{base64.b64encode(source.encode()).decode()}"


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
