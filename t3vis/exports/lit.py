"""A folder for the Learning Interpretability Tool: examples in its own format, and a script that shows them.

The examples are lines of JSON beside a ``.spec`` that says what each field is, as ``lit_nlp.api.dataset`` loads them.
LIT shows what a model says of examples: the script gives it one that repeats what was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from t3vis.exports.arrays import FEATURES, PROBABILITIES, class_names, write_features, write_probabilities
from t3vis.exports.files import json_rows
from t3vis.exports.table import EXAMPLE, ArrowColumn, batches
from t3vis.store.reader import Split

EXAMPLES = "examples.lit.jsonl"
SPEC = f"{EXAMPLES}.spec"
CLASSES = "classes.json"
SCRIPT = "show.py"
TEMPLATE = Path(__file__).parents[1] / "templates" / "show_lit.py"


def write_lit(folder: Path, split: Split, columns: Sequence[ArrowColumn], index: int) -> None:
    """Columns of single values; where there are classes their probabilities, and the last hidden states."""
    schema = next(batches(columns, 0)).schema
    texts = set(split.text) | {f"{name}_text" for name in split.text}
    classes = class_names(split)
    spec = {field.name: _field(field, classes, is_text=field.name in texts) for field in schema}
    (folder / SPEC).write_text(json.dumps(spec), encoding="utf-8")
    with (folder / EXAMPLES).open("w", encoding="utf-8") as file:
        for row in json_rows(columns, split.n_examples):
            known = {name: value for name, value in row.items() if value is not None}
            file.write(json.dumps({**known, "_id": str(row[EXAMPLE])}, ensure_ascii=False) + "\n")
    (folder / CLASSES).write_text(json.dumps(classes), encoding="utf-8")
    if classes:
        write_probabilities(folder / PROBABILITIES, split)
    if split.layers:
        write_features(folder / FEATURES, split, index)
    (folder / SCRIPT).write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")


def _field(field: pa.Field, classes: list[str], *, is_text: bool) -> dict[str, Any]:
    """What LIT is told of a column, as it writes its own types."""
    kind: dict[str, Any] = {"required": False, "annotated": False}
    if pa.types.is_boolean(field.type):
        return {"__name__": "BooleanLitType", **kind}
    if pa.types.is_string(field.type):
        if is_text:
            return {"__name__": "TextSegment", **kind}
        of_classes = field.name in ("label", "prediction", "suggested_label")
        return {"__name__": "CategoryLabel", **kind, "vocab": classes if of_classes else None}
    return {"__name__": "Scalar", **kind, "min_val": -1e9, "max_val": 1e9}
