"""Whether what a run keeps beside its passes is whole: examples, vocabulary, results of analyses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.examples import Columns, ExamplesWriter, static_array, text_columns, token_ids
from t3vis.store.integrity import (
    Meter,
    Problem,
    about,
    attributes_of,
    metadata_problem,
    offset_problems,
    problems_of_shard,
    shards_of,
)
from t3vis.store.sealed import SealedArray, open_sealed

_EXAMPLES_AT_ONCE = 1024
_OF_EXAMPLES: dict[str, tuple[tuple[str, ...], str, float | int]] = {
    "labels": (("example",), "<i8", -1),
    "targets": (("example", "class"), "<f4", np.nan),
    "length": (("example",), "<i4", -1),
}


def example_problems(split: Path, attributes: Mapping[str, Any], meter: Meter) -> Iterator[Problem]:
    """What is wrong with what is kept of a split's examples; the fingerprint is recomputed if all else is well."""
    group = split / "examples"
    found = list(columns_problems(group, attributes.get("n_examples"), meter))
    fingerprint = str(attributes.get("fingerprint"))
    if not found and schema.node_exists(group) and re.fullmatch(r"[0-9a-f]{32}-\d+", fingerprint):
        n_examples = int(fingerprint.split("-")[1])  # a fingerprint without it does not cover the content
        content = f"{_content_fingerprint(split, n_examples)}-{n_examples}"
        if content != fingerprint:
            found.append(Problem(group, f"the examples have the fingerprint {content}, expected {fingerprint}"))
    for problem in found:
        yield about(problem, split=split.name)


def _content_fingerprint(split: Path, n_examples: int) -> str:
    """The fingerprint that an ``ExamplesWriter`` would give to what is stored."""
    writer = ExamplesWriter(None, n_examples)
    labels, targets, length = (static_array(split, name) for name in ("labels", "targets", "length"))
    ids, texts = token_ids(split), text_columns(split)
    for start in range(0, n_examples, _EXAMPLES_AT_ONCE):
        rows = range(start, min(start + _EXAMPLES_AT_ONCE, n_examples))
        sequences = ids[rows.start : rows.stop] if ids is not None else None
        writer.add(
            Columns(
                labels=labels.read((), rows) if labels is not None else None,
                targets=targets.read((), rows) if targets is not None else None,
                length=length.read((), rows) if length is not None else None,
                token_ids=np.concatenate(sequences) if sequences is not None else None,
                n_token_ids=np.array([len(part) for part in sequences]) if sequences is not None else None,
                texts={name: column[rows.start : rows.stop] for name, column in texts.items()},
            )
        )
    return writer.close()


def columns_problems(group: Path, n_examples: int | None, meter: Meter) -> Iterator[Problem]:
    """What is wrong with the columns of a group that is laid out like ``examples``."""
    attributes = attributes_of(group) or {}
    kept = attributes.get("checksums")
    for node in sorted(group.rglob("zarr.json")):
        path, name = node.parent, node.parent.relative_to(group).as_posix()
        known = _column_of(name)
        if known is None:
            continue
        dims, dtype, fill = known
        n_rows = None if n_examples is None else {"example": n_examples, "offset": n_examples + 1}.get(dims[0])
        what = metadata_problem(path, dims=dims, dtype=dtype, fill=fill, row_axis=0)
        if what is None and n_rows is not None and (shape := schema.read_metadata(path)["shape"])[0] != n_rows:
            what = f"it has {shape[0]} rows, expected {n_rows}"
        if what is not None:
            yield Problem(node, what, array=name)
            continue
        found = list(_stored_problems(open_sealed(path, 0), group, kept, meter))
        if path.name == "offsets" and not found and schema.node_exists(path.parent / "values"):
            n_values = schema.read_metadata(path.parent / "values")["shape"][0]
            found += offset_problems(open_sealed(path, 0), (), n_values=range(n_values, n_values + 1))
        for problem in found:
            yield about(problem, array=name)


def _column_of(name: str) -> tuple[tuple[str, ...], str, float | int] | None:
    """Dimensions, type and fill value of an array of examples, by its path; ``None`` of an unknown one."""
    last = name.rpartition("/")[2]
    if last == "offsets":
        return ("offset",), "<i8", 0
    if last == "values":
        return ("value",), "|u1" if name.startswith("text/") else "<i4", 0
    return _OF_EXAMPLES.get(name)


def _stored_problems(array: SealedArray, root: Path, kept: Mapping[str, int] | None, meter: Meter) -> Iterator[Problem]:
    """What is wrong with the shards of an array without passes and layers."""
    for _, rows, file in shards_of(array, (), array.shape[0]):
        try:
            yield from problems_of_shard(array, rows, file, (kept or {}).get(file.relative_to(root).as_posix()))
        except FileNotFoundError:
            yield Problem(file, "this shard is missing", rows=rows)
        meter.add(file)


def analysis_problems(run: Path, meter: Meter) -> Iterator[Problem]:
    """What is wrong with the shards of results; of arrays that t3vis has not written nothing is known."""
    for group in sorted(node.parent for node in run.glob("analysis/*/*/zarr.json")):
        before, found = attributes_of(group), []
        for column in sorted(node.parent for node in group.glob("*/zarr.json")):
            try:
                found += [
                    about(problem, array=column.relative_to(run).as_posix())
                    for problem in _stored_problems(open_sealed(column, 0), group, None, meter)
                ]
            except (StoreError, FileNotFoundError, KeyError, TypeError):
                continue
        if attributes_of(group) == before:  # else it was written anew in the meantime
            yield from found
