"""The command that hands a run to other tools."""

from __future__ import annotations

import argparse
from pathlib import Path

from t3vis.commands.arguments import Commands, add_command, add_run_and_split, opened_split
from t3vis.commands.output import beside, stem

TOOLS = ("parquet", "csv", "jsonl", "embedding-atlas", "spotlight", "lit", "projector", "fiftyone", "datalab")
"""Names of those in `t3vis.exports.export`, which takes a second to load."""


def add(commands: Commands) -> None:
    """Declare ``export``."""
    export = add_command(
        commands,
        "export",
        _export,
        "write the examples and what was found out about them for another tool, and say how it is opened",
        "t3vis export runs/demo.zarr --to parquet --output demo.parquet",
    )
    add_run_and_split(export)
    export.add_argument("--to", choices=TOOLS, required=True, help="the tool, or the format of a file")
    export.add_argument("--epoch", type=int, default=-1, metavar="E", help="epoch, or number of the evaluation (last)")
    export.add_argument(
        "--columns",
        metavar="A,B,...",
        help="such as text,label,loss,confidence,suspicion (all that is known without a new analysis)",
    )
    export.add_argument("--output", type=Path, metavar="PATH", help="file or folder (default: beside the run)")


def _export(options: argparse.Namespace) -> None:
    from t3vis.exports.export import EXPORTERS, export

    run, split = opened_split(options)
    columns = None if options.columns is None else options.columns.split(",")
    suffix = EXPORTERS[options.to].suffix
    output = options.output or beside(run, f"{stem(run)}-{split.name}-{options.to}{suffix}")
    opened_by = export(run, split, options.to, output, epoch=options.epoch, columns=columns)
    print(f"{split.n_examples:,} examples of {split.name} written to {output} for {EXPORTERS[options.to].what}")
    print(f"open it with:\n\n{opened_by}")
