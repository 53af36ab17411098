"""Some examples of a split as a Parquet file."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from t3vis.store.reader import Split
from t3vis.viewer.columns import Column

ROWS = 50_000
"""Examples that are read and written at a time."""


def ids_of(mask: bytes, n_examples: int) -> NDArray[np.int64]:
    """The ids in a set of examples that has one bit for each, the first the lowest of its byte.

    Raises
    ------
    ValueError
        If there is not a bit for each example.

    Examples
    --------
    >>> ids_of(bytes([0b1001, 1]), 9)
    array([0, 3, 8])
    """
    if len(mask) != (n_examples + 7) // 8:
        raise ValueError(f"{len(mask)} bytes were sent; expected a bit for each of {n_examples} examples.")
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), count=n_examples, bitorder="little"))


def to_parquet(split: Split, columns: Sequence[Column], ids: NDArray[np.int64]) -> bytes:
    """The ids, the columns and the texts of some examples; categories as their names, missing values as nulls."""
    whole = [(column, column.values()) for column in columns]
    target = io.BytesIO()
    writer = None
    for start in range(0, max(len(ids), 1), ROWS):
        some = ids[start : start + ROWS]
        arrays = {"example": pa.array(some, pa.int64())}
        arrays |= {column.id: _as_arrow(column, values[some]) for column, values in whole}
        arrays |= {name: pa.array(list(texts[some]), pa.string()) for name, texts in split.text.items()}
        table = pa.table(arrays)
        writer = writer or pq.ParquetWriter(target, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return target.getvalue()


def _as_arrow(column: Column, values: NDArray[np.generic]) -> pa.Array:
    if column.kind != "category":
        numbers = values.astype(np.float64)
        return pa.array(numbers, pa.float64(), mask=np.isnan(numbers))
    names = np.array([*column.categories, None], dtype=object)
    codes = values.astype(np.int64)
    known = (codes >= 0) & (codes < len(column.categories))
    return pa.array(names[np.where(known, codes, -1)], pa.string())
