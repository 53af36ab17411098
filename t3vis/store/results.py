"""Results of analyses in the store: ``analysis/<split>/<name>``, one array per column, parameters as attributes.

A column has one value per example, or is a table over whatever its dimensions are named after.

The group's metadata is written last, so that a result is there whole or not at all. Whoever writes holds an exclusive
``flock`` on ``analysis/zarr.json``, whoever reads a shared one; where the file system knows no locks, only threads of
one process wait for each other.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store import schema
from t3vis.store.layout import row_layout
from t3vis.store.sealed import open_sealed
from t3vis.store.shard import write_rows

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Result:
    """Columns by name, and what they were computed from."""

    columns: dict[str, NDArray[Any]]
    attributes: dict[str, Any]


def write_result(
    run: schema.Node,
    split: str,
    name: str,
    columns: Mapping[str, NDArray[Any]],
    *,
    meanings: Mapping[str, str],
    attributes: Mapping[str, Any],
    dims: tuple[str, ...] = ("example",),
) -> None:
    """Put a result in the place of the one that is there; a copy of a run at a URL is read only, and left alone.

    Parameters
    ----------
    columns
        One shape for all, with the dimensions of ``dims``.
    meanings
        What each column is, for its attributes.
    attributes
        What the result was computed from, and how; its ``mode`` is that of every column too.
    dims
        Names of the dimensions.
    """
    if not isinstance(run, Path):
        return
    group = run / "analysis" / split / name
    with _writing(run):
        if not schema.node_exists(group.parent):
            schema.write_metadata(group.parent, schema.group_metadata())
        _remove(group)
        _write_columns(group, columns, meanings, attributes, dims)


def _write_columns(
    group: Path,
    columns: Mapping[str, NDArray[Any]],
    meanings: Mapping[str, str],
    attributes: Mapping[str, Any],
    dims: tuple[str, ...],
) -> None:
    mode = {"mode": attributes["mode"]} if "mode" in attributes else {}
    for column, values in columns.items():
        rows = np.ascontiguousarray(values)
        fill: float | int = float("nan") if rows.dtype.kind == "f" else 0
        trailing = rows.shape[1:]
        layout = row_layout(rows.dtype.itemsize * max(math.prod(trailing), 1), len(rows))
        metadata = schema.array_metadata(
            shape=rows.shape,
            shard_shape=(layout.shard_rows, *trailing),
            chunk_shape=(layout.chunk_rows, *trailing),
            dtype=rows.dtype.newbyteorder("<").str,
            fill=bool(fill) if rows.dtype.kind == "b" else fill,
            dims=dims,
            attributes={"description": meanings[column], **mode},
        )
        schema.write_metadata(group / column, metadata)
        write_rows(group / column, (), rows, layout, fill)
    schema.write_metadata(group, schema.group_metadata(dict(attributes)))


def read_result(run: schema.Node, split: str, name: str) -> Result | None:
    """The result of that name, or ``None`` if there is none."""
    group = run / "analysis" / split / name
    with _reading(run):
        if not schema.node_exists(group):
            return None
        nodes = sorted((node.parent for node in group.glob("*/zarr.json")), key=str)
        columns = {node.name: open_sealed(node, 0).read_all() for node in nodes}
        return Result(columns, schema.read_metadata(group)["attributes"])


def result_names(run: schema.Node, split: str) -> list[str]:
    """Names of the results that are there of a split."""
    return sorted(node.parent.name for node in (run / "analysis" / split).glob("*/zarr.json"))


def current_result(run: schema.Node, split: str, name: str, made_of: Mapping[str, Any]) -> Result | None:
    """The result of that name, ``None`` unless its attributes say that it was made of just this."""
    found = read_result(run, split, name)
    if found is None or any(found.attributes.get(key) != value for key, value in made_of.items()):
        return None
    return found


def remove_result(run: Path, split: str, name: str) -> None:
    """Remove the result of that name, if there is one; its metadata goes first."""
    with _writing(run):
        _remove(run / "analysis" / split / name)


def _remove(group: Path) -> None:
    (group / "zarr.json").unlink(missing_ok=True)
    shutil.rmtree(group, ignore_errors=True)


@contextmanager
def _writing(run: Path) -> Iterator[None]:
    """Keep everyone else from the results of a run; makes their group."""
    with _ONE_AT_A_TIME:
        while True:
            if not schema.node_exists(run / "analysis"):
                schema.write_metadata(run / "analysis", schema.group_metadata())
            with _locked(run / "analysis" / "zarr.json", os.O_RDWR, fcntl.LOCK_EX) as is_there:
                if is_there:
                    yield
                    return


@contextmanager
def _reading(run: schema.Node) -> Iterator[None]:
    """Keep writers from the results of a run; a copy at a URL is not written."""
    with _ONE_AT_A_TIME:
        if not isinstance(run, Path) or not schema.node_exists(run / "analysis"):
            yield
            return
        with _locked(run / "analysis" / "zarr.json", os.O_RDONLY, fcntl.LOCK_SH):
            yield


@contextmanager
def _locked(file: Path, flags: int, kind: int) -> Iterator[bool]:
    """Lock a file; yields whether it still has the name, which another process may have given to a new one."""
    descriptor = os.open(file, flags)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, kind)
        try:
            yield os.path.samestat(os.fstat(descriptor), file.stat())
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a fork may have inherited the descriptor
    finally:
        os.close(descriptor)
