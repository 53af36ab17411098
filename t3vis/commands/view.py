"""The commands that serve a run to the browser, or to other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t3vis.commands.arguments import Commands, add_command
from t3vis.errors import ConfigurationError
from t3vis.store.reader import open_run


def add(commands: Commands) -> None:
    """Declare ``view`` and ``serve``."""
    view = add_command(
        commands, "view", _view, "show a run in the browser, also while it is training", "t3vis view runs/demo.zarr"
    )
    serve = add_command(
        commands, "serve", _serve, "serve a run's data over HTTP without the page", "t3vis serve runs/demo.zarr"
    )
    for command in (view, serve):
        command.add_argument("run", metavar="RUN", help="path or URL of the run")
        command.add_argument("--model", type=Path, metavar="FOLDER", help="ask this model, not the last checkpoint")
        command.add_argument("--trust-remote-code", action="store_true", help="run code that lies beside its weights")
        command.add_argument("--port", type=int, default=0, help="port on this machine (any that is free)")
    view.add_argument("--no-browser", action="store_true", help="only say where the page is")
    view.add_argument(
        "--export",
        type=Path,
        metavar="PATH",
        help="write the viewer to a folder for a static host, or to one file NAME.html, instead of serving it",
    )
    view.add_argument(
        "--examples",
        type=_ids,
        metavar="ID,ID,...",
        help="with --export: examples that can be looked into there, with what the model says (the most suspicious)",
    )


def _view(options: argparse.Namespace) -> None:
    if options.export is None:
        if options.examples is not None:
            raise ConfigurationError("--examples says what an export is to hold; give --export PATH too.")
        _serving(options, page=True, browser=not options.no_browser)
        return
    run = open_run(options.run)
    with _needing_viewer():
        from t3vis.viewer.export import export_viewer
    export_viewer(
        run,
        options.export,
        examples=options.examples,
        model=options.model,
        trust_remote_code=options.trust_remote_code,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(options.export)


def _ids(given: str) -> list[int]:
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected ids with commas between them, such as 3,17; found {given!r}"
        ) from None


def _serve(options: argparse.Namespace) -> None:
    _serving(options, page=False, browser=False)


def _serving(options: argparse.Namespace, *, page: bool, browser: bool) -> None:
    run = open_run(options.run)
    with _needing_viewer():
        from t3vis.viewer.serve import serve
    serve(
        run,
        port=options.port,
        page=page,
        browser=browser,
        model=options.model,
        trust_remote_code=options.trust_remote_code,
        say=lambda line: print(line, flush=True),
    )


@contextmanager
def _needing_viewer() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed; pip install 't3vis[viewer]'.") from error
