"""How a subcommand and the arguments that several of them share are declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from t3vis.store.reader import Run, Split, open_run

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, call: Callable[[argparse.Namespace], None], what: str, example: str
) -> argparse.ArgumentParser:
    """Declare a subcommand that runs ``call``; its help says what it does and shows an example."""
    made = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=call)
    return made


def add_run_and_split(command: argparse.ArgumentParser) -> None:
    """Declare ``RUN`` and ``--split``."""
    command.add_argument("run", metavar="RUN", help="path or URL of the run")
    command.add_argument("--split", default="train", help="train, or the name of an evaluation set (%(default)s)")


def opened_split(options: argparse.Namespace) -> tuple[Run, Split]:
    """The run and the split that `add_run_and_split` asked for.

    Raises
    ------
    StoreError
        If there is no run.
    AnalysisError
        If it has no split of that name.
    """
    run = open_run(options.run)
    return run, run.named(options.split)
