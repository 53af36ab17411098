"""Whether a run is whole: every shard against its index and checksum, every pass against its manifest.

Everything is streamed, so memory does not grow with the run. It works also on a run that is being recorded: what
was sealed, removed or taken back while it was looked at is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.checksums import files_below, is_shard, size_of
from t3vis.store.commits import committed_passes
from t3vis.store.integrity import (
    Meter,
    Problem,
    Progress,
    about,
    attributes_of,
    lacking_problems,
    metadata_problem,
    offset_problems,
    problems_of_shard,
    shard_problems,
    shards_of,
)
from t3vis.store.sealed import SealedArray, open_sealed
from t3vis.store.segments import passes_with_remains, segment_path
from t3vis.store.shard import shard_path
from t3vis.store.verify_examples import analysis_problems, columns_problems, example_problems

_ATTEMPTS = 20  # a pass can be sealed, and its segments removed, while it is looked at
_COVERAGE = ("pass", "n_examples", "n_seen", "n_repeated", "n_never", "first_step", "last_step")
_OF_SPLIT = ("kind", "mode", "n_examples", "fingerprint", "arrays")
_OF_SEGMENT = ("pass", "attempt", "rank", "sequence", "n_rows", "of_pass")
_OF_ATTEMPT = ("attempt", "rank", "start_step", "started", "finished", "missing_rows", "first_error", "complete")


def verify(run_path: Path, *, progress: Progress | None = None) -> list[Problem]:
    """Everything that is damaged in a run, by file; nothing is changed.

    A flipped byte inside a chunk that has no codec is found where the checksum of its shard was kept, which is the
    case for sealed passes of a run whose manifests have ``checksums``; elsewhere any bit pattern is a row.

    Parameters
    ----------
    progress
        Called with the bytes of shards read so far, and all there are.

    Raises
    ------
    StoreError
        If there is no run at ``run_path``, or its root cannot be read.
    """
    schema.run_attributes(run_path)
    total = sum(size_of(file) for file in files_below(run_path) if is_shard(file)) if progress else 0
    meter = Meter(progress, total)
    found = list(_metadata_problems(run_path))
    for split in sorted(node.parent for node in run_path.glob("*/zarr.json")):
        attributes = attributes_of(split)
        if attributes is not None and "kind" in attributes:
            found += _Split(split, attributes, meter).problems()
    found += columns_problems(run_path / "tokenizer", None, meter)
    found += analysis_problems(run_path, meter)
    meter.end()
    return found


def _metadata_problems(run: Path) -> Iterator[Problem]:
    """Metadata that cannot be read, and attempts that do not say what they must."""
    for file in sorted(file for file in files_below(run) if file.name == "zarr.json"):
        try:
            metadata = schema.read_metadata(file.parent)
        except FileNotFoundError:
            continue
        except StoreError:
            yield Problem(file, "it is not a JSON object")
            continue
        if metadata.get("zarr_format") != 3 or metadata.get("node_type") not in ("group", "array"):
            yield Problem(file, "it is not the metadata of a Zarr v3 group or array")
        elif file.parent.parent == run / "attempts":
            yield from lacking_problems(file.parent, metadata.get("attributes", {}), _OF_ATTEMPT)


class _Split:
    """One split under examination."""

    def __init__(self, path: Path, attributes: dict[str, Any], meter: Meter) -> None:
        self.path, self.name, self.attributes, self.meter = path, path.name, attributes, meter
        self.n_examples: int | None = attributes.get("n_examples")
        self.kind: schema.SplitKind = "train" if attributes["kind"] == "train" else "eval"

    def problems(self) -> Iterator[Problem]:
        """All that is wrong with it."""
        yield from lacking_problems(self.path, self.attributes, _OF_SPLIT, split=self.name)
        if self.attributes["kind"] not in schema.PASS_DIM:
            what = f"its kind is {self.attributes['kind']!r}, expected train or eval"
            yield Problem(self.path / "zarr.json", what, split=self.name)
        for name in schema.STORED_ARRAYS:
            if schema.node_exists(self.path / name):
                yield from self._array_problems(name)
        committed = committed_passes(self.path)
        for index in sorted({*committed, *passes_with_remains(self.path), *committed_passes(self.path)}):
            yield from self._pass_problems(index)
        yield from example_problems(self.path, self.attributes, self.meter)

    def _array_problems(self, name: str) -> Iterator[Problem]:
        """What is wrong with a sealed array as such."""
        spec, node = schema.STORED_ARRAYS[name], self.path / name
        what = metadata_problem(
            node, dims=spec.dims(self.kind), dtype=spec.dtype, fill=spec.fill, row_axis=spec.row_axis
        )
        if what is None and self.n_examples is not None:
            n_rows, expected = schema.read_metadata(node)["shape"][spec.row_axis], spec.n_rows(self.n_examples)
            if expected is not None and n_rows != expected:
                what = f"it has room for {n_rows} {spec.rows}s, expected {expected}"
        if what is not None:
            yield Problem(node / "zarr.json", what, split=self.name, array=name)

    def _pass_problems(self, index: int) -> list[Problem]:
        """What is wrong with one pass, as it is now: sealed, or in segments."""
        commit = self.path / "commits" / schema.pass_name(index)
        found: list[Problem] = []
        for _ in range(_ATTEMPTS):
            done, manifest = self.meter.done, attributes_of(commit)
            committed = schema.node_exists(commit)
            with suppress(FileNotFoundError):  # the commit has been taken back, and its shards with it
                if manifest is not None:
                    found = list(self._sealed_problems(index, manifest))
                else:
                    found = [] if committed else list(self._segments_problems(index))
            if attributes_of(commit) == manifest and schema.node_exists(commit) == committed:
                break
            self.meter.done = done
        return [about(problem, split=self.name, index=index) for problem in found]

    # Sealed passes

    def _sealed_problems(self, index: int, manifest: dict[str, Any]) -> Iterator[Problem]:
        node = self.path / "commits" / schema.pass_name(index)
        lacking = list(lacking_problems(node, manifest, _COVERAGE, numbers=_COVERAGE))
        if lacking:
            yield from lacking
            return
        if self.n_examples is not None and manifest["n_examples"] != self.n_examples:
            what = f"it speaks of {manifest['n_examples']} examples, expected {self.n_examples}"
            yield Problem(node / "zarr.json", what)
            return
        if manifest["pass"] != index:
            yield Problem(node / "zarr.json", f"it says to be the manifest of pass {manifest['pass']}")
        sealed = {name: array for name in schema.STORED_ARRAYS if (array := self._open(name)) is not None}
        damaged = set()
        dropped = manifest.get("dropped", ())  # shards of these may be left, if that was interrupted
        for name, array in sealed.items():
            for problem in () if name in dropped else self._sealed_array_problems(array, name, index, manifest):
                damaged.add(name)
                yield about(problem, array=name)
        known = manifest.get("checksums", {})
        for relative in known:
            name = relative.partition("/c/")[0]
            if name not in sealed and not (self.path / relative).exists():
                yield Problem(self.path / relative, "this shard is missing", array=name)
        for spec in schema.PASS_ARRAYS.values():
            if spec.is_ragged and {part.name for part in spec.parts} <= sealed.keys() - damaged:
                values, offsets = (sealed[part.name] for part in spec.parts)
                n_offsets = min(int(manifest["n_examples"]) + 1, offsets.n_rows) if offsets.shape[0] > index else 0
                for problem in offset_problems(offsets, (index,), n_rows=n_offsets, n_values=range(values.n_rows + 1)):
                    yield about(problem, array=spec.parts[1].name)
        if not damaged & {"step", "visits"}:
            yield from self._coverage_problems(index, manifest, sealed, node)

    def _open(self, name: str) -> SealedArray | None:
        """A sealed array, ``None`` if there is none, or none that can be opened; that is a problem by itself."""
        try:
            return open_sealed(self.path / name, schema.STORED_ARRAYS[name].row_axis)
        except (FileNotFoundError, StoreError, KeyError, TypeError, ValueError):
            return None

    def _sealed_array_problems(
        self, array: SealedArray, name: str, index: int, manifest: Mapping[str, Any]
    ) -> Iterator[Problem]:
        """What is wrong with the shards of one array in one pass."""
        n_rows = schema.STORED_ARRAYS[name].n_rows(int(manifest["n_examples"]))
        n_rows, kept = array.n_rows if n_rows is None else n_rows, manifest.get("checksums")
        grid = {file: (leading, rows) for leading, rows, file in shards_of(array, (index,), n_rows)}
        there = {file for file in files_below(self.path / name / "c" / str(index)) if is_shard(file)}
        if kept is not None:
            needed = {self.path / relative for relative in kept if relative.startswith(f"{name}/c/{index}/")}
        elif schema.STORED_ARRAYS[name].rows == "value":
            needed = there  # how many values there were, the offsets tell
        else:
            needed = set(grid) if there or self._is_expected(name, index, manifest) else set()
        if needed and (array.shape[0] <= index or array.shape[array.row_axis] < n_rows):
            yield Problem(self.path / name / "zarr.json", f"its shape {array.shape} does not cover this pass")
        for file in sorted(needed | there):
            leading, rows = grid.get(file, ((), None))
            layer = leading[1] if len(leading) > 1 else None
            if rows is None:
                yield Problem(file, "this shard lies outside of its array")
            elif file not in there:
                yield Problem(file, "this shard is missing", layer=layer, rows=rows)
            elif file not in needed:
                yield Problem(file, "the commit does not know of this shard", layer=layer, rows=rows)
            else:
                expected = kept[file.relative_to(self.path).as_posix()] if kept is not None else None
                for problem in problems_of_shard(array, rows, file, expected):
                    yield about(problem, layer=layer)
            self.meter.add(file)

    def _is_expected(self, name: str, index: int, manifest: Mapping[str, Any]) -> bool:
        """Whether a pass without a single shard of an array has lost them, as far as that can be told."""
        if name == "visits" or not manifest["n_seen"]:
            return name == "visits"
        others = (self.path / name / "c" / str(other) for other in committed_passes(self.path) if other != index)
        return name == "step" or any(other.exists() for other in others)

    def _coverage_problems(
        self, index: int, manifest: dict[str, Any], sealed: Mapping[str, SealedArray], node: Path
    ) -> Iterator[Problem]:
        """Where a manifest says other than ``step`` and ``visits`` of its pass."""
        n_rows = int(manifest["n_examples"])
        if "visits" not in sealed or ("step" not in sealed and manifest["n_seen"]):
            lost = "visits" if "visits" not in sealed else "step"
            yield Problem(self.path / lost, f"the pass has been sealed, but there is no {lost}", array=lost)
            return
        counted = _coverage(sealed, index, n_rows)
        if counted is None:
            yield Problem(node / "zarr.json", "step and visits disagree on which examples were seen", array="step")
            return
        exact = counted["n_repeated"] == 0
        for key, found in counted.items():
            said = manifest[key]
            right = said == found or (not exact and key == "first_step" and said <= found)
            right = right or (not exact and key == "last_step" and said >= found)
            if not right:
                yield Problem(node / "zarr.json", f"its {key} is {said}, but the rows of the pass say {found}")

    # Passes in segments

    def _segments_problems(self, index: int) -> Iterator[Problem]:
        for segment in sorted(self.path.glob(f"segments/*/{schema.pass_name(index)}_*")):
            found: list[Problem] = []
            with suppress(FileNotFoundError):  # sealed and removed in the meantime
                found = list(self._segment_problems(segment)) if _is_complete(segment) else []
            if _is_complete(segment):
                yield from found

    def _segment_problems(self, segment: Path) -> Iterator[Problem]:
        attributes = attributes_of(segment)
        if attributes is None:
            return
        lacking = list(lacking_problems(segment, attributes, _OF_SEGMENT, numbers=_OF_SEGMENT[:-1]))
        if lacking:
            yield from lacking
            return
        named = segment_path(self.path, attributes)
        said = f"{named.parent.name}/{named.name}"
        if segment != named:
            yield Problem(segment / "zarr.json", f"it says to be the segment {said}")
        for name in (schema.EXAMPLE_ID.name, *schema.STORED_ARRAYS):
            if schema.node_exists(segment / name):
                for problem in self._segment_array_problems(segment, name, attributes):
                    yield about(problem, array=name)
            elif name in (schema.EXAMPLE_ID.name, "step"):
                yield Problem(segment / name, "this array of the segment is missing", array=name)

    def _segment_array_problems(self, segment: Path, name: str, attributes: dict[str, Any]) -> Iterator[Problem]:
        """What is wrong with one array of a segment, which is one shard."""
        spec = schema.EXAMPLE_ID if name == schema.EXAMPLE_ID.name else schema.STORED_ARRAYS[name]
        node, expected_rows = segment / name, spec.n_rows(int(attributes["n_rows"]))
        n_leading = len(spec.leading)
        what = metadata_problem(
            node, dims=spec.segment_dims(), dtype=spec.dtype, fill=spec.fill, row_axis=n_leading, in_one_shard=True
        )
        said = {} if what is not None else schema.read_metadata(node)
        shape = tuple(said.get("shape", ()))
        n_rows = shape[n_leading] if shape else 0
        if what is None and expected_rows not in (None, n_rows):
            what = f"it has {n_rows} rows, expected {expected_rows}"
        if what is not None:
            yield Problem(node / "zarr.json", what)
            return
        file = shard_path(node, (0,) * n_leading, 0, len(shape) - n_leading - 1)
        expected = attributes.get("checksums", {}).get(file.relative_to(segment).as_posix())
        chunk_rows = said["codecs"][0]["configuration"]["chunk_shape"][n_leading]
        n_blocks = max(-(-n_rows // chunk_rows), 1)
        n_bytes = chunk_rows * int(np.prod(shape[n_leading + 1 :], dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        n_chunks = n_blocks * (shape[0] if n_leading else 1)
        try:
            found = list(shard_problems(file, n_chunks=n_chunks, chunk_bytes=n_bytes, decode=None, expected=expected))
        except FileNotFoundError:
            yield Problem(file, "this shard of the segment is missing", rows=range(n_rows))
            return
        for problem in found:
            layer, rows = None, range(n_rows)
            if problem.chunk is not None and n_leading:
                layer, block = divmod(problem.chunk, n_blocks)
                rows = rows[block * chunk_rows : (block + 1) * chunk_rows]
            yield Problem(file, problem.what, layer=layer, rows=rows)
        self.meter.add(file)
        if name == schema.EXAMPLE_ID.name and not found:
            yield from self._id_problems(open_sealed(node, 0), file, n_rows)

    def _id_problems(self, ids: SealedArray, file: Path, n_rows: int) -> Iterator[Problem]:
        found = ids.read_all()
        limit = np.iinfo(np.int64).max if self.n_examples is None else self.n_examples
        if n_rows and (found.min() < 0 or found.max() >= limit):
            what = f"it holds ids {found.min()} to {found.max()}, expected some of {limit} examples"
            yield Problem(file, what, rows=range(n_rows))


def _is_complete(segment: Path) -> bool:
    return shard_path(segment / schema.EXAMPLE_ID.name, (), 0, 0).is_file()


def _coverage(sealed: Mapping[str, SealedArray], index: int, n_rows: int) -> dict[str, int] | None:
    """What a manifest says, counted in the arrays; ``None`` if they disagree on what was seen."""
    visits, step = sealed["visits"], sealed.get("step")
    n_seen = n_repeated = 0
    first, last = np.iinfo(np.int64).max, -1
    for start in range(0, n_rows, visits.layout.shard_rows):
        rows = range(start, min(start + visits.layout.shard_rows, n_rows))
        counts = visits.read((index,), rows)
        steps = np.full(len(rows), -1) if step is None else step.read((index,), rows)
        seen = counts > 0
        if not np.array_equal(seen, steps >= 0):
            return None
        n_seen += int(np.count_nonzero(seen))
        n_repeated += int(np.count_nonzero(counts > 1))
        first, last = min(first, int(steps[seen].min(initial=first))), max(last, int(steps.max(initial=-1)))
    return {
        "n_seen": n_seen,
        "n_repeated": n_repeated,
        "n_never": n_rows - n_seen,
        "first_step": first if n_seen else -1,
        "last_step": last,
    }
