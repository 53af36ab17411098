"""A folder for FiftyOne: a dataset as ``fiftyone.types.LegacyFiftyOneDataset`` reads it, and a script that shows it.

FiftyOne shows media, and a run holds none: the path of an example names no file, its texts are fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.exports.arrays import FEATURES, write_features
from t3vis.exports.files import json_rows
from t3vis.exports.table import EXAMPLE, ArrowColumn
from t3vis.store.reader import Split

POINTS = "points.npy"
SCRIPT = "show.py"
TEMPLATE = Path(__file__).parents[1] / "templates" / "show_fiftyone.py"
CLASSIFICATIONS = ("label", "prediction", "suggested_label")


def write_fiftyone(
    folder: Path,
    split: Split,
    columns: Sequence[ArrowColumn],
    index: int,
    *,
    name: str,
    points: NDArray[np.floating] | None,
) -> None:
    """Columns of single values, the last hidden states of a pass, and the coordinates of a map.

    Parameters
    ----------
    name
        Of the dataset.
    points
        Shape (n_examples, 2), ``None`` where there is no map.
    """
    metadata = {"name": name, "media_type": "unknown", "info": {"split": split.name, "pass": index}}
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    with (folder / "samples.json").open("w", encoding="utf-8") as file:
        file.write('{"samples": [')
        for number, row in enumerate(json_rows(columns, split.n_examples)):
            fields = {name: _field(name, value) for name, value in row.items() if value is not None}
            sample = {"filepath": f"data/{row[EXAMPLE]:09d}.txt", "_media_type": "unknown", **fields}
            file.write(f"{',' if number else ''}\n{json.dumps(sample, ensure_ascii=False)}")
        file.write("\n]}\n")
    if points is not None:
        np.save(folder / POINTS, points)
    if split.layers:
        write_features(folder / FEATURES, split, index)
    (folder / SCRIPT).write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")


def _field(name: str, value: Any) -> Any:
    return {"_cls": "Classification", "label": value} if name in CLASSIFICATIONS else value
