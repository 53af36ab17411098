"""What the server's answers look like, as JSON Schema."""

from __future__ import annotations

from typing import Any, get_args

from t3vis.store.schema import PASS_ARRAYS
from t3vis.viewer.columns import Kind
from t3vis.viewer.figures import FIGURE_KINDS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": ["number", "null"], "description": "null where it is not known, or not finite"}
TRUTH: Schema = {"type": "boolean"}


def _list_of(items: Schema, description: str = "") -> Schema:
    return {"type": "array", "items": items, **({"description": description} if description else {})}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: dict[str, Schema], *optional: str) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _by_name(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def reference(name: str) -> Schema:
    """One of `SCHEMAS` by name, for use in the document."""
    return {"$ref": f"#/components/schemas/{name}"}


_NUMBERS = {"anyOf": [NUMBER, _list_of(NUMBER), _list_of(_list_of(NUMBER)), _list_of(_list_of(_list_of(NUMBER)))]}
_OF_PASSES = _list_of(NUMBER, "one for each of the passes")

SCHEMAS: dict[str, Schema] = {
    "Error": _object({"error": {**TEXT, "description": "what was asked for, why it cannot be had, what to do"}}),
    "Computing": _object({"state": {"const": "computing"}}),
    "Nothing": _object({}),
    "Document": {"type": "object", "required": ["openapi", "paths"]},
    "Pass": _object(
        {
            "index": {**WHOLE, "description": "its number"},
            "epoch": {
                "type": "number",
                "description": "0, 1, ... in training; how many were trained, in an evaluation",
            },
            "step": {"type": "integer", "description": "optimizer steps at its beginning"},
            "sealed": {**TRUTH, "description": "whether it is complete"},
            "has_checkpoint": {**TRUTH, "description": "whether its model is there to be asked"},
        }
    ),
    "Split": _object(
        {
            "name": TEXT,
            "kind": {"enum": ["train", "eval"]},
            "task": _or_null(TEXT),
            "mode": {"enum": ["train", "eval"], "description": "of the model while it was recorded"},
            "n_examples": WHOLE,
            "class_names": _or_null(_list_of(TEXT)),
            "layers": _list_of(WHOLE, "numbers of the hidden states; 0 is the output of the embeddings"),
            "arrays": _list_of({"enum": list(PASS_ARRAYS)}),
            "text_columns": _list_of(TEXT),
            "has_tokens": TRUTH,
            "passes": _list_of(reference("Pass")),
        }
    ),
    "State": _object(
        {
            "splits": _by_name(
                _list_of(_object({"pass": WHOLE, "epoch": {"type": "number"}, "seen": WHOLE, "sealed": TRUTH}))
            )
        }
    ),
    "Run": _object(
        {
            "name": TEXT,
            "t3vis": {**TEXT, "description": "version of the server"},
            "created": TEXT,
            "model": _or_null(TEXT),
            "n_missing_rows": WHOLE,
            "state": reference("State"),
            "splits": _list_of(reference("Split")),
            "probing": _object({"model": _or_null(TEXT), "methods": _list_of(TEXT)}),
            "wants_selection": TRUTH,
        }
    ),
    "Column": _object(
        {
            "id": {**TEXT, "description": "such as confidence, loss@3 (epoch 3) or x:tsne:12@3 (layer 12)"},
            "title": TEXT,
            "group": TEXT,
            "kind": {"enum": list(get_args(Kind))},
            "description": TEXT,
            "dtype": {"enum": ["f4", "u1", "u2"], "description": "of the bytes under url, little-endian"},
            "missing": {"enum": [None, 255, 65535], "description": "code of what is missing; null for numbers: NaN"},
            "categories": _list_of(TEXT, "what the codes stand for"),
            "pass": _or_null(WHOLE),
            "layer": _or_null(WHOLE),
            "mode": {"enum": ["train", "eval"]},
            "is_analysis": {**TRUTH, "description": "whether it may have to be computed"},
            "url": {**TEXT, "description": "of the values; another one as soon as they have changed"},
        }
    ),
    "Catalogue": _object({"n": {**WHOLE, "description": "examples"}, "columns": _list_of(reference("Column"))}),
    "Rows": _object({"rows": _list_of(_by_name(TEXT), "texts by column, in the order of the ids")}),
    "Example": _object(
        {
            "id": WHOLE,
            "text": _by_name(TEXT),
            "label": {"anyOf": [NUMBER, _list_of(NUMBER)], "description": "-1 or null where it is not known"},
            "passes": _list_of(WHOLE, "numbers of the passes that the rest is of"),
            "tokens": _or_null(_list_of(TEXT)),
            "loss": _OF_PASSES,
            "step": _OF_PASSES,
            "visits": _OF_PASSES,
            "logits": _list_of(_list_of(NUMBER), "one list for each of the passes"),
            "probs": _list_of(_list_of(NUMBER), "one list for each of the passes"),
        },
        *("loss", "step", "visits", "logits", "probs"),
    ),
    "Figures": _object(
        {
            "figures": _by_name(_NUMBERS),
            "passes": _list_of(WHOLE),
            "layers": _list_of(WHOLE),
            "epochs": _list_of({"type": "number"}),
        },
        *("layers", "epochs"),
    ),
    "Heads": _object(
        {
            "epoch": WHOLE,
            "attention": _list_of(TEXT, "of each layer: self, encoder, decoder or cross"),
            "measures": _list_of(
                _object(
                    {
                        "name": TEXT,
                        "title": TEXT,
                        "meaning": TEXT,
                        "mode": {"enum": ["train", "eval"]},
                        "n_examples": WHOLE,
                        **{name: _list_of(_list_of(NUMBER), "layer, head") for name in ("value", "low", "high")},
                    }
                )
            ),
            "found": _or_null({"type": "object", "description": "with kind=pattern: what each head attends to"}),
        },
        *("attention", "measures", "found"),
    ),
    "Answer": {"type": "object", "description": "depends on the kind of the question"},
}
"""By name: what the paths of the server answer."""

FIGURE_KIND: Schema = {"enum": list(FIGURE_KINDS)}
