import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from t3vis import open_run
from t3vis.cli import main
from t3vis.viewer.app import make_app
from t3vis.viewer.serve import HOST, listening
from tests.viewer.asked import asked_run
from tests.viewer.browser import browser, page

__all__ = ["browser", "page"]  # fixtures

TOKEN = "let-me-in"


@pytest.fixture(scope="session")
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a real Trainer has recorded."""
    folder = tmp_path_factory.mktemp("viewer")
    with contextlib.chdir(folder):
        assert main(["demo", "--examples", "240", "--epochs", "3", "--output", "demo.zarr"]) == 0
    return folder / "demo.zarr"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Served:
    """A server that runs beside the tests."""

    port: int

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def entry(self) -> str:
        """The page's address, with the token that opens it."""
        return f"{self.address}/?token={TOKEN}"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """One request, its path sent as it is; headers by name with _ for -; ``authorization=""`` leaves it out."""
        given = {"Authorization": f"Bearer {TOKEN}"} | {
            name.replace("_", "-").title(): value for name, value in headers.items()
        }
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            connection.request(method, path, body, {name: value for name, value in given.items() if value})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@contextlib.contextmanager
def serving(path: Path, **options: Any) -> Iterator[Served]:
    socket = listening(0)
    app = make_app(open_run(path), token=TOKEN, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield Served(socket.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


@pytest.fixture(scope="session")
def served(recorded_run: Path) -> Iterator[Served]:
    with serving(recorded_run) as server:
        yield server


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with gradients of heads and checkpoints, of texts in few words."""
    return asked_run(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="session")
def asked_served(asked: Path) -> Iterator[Served]:
    with serving(asked) as server:
        yield server
