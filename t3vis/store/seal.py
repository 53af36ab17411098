"""Arrival order becomes example order: segments are merged into the sealed arrays and the pass is committed.

Runs as a subprocess of the trainer, ``python -m t3vis.store.seal RUN SPLIT:PASS...``, at low priority, because a
thread would slow the training step. It imports neither torch nor zarr and holds about one layer in memory.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from t3vis.store import schema, segments
from t3vis.store.codecs import codec_metadata, encoder
from t3vis.store.commits import commit_of, remove_shards
from t3vis.store.durable import sync_tree
from t3vis.store.layout import row_layout
from t3vis.store.options import StorageOptions
from t3vis.store.sealed import open_sealed
from t3vis.store.shard import write_rows


def seal_pass(run: Path, split_name: str, index: int) -> dict[str, Any]:
    """Merge the segments of one pass into the sealed arrays and commit it.

    Returns
    -------
    The manifest, which is also the attributes of the commit group: coverage, steps, and what the writer said of the
    pass. A pass that is committed already is left as it is.
    """
    split = run / split_name
    commit = split / "commits" / schema.pass_name(index)
    if schema.node_exists(commit):
        return commit_of(split, index)
    attributes = schema.read_metadata(split)["attributes"]
    kind: schema.SplitKind = attributes["kind"]
    found = segments.list_segments(split, index)
    merged = segments.merge(found, segments.limits(run), attributes["n_examples"], kind)
    remove_shards(split, index)  # what a sealer that died left there: a truncated shard would spoil its own rewrite
    options = StorageOptions.of(run)
    shapes = merged.arrays()
    for name, row_shape in shapes.items():
        _seal_array(split, kind, index, merged, name, row_shape, attributes, options)
    manifest = {"pass": index, **merged.of_pass(), **merged.coverage()}
    if options.durability == "fsync":
        for name in shapes:
            sync_tree(split / name / "c" / str(index), run)
    schema.write_metadata(commit, schema.group_metadata(manifest))
    if options.durability == "fsync":
        sync_tree(commit, run)
    return manifest


def _seal_array(
    split: Path,
    kind: schema.SplitKind,
    index: int,
    merged: segments.Merge,
    name: str,
    row_shape: tuple[int, ...],
    attributes: dict[str, Any],
    options: StorageOptions,
) -> None:
    """Write one array of the pass, layer by layer, then let its shape cover it."""
    spec = schema.PASS_ARRAYS[name]
    n_leading = len(spec.leading)
    leading, trailing = row_shape[:n_leading], row_shape[n_leading:]
    row_bytes = np.dtype(spec.dtype).itemsize * int(np.prod(trailing, dtype=np.int64))
    array = split / name
    if schema.node_exists(array):
        layout = open_sealed(array, 1 + n_leading).layout
    else:
        layout = row_layout(max(row_bytes, 1), attributes["n_examples"])
    ones = (1,) * (1 + n_leading)
    metadata = schema.array_metadata(
        shape=(index, *leading, merged.n_examples, *trailing),
        shard_shape=(*ones, layout.shard_rows, *trailing),
        chunk_shape=(*ones, layout.chunk_rows, *trailing),
        dtype=spec.dtype,
        fill=spec.fill,
        dims=spec.dims(kind),
        attributes={
            "description": spec.meaning,
            "mode": attributes["mode"],
            **attributes["arrays"].get(name, {}),
        },
        codecs=codec_metadata(options.compression, np.dtype(spec.dtype)),
    )
    encode = encoder(options.compression, np.dtype(spec.dtype))
    if not schema.node_exists(array):
        schema.write_metadata(array, metadata)  # before the shards, so that no reader finds a directory without it
    rows = None
    for layer in range(leading[0] if leading else 1):
        rows = merged.gather(name, trailing, layer, out=rows)
        write_rows(array, (index, layer) if leading else (index,), rows, layout, spec.fill, encode)
    covered = (index + 1, *metadata["shape"][1:])
    metadata["shape"] = list(map(max, covered, schema.read_metadata(array)["shape"]))
    schema.write_metadata(array, metadata)


def remove_sealed_segments(run: Path, split_name: str, *, before: int | None = None) -> None:
    """Delete segments that committed passes have no more need of; ``before`` spares that pass and later ones."""
    split, lineage = run / split_name, segments.lineage(run)
    for index in segments.passes_with_remains(split):
        committed = schema.node_exists(split / "commits" / schema.pass_name(index))
        if committed and (before is None or index < before):
            segments.remove_sealed(split, index, lineage)


def _give_way() -> None:
    """Run only while nothing else wants to; where there is no such policy, at the lowest priority."""
    if hasattr(os, "nice"):
        os.nice(19)
    if hasattr(os, "sched_setscheduler"):
        with suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main(arguments: list[str]) -> None:
    """Seal the passes named on the command line, and remove the segments of those sealed before them."""
    _give_way()
    run = Path(arguments[0])
    for argument in arguments[1:]:
        split_name, _, index = argument.rpartition(":")
        seal_pass(run, split_name, int(index))
        remove_sealed_segments(run, split_name, before=int(index))


if __name__ == "__main__":
    main(sys.argv[1:])
