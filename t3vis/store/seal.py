"""Arrival order becomes example order: segments are merged into the sealed arrays and the pass is committed.

Runs as a subprocess of the trainer, ``python -m t3vis.store.seal RUN SPLIT:PASS...``, at low priority, because a
thread would slow the training step. It imports neither torch nor zarr and holds about one layer in memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.codecs import codec_metadata, compression_of, encoder
from t3vis.store.commits import commit_of, lineage_of, lineage_within, remove_shards
from t3vis.store.durable import sync_file, sync_tree
from t3vis.store.layout import row_layout
from t3vis.store.options import StorageOptions
from t3vis.store.sealed import SealedArray, open_sealed
from t3vis.store.shard import write_rows
from t3vis.store.storage import as_path


def seal_pass(run: Path, split_name: str, index: int) -> dict[str, Any]:
    """Merge the segments of one pass into the sealed arrays and commit it.

    Returns
    -------
    The manifest, which is also the attributes of the commit group: coverage, steps, and what the writer said of the
    pass. A pass that is committed already is left as it is.

    Raises
    ------
    StoreError
        If what was recorded is damaged, or has been deleted.
    """
    split = run / split_name
    commit = split / "commits" / schema.pass_name(index)
    if schema.node_exists(commit):
        return commit_of(split, index)
    attributes = schema.read_metadata(split)["attributes"]
    found = segments.list_segments(split, index)
    if not (found or schema.node_exists(split / "segments")):
        raise StoreError(f"{split} has no segments any more; it was deleted, or is a copy: there is nothing to seal.")
    merged = segments.merge(found, segments.limits(run), attributes["n_examples"], attributes["kind"])
    remove_shards(split, index)  # what a sealer that died left there: a truncated shard would spoil its own rewrite
    options = StorageOptions.of(run)
    checksums: dict[str, int] = {}
    for name, row_shape in merged.arrays().items():
        for spec, n_rows, layers in _parts(split, attributes, merged, name, row_shape):
            array = _sealed_array(split, attributes, spec, n_rows, row_shape, options)
            written = _seal_array(array, index, n_rows, layers)
            checksums |= {file.relative_to(split).as_posix(): crc for file, crc in written.items()}
            if options.durability == "fsync":
                sync_tree(split / spec.name / "c" / str(index), run)
                sync_file(split / spec.name / "zarr.json")
    manifest = {"pass": index, **merged.of_pass(), **merged.coverage(), "checksums": checksums}
    if attributes["kind"] == "train":
        windows = lineage_within(segments.lineage(run), manifest)
        manifest["lineage"] = [[window.attempt, window.start, window.stop] for window in windows]
    schema.write_metadata(commit, schema.group_metadata(manifest))
    if options.durability == "fsync":
        sync_tree(commit, run)
    return manifest


_Layers = Iterator[NDArray[Any]]
_TYPICAL_LENGTH = 64  # values of a ragged row; where there are more, there are more shards


def _parts(
    split: Path, attributes: dict[str, Any], merged: segments.Merge, name: str, row_shape: tuple[int, ...]
) -> Iterator[tuple[schema.ArraySpec, int, _Layers]]:
    """The arrays that one is stored as: how many rows each has, and those of every layer in order of example."""
    spec = schema.PASS_ARRAYS[name]
    if not spec.is_ragged:
        yield spec, merged.n_examples, _layers(merged, spec, row_shape)
        return
    if not schema.node_exists(split / name):
        schema.write_metadata(split / name, schema.group_metadata(_said_of(attributes, spec)))
    ragged = merged.gather_ragged(name)
    for part, rows in zip(spec.parts, (ragged.values, ragged.offsets), strict=True):
        yield part, len(rows), iter([rows])


def _layers(merged: segments.Merge, spec: schema.ArraySpec, row_shape: tuple[int, ...]) -> _Layers:
    rows = None
    for layer in range(row_shape[0] if spec.leading else 1):
        rows = merged.gather(spec.name, row_shape[len(spec.leading) :], layer, out=rows)
        yield rows


def _sealed_array(
    split: Path,
    attributes: dict[str, Any],
    spec: schema.ArraySpec,
    n_rows: int,
    row_shape: tuple[int, ...],
    options: StorageOptions,
) -> SealedArray:
    """The sealed array of that name, which is made if there is none."""
    path = split / spec.name
    if not schema.node_exists(path):
        n_leading, n_examples = len(spec.leading), attributes["n_examples"]
        leading, trailing, dtype = row_shape[:n_leading], row_shape[n_leading:], np.dtype(spec.dtype)
        row_bytes = dtype.itemsize * int(np.prod(trailing, dtype=np.int64))
        if n_examples is None:
            layout = row_layout(max(row_bytes, 1), None)
        else:
            layout = row_layout(max(row_bytes, 1), spec.n_rows(n_examples) or _TYPICAL_LENGTH * n_examples)
        ones = (1,) * spec.row_axis
        metadata = schema.array_metadata(
            shape=(0, *leading, n_rows, *trailing),
            shard_shape=(*ones, layout.shard_rows, *trailing),
            chunk_shape=(*ones, layout.chunk_rows, *trailing),
            dtype=spec.dtype,
            fill=spec.fill,
            dims=spec.dims(attributes["kind"]),
            attributes=_said_of(attributes, spec),
            codecs=codec_metadata(options.compression, dtype),
        )
        schema.write_metadata(path, metadata)  # before the shards, so that no reader finds a directory without it
    return open_sealed(path, spec.row_axis)


def _said_of(attributes: dict[str, Any], spec: schema.ArraySpec) -> dict[str, Any]:
    said = attributes["arrays"].get(spec.name, {})
    return {"description": spec.meaning, "mode": attributes["mode"], **said}


def _seal_array(array: SealedArray, index: int, n_rows: int, layers: _Layers) -> dict[Path, int]:
    """Write an array of the pass, layer by layer, then let its shape cover it; returns the crc32c of each file."""
    path = as_path(array.path)
    metadata = schema.read_metadata(path)
    encode = encoder(compression_of(path, metadata), array.dtype)
    written: dict[Path, int] = {}
    for layer, rows in enumerate(layers):
        leading = (index, layer) if array.row_axis > 1 else (index,)
        written |= write_rows(path, leading, rows, array.layout, array.fill, encode)
    covered = list(array.shape)
    covered[0], covered[array.row_axis] = max(index + 1, covered[0]), max(n_rows, covered[array.row_axis])
    schema.write_metadata(path, {**metadata, "shape": covered})
    return written


def remove_sealed_segments(run: Path, split_name: str, *, before: int | None = None) -> None:
    """Delete segments that committed passes have no more need of; ``before`` spares that pass and later ones."""
    split, lineage = run / split_name, segments.lineage(run)
    for index in segments.passes_with_remains(split):
        committed = schema.node_exists(split / "commits" / schema.pass_name(index))
        if committed and (before is None or index < before):
            segments.remove_sealed(split, index, lineage_of(commit_of(split, index), lineage))


def main(arguments: list[str]) -> None:
    """Seal the passes named on the command line, and remove the segments of those sealed before them."""
    run, failed = Path(arguments[0]), []
    for argument in arguments[1:]:
        split_name, _, index = argument.rpartition(":")
        try:
            seal_pass(run, split_name, int(index))
        except StoreError as error:
            failed.append(str(error))  # the others are sealed nevertheless
        else:
            remove_sealed_segments(run, split_name, before=int(index))
    if failed:
        sys.exit("; ".join(failed))


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(19)
    main(sys.argv[1:])
