"""The command ``t3vis``: arguments in, one call, text out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import t3vis
from t3vis.commands import analyses, attention, demo, explain, export, figures, heads, info, maps, stores, view
from t3vis.errors import T3VisError

GROUPS = (demo, info, analyses, figures, maps, attention, heads, explain, view, export, stores)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 1 with a message on standard error if it could not be done."""
    options = parser().parse_args(arguments)
    try:
        options.command(options)
    except T3VisError as error:
        print(f"t3vis: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stderr.close()
        return 1
    except (OSError, ImportError) as error:  # a disk that cannot be written, an extra that is not installed
        print(f"t3vis: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("t3vis: interrupted", file=sys.stderr)
        return 130  # as shells have it
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line and its help."""
    root = argparse.ArgumentParser(
        prog="t3vis",
        description="Record what a Transformer does with every example while it is fine-tuned, and look at it.",
    )
    root.add_argument("--version", action="version", version=f"t3vis {t3vis.__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return root


if __name__ == "__main__":
    sys.exit(main())
