"""The report on a run: one HTML file with all that is known of it, to be read without anything installed.

Every split has a chapter of its own: what was recorded in training and in evaluations is of different modes, and stands
side by side only where the mode of each is said.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import t3vis
from t3vis.analyze import Progress, analyzed_progress
from t3vis.errors import ConfigurationError, T3VisError
from t3vis.report_page import Block, Cell, Chapter, Facts, Missing, Section, Table, Text, cut, rendered
from t3vis.report_sections import UNKNOWN, drawn, number, section, sections_of
from t3vis.store import segments
from t3vis.store.passes import as_path
from t3vis.store.reader import Run, Split

PROBED = {"train": ", a probe of the training set", "dataset": ", a probe of a dataset of its own"}


def write_report(run: Run, path: Path) -> int:
    """Write what is known of a run as one HTML file.

    Parameters
    ----------
    run
        What to report on; its analyses are computed if they are not in the store, or not current.
    path
        Of the file.

    Returns
    -------
    Its size in bytes.

    Raises
    ------
    ConfigurationError
        If it cannot be written.
    """
    page = report(run).encode()
    try:
        path.write_bytes(page)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}; choose another path.") from error
    return len(page)


def report(run: Run) -> str:
    """What is known of a run, as HTML; see `write_report`."""
    attributes = run.attributes
    about = (
        f"{_model_name(attributes.get('model', {}))}; recording begun {attributes['t3vis']['created']}; report of "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by t3vis {t3vis.__version__}"
    )
    splits = run.splits
    chapters = [
        Chapter("The run", [section("Accuracy and loss", _passes, run), section("What is missing", _gaps, run)]),
        *(Chapter(_title(split), sections_of(run, split)) for split in splits.values()),
        Chapter("How it was made", _settings(attributes)),
    ]
    return rendered(Path(str(run.path)).name, about, chapters)


def _model_name(model: dict[str, Any]) -> str:
    return " ".join(str(model[key]) for key in ("class", "name") if model.get(key)) or "unknown model"


def _title(split: Split) -> str:
    probed = PROBED.get(split.attributes.get("probe", ""), "")
    return f"{split.name}, recorded in {split.attributes['mode']} mode{probed}"


def _passes(run: Run) -> list[Block]:
    """Accuracy and loss of every split, each in its own mode."""
    found: list[tuple[Split, Progress]] = []
    missing: list[Block] = []
    for split in run.splits.values():
        try:
            found.append((split, analyzed_progress(run, split)))
        except T3VisError as error:
            missing.append(Missing(f"{split.name}: {error}"))
    if not found:
        return missing or [Missing("nothing was recorded yet; train, or evaluate, with the recorder first.")]
    return [
        Text(
            "What is recorded in training is the mean over a pass in which the model still changes and dropout is on; "
            "an evaluation is of the model as it then was, without dropout. The two are not the same measure."
        ),
        drawn(lambda: _curves(found), "Accuracy and mean loss of every split, pass by pass"),
        Table([row for split, progress in found for row in _pass_rows(split, progress)]),
        *missing,
    ]


def _curves(found: list[tuple[Split, Progress]]) -> Any:
    from t3vis.plots_passes import Curve, plot_passes

    return plot_passes(
        [Curve(split.name, split.attributes["mode"], done.epochs, done.figures) for split, done in found]
    )


def _pass_rows(split: Split, progress: Progress) -> list[dict[str, Cell]]:
    figures = progress.figures
    return [
        {
            "split": split.name,
            "mode": split.attributes["mode"],
            "pass": str(index),
            "epochs trained": f"{epoch:g}" if split.kind == "eval" else f"{epoch:g} to {epoch + 1:g}",
            **{
                title: number(figures[name][i]) if name in figures else UNKNOWN
                for title, name in (("accuracy", "accuracy"), ("gold probability", "gold_prob"), ("loss", "loss"))
            },
        }
        for i, (index, epoch) in enumerate(zip(progress.passes, progress.epochs, strict=True))
    ]


def _gaps(run: Run) -> list[Block]:
    """Rows that are not there, passes that were not completed, and where training was resumed."""
    said = []
    attempts = segments.attempts(as_path(run.path))
    starts = [known["start_step"] for known in attempts if known["attempt"] and known["start_step"]]
    if starts:
        said.append(f"Training was resumed from step {', '.join(map(str, sorted(set(starts))))}.")
    if run.missing_rows:
        causes = sorted({str(known["first_error"]) for known in attempts if known["first_error"]})
        said.append(f"{run.missing_rows:,} rows could not be recorded: {'; '.join(causes)}")
    for split in run.splits.values():
        for record in split.passes:
            if not record.sealed:
                said.append(
                    f"{split.name}, pass {record.index}: not completed; {record.n_seen:,} of {record.n_examples:,} "
                    "examples were seen so far."
                )
            elif record.n_never:
                said.append(
                    f"{split.name}, pass {record.index}: {record.n_never:,} of {record.n_examples:,} examples were "
                    "never seen."
                )
    return [Text(text) for text in said] or [Text("Nothing: every example was recorded in every pass.")]


def _settings(attributes: dict[str, Any]) -> list[Section]:
    model = attributes.get("model", {})
    groups = {
        "Model": {"class": model.get("class"), "name": model.get("name"), **model.get("config", {})},
        "TrainingArguments": attributes.get("training_arguments", {}),
        "Recorder": attributes.get("recorder", {}),
        "Versions": attributes.get("versions", {}),
    }
    return [
        Section(title, [Facts([(name, _value(value)) for name, value in said.items()])])
        for title, said in groups.items()
    ]


def _value(value: Any) -> str:
    if value is None or value == "":
        return UNKNOWN
    return cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
