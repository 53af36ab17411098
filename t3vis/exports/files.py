"""Tables as files, written batch after batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from t3vis.exports.table import ArrowColumn, batches


def write_parquet(path: Path, columns: Sequence[ArrowColumn], n_examples: int) -> None:
    """One row group for each batch."""
    _write_batches(partial(pq.ParquetWriter, path), columns, n_examples)


def write_csv(path: Path, columns: Sequence[ArrowColumn], n_examples: int) -> None:
    """With a header; what is not known is empty, and so is told from an empty text, which is quoted."""
    _write_batches(partial(pc.CSVWriter, path), columns, n_examples)


def write_jsonl(path: Path, columns: Sequence[ArrowColumn], n_examples: int) -> None:
    """One object in a line for each example; what is not known is null, also among several values."""
    with path.open("w", encoding="utf-8") as file:
        for row in json_rows(columns, n_examples):
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def json_rows(columns: Sequence[ArrowColumn], n_examples: int) -> Iterator[dict[str, Any]]:
    """Rows of plain values that JSON takes."""
    for batch in batches(columns, n_examples):
        for row in batch.to_pylist():
            yield {name: _plain(value) for name, value in row.items()}


def _write_batches(opened: Callable[[pa.Schema], Any], columns: Sequence[ArrowColumn], n_examples: int) -> None:
    found = batches(columns, n_examples)
    first = next(found)
    with opened(first.schema) as writer:
        for batch in chain([first], found):
            writer.write_batch(batch)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not -float("inf") < value < float("inf") else value
