"""A folder for the Embedding Projector of TensorBoard: vectors, metadata, and the file that names both.

The format is that of ``tensorboard.plugins.projector``: tab-separated vectors, tab-separated metadata with a header,
and ``projector_config.pbtxt``. Its binary vectors are not used: the plugin takes a file for text unless it is no UTF-8.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t3vis.exports.files import json_rows
from t3vis.exports.table import ROWS, ArrowColumn
from t3vis.store.reader import Split

VECTORS = "hidden_states.tsv"
METADATA = "metadata.tsv"


def write_projector(folder: Path, split: Split, columns: Sequence[ArrowColumn], index: int) -> None:
    """The hidden states of the last layer in one pass, and columns of single values; what is not known is zero."""
    states = split.hidden_states
    last, n_examples, width = len(split.layers) - 1, split.n_examples, states.shape[-1]
    with (folder / VECTORS).open("w", encoding="ascii") as file:
        for start in range(0, n_examples, ROWS):
            rows = np.nan_to_num(states[index, last, start : start + ROWS].astype(np.float32))
            np.savetxt(file, rows, fmt="%.5g", delimiter="\t")  # as precise as float16
    with (folder / METADATA).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar=None, quotechar=None)
        writer.writerow([column.name for column in columns])
        writer.writerows([_cell(value) for value in row.values()] for row in json_rows(columns, n_examples))
    (folder / "projector_config.pbtxt").write_text(
        "embeddings {\n"
        f'  tensor_name: "layer {split.layers[last]}, {split.name} pass {index}"\n'
        f'  tensor_path: "{VECTORS}"\n'
        f"  tensor_shape: {n_examples}\n"
        f"  tensor_shape: {width}\n"
        f'  metadata_path: "{METADATA}"\n'
        "}\n",
        encoding="utf-8",
    )


def _cell(value: Any) -> str:
    """Without the characters that end a cell or a line; the format has no quotes."""
    return "" if value is None else " ".join(str(value).split())
