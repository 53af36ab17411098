"""`t3vis export`: what each tool is given, and the command that opens it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t3vis.analyze_projection import kept_projection
from t3vis.errors import AnalysisError, ConfigurationError
from t3vis.exports.datalab import write_datalab
from t3vis.exports.fiftyone import write_fiftyone
from t3vis.exports.files import write_csv, write_jsonl, write_parquet
from t3vis.exports.lit import write_lit
from t3vis.exports.neighbours import neighbours_of
from t3vis.exports.projector import write_projector
from t3vis.exports.table import ArrowColumn, arrow_columns, default_columns, pass_index
from t3vis.store.reader import Run, Split

STATES = "hidden_states"


@dataclass(frozen=True)
class Export:
    """What is exported, and where to."""

    run: Run
    split: Split
    path: Path
    index: int
    """Of the pass."""
    columns: list[ArrowColumn]

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [column.name for column in self.columns]

    @property
    def quoted(self) -> str:
        """The path, as a shell takes it."""
        return shlex.quote(str(self.path))


@dataclass(frozen=True)
class Exporter:
    """Writes what a tool loads, and says how that is opened."""

    what: str
    suffix: str
    """Of the file; empty for a folder."""
    write: Callable[[Export], None]
    opened_by: Callable[[Export], str]
    needs: tuple[str, ...] = ()
    """Arrays of the split."""
    takes_lists: bool = False
    """Whether columns may hold several values for each example."""
    with_states: bool = False
    """Whether the hidden states may, and are among the columns if none are named."""


def export(
    run: Run, split: Split, to: str, path: Path, *, epoch: int = -1, columns: Sequence[str] | None = None
) -> str:
    """Write a split as a tool loads it.

    Parameters
    ----------
    to
        Name of the tool or format, one of `EXPORTERS`.
    path
        File, or folder, that is not there yet.
    epoch, columns
        As in `Run.table`.

    Returns
    -------
    The command, or the line of Python, that opens it.

    Raises
    ------
    ConfigurationError
        If there is no such tool, or something at the path.
    AnalysisError
        If the split lacks what the tool needs. Nothing is left at the path then.
    """
    if to not in EXPORTERS:
        raise ConfigurationError(f"there is no export to {to!r}; there is one to {', '.join(EXPORTERS)}.")
    exporter = EXPORTERS[to]
    if path.exists():
        raise ConfigurationError(f"{path} is there already; remove it, or export to another path.")
    absent = [name for name in exporter.needs if name not in split.arrays]
    if absent:
        raise AnalysisError(
            f"{split.path} holds no {absent[0]}, which {to} needs; it holds: {', '.join(split.arrays)}. Record them "
            "with the next run, or export to parquet."
        )
    wanted = default_columns(run, split, epoch=epoch) if columns is None else list(columns)
    if columns is None and exporter.with_states and split.layers:
        wanted.append(STATES)
    found = arrow_columns(run, split, epoch=epoch, columns=wanted)
    states = {STATES} if exporter.with_states else set()
    lists = [] if exporter.takes_lists else [c.name for c in found if c.is_nested and c.name not in states]
    if lists and columns is not None:
        raise AnalysisError(
            f"{lists[0]} has several values for each example, which {to} does not take; name other columns, or export "
            "to parquet or jsonl."
        )
    made = Export(run, split, path, pass_index(split, epoch), [c for c in found if c.name not in lists])
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not exporter.suffix:
            path.mkdir()
        exporter.write(made)
    except BaseException:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        raise
    return exporter.opened_by(made)


def _atlas(made: Export) -> None:
    neighbours = _neighbours(made)
    columns = made.columns if neighbours is None else [*made.columns, neighbours]
    write_parquet(made.path, columns, made.split.n_examples)


def _open_atlas(made: Export) -> str:
    text = next((name for name in made.names if name in made.split.text), None)
    options = ["" if text is None else f" --text {shlex.quote(text)}"]
    if "x" in made.names:
        options.append(" --x x --y y --disable-projection")
        options.append("" if _neighbours(made) is None else " --neighbors neighbors")
    elif STATES in made.names:
        options.append(f" --vector {STATES}")
    return f"embedding-atlas {made.quoted}{''.join(options)}"


def _neighbours(made: Export) -> ArrowColumn | None:
    found = kept_projection(made.run, made.split) if "x" in made.names else None
    return None if found is None else neighbours_of(made.run, made.split, found.name)


def _open_spotlight(made: Export) -> str:
    kinds = {"label": "Category", "prediction": "Category", "suggested_label": "Category", "region": "Category"}
    chosen = [f" --dtype {name}={kinds[name]}" for name in made.names if name in kinds]
    states = f" --dtype {STATES}=Embedding" if STATES in made.names else ""
    return f"spotlight {made.quoted}{''.join(chosen)}{states}"


def _fiftyone(made: Export) -> None:
    found = kept_projection(made.run, made.split) if made.split.layers else None
    write_fiftyone(
        made.path,
        made.split,
        made.columns,
        made.index,
        name=made.path.name,
        points=None if found is None else found.coordinates,
    )


def _open_datalab(made: Export) -> str:
    states = f', features=np.load("{made.path}/features.npy")' if made.split.layers else ""
    return (
        "import numpy as np, pandas as pd; from cleanlab import Datalab\n"
        f'lab = Datalab(pd.read_parquet("{made.path}/examples.parquet"), label_name="label")\n'
        f'lab.find_issues(pred_probs=np.load("{made.path}/pred_probs.npy"){states})'
    )


EXPORTERS: dict[str, Exporter] = {
    "parquet": Exporter(
        "Apache Parquet",
        ".parquet",
        lambda made: write_parquet(made.path, made.columns, made.split.n_examples),
        lambda made: f'pandas.read_parquet("{made.path}")',
        takes_lists=True,
    ),
    "csv": Exporter(
        "CSV",
        ".csv",
        lambda made: write_csv(made.path, made.columns, made.split.n_examples),
        lambda made: f'pandas.read_csv("{made.path}")',
    ),
    "jsonl": Exporter(
        "lines of JSON",
        ".jsonl",
        lambda made: write_jsonl(made.path, made.columns, made.split.n_examples),
        lambda made: f'datasets.load_dataset("json", data_files="{made.path}")',
        takes_lists=True,
    ),
    "embedding-atlas": Exporter("Embedding Atlas", ".parquet", _atlas, _open_atlas, with_states=True),
    "spotlight": Exporter(
        "Renumics Spotlight",
        ".parquet",
        lambda made: write_parquet(made.path, made.columns, made.split.n_examples),
        _open_spotlight,
        with_states=True,
    ),
    "lit": Exporter(
        "Learning Interpretability Tool",
        "",
        lambda made: write_lit(made.path, made.split, made.columns, made.index),
        lambda made: f"python {made.quoted}/show.py",
    ),
    "projector": Exporter(
        "TensorBoard's Embedding Projector",
        "",
        lambda made: write_projector(made.path, made.split, made.columns, made.index),
        lambda made: f"tensorboard --logdir {made.quoted}",
        needs=(STATES,),
    ),
    "fiftyone": Exporter("FiftyOne", "", _fiftyone, lambda made: f"python {made.quoted}/show.py"),
    "datalab": Exporter(
        "cleanlab Datalab",
        "",
        lambda made: write_datalab(made.path, made.split, made.columns, made.index),
        _open_datalab,
        needs=("logits",),
    ),
}
"""By the names that ``t3vis export --to`` takes."""
