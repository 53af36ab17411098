"""Some examples of a split as a Parquet file."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from t3vis.example_columns import Column
from t3vis.exports.table import batches, ids_of_rows, of_catalogue, of_texts
from t3vis.store.reader import Split


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
    """The ids, the columns by their ids and the texts of some examples; see `t3vis.exports.table`."""
    chosen = [of_catalogue(column, column.id) for column in columns]
    texts = of_texts(split, [column.id for column in columns])
    made = [ids_of_rows(split.n_examples), *chosen, *texts.values()]
    target = io.BytesIO()
    writer = None
    for batch in batches(made, split.n_examples, ids):
        writer = writer or pq.ParquetWriter(target, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()
    return target.getvalue()
