"""Rows in order of arrival: written by one process, merged into order of example by whoever reads or seals them.

A segment is a Zarr group ``<split>/segments/<attempt and rank>/<pass>_<sequence>`` with one array for each thing
recorded and ``example``, the ids of its rows, written last: a segment counts from the moment that shard is there.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.ragged import Ragged, offsets_of, positions
from t3vis.store.shard import ShardFile, bytes_of, pieces, shard_path

_PART_BYTES = 8 << 20  # of a segment that are in memory while it is merged
_NO_LIMIT = int(np.iinfo(np.int64).max)

RowShape = tuple[tuple[int, ...], tuple[int, ...]]
_Source: TypeAlias = "tuple[Segment, NDArray[np.int32], NDArray[np.integer]]"


@dataclass(frozen=True)
class Segment:
    """A committed segment: where it lies, and what its attributes and arrays say."""

    path: Path
    attempt: int
    rank: int
    sequence: int
    n_rows: int
    attributes: dict[str, Any]
    _known_sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def has(self, name: str) -> bool:
        """Whether it holds an array of that name.

        Raises
        ------
        FileNotFoundError
            If the segment has been sealed and removed, so that what it held cannot be told any more.
        """
        if name in self._known_sizes or schema.node_exists(self.path / name):
            return True
        if not _is_complete(self.path):
            raise FileNotFoundError(f"{self.path} was sealed and removed while it was read")
        return False

    def array_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one of its arrays.

        Raises
        ------
        FileNotFoundError
            If the segment has no such array, or has been sealed and removed.
        """
        return self._sizes(name)[0]

    def _sizes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shape of an array, and of its inner chunks."""
        if name not in self._known_sizes:
            found = schema.read_metadata(self.path / name)
            chunk = found["codecs"][0]["configuration"]["chunk_shape"]
            self._known_sizes[name] = tuple(found["shape"]), tuple(chunk)
        return self._known_sizes[name]

    def read(self, spec: schema.ArraySpec, leading: int = 0, rows: range | None = None) -> NDArray[Any]:
        """Rows of one array, shape (n_rows, *trailing).

        Parameters
        ----------
        leading
            The layer, where there are layers.
        rows
            Which of them, one after another; all if left out.
        """
        shape, chunk = self._sizes(spec.name)
        n_leading = len(spec.leading)
        trailing, chunk_rows = shape[n_leading + 1 :], chunk[n_leading]
        n_rows = self.n_rows if spec.rows == "example" else shape[n_leading]
        wanted = range(n_rows) if rows is None else rows
        found = np.empty((len(wanted), *trailing), spec.dtype)
        if not found.size:
            return found
        row_bytes, n_chunks = found[0].nbytes, -(-n_rows // chunk_rows)
        path = shard_path(self.path / spec.name, (0,) * n_leading, 0, len(trailing))
        with ShardFile(path, n_chunks * (shape[0] if n_leading else 1)) as shard:
            ranges = []
            for number, within, at in pieces(wanted, chunk_rows):
                span = shard.chunk_span(leading * n_chunks + number)
                if span is None or span[1] != chunk_rows * row_bytes:
                    raise StoreError(
                        f"{shard.path} holds {0 if span is None else span[1]} bytes for {chunk_rows} rows of "
                        f"{spec.name}, expected {chunk_rows * row_bytes}; the segment is damaged."
                    )
                ranges.append((span[0] + int(within[0]) * row_bytes, at.start * row_bytes, len(within) * row_bytes))
            shard.read_ranges(ranges, bytes_of(found))
        return found

    def read_ragged(self, spec: schema.ArraySpec) -> Ragged:
        """Rows of one ragged array."""
        values, offsets = spec.parts
        return Ragged(self.read(values), self.read_offsets(offsets))

    def read_offsets(self, spec: schema.ArraySpec) -> NDArray[np.int64]:
        """Where the values of each row of a ragged array begin and end, shape (n_rows + 1,).

        Raises
        ------
        StoreError
            If they are not offsets.
        """
        offsets = self.read(spec)
        if len(offsets) != self.n_rows + 1 or offsets[0] or (np.diff(offsets) < 0).any():
            raise StoreError(f"{self.path / spec.name} are not the offsets of {self.n_rows} rows; it is damaged.")
        return offsets


def _shard_of(segment: Path, spec: schema.ArraySpec, ndim: int) -> Path:
    n_leading = len(spec.leading)
    return shard_path(segment / spec.name, (0,) * n_leading, 0, ndim - n_leading - 1)


def _is_complete(segment: Path) -> bool:
    return _shard_of(segment, schema.EXAMPLE_ID, 1).is_file()


def segment_path(split: Path, attributes: Mapping[str, Any]) -> Path:
    """Directory of a segment, given ``attempt``, ``rank``, ``pass`` and ``sequence`` among its attributes."""
    folder = split / "segments" / schema.rank_name(attributes["attempt"], attributes["rank"])
    return folder / f"{schema.pass_name(attributes['pass'])}_s{attributes['sequence']:06d}"


def list_segments(split: Path, index: int) -> list[Segment]:
    """Committed segments of one pass, by attempt, rank and sequence."""
    found = []
    for path in split.glob(f"segments/*/{schema.pass_name(index)}_*"):
        try:
            if not _is_complete(path):
                continue
            attributes = schema.read_metadata(path)["attributes"]
        except FileNotFoundError:
            continue  # sealed and removed since the directory was listed
        found.append(
            Segment(
                path=path,
                attempt=attributes["attempt"],
                rank=attributes["rank"],
                sequence=attributes["sequence"],
                n_rows=attributes["n_rows"],
                attributes=attributes,
            )
        )
    return sorted(found, key=lambda segment: (segment.attempt, segment.rank, segment.sequence))


def unsealed_passes(split: Path) -> list[int]:
    """Numbers of the passes that have committed segments with rows that count, in increasing order."""
    superseded = limits(split.parent) if split.name == "train" else {}
    return _pass_numbers(path for path in split.glob("segments/*/p*_*") if _counts(path, superseded))


def _counts(segment: Path, superseded: Mapping[int, int]) -> bool:
    if not _is_complete(segment):
        return False
    if not superseded:
        return True
    try:
        attributes = schema.read_metadata(segment)["attributes"]
    except FileNotFoundError:
        return False  # sealed and removed since the directory was listed
    first_step: int = attributes.get("first_step", 0)
    return first_step < superseded.get(attributes["attempt"], _NO_LIMIT)


def passes_with_remains(split: Path) -> list[int]:
    """Numbers of the passes that have anything among the segments, also what a process that died left there."""
    return _pass_numbers(split.glob("segments/*/p*_*"))


def _pass_numbers(paths: Iterable[Path]) -> list[int]:
    return sorted({int(path.name.split("_")[0][1:]) for path in paths})


def remove_segments(split: Path, index: int) -> None:
    """Delete all segments of one pass; each one's ``example`` shard first, so that none is ever seen in part."""
    for path in split.glob(f"segments/*/{schema.pass_name(index)}_*"):
        _remove(path)


def _remove(segment: Path) -> None:
    _shard_of(segment, schema.EXAMPLE_ID, 1).unlink(missing_ok=True)
    shutil.rmtree(segment, ignore_errors=True)


def holds(
    split: Path, index: int, attempt: int, examples: NDArray[np.int64], steps: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which of these rows, by example and step, the segments of one attempt hold."""
    found = [segment for segment in list_segments(split, index) if segment.attempt == attempt]
    ids = _concatenate([segment.read(schema.EXAMPLE_ID) for segment in found])
    at = _concatenate([segment.read(schema.PASS_ARRAYS["step"]) for segment in found])
    size = max(ids.max(initial=0), examples.max(initial=0)) + 1
    held: NDArray[np.bool_] = np.isin(steps * size + examples, at * size + ids)
    return held


def remove_sealed(split: Path, index: int, lineage: Sequence[Window]) -> list[Path]:
    """Delete the segments of a sealed pass whose rows are in the sealed arrays, and what dead processes left.

    Segments with rows that are superseded, and so nowhere else, stay: a later attempt may go on from a checkpoint
    after them.

    Parameters
    ----------
    lineage
        The attempts that the rows of the sealed pass are of; see ``commits.lineage_of``.

    Returns
    -------
    The segments that are gone.
    """
    removed = []
    windows = {window.attempt: window for window in lineage}
    for path in split.glob(f"segments/*/{schema.pass_name(index)}_*"):
        if _is_complete(path) and split.name == "train":
            attributes = schema.read_metadata(path)["attributes"]
            window = windows.get(attributes["attempt"])
            if window is None or attributes.get("last_step", -1) >= window.stop:
                continue
        _remove(path)
        removed.append(path)
    return removed


def remove_unfinished(split: Path) -> list[Path]:
    """Delete what processes that died have left of segments; returns what is gone."""
    unfinished = [path for path in split.glob("segments/*/p*_*") if not _is_complete(path)]
    for path in unfinished:
        _remove(path)
    return unfinished


@dataclass(frozen=True)
class Merge:
    """Which row of which segment becomes which example's row of a pass.

    ``kept[i]`` are the rows of ``segments[i]`` that count, in order of arrival, and ``targets[i]`` their examples.
    ``visits`` has shape (n_examples,): how often each was seen.
    """

    segments: tuple[Segment, ...]
    kept: tuple[NDArray[np.int32], ...]
    targets: tuple[NDArray[np.integer], ...]
    visits: NDArray[np.int32]
    first_step: int
    last_step: int

    @property
    def n_examples(self) -> int:
        """Examples of the split, seen or not."""
        return len(self.visits)

    def coverage(self) -> dict[str, int]:
        """How many examples were seen, seen more than once, and never seen in this pass."""
        n_seen = int(np.count_nonzero(self.visits))
        return {
            "n_examples": self.n_examples,
            "n_seen": n_seen,
            "n_repeated": int(np.count_nonzero(self.visits > 1)),
            "n_never": self.n_examples - n_seen,
            "first_step": self.first_step,
            "last_step": self.last_step,
        }

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Arrays of the pass and the sizes of a row: leading sizes, then trailing sizes."""
        shapes: dict[str, tuple[int, ...]] = {"visits": ()}
        for segment in self.segments:
            for name, spec in schema.PASS_ARRAYS.items():
                if name not in shapes and segment.has(name):
                    shape = () if spec.is_ragged else segment.array_shape(name)
                    shapes[name] = shape[: len(spec.leading)] + shape[len(spec.leading) + 1 :]
        return shapes

    def of_pass(self) -> dict[str, Any]:
        """What the writer said of the pass when it began, such as its epoch and step; the first attempt has the say."""
        said: dict[str, Any] = {}
        for segment in self.segments:
            said = {**segment.attributes["of_pass"], **said}
        return said

    def gather(
        self,
        name: str,
        trailing: tuple[int, ...],
        layer: int = 0,
        *,
        examples: range | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """One array (one layer of it) in order of example, shape (n_examples, *trailing).

        Parameters
        ----------
        examples
            Only these, one after another; all segments are read for each call.
        out
            What other rows of the same array, as many or more, were gathered into, to be used again: memory that was
            never touched costs more than the copying (benchmarks/bench_store.py).
        """
        spec = schema.PASS_ARRAYS[name]
        wanted = range(self.n_examples) if examples is None else examples
        if name == "visits":
            return self.visits[wanted.start : wanted.stop]
        sources = self._sources(name)
        is_whole = len(wanted) == self.n_examples
        if not is_whole:
            sources = [_among(source, wanted) for source in sources]
        out = np.empty((len(wanted), *trailing), spec.dtype) if out is None else out[: len(wanted)]
        if sum(len(kept) for _, kept, _ in sources) < len(wanted):
            out.fill(spec.fill)
        items = _items(out)
        step = max(_PART_BYTES // max(items.itemsize, 1), 1)
        for segment, kept, targets in sources:
            for start in range(0, segment.n_rows, step):
                rows = range(start, min(start + step, segment.n_rows))
                part = slice(*np.searchsorted(kept, [rows.start, rows.stop]))
                if part.start < part.stop:
                    items[targets[part]] = _items(_kept(segment.read(spec, layer, rows), kept[part] - start))
        return out

    def gather_ragged(self, name: str) -> Ragged:
        """One ragged array in order of example, of ``n_examples`` rows; those of examples that were not seen are empty.

        The values of one segment at a time are in memory beside the result.
        """
        spec = schema.PASS_ARRAYS[name]
        sources = self._sources(name)
        lengths = np.zeros(self.n_examples, np.int64)
        for segment, kept, targets in sources:
            lengths[targets] = np.diff(segment.read_offsets(spec.parts[1]))[kept]
        offsets = offsets_of(lengths)
        values = np.empty(offsets[-1], spec.dtype)
        for segment, kept, targets in sources:
            rows = segment.read_ragged(spec)[kept]
            values[positions(offsets[targets], rows.lengths)] = rows.values
        return Ragged(values, offsets)

    def _sources(self, name: str) -> list[_Source]:
        """Segments that have rows of an array that count: which rows, and whose."""
        return [
            (segment, kept, targets)
            for segment, kept, targets in zip(self.segments, self.kept, self.targets, strict=True)
            if len(kept) and segment.has(name)
        ]


def _among(source: _Source, examples: range) -> _Source:
    """The rows of a segment that are of some examples, which are counted from the first of these."""
    segment, kept, targets = source
    chosen = (targets >= examples.start) & (targets < examples.stop)
    return segment, kept[chosen], targets[chosen] - examples.start


def _items(rows: NDArray[Any]) -> NDArray[Any]:
    """The same memory with each row as one item, shape (n_rows,): NumPy moves these a third faster than short rows."""
    n_values = math.prod(rows.shape[1:])
    if rows.ndim == 1 or not n_values:
        return rows
    return rows.reshape(len(rows), n_values).view(f"V{n_values * rows.itemsize}")[:, 0]


def _kept(rows: NDArray[Any], kept: NDArray[np.int32]) -> NDArray[Any]:
    return rows if len(kept) == len(rows) else rows[kept]


def merge(
    segments: Sequence[Segment],
    limits: Mapping[int, int],
    n_examples: int | None,
    kind: schema.SplitKind,
) -> Merge:
    """Decide which rows count.

    Rows of steps that the weights of the newest attempt did not come through are superseded. Of what remains, the
    first visit of each example counts and all are counted.

    Parameters
    ----------
    limits
        First step of each attempt that is superseded; see ``limits``.
    n_examples
        Size of the split; ``None`` where only the ids seen can tell.
    kind
        An evaluation is superseded as a whole, before it is merged; only training rows are sifted here.
    """
    bounds = np.cumsum([0, *(segment.n_rows for segment in segments)])
    parts = [slice(*pair) for pair in pairwise(bounds.tolist())]
    example, step = np.empty(bounds[-1], np.int64), np.empty(bounds[-1], np.int64)
    for segment, part in zip(segments, parts, strict=True):
        example[part] = segment.read(schema.EXAMPLE_ID)
        step[part] = segment.read(schema.PASS_ARRAYS["step"])
    size = n_examples if n_examples is not None else int(example.max(initial=-1)) + 1
    order = _in_order(segments, parts, step, {} if kind == "eval" else limits)
    is_first = _is_first(example, order, size)
    kept = [np.flatnonzero(is_first[part]).astype(np.int32) for part in parts]
    counts = _visits_of(segments)
    visits = np.bincount(example[order], None if counts is None else counts[order], minlength=size)
    compact = np.int32 if size <= np.iinfo(np.int32).max else np.int64
    return Merge(
        segments=tuple(segments),
        kept=tuple(kept),
        targets=tuple(example[part][rows].astype(compact) for part, rows in zip(parts, kept, strict=True)),
        visits=visits.astype(np.int32),
        first_step=int(step[order].min()) if len(order) else -1,
        last_step=int(step[order].max(initial=-1)),
    )


def _in_order(
    segments: Sequence[Segment], parts: Sequence[slice], step: NDArray[np.int64], limits: Mapping[int, int]
) -> NDArray[np.int64]:
    """Numbers of the rows that count, by attempt, then step; arrival decides among equals."""
    counting = np.empty(len(step), bool)
    attempt = np.empty(len(step), np.int32)
    for segment, part in zip(segments, parts, strict=True):
        counting[part] = step[part] < limits.get(segment.attempt, _NO_LIMIT)
        attempt[part] = segment.attempt
    order = np.flatnonzero(counting)
    ordered = order[np.lexsort((step[order], attempt[order]))]
    return ordered.astype(np.int64, copy=False)


def _is_first(example: NDArray[np.int64], order: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Whether each row is the one that ``order`` puts first of those of its example."""
    first = np.full(size, -1, np.int64)
    first[example[order[::-1]]] = order[::-1]  # the last assignment to an index stands
    found = np.zeros(len(example), bool)
    found[first[first >= 0]] = True
    return found


def _visits_of(segments: Sequence[Segment]) -> NDArray[np.int64] | None:
    """How many visits each row stands for; ``None`` if that is one for each."""
    spec = schema.PASS_ARRAYS["visits"]
    if not any(segment.has(spec.name) for segment in segments):
        return None
    return _concatenate(
        [segment.read(spec) if segment.has(spec.name) else np.ones(segment.n_rows, np.int32) for segment in segments]
    )


def _concatenate(parts: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64, copy=False)


@dataclass(frozen=True)
class Window:
    """The steps, from ``start`` to before ``stop``, that the newest weights took in one attempt."""

    attempt: int
    start: int
    stop: int

    def within(self, first_step: int, last_step: int) -> Window | None:
        """What of it lies between two steps, both included; ``None`` if that is nothing."""
        start, stop = max(self.start, first_step), min(self.stop, last_step + 1)
        return Window(self.attempt, start, stop) if start < stop else None


def lineage(run: Path, *, before: int | None = None) -> list[Window]:
    """The attempts that the newest weights came through, newest first, and the steps they took in each.

    An attempt starts from a checkpoint of its parent, which did the same: of each the steps before the next one's
    start count. Attempts that were abandoned are not there, nor those that only evaluated.

    Parameters
    ----------
    before
        Look at the attempts before this one only.
    """
    trained = {
        known["attempt"]: known
        for known in attempts(run)
        if known["start_step"] is not None and (before is None or known["attempt"] < before)
    }
    found: list[Window] = []
    attempt, stop = max(trained, default=None), _NO_LIMIT
    while attempt is not None:
        start = trained[attempt]["start_step"]
        found.append(Window(attempt, start, stop))
        earlier = max((number for number in trained if number < attempt), default=None)
        attempt, stop = trained[attempt].get("parent", earlier), min(start, stop)
    return found


def limits(run: Path) -> dict[int, int]:
    """First step of each attempt whose rows are superseded, by the attempt's number; see ``lineage``."""
    found = {known["attempt"]: 0 for known in attempts(run) if known["start_step"] is not None}
    return found | {window.attempt: window.stop for window in lineage(run)}


def parent_of(run: Path, start_step: int) -> int | None:
    """The attempt whose checkpoint a training that starts at ``start_step`` comes from.

    It is the latest that noted a checkpoint of that step, else the latest that began before it; none at step 0.
    """
    begun = [known for known in attempts(run) if known["start_step"] is not None and known["start_step"] <= start_step]
    saved = [known for known in begun if start_step in known.get("saved_steps", ())]
    return max((int(known["attempt"]) for known in saved or begun), default=None) if start_step else None


def attempts(run: Path) -> list[dict[str, Any]]:
    """What each process of each attempt says of itself, in order."""
    nodes = sorted((run / "attempts").glob("a*_r*/zarr.json"))  # a directory without one is in the making
    return [schema.read_metadata(node.parent)["attributes"] for node in nodes]


def row_shape(split: Path, name: str) -> RowShape | None:
    """Sizes before and after the example in one row of an array; ``None`` where none has been recorded."""
    # The sealed array is looked for again: it may have come, and the segments have gone, in the meantime.
    return _sealed_row_shape(split, name) or _segment_row_shape(split, name) or _sealed_row_shape(split, name)


def _sealed_row_shape(split: Path, name: str) -> RowShape | None:
    try:
        metadata = schema.read_metadata(split / name)
    except FileNotFoundError:
        return None
    return _around_rows(name, metadata, 1)


def _segment_row_shape(split: Path, name: str) -> RowShape | None:
    for path in split.glob("segments/*/p*_*"):
        if _is_complete(path):
            if name == "visits":
                return (), ()  # counted from the rows
            with suppress(FileNotFoundError):
                return _around_rows(name, schema.read_metadata(path / name), 0)
    return None


def _around_rows(name: str, metadata: Mapping[str, Any], n_before: int) -> RowShape:
    spec = schema.spec_of(name)
    n_leading = len(spec.leading)
    shape = metadata["shape"][n_before:] if not spec.is_ragged else ()
    return tuple(shape[:n_leading]), tuple(shape[n_leading + 1 :])


def split_names(path: Path) -> list[str]:
    """Names of the splits of a run, ``train`` first."""
    found = [
        node.parent.name
        for node in path.glob("*/zarr.json")
        if "kind" in schema.read_metadata(node.parent).get("attributes", {})
    ]
    return sorted(found, key=lambda name: (name != "train", name))
