"""The command that maps hidden states."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t3vis.commands.arguments import Commands, add_command, add_run_and_split, opened_split
from t3vis.commands.output import beside, stem
from t3vis.errors import ConfigurationError

COLORS = ("label", "neighbour_recall", "trustworthiness", "continuity", "neighbour_overlap")


def add(commands: Commands) -> None:
    """Declare ``project``."""
    project = add_command(
        commands,
        "project",
        _project,
        "map the hidden states of one layer in one epoch, and say how far to trust the map",
        "t3vis project runs/demo.zarr --epoch 0 --layer 2",
    )
    add_run_and_split(project)
    project.add_argument("--epoch", type=int, default=-1, metavar="E", help="epoch, or number of the evaluation (last)")
    project.add_argument("--layer", type=int, metavar="L", help="which hidden states, 0 of the embeddings (last)")
    project.add_argument("--method", choices=["tsne", "pca", "umap"], default="tsne", help="(%(default)s)")
    project.add_argument("--color", choices=COLORS, default="label", help="what colours the examples (%(default)s)")
    project.add_argument("--seed", type=int, default=0, help="of all that is left to chance (%(default)s)")
    project.add_argument("--output", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: beside the run)")


def _project(options: argparse.Namespace) -> None:
    from t3vis.analyze_projection import analyzed_projection  # openTSNE and scikit-learn take a second to load
    from t3vis.plot_projection import plot_projection, quality_lines
    from t3vis.plots import write_figure

    run, split = opened_split(options)
    with _cancelled_by_interrupt() as cancel:
        found = analyzed_projection(
            run,
            split,
            pass_index=options.epoch,
            layer=options.layer,
            method=options.method,
            seed=options.seed,
            cancel=cancel,
        )
    if options.color != "label" and options.color not in found.columns:
        raise ConfigurationError(f"--color {options.color}: this map was not started from another, there is none.")
    lines = quality_lines(found.quality, found.attributes, found.n_seen)
    name = f"{stem(run)}-{split.name}-{found.name.replace('_', '-')}"
    labels = split.labels
    figure = plot_projection(
        found.coordinates,
        labels=labels if labels.ndim == 1 else None,
        class_names=split.class_names,
        values=None if options.color == "label" else found.columns[options.color],
        values_name=options.color.replace("_", " "),
        notes=lines,
        title=name,
    )
    output = options.output or beside(run, f"{name}.png")
    write_figure(figure, output)
    print("\n".join([f"{name}: {found.n_seen:,} examples ({split.attributes['mode']} mode)", *lines]))
    print(f"map written to {output}")


@contextmanager
def _cancelled_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; what is being computed then stops by itself, and the second time at once."""
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
