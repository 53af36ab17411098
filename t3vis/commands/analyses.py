"""The commands that analyse the examples of a split, rank them and choose among them."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import get_args

from t3vis.analysis.selection import dropped, select
from t3vis.commands.arguments import Commands, add_command, add_run_and_split, opened_split
from t3vis.commands.output import opened, table, terminal_width
from t3vis.errors import ConfigurationError
from t3vis.strategies import Strategy

RANKINGS = ("outlier", "moved", "new-neighbours", "flipped", "learned-last", "forgotten", "el2n", "ambiguous")
"""Names of those in `t3vis.findings`, which takes a second to load."""


def add(commands: Commands) -> None:
    """Declare ``analyze``, ``suspects``, ``rank``, ``classes`` and ``select``."""
    analyze = add_command(
        commands,
        "analyze",
        _analyze,
        "compute data map, label quality, layers, outliers and drift, and keep them in the run",
        "t3vis analyze runs/demo.zarr --burn-in 1",
    )
    add_run_and_split(analyze)
    analyze.add_argument("--burn-in", type=int, default=0, metavar="K", help="leave the first K epochs out")
    analyze.add_argument("--burn-out", type=int, metavar="K", help="leave out what follows the first K epochs")

    suspects = add_command(
        commands,
        "suspects",
        _suspects,
        "examples whose label is probably wrong, most suspicious first",
        "t3vis suspects runs/demo.zarr --top 10 --csv suspects.csv",
    )
    add_run_and_split(suspects)
    suspects.add_argument("--top", type=int, default=20, metavar="N", help="how many (%(default)s)")
    suspects.add_argument("--csv", type=Path, metavar="FILE", help="write them, with their whole texts, to FILE")

    rank = add_command(
        commands,
        "rank",
        _rank,
        "examples by how far out they lie, how much they moved, when they were learned, ...",
        "t3vis rank runs/demo.zarr --by outlier --top 10",
    )
    add_run_and_split(rank)
    rank.add_argument("--by", choices=list(RANKINGS), default="outlier", help="what comes first (%(default)s)")
    rank.add_argument("--top", type=int, default=20, metavar="N", help="how many (%(default)s)")

    classes = add_command(
        commands,
        "classes",
        _classes,
        "training dynamics of each class, the hardest first",
        "t3vis classes runs/demo.zarr",
    )
    add_run_and_split(classes)

    select_ = add_command(
        commands,
        "select",
        _select,
        "write the ids of a share of the examples, to train on or to leave out",
        "t3vis select runs/demo.zarr --strategy ambiguous --fraction 0.33 --output ambiguous.txt",
    )
    add_run_and_split(select_)
    select_.add_argument(
        "--strategy", choices=get_args(Strategy), default="ambiguous", help="what comes first (%(default)s)"
    )
    select_.add_argument("--fraction", type=float, default=0.33, metavar="SHARE", help="how many (%(default)s)")
    select_.add_argument("--balanced", action="store_true", help="take that share of each class")
    select_.add_argument("--drop", action="store_true", help="write the ids of all other examples instead")
    select_.add_argument("--seed", type=int, default=0, help="of the random strategy, and among equal examples")
    select_.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the ids go")


def _analyze(options: argparse.Namespace) -> None:
    from t3vis.findings import findings

    run, split = opened_split(options)
    for line in findings(run, split, burn_in=options.burn_in, burn_out=options.burn_out):
        print(line)
    if isinstance(run.path, Path):
        print(f"written to {run.path / 'analysis' / split.name}")


def _suspects(options: argparse.Namespace) -> None:
    from t3vis.findings import SUSPECT_COLUMNS, suspect_rows

    run, split = opened_split(options)
    _check_top(options.top)
    rows = suspect_rows(run, split, options.top)
    if options.csv is not None:
        with opened(options.csv) as file:
            writer = csv.DictWriter(file, SUSPECT_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        print(f"{len(rows)} suspects written to {options.csv}")
    print(table(rows, terminal_width()))


def _rank(options: argparse.Namespace) -> None:
    from t3vis.analyze import MEANINGS
    from t3vis.findings import RANKED_BY, ranked_rows

    run, split = opened_split(options)
    _check_top(options.top)
    print(table(ranked_rows(run, split, options.by, options.top), terminal_width()))
    print(f"\n{options.by}: {MEANINGS[RANKED_BY[options.by]]} ({split.attributes['mode']} mode)")


def _classes(options: argparse.Namespace) -> None:
    from t3vis.findings import class_rows

    run, split = opened_split(options)
    print(table(class_rows(run, split), terminal_width()))
    print(f"\nmeans over the examples of each class ({split.attributes['mode']} mode); forgotten: times per example")


def _select(options: argparse.Namespace) -> None:
    from t3vis.analyze import analyzed_data_map

    run, split = opened_split(options)
    mapped = analyzed_data_map(run, split)
    labels = split.labels if options.balanced else None
    ids = select(mapped, options.strategy, fraction=options.fraction, labels=labels, seed=options.seed)
    if options.drop:
        ids = dropped(mapped.n_examples, ids)
    with opened(options.output) as file:
        file.write("".join(f"{example}\n" for example in ids.tolist()))
    chosen = f"{options.fraction:.0%}, {options.strategy.replace('_', ' ')}"
    what = f"all but {chosen}" if options.drop else chosen
    print(f"{len(ids):,} of {mapped.n_examples:,} example ids written to {options.output}, one in a line ({what})")


def _check_top(top: int) -> None:
    if top < 1:
        raise ConfigurationError(f"--top {top}: expected a number of examples, at least 1.")
