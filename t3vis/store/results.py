"""Results of analyses in the store: ``analysis/<split>/<name>``, one array per column, parameters as attributes.

The group's metadata is written last, so that a result is there whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store import schema
from t3vis.store.layout import row_layout
from t3vis.store.sealed import open_sealed
from t3vis.store.shard import write_rows


@dataclass(frozen=True)
class Result:
    """Columns by name, their first dimension that of the examples, and what they were computed from."""

    columns: dict[str, NDArray[Any]]
    attributes: dict[str, Any]


def write_result(
    run: Path,
    split: str,
    name: str,
    columns: Mapping[str, NDArray[Any]],
    *,
    meanings: Mapping[str, str],
    attributes: Mapping[str, Any],
) -> None:
    """Put a result in the place of the one that is there.

    Parameters
    ----------
    columns
        Shape (n_examples,) each, or (n_examples, n) for as many of something per example.
    meanings
        What each column is, for its attributes.
    attributes
        What the result was computed from, and how; see ``is_current``.
    """
    group = run / "analysis" / split / name
    for parent in (run / "analysis", run / "analysis" / split):
        if not schema.node_exists(parent):
            schema.write_metadata(parent, schema.group_metadata())
    remove_result(run, split, name)
    for column, values in columns.items():
        rows = np.ascontiguousarray(values)
        fill: float | int = float("nan") if rows.dtype.kind == "f" else 0
        layout = row_layout(rows[:1].nbytes or rows.dtype.itemsize, len(rows))
        metadata = schema.array_metadata(
            shape=rows.shape,
            shard_shape=(layout.shard_rows, *rows.shape[1:]),
            chunk_shape=(layout.chunk_rows, *rows.shape[1:]),
            dtype=rows.dtype.newbyteorder("<").str,
            fill=bool(fill) if rows.dtype.kind == "b" else fill,
            dims=("example", "item")[: rows.ndim],
            attributes={"description": meanings[column]},
        )
        schema.write_metadata(group / column, metadata)
        write_rows(group / column, (), rows, layout, fill)
    schema.write_metadata(group, schema.group_metadata(dict(attributes)))


def read_result(run: schema.Node, split: str, name: str) -> Result | None:
    """The result of that name, or ``None`` if there is none."""
    group = run / "analysis" / split / name
    if not schema.node_exists(group):
        return None
    nodes = sorted((node.parent for node in group.glob("*/zarr.json")), key=str)
    columns = {node.name: open_sealed(node, 0).read_all() for node in nodes}
    return Result(columns, schema.read_metadata(group)["attributes"])


def remove_result(run: Path, split: str, name: str) -> None:
    """Remove the result of that name, if there is one."""
    group = run / "analysis" / split / name
    (group / "zarr.json").unlink(missing_ok=True)
    shutil.rmtree(group, ignore_errors=True)
