"""The OpenAPI document of the server: what a program may ask, and what it gets."""

from __future__ import annotations

from typing import Any

import t3vis
from t3vis.viewer.figures import FIGURE_KINDS
from t3vis.viewer.schemas import FIGURE_KIND, SCHEMAS, WHOLE, reference

Content = dict[str, Any]

BYTES: Content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
PARQUET: Content = {"application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}}}
EVENTS: Content = {"text/event-stream": {"schema": {"type": "string", "description": "data of each event is a State"}}}


def json_of(name: str) -> Content:
    """JSON of the schema of that name."""
    return {"application/json": {"schema": reference(name)}}


PROBE = (
    "Ask the model: JSON of kind (attention, saliency, predict, prune, metric, importance or patterns), split, epoch, "
    "id or text, and layer, head, token, class, method, pruned, ids as the kind needs. 409 where a newer one of the "
    "same client and kind has taken its place. Bytes begin with four of the length of a JSON header, then that."
)
WHAT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "/run": ("get", "The run: its model, its splits, their passes, layers and classes.", json_of("Run")),
    "/openapi.json": ("get", "This document.", json_of("Document")),
    "/events": (
        "get",
        "Server-sent events `state`: passes and how many examples each has seen, as they change.",
        EVENTS,
    ),
    "/splits/{split}/columns": (
        "get",
        "The catalogue of the columns: title, kind, type, URL of the values.",
        json_of("Catalogue"),
    ),
    "/columns/{key}": (
        "get",
        "The values of a column in the order of the ids, as `dtype` of the catalogue says; 202 while computed.",
        BYTES,
    ),
    "/splits/{split}/rows": ("get", "Texts of at most 500 examples.", json_of("Rows")),
    "/splits/{split}/search": ("get", "Ids (int32, little-endian) of the examples that contain a text.", BYTES),
    "/splits/{split}/examples/{number}": (
        "get",
        "One example: text, tokens, label, and what each pass saw.",
        json_of("Example"),
    ),
    "/splits/{split}/figures/{kind}": (
        "get",
        f"Figures over the passes, one of {', '.join(FIGURE_KINDS)}; 202 while they are computed.",
        json_of("Figures"),
    ),
    "/splits/{split}/parquet": (
        "post",
        "A Parquet file of the examples whose bits are set in the body; example 0 is the lowest bit of the first byte.",
        PARQUET,
    ),
    "/splits/{split}/heads": (
        "get",
        "Importance of each attention head in one epoch as recorded, or what each attends to, as far as it is kept.",
        json_of("Heads"),
    ),
    "/probe": ("post", PROBE, json_of("Answer") | BYTES),
    "/selection": ("post", "Tell the notebook which examples are selected; a body as for Parquet.", json_of("Nothing")),
}
"""What each path under ``/api/v1`` does: method, summary, content of the answer."""

QUERY = {
    "/splits/{split}/rows": [("ids", "ids with commas between them")],
    "/splits/{split}/search": [("q", "the text; ASCII letters match in either case")],
    "/splits/{split}/parquet": [("columns", "ids of columns with commas between them")],
    "/splits/{split}/heads": [
        ("epoch", "number of the epoch, by default the last"),
        ("kind", "importance or pattern"),
        ("ids", "only these examples, ids with commas between them"),
    ],
    "/selection": [("split", "name of the split")],
}
ERRORS = {
    "400": "the request is malformed",
    "401": "the token is missing or wrong",
    "403": "the request comes from another page",
    "404": "there is no such split, example or column",
    "409": "what is asked for cannot be computed from this run",
    "413": "the body is too large",
    "422": "the model cannot be asked this, or there is none",
    "421": "the server is not called by that name",
}


def document(paths: list[str]) -> dict[str, Any]:
    """The document for the paths that a server has.

    Raises
    ------
    KeyError
        If a path is not described here.
    """
    described: dict[str, Any] = {}
    for path in paths:
        method, summary, content = WHAT[path]
        described[f"/api/v1{path}"] = {
            method: {
                "summary": summary,
                "parameters": _parameters(path),
                "responses": _responses(path, content),
                **({"requestBody": {"required": True, "content": _body(path)}} if method == "post" else {}),
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "t3vis", "version": t3vis.__version__, "description": "Data of a recorded run."},
        "paths": described,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


COMPUTED = ("/columns/{key}", "/splits/{split}/figures/{kind}")
"""What may have to be computed first."""


def _responses(path: str, content: Content) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "as said", "content": content}}
    if path in COMPUTED:
        said = "it is being computed; ask again in a second"
        found["202"] = {"description": said, "content": json_of("Computing")}
    return found | {code: {"description": said, "content": json_of("Error")} for code, said in ERRORS.items()}


def _body(path: str) -> Content:
    return {"application/json": {"schema": {"type": "object"}}} if path == "/probe" else BYTES


def _parameters(path: str) -> list[dict[str, Any]]:
    in_path = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    of_path: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": IN_PATH.get(name, {"type": "string"})}
        for name in in_path
    ]
    of_query = [
        {"name": name, "in": "query", "description": said, "schema": {"type": "string"}}
        for name, said in QUERY.get(path, [])
    ]
    return [*of_path, *of_query]


IN_PATH = {"number": WHOLE, "kind": FIGURE_KIND}
