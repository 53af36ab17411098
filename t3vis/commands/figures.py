"""The commands that draw what was analysed, and write it down as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from t3vis.commands.arguments import Commands, add_command, add_run_and_split, opened_split
from t3vis.commands.output import beside, stem
from t3vis.errors import AnalysisError
from t3vis.store.reader import Run, Split, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add(commands: Commands) -> None:
    """Declare ``plot`` and ``report``."""
    plot = add_command(
        commands,
        "plot",
        _plot,
        "draw the data map, or the layers, or the classes",
        "t3vis plot runs/demo.zarr --output data_map.png",
    )
    add_run_and_split(plot)
    plot.add_argument(
        "--what", choices=["data-map", "layers", "drift", "classes"], default="data-map", help="what (%(default)s)"
    )
    plot.add_argument("--output", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: beside the run)")
    plot.add_argument("--suspects", type=int, default=0, metavar="N", help="ring the N most suspicious examples")

    report = add_command(
        commands,
        "report",
        _report,
        "write all that is known of a run as one HTML file, to be read without t3vis",
        "t3vis report runs/demo.zarr --output report.html",
    )
    report.add_argument("run", metavar="RUN", help="path or URL of the run")
    report.add_argument("--output", type=Path, metavar="FILE", help="where it goes (default: beside the run)")


def _plot(options: argparse.Namespace) -> None:
    from t3vis.plots import write_figure  # matplotlib is an extra

    run, split = opened_split(options)
    figure = _figure(run, split, options)
    output = options.output or beside(run, f"{stem(run)}-{split.name}-{options.what}.png")
    write_figure(figure, output)
    print(f"{options.what.replace('-', ' ')} written to {output}")


def _figure(run: Run, split: Split, options: argparse.Namespace) -> Figure:
    from t3vis.analyze import analyzed_data_map, analyzed_drift, analyzed_separability, analyzed_suspects
    from t3vis.plots import plot_data_map
    from t3vis.plots_layers import plot_cka, plot_classes, plot_layers

    title = f"{stem(run)}: {split.name} ({split.attributes['mode']} mode)"
    if options.what == "layers":
        found = analyzed_separability(run, split)
        return plot_layers(found.figures["probe_accuracy"], passes=found.passes, layers=found.layers, title=title)
    if options.what == "drift":
        drift = analyzed_drift(run, split)
        return plot_cka(drift.cka, passes=drift.passes, layers=drift.layers, title=title)
    mapped = analyzed_data_map(run, split)
    if options.what == "classes":
        labels = split.labels
        if labels.ndim != 1:
            raise AnalysisError(f"{split.path} has no classes but several labels or numbers for each example.")
        return plot_classes(mapped.confidence, labels, class_names=split.class_names, title=title)
    highlight = None
    if options.suspects > 0:
        highlight = analyzed_suspects(run, split).ranking()[: options.suspects]
    return plot_data_map(
        mapped, title=title, highlight=highlight, highlight_label=f"{options.suspects} most suspicious labels"
    )


def _report(options: argparse.Namespace) -> None:
    from t3vis.report import write_report

    run = open_run(options.run)
    output = options.output or beside(run, f"{stem(run)}-report.html")
    size = write_report(run, output)
    print(f"report written to {output} ({size / 1e6:.1f} MB); open it in a browser")
