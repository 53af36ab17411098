"""A run written anew: with another codec, or without some of its layers and epochs."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from t3vis.errors import ConfigurationError, StoreError
from t3vis.store import schema
from t3vis.store.checksums import checksums_below
from t3vis.store.codecs import COMPRESSIONS, ROUNDED_ARRAYS, Compression, codec_metadata, encoder, rounded
from t3vis.store.commits import commit_of, committed_passes
from t3vis.store.integrity import Meter, Progress, about, problems_of_shard, shards_of
from t3vis.store.sealed import SealedArray, open_sealed
from t3vis.store.segments import split_names, unsealed_passes
from t3vis.store.shard import shard_path, write_rows

KEEP: Literal["keep"] = "keep"
_STATES = "hidden_states"  # whose layers are chosen; where none is, those of a decoder go too


def compact(
    run_path: Path,
    out_path: Path,
    *,
    compression: Compression | Literal["keep"] = KEEP,
    keep_layers: Collection[int] | None = None,
    drop_layers: Collection[int] = (),
    keep_epochs: Collection[int] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a run anew at ``out_path``, smaller; the run itself stays as it is.

    What is known of the examples is kept, evaluations are kept, and so are the results of analyses, but for those
    that were computed from an epoch which is not.

    Parameters
    ----------
    compression
        Codec of the sealed arrays: none, ``"lz4"``, ``"bitround"``, which rounds hidden states, or the one they have.
    keep_layers, drop_layers
        Hidden states to keep, or not to, by their numbers: 0 is the output of the embeddings.
    keep_epochs
        Epochs of training to keep; they keep their numbers, the others read as if they had not been recorded.
    progress
        Called with the bytes of shards read so far, and all there are.

    Raises
    ------
    ConfigurationError
        If something is at ``out_path`` already, it cannot be written, or the run has no such layer or epoch.
    StoreError
        If there is no run, if a pass of it is not sealed, or if it is damaged; the message names file and rows.
    """
    attributes = schema.run_attributes(run_path)
    if compression not in (*COMPRESSIONS, KEEP):
        raise ConfigurationError(f"compression={compression!r}: expected None, 'lz4', 'bitround' or 'keep'.")
    if out_path.exists():
        raise ConfigurationError(f"{out_path} already exists; choose another path, or remove it.")
    plans = [
        _plan(run_path / name, compression, keep_layers, drop_layers, keep_epochs) for name in split_names(run_path)
    ]
    total = sum(file.stat().st_size for plan in plans for file in plan.files()) if progress else 0
    partial = out_path.with_name(f"{out_path.name}.{os.getpid()}.partial")
    try:
        schema.write_metadata(partial, schema.group_metadata(_root(attributes, run_path, plans, compression)))
        _copy_others(run_path, partial, plans)
        meter = Meter(progress, total)
        for plan in plans:
            _write_split(plan, partial / plan.path.name, meter)
        meter.end()
        partial.rename(out_path)
    except OSError as error:
        raise ConfigurationError(
            f"{out_path} cannot be written: {error}; choose a path on a disk that you may write to and that has room."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class _Plan:
    """What is kept of one split: passes, and positions along the axis ``layer`` (``None``: all there are)."""

    path: Path
    attributes: dict[str, Any]
    compression: Compression | Literal["keep"]
    passes: tuple[int, ...]
    drops_passes: bool
    layers: tuple[int, ...] | None

    def files(self) -> Iterator[Path]:
        """The shards that are read."""
        for name, array in self.arrays():
            for index in self.passes:
                yield from (file for _, _, _, file in self.shards(name, array, index))

    def arrays(self) -> Iterator[tuple[str, SealedArray]]:
        """The sealed arrays that are kept."""
        for name, spec in schema.STORED_ARRAYS.items():
            if schema.node_exists(self.path / name) and not (name in ROUNDED_ARRAYS and self.layers == ()):
                yield name, open_sealed(self.path / name, spec.row_axis)

    def shards(
        self, name: str, array: SealedArray, index: int
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], range, Path]]:
        """Shards of one pass that are there: leading index here, leading index in the new run, rows, file."""
        for leading, rows, file in shards_of(array, (index,), array.shape[array.row_axis]):
            if not file.is_file():
                continue
            if name != _STATES or self.layers is None:
                yield leading, leading, rows, file
            elif leading[1] in self.layers:
                yield leading, (index, self.layers.index(leading[1])), rows, file


def _plan(
    split: Path,
    compression: Compression | Literal["keep"],
    keep_layers: Collection[int] | None,
    drop_layers: Collection[int],
    keep_epochs: Collection[int] | None,
) -> _Plan:
    attributes = schema.read_metadata(split)["attributes"]
    committed = committed_passes(split)
    chosen = keep_epochs if attributes["kind"] == "train" else None
    open_passes = [index for index in unsealed_passes(split) if index not in committed]
    if open_passes and (chosen is None or set(open_passes) & set(chosen)):
        raise StoreError(
            f"passes {open_passes} of {split} are not sealed; wait until they are, or seal them with t3vis repair "
            "(with --incomplete if training is not going to be resumed)."
        )
    absent = sorted(set(chosen or ()) - set(committed))
    if absent:
        raise ConfigurationError(f"{split} holds no epoch {absent[0]}; it holds {committed}.")
    return _Plan(
        path=split,
        attributes=attributes,
        compression=compression,
        passes=tuple(index for index in committed if chosen is None or index in chosen),
        drops_passes=chosen is not None and bool(set(committed) - set(chosen)),
        layers=_kept_layers(split, attributes, keep_layers, drop_layers),
    )


def _kept_layers(
    split: Path, attributes: dict[str, Any], keep: Collection[int] | None, drop: Collection[int]
) -> tuple[int, ...] | None:
    """Positions of the layers to keep, ``None`` for all."""
    if not schema.node_exists(split / _STATES) or (keep is None and not drop):
        return None
    n_layers = open_sealed(split / _STATES, 2).shape[1]
    layers: list[int] = attributes["arrays"].get(_STATES, {}).get("layers", list(range(n_layers)))
    absent = sorted({*(keep or ()), *drop} - set(layers))
    if absent:
        raise ConfigurationError(f"{split} holds no hidden state {absent[0]}; it holds {layers}.")
    return tuple(
        position for position, layer in enumerate(layers) if (keep is None or layer in keep) and layer not in drop
    )


def _root(
    attributes: dict[str, Any], source: Path, plans: list[_Plan], compression: Compression | Literal["keep"]
) -> dict[str, Any]:
    """Attributes of the new root: those of the old one, and what was done."""
    made = {
        "from": str(source),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "compression": compression,
        "passes": {plan.path.name: list(plan.passes) for plan in plans},
    }
    changed = {} if compression == KEEP else {"storage": {**attributes.get("storage", {}), "compression": compression}}
    return {**attributes, **changed, "compacted": [*attributes.get("compacted", ()), made]}


def _copy_others(source: Path, target: Path, plans: list[_Plan]) -> None:
    """Copy everything beside the splits, and of the results of analyses those that still hold."""
    splits = {plan.path.name: plan for plan in plans}
    for node in source.glob("*/zarr.json"):
        name = node.parent.name
        if name != "analysis" and name not in splits:
            _copy(node.parent, target / name)
    if not schema.node_exists(source / "analysis"):
        return
    _copy_metadata(source / "analysis", target / "analysis")
    for group in (node.parent for node in source.glob("analysis/*/zarr.json")):
        _copy_metadata(group, target / "analysis" / group.name)
        for result in (node.parent for node in group.glob("*/zarr.json")):
            if group.name not in splits or _still_holds(result, splits[group.name]):
                _copy(result, target / "analysis" / group.name / result.name)


def _still_holds(result: Path, plan: _Plan) -> bool:
    """Whether all the passes that a result says it was computed from are kept; one that does not say may not be."""
    passes = schema.read_metadata(result)["attributes"].get("passes")
    return not plan.drops_passes or (passes is not None and {known[0] for known in passes} <= set(plan.passes))


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.partial"))


def _copy_metadata(source: Path, target: Path) -> None:
    schema.write_metadata(target, schema.read_metadata(source))


def _write_split(plan: _Plan, target: Path, meter: Meter) -> None:
    """Write what is kept of a split; each commit after the shards that it vouches for."""
    arrays = dict(plan.attributes["arrays"])
    if plan.layers == ():
        arrays.pop("decoder_hidden_states", None)
    if _STATES in arrays and plan.layers is not None:
        said = arrays.pop(_STATES)
        if plan.layers:
            layers = said.get("layers")
            chosen = {} if layers is None else {"layers": [layers[position] for position in plan.layers]}
            arrays[_STATES] = {**said, **chosen}
    schema.write_metadata(target, schema.group_metadata({**plan.attributes, "arrays": arrays}))
    schema.write_metadata(target / "segments", schema.group_metadata())
    schema.write_metadata(target / "commits", schema.group_metadata())
    for node in plan.path.glob("*/zarr.json"):
        if node.parent.name not in (*schema.PASS_ARRAYS, "segments", "commits"):
            _copy(node.parent, target / node.parent.name)
    for name, spec in schema.PASS_ARRAYS.items():
        if spec.is_ragged and schema.node_exists(plan.path / name):
            _copy_metadata(plan.path / name, target / name)
    manifests = {index: commit_of(plan.path, index) for index in plan.passes}
    for name, array in plan.arrays():
        write = _writer_of(plan, name, array, target / name, arrays.get(name, {}))
        for index, manifest in manifests.items():
            for leading, new_leading, rows, file in plan.shards(name, array, index):
                _check(plan, name, array, leading, rows, file, manifest)
                write(leading, new_leading, rows, file)
                meter.add(file)
    for index, manifest in manifests.items():
        folders = [target / name / "c" / str(index) for name in schema.STORED_ARRAYS]
        sealed = {**manifest, "checksums": checksums_below(folders, target)}
        schema.write_metadata(target / "commits" / schema.pass_name(index), schema.group_metadata(sealed))


def _check(
    plan: _Plan,
    name: str,
    array: SealedArray,
    leading: tuple[int, ...],
    rows: range,
    file: Path,
    manifest: dict[str, Any],
) -> None:
    """Refuse a damaged shard: what is made of it would look whole."""
    expected = manifest.get("checksums", {}).get(file.relative_to(plan.path).as_posix())
    for problem in problems_of_shard(array, rows, file, expected):
        layer = leading[1] if len(leading) > 1 else None
        where = about(problem, split=plan.path.name, array=name, index=leading[0], layer=layer)
        raise StoreError(f"{where}; the run is damaged, see t3vis verify. Leave that pass or layer out.")


_Write = Callable[[tuple[int, ...], tuple[int, ...], range, Path], None]


def _writer_of(plan: _Plan, name: str, array: SealedArray, target: Path, said: dict[str, Any]) -> _Write:
    """Write the metadata of an array of the new run; returns what writes one shard of it."""
    metadata = schema.read_metadata(plan.path / name)
    inner = metadata["codecs"][0]["configuration"]["codecs"]
    shape = list(array.shape)
    shape[0] = min(shape[0], max(plan.passes, default=-1) + 1)
    if name == _STATES and plan.layers is not None:
        shape[1] = len(plan.layers)
    compression = plan.compression
    recoded = compression != KEEP and (
        inner[1:] != list(codec_metadata(compression, array.dtype))
        or (compression == "bitround" and name in ROUNDED_ARRAYS)
    )
    if compression != KEEP:
        inner[1:] = codec_metadata(compression, array.dtype)
    attributes = {**metadata["attributes"], **said}
    schema.write_metadata(target, {**metadata, "shape": shape, "attributes": attributes})
    if compression == KEEP or not recoded:  # bit for bit
        return lambda _, new_leading, rows, file: _copy_shard(file, _shard_file(target, array, new_leading, rows))
    encode = encoder(compression, array.dtype)

    def write(leading: tuple[int, ...], new_leading: tuple[int, ...], rows: range, _: Path) -> None:
        content = rounded(compression, name, array.read(leading, rows))
        first_shard = rows.start // array.layout.shard_rows
        write_rows(target, new_leading, content, array.layout, array.fill, encode, first_shard)

    return write


def _shard_file(target: Path, array: SealedArray, leading: tuple[int, ...], rows: range) -> Path:
    return shard_path(target, leading, rows.start // array.layout.shard_rows, len(array.shape) - array.row_axis - 1)


def _copy_shard(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
