"""Serving a run on this machine until it is interrupted."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from t3vis.errors import ConfigurationError
from t3vis.store.reader import Run
from t3vis.viewer.app import make_app
from t3vis.viewer.security import new_token

HOST = "127.0.0.1"
HEADER_SECONDS = 10
"""A connection that says nothing for that long is closed."""


def listening(port: int) -> socket.socket:
    """A socket on this machine's own address; port 0 is any that is free.

    Raises
    ------
    ConfigurationError
        If the port is taken.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(128)
    except OSError as error:
        found.close()
        raise ConfigurationError(
            f"port {port} of {HOST} cannot be used ({error}); take another --port, or 0."
        ) from error
    return found


def serve(
    run: Run,
    *,
    port: int = 0,
    page: bool = True,
    browser: bool = True,
    model: Path | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None],
) -> None:
    """Serve a run until interrupted.

    Parameters
    ----------
    run
        What is shown.
    port
        On which; 0 is any that is free.
    page
        Whether the page is served too, or the data only.
    browser
        Whether to open the page in the user's browser.
    model, trust_remote_code
        As for ``make_app``.
    say
        Is told the address, with the token that opens it.

    Raises
    ------
    ConfigurationError
        If the port is taken.
    """
    token = new_token()
    found = listening(port)
    address = f"http://{HOST}:{found.getsockname()[1]}"
    app = make_app(run, token=token, page=page, model=model, trust_remote_code=trust_remote_code)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=HEADER_SECONDS, timeout_graceful_shutdown=2)
    say(f"{address}/?token={token}" if page else f"{address}/api/v1/run with the header Authorization: Bearer {token}")
    if page and browser:
        webbrowser.open(f"{address}/?token={token}")
    uvicorn.Server(config).run(sockets=[found])
