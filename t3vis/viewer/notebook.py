"""The viewer in a notebook: a server in a thread, its page in a frame, and what is selected there back as ids."""

from __future__ import annotations

from threading import Thread

import numpy as np
import uvicorn
from numpy.typing import NDArray

from t3vis.store.reader import Run
from t3vis.viewer.app import make_app
from t3vis.viewer.security import new_token
from t3vis.viewer.selection import Selection
from t3vis.viewer.serve import listening

ANCESTORS = ("http://localhost:*", "http://127.0.0.1:*")
"""Where a notebook is: the page is shown in a frame of these alone."""


class View:
    """The viewer of a run, shown where it is the last value of a cell.

    The notebook has to run on this machine and be open at ``localhost``, or at `host` if that is another name of it: a
    browser gives the frame its cookie only if it has the notebook's own host name.

    ``view = run.view()`` makes one; what is selected on the page is in ``view.selected`` at once.
    """

    def __init__(self, run: Run, *, height: int = 800, host: str = "localhost", port: int = 0) -> None:
        self._height = height
        self._selection = Selection()
        token = new_token()
        self._socket = listening(port)
        self.url = f"http://{host}:{self._socket.getsockname()[1]}/?token={token}"
        """Opens the page, with its token."""
        app = make_app(run, token=token, ancestors=ANCESTORS, selection=self._selection)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    @property
    def selected(self) -> NDArray[np.int64]:
        """Ids of the examples that are selected on the page, in increasing order."""
        return self._selection.ids

    @property
    def split(self) -> str | None:
        """Name of the split that they are of; ``None`` before the page is open."""
        return self._selection.split

    def close(self) -> None:
        """Stop the server; the page works no longer."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _repr_html_(self) -> str:
        style = f"width: 100%; height: {self._height}px; border: 0"
        return f'<iframe src="{self.url}" style="{style}" allow="clipboard-write" title="t3vis"></iframe>'
