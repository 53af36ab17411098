import contextlib
import http.client
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from filelock import FileLock

from t3vis import open_run
from t3vis.viewer.app import make_app
from t3vis.viewer.serve import HOST, listening
from tests.callbacks.tiny import recorded
from tests.viewer.asked import asked_run
from tests.viewer.browser import browser, page
from tests.viewer.topics import Probed, topics_run

__all__ = ["browser", "page"]  # fixtures

TOKEN = "let-me-in"


def shared(tmp_path_factory: pytest.TempPathFactory, name: str, record: Callable[[Path], object]) -> Path:
    """A copy of a folder that the first process of the tests that needs it has filled."""
    base = tmp_path_factory.getbasetemp()
    common = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"recorded-{name}"
    with FileLock(f"{common}.lock"):
        if not (common / "complete").exists():
            common.mkdir()
            record(common)
            (common / "complete").touch()
    return Path(shutil.copytree(common, tmp_path_factory.mktemp(name), dirs_exist_ok=True))


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
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a real Trainer has recorded."""
    return shared(tmp_path_factory, "topics", topics_run) / "topics.zarr"


@pytest.fixture(scope="session")
def served(recorded_run: Path) -> Iterator[Served]:
    with serving(recorded_run) as server:
        yield server


@pytest.fixture(scope="session")
def probed(recorded_run: Path, served: Served) -> Probed:
    return Probed(open_run(recorded_run), served, np.load(recorded_run.with_name("wrong.npy")))


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with gradients of heads and checkpoints, of texts in few words."""
    return shared(tmp_path_factory, "asked", asked_run) / "asked.zarr"


@pytest.fixture(scope="session")
def asked_served(asked: Path) -> Iterator[Served]:
    with serving(asked) as server:
        yield server


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without text, gradients of heads, and checkpoints."""
    return shared(tmp_path_factory, "plain", recorded) / "run.zarr"


@pytest.fixture(scope="session")
def plain_served(plain: Path) -> Iterator[Served]:
    with serving(plain) as server:
        yield server
