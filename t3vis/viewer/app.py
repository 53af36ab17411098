"""The viewer's server: a Starlette application over one run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route

import t3vis
from t3vis.errors import ProbingError, T3VisError
from t3vis.example_columns import Column, columns_of
from t3vis.store.passes import Pass
from t3vis.store.reader import Run, Split
from t3vis.viewer.columns import ColumnCache
from t3vis.viewer.examples import example
from t3vis.viewer.figures import FIGURE_KINDS, Figures
from t3vis.viewer.heads import importance, patterns
from t3vis.viewer.live import events, state
from t3vis.viewer.openapi import document
from t3vis.viewer.page import page_files
from t3vis.viewer.probes import METHODS, Prober, probe_of
from t3vis.viewer.security import Guard
from t3vis.viewer.selection import Selection
from t3vis.viewer.tables import ids_of, to_parquet
from t3vis.viewer.texts import MAX_ROWS, TextSearch, rows
from t3vis.viewer.worker import ClosedError, Worker

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COLUMN_SECONDS = 1.0
"""A request for a column waits that long for it to be computed; less than a server that is stopped waits for it."""
IMMUTABLE = "private, max-age=31536000, immutable"


def make_app(
    run: Run,
    *,
    token: str,
    hosts: Iterable[str] = LOOPBACK,
    ancestors: Iterable[str] = (),
    page: bool = True,
    selection: Selection | None = None,
    model: Path | None = None,
    trust_remote_code: bool = False,
) -> Starlette:
    """The application that serves a run.

    Parameters
    ----------
    run
        What is shown; it may still be recorded.
    token
        What the first request has to carry as ``?token=``, or any as ``Authorization: Bearer``.
    hosts
        Names by which the server may be called.
    ancestors
        Origins that may show the viewer in a frame.
    page
        Whether the page itself is served, beside the data.
    selection
        Is told which examples are selected on the page.
    model
        The folder of a model that is asked where no epoch is named; by default the last checkpoint of the run is.
    trust_remote_code
        Whether code that lies beside a model's weights may run.
    """
    server = _Server(run, selection, model, trust_remote_code=trust_remote_code)
    routes: list[BaseRoute] = [Mount("/api/v1", routes=server.routes())]
    if page:
        routes.append(Route("/{path:path}", page_files()))
    guard = Middleware(Guard, token=token, hosts=tuple(hosts), ancestors=tuple(ancestors))
    handlers = {HTTPException: _http_error, T3VisError: _our_error, IndexError: _our_error}
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=server.lifespan)


class _Server:
    """Answers requests about one run."""

    def __init__(self, run: Run, selection: Selection | None, model: Path | None, *, trust_remote_code: bool) -> None:
        self._run = run
        self._selection = selection
        self._model = model
        self._worker = Worker()
        self._prober = Prober(run, model, trust_remote_code=trust_remote_code)
        self._cache = ColumnCache()
        self._columns: dict[str, Column] = {}
        self._searches: dict[str, TextSearch] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/run", self.run),
            Route("/splits/{split}/columns", self.columns),
            Route("/columns/{key}", self.column),
            Route("/splits/{split}/rows", self.rows),
            Route("/splits/{split}/search", self.search),
            Route("/splits/{split}/examples/{number:int}", self.example),
            Route("/splits/{split}/heads", self.heads),
            Route("/probe", self.probe, methods=["POST"]),
            Route("/splits/{split}/figures/{kind}", self.figures),
            Route("/splits/{split}/parquet", self.parquet, methods=["POST"]),
            Route("/selection", self.selected, methods=["POST"]),
            Route("/events", self.events),
            Route("/openapi.json", self.openapi),
        ]

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._cache.close()
        self._worker.close()

    async def run(self, _: Request) -> Response:
        """What the run holds."""
        found = await to_thread.run_sync(described, self._run, self._model)
        return JSONResponse({**found, "wants_selection": self._selection is not None})

    async def openapi(self, _: Request) -> Response:
        """What can be asked, for programs."""
        return JSONResponse(document([route.path.replace(":int", "") for route in self.routes()]))

    async def columns(self, request: Request) -> Response:
        """The catalogue of a split's columns."""
        split = self._split(request)
        found = await to_thread.run_sync(columns_of, self._run, split)
        self._columns |= {column.key: column for column in found}
        return JSONResponse({"n": split.n_examples, "columns": [column.described() for column in found]})

    async def column(self, request: Request) -> Response:
        """The values of a column."""
        column = self._columns.get(request.path_params["key"])
        if column is None:
            raise HTTPException(404, "there is no such column (any more); ask for the catalogue again.")
        if request.headers.get("if-none-match") == f'"{column.key}"':
            return Response(status_code=304)
        found = await to_thread.run_sync(self._cache.get, column, COLUMN_SECONDS)
        if found is None:
            return _computing()
        headers = {"etag": f'"{column.key}"', "cache-control": IMMUTABLE}
        return Response(found, media_type="application/octet-stream", headers=headers)

    async def rows(self, request: Request) -> Response:
        """Texts of some examples."""
        split = self._split(request)
        ids = _ids(request.query_params.get("ids", ""), split)
        return JSONResponse({"rows": await to_thread.run_sync(rows, split, ids)})

    async def search(self, request: Request) -> Response:
        """Ids of the examples that contain a text."""
        split = self._split(request)
        search = self._searches.setdefault(split.name, TextSearch(split))
        found = await to_thread.run_sync(search.find, request.query_params.get("q", ""))
        return Response(found.astype("<i4").tobytes(), media_type="application/octet-stream")

    async def example(self, request: Request) -> Response:
        """Everything that is known of one example."""
        split = self._split(request)
        number = request.path_params["number"]
        return JSONResponse(await to_thread.run_sync(example, self._run, split, number))

    async def heads(self, request: Request) -> Response:
        """What is known of the attention heads without a model."""
        split = self._split(request)
        query = request.query_params
        ids = _ids(query.get("ids", ""), split)
        record = _pass(split, query.get("epoch"))
        if query.get("kind", "importance") == "pattern":
            found = await to_thread.run_sync(patterns, self._run, split, record)
        else:
            found = await to_thread.run_sync(importance, self._run, split, record, ids)
        return JSONResponse(found)

    async def probe(self, request: Request) -> Response:
        """Ask the model."""
        asked = probe_of(await request.body(), self._run)
        answer = self._worker.submit(asked.client, asked.kind, self._prober.work(asked))
        found = await asyncio.wrap_future(answer)
        if isinstance(found, bytes):
            return Response(found, media_type="application/octet-stream")
        return JSONResponse(found)

    async def figures(self, request: Request) -> Response:
        """Figures of the model over training."""
        kind = request.path_params["kind"]
        if kind not in FIGURE_KINDS:
            raise HTTPException(404, f"there are no figures {kind!r}; there are {', '.join(FIGURE_KINDS)}.")
        wanted = Figures(self._run, self._split(request), kind)
        found = await to_thread.run_sync(self._cache.get, wanted, COLUMN_SECONDS)
        return _computing() if found is None else Response(found, media_type="application/json")

    async def parquet(self, request: Request) -> Response:
        """Some examples as a Parquet file."""
        split = self._split(request)
        ids = await _set_of(request, split)
        known = {column.id: column for column in await to_thread.run_sync(columns_of, self._run, split)}
        names = [name for name in request.query_params.get("columns", "").split(",") if name]
        missing = [name for name in names if name not in known]
        if missing:
            raise HTTPException(404, f"{split.name} has no column {missing[0]!r}; ask for the catalogue.")
        made = await to_thread.run_sync(to_parquet, split, [known[name] for name in names], ids)
        return Response(made, media_type="application/vnd.apache.parquet")

    async def selected(self, request: Request) -> Response:
        """Take note of what is selected, for the notebook."""
        name = request.query_params.get("split", "")
        if self._selection is None or name not in self._run.splits:
            raise HTTPException(404, "nobody wants to know what is selected, or there is no such split.")
        self._selection.put(name, await _set_of(request, self._run.splits[name]))
        return JSONResponse({})

    async def events(self, _: Request) -> Response:
        """What changes while the run is trained."""
        return StreamingResponse(events(self._run), media_type="text/event-stream")

    def _split(self, request: Request) -> Split:
        name, splits = request.path_params["split"], self._run.splits
        if name not in splits:
            raise HTTPException(404, f"the run holds no split {name!r}; it holds: {', '.join(splits) or 'none'}.")
        return splits[name]


def _computing() -> Response:
    return JSONResponse({"state": "computing"}, 202, {"retry-after": "1"})


async def _set_of(request: Request, split: Split) -> NDArray[np.int64]:
    """The examples whose bits are set in the body."""
    try:
        return ids_of(await request.body(), split.n_examples)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


def described(run: Run, model: Path | None = None) -> dict[str, Any]:
    """A run in JSON: its model and its splits, and what model is at hand."""
    attributes = run.attributes
    splits = run.splits
    return {
        "name": run.path.name,
        "t3vis": t3vis.__version__,
        "created": attributes["t3vis"]["created"],
        "model": attributes.get("model", {}).get("class"),
        "n_missing_rows": run.missing_rows,
        "state": state(run),
        "splits": [_described_split(split) for split in splits.values()],
        "probing": {"model": None if model is None else model.name, "methods": list(METHODS)},
    }


def _described_split(split: Split) -> dict[str, Any]:
    passes = split.passes
    return {
        "name": split.name,
        "kind": split.kind,
        "task": split.attributes.get("task"),
        "mode": split.attributes["mode"],
        "n_examples": split.n_examples,
        "class_names": split.class_names,
        "layers": split.layers,
        "arrays": split.arrays,
        "text_columns": list(split.text),
        "has_tokens": split.token_ids is not None,
        "passes": [
            {
                "index": record.index,
                "epoch": record.epoch,
                "step": record.step,
                "sealed": record.sealed,
                "has_checkpoint": record.checkpoint is not None,
            }
            for record in passes
        ],
    }


def _pass(split: Split, given: str | None) -> Pass:
    """A pass by its number, by default the last."""
    passes = {str(record.index): record for record in split.passes}
    wanted = next(reversed(passes), "") if given is None else given
    if wanted not in passes:
        raise HTTPException(404, f"{split.name} has no pass {wanted!r}; it has {', '.join(passes) or 'none'}.")
    return passes[wanted]


def _ids(given: str, split: Split) -> list[int]:
    """Example ids from a query, checked."""
    parts = given.split(",") if given else []
    if len(parts) > MAX_ROWS:
        raise HTTPException(400, f"{len(parts)} ids were asked for; ask for at most {MAX_ROWS} at a time.")
    if not all(part.isascii() and part.isdecimal() and len(part) < 16 for part in parts):
        raise HTTPException(400, "ids must be whole numbers with commas between them, such as 3,17,5.")
    ids = [int(part) for part in parts]
    if ids and max(ids) >= split.n_examples:
        raise HTTPException(404, f"{split.name} has no example {max(ids)}; it has {split.n_examples}.")
    return ids


async def _http_error(_: Request, error: Exception) -> Response:
    found = cast(HTTPException, error)
    return JSONResponse({"error": found.detail}, found.status_code, found.headers)


async def _our_error(_: Request, error: Exception) -> Response:
    statuses = {IndexError: 404, ProbingError: 422, ClosedError: 503}
    return JSONResponse({"error": str(error)}, statuses.get(type(error), 409))
