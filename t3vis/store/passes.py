"""The passes of one split: where each one is now, and reads of its rows from there.

A pass that is committed is read from the sealed arrays, one that is not from its segments. What is held between reads,
metadata and open shards of sealed passes and where the rows of the last unsealed pass go, counts only as long as the
files it was taken from are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.checkpoints import Checkpoint, checkpoints
from t3vis.store.commits import commit_of, committed_passes
from t3vis.store.indexing import Indices
from t3vis.store.ragged import Ragged
from t3vis.store.sealed import N_REMOTE_THREADS, HeldShards, SealedArray, open_sealed, ragged_rows
from t3vis.store.storage import HeldFile, RemotePath, file_stamp, names_in, stamp

T = TypeVar("T")

_READ_ATTEMPTS = 20  # a pass can be sealed and its segments removed while it is being read


@dataclass(frozen=True)
class Pass:
    """One epoch of training, or one evaluation.

    ``epoch`` is the number of the epoch in training, and how many epochs had been trained, as a fraction, for an
    evaluation; ``step`` is the optimizer step at its beginning. ``n_seen`` examples were seen, ``n_repeated`` of
    them more than once, ``n_never`` not at all (so far, while it is not ``sealed``).
    """

    index: int
    epoch: float
    step: int
    last_step: int
    n_examples: int
    n_seen: int
    n_repeated: int
    n_never: int
    sealed: bool
    attributes: dict[str, Any]
    _reader: PassReader = field(repr=False, compare=False)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint of the model that belongs to the pass, if one was saved and is still there.

        Of an epoch it is the last one saved in it, at its end at the latest; of an evaluation that of the very model
        that was evaluated. A copy at a URL has none.
        """
        return self._reader.checkpoint(self)


class PassReader:
    """Finds and reads the passes of one split."""

    def __init__(self, run_path: schema.Node, name: str, held: HeldShards) -> None:
        self.name = name
        self.path = run_path / name
        self._run_path = run_path
        self._held = held
        self._sealed_passes: dict[int, _SealedPass] = {}
        self._merges: dict[Hashable, segments.Merge] = {}
        self.kind: schema.SplitKind = self.attributes["kind"]

    @property
    def run_location(self) -> str:
        """Absolute path or URL of the run."""
        path = self._run_path
        return str(path.resolve() if isinstance(path, Path) else path)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the split says of itself."""
        attributes: dict[str, Any] = schema.read_metadata(self.path)["attributes"]
        return attributes

    @property
    def n_examples(self) -> int:
        """Number of examples; where the dataset did not tell, the largest id seen so far and one."""
        n_examples = self.attributes["n_examples"]
        if n_examples is not None:
            return int(n_examples)
        return max((record.n_examples for record in self.records()), default=0)

    def records(self) -> tuple[Pass, ...]:
        """What is known of each pass that anything was recorded of."""
        return tuple(self._retry(self._pass, index) for index in self.indices())

    def array_attributes(self, spec: schema.ArraySpec) -> dict[str, Any]:
        """Meaning and mode of an array, and what was chosen when recording it."""
        of_split = self.attributes
        said = of_split["arrays"].get(spec.name, {})
        return {"description": spec.meaning, "mode": of_split["mode"], **said}

    def n_passes(self) -> int:
        """One more than the largest of these numbers."""
        return max((index + 1 for index in self.indices()), default=0)

    # How passes are found

    def indices(self) -> list[int]:
        """Numbers of the passes that anything was recorded of."""
        # Looked for twice, since a pass may move from here to there, or back, in the meantime.
        committed = self._committed()
        unsealed = segments.unsealed_passes(as_path(self.path)) if self._may_have_segments() else []
        return sorted({*committed, *unsealed, *self._committed()})

    def _committed(self) -> list[int]:
        if isinstance(self.path, RemotePath):
            return committed_passes(as_path(self.path))
        folder = f"{self.path}/commits"
        names = [name for name in names_in(folder) if file_stamp(f"{folder}/{name}/zarr.json") is not None]
        return sorted(int(name[1:]) for name in names)

    def _may_have_segments(self) -> bool:
        """Whether there is more below ``segments`` than empty groups; quicker than to look for the segments."""
        folder = f"{self.path}/segments"
        return any(set(names_in(f"{folder}/{name}")) - {"zarr.json"} for name in names_in(folder) if name[:1] == "a")

    def _commit_stamp(self, index: int, *, fresh: bool) -> Hashable:
        return stamp(self.path / "commits" / schema.pass_name(index), fresh=fresh)

    def _sealed_pass(self, index: int) -> _SealedPass | None:
        """The pass as it is sealed now, ``None`` if it is not."""
        held = self._sealed_passes.get(index)
        if held is not None and held.commit is not None and held.commit.is_current():
            return held
        now = self._commit_stamp(index, fresh=False)
        if held is not None and held.commit is None and held.stamp == now:
            return held
        if held is not None:
            self._sealed_passes.pop(index, None)
            self._held.clear()
        if now is None:
            return None
        manifest = commit_of(as_path(self.path), index)
        node = self.path / "commits" / schema.pass_name(index)
        is_remote = isinstance(node, RemotePath)
        commit = None if is_remote else HeldFile.hold(f"{node}/zarr.json")
        sealed = _SealedPass(now, commit, manifest, self.attributes["n_examples"])
        if not is_remote:  # else both were fetched at once
            self._check_unchanged(index, now)
        if len(self._sealed_passes) >= HeldShards.LIMIT:
            self._sealed_passes = {}
        self._sealed_passes[index] = sealed
        return sealed

    def _check_unchanged(self, index: int, before: Hashable) -> None:
        """Segments vanish once their pass is committed, shards once its commit is taken back."""
        if before is None and isinstance(self.path, RemotePath):
            return  # there are no segments, and what the root does not speak of is not there
        if self._commit_stamp(index, fresh=True) != before:
            raise FileNotFoundError(f"pass {index} of {self.name} was sealed or taken back while it was read")

    def _pass(self, index: int) -> Pass:
        sealed = self._sealed_pass(index)
        if sealed is not None:
            known = dict(sealed.manifest)
        else:
            merged = self._merge(index)
            known = {**merged.of_pass(), **merged.coverage()}
            self._check_unchanged(index, None)
        return Pass(
            index=index,
            epoch=known.get("epoch", index),
            step=known.get("step", known["first_step"]),
            last_step=known["last_step"],
            n_examples=known["n_examples"],
            n_seen=known["n_seen"],
            n_repeated=known["n_repeated"],
            n_never=known["n_never"],
            sealed=sealed is not None,
            attributes=known,
            _reader=self,
        )

    def checkpoint(self, of: Pass) -> Checkpoint | None:
        """The checkpoint that belongs to a pass."""
        if not isinstance(self._run_path, Path):
            return None
        first = last = of.attributes.get("model_step", of.step)
        if self.kind == "train":
            first, last = of.attributes["first_step"] + 1, of.last_step + 1
        return next((known for known in reversed(checkpoints(self._run_path)) if first <= known.step <= last), None)

    def _merge(self, index: int) -> segments.Merge:
        found = segments.list_segments(as_path(self.path), index)
        limits = segments.limits(as_path(self._run_path))
        paths = tuple((segment.path, stamp(segment.path)) for segment in found)
        key = index, paths, tuple(limits.items())
        if key not in self._merges:
            self._merges = {key: segments.merge(found, limits, self.attributes["n_examples"], self.kind)}
        return self._merges[key]

    # How rows are read

    def read_directly(self, spec: schema.ArraySpec, key: Any) -> Any:
        """What ``key`` names, if that is rows of one sealed pass (and layer); ``None`` if it has to be looked into."""
        parts = key if isinstance(key, tuple) else (key,)
        n_leading = 1 + len(spec.leading)
        leading, rest = parts[:n_leading], parts[n_leading:]
        if len(leading) < n_leading or len(rest) > 1:
            return None
        for part in leading:
            if type(part) is not int or part < 0:
                return None
        try:
            sealed = self._sealed_pass(leading[0])
            array = None if sealed is None else self._sealed_array(sealed, spec)
            if sealed is None or array is None or array.shape[n_leading] != sealed.n_examples:
                return None
            if n_leading > 1 and leading[1] >= array.shape[1]:
                return None
            n_missed = self._held.n_missed
            found = _rows_of(array, leading, rest[0] if rest else slice(None))
            # Shards that were open before the commit was looked at are those that it vouches for, come what may.
            if found is not None and (self._held.n_missed != n_missed or sealed.commit is None):
                self._check_unchanged(leading[0], sealed.stamp)
        except FileNotFoundError:
            return None
        return found

    def _sealed_array(self, sealed: _SealedPass, spec: schema.ArraySpec) -> SealedArray | None:
        """An array of a sealed pass; ``None`` if it was recorded in other passes only, or dropped from this one."""
        if spec.name in sealed.manifest.get("dropped", ()):
            return None
        try:
            return sealed.arrays[spec.name]
        except KeyError:
            pass
        try:
            array = open_sealed(self.path / spec.name, 1 + len(spec.leading), held=self._held)
        except FileNotFoundError:
            array = None
        sealed.arrays[spec.name] = array
        return array

    def read_all(
        self,
        spec: schema.ArraySpec,
        passes: Indices,
        layers: list[tuple[int, ...]],
        rows: Indices,
        block: NDArray[Any],
    ) -> None:
        """Rows, in increasing order, of all ``layers`` of each of the passes, into the block for all of them."""
        self._each(
            partial(self._retry, self._read_pass, spec, int(index), layers, rows, block[i])
            for i, index in enumerate(passes)
        )

    def _read_pass(
        self, spec: schema.ArraySpec, index: int, layers: list[tuple[int, ...]], rows: Indices, block: NDArray[Any]
    ) -> None:
        """Rows of one pass, from wherever they are now; all layers from the same place."""
        blocks = [block] if layers == [()] else list(block)
        sealed = self._sealed_pass(index)
        if sealed is None:
            merged = self._merge(index)
            within = _below(rows, merged.n_examples)
            for layer, out in zip(layers, blocks, strict=True):
                whole = merged.gather(spec.name, out.shape[1:], *layer)
                out[: len(within)] = whole[within.start : within.stop] if isinstance(within, range) else whole[within]
                out[len(within) :] = spec.fill
            self._check_unchanged(index, None)
        else:
            array = self._sealed_array(sealed, spec)
            self._each(
                partial(_read_sealed, array, spec, (index, *layer), rows, out)
                for layer, out in zip(layers, blocks, strict=True)
            )
            self._check_unchanged(index, sealed.stamp)

    def read_ragged(self, spec: schema.ArraySpec, index: int, rows: Indices) -> Ragged:
        """Rows, in increasing order, of one pass of a ragged array; empty where the array does not have them."""
        return self._retry(self._ragged_of_pass, spec, index, rows)

    def _ragged_of_pass(self, spec: schema.ArraySpec, index: int, rows: Indices) -> Ragged:
        sealed = self._sealed_pass(index)
        if sealed is None:
            merged = self._merge(index)
            found = merged.gather_ragged(spec.name)[np.asarray(_below(rows, merged.n_examples), np.int64)]
            self._check_unchanged(index, None)
        else:
            values, offsets = (self._sealed_array(sealed, part) for part in spec.parts)
            within = _below(rows, 0 if values is None or offsets is None else offsets.n_rows - 1)
            found = Ragged.of([], spec.dtype)
            if values is not None and offsets is not None:
                found = ragged_rows(values, offsets, index, within)
            self._check_unchanged(index, sealed.stamp)
        return found.with_empty_rows(len(rows) - len(found))

    def _each(self, reads: Iterable[Callable[[], None]]) -> None:
        """Do these one after another, or where that means to wait for each, all at once."""
        if isinstance(self.path, RemotePath):
            with ThreadPoolExecutor(N_REMOTE_THREADS) as pool:
                for task in [pool.submit(read) for read in reads]:
                    task.result()
        else:
            for read in reads:
                read()

    def _retry(self, read: Callable[..., T], *arguments: Any) -> T:
        for _ in range(_READ_ATTEMPTS - 1):
            try:
                return read(*arguments)
            except FileNotFoundError:
                self._merges = {}
                if isinstance(self.path, RemotePath):
                    self.path.copy.refresh()
        return read(*arguments)

    def has(self, name: str) -> bool:
        """Whether anything of that name has been recorded."""
        return segments.row_shape(as_path(self.path), name) is not None

    def row_shape(self, name: str) -> segments.RowShape:
        """Sizes before and after the example in one row of an array."""
        shape = segments.row_shape(as_path(self.path), name)
        if shape is None:
            raise StoreError(f"{self.path} holds no {name}.")
        return shape


@dataclass(frozen=True)
class _SealedPass:
    """A sealed pass as its commit stood when it was read, and what was opened of it since.

    ``commit`` is its file, ``None`` where it is not in a directory or too many files are open. ``n_examples`` is the
    size of the split if it is fixed.
    """

    stamp: Hashable
    commit: HeldFile | None
    manifest: dict[str, Any]
    n_examples: int | None
    arrays: dict[str, SealedArray | None] = field(default_factory=dict)


def _read_sealed(
    array: SealedArray | None, spec: schema.ArraySpec, leading: tuple[int, ...], rows: Indices, out: NDArray[Any]
) -> None:
    """Rows, in increasing order, of one pass and layer; fill value where the array does not have them."""
    within = _below(rows, 0 if array is None else array.n_rows)
    if array is not None:
        if isinstance(within, range):
            array.read(leading, within, out[: len(within)])
        else:
            out[: len(within)] = array.take(leading, within)
    out[len(within) :] = spec.fill


def _rows_of(array: SealedArray, leading: tuple[int, ...], part: Any) -> Any:
    """What NumPy indexing with ``part`` gives of the rows; ``None`` where it is more than a few kinds, or wrong."""
    size = array.n_rows
    if type(part) is int:
        if not -size <= part < size:
            return None
        row = array.row(leading, part % size)
        return row if row.shape else row[()]
    if isinstance(part, slice):
        rows = range(size)[part]
        return array.read(leading, rows) if rows.step == 1 else None
    if not isinstance(part, np.ndarray | list):
        return None
    numbers = np.asarray(part)
    if numbers.ndim != 1 or not numbers.size:
        return None
    if numbers.dtype == bool:
        return array.take(leading, np.flatnonzero(numbers)) if len(numbers) == size else None
    if numbers.dtype.kind not in "iu" or numbers.min() < -size or numbers.max() >= size:
        return None
    numbers = numbers.astype(np.int64, copy=False)
    return array.take(leading, numbers % size if numbers.min() < 0 else numbers)


def _below(rows: Indices, size: int) -> Indices:
    """Those of increasing row numbers that are smaller than ``size``, which come first; as a range if its step is 1."""
    if isinstance(rows, range) and rows.step == 1:
        return range(rows.start, max(min(rows.stop, size), rows.start))
    numbers = np.asarray(rows, np.int64)
    return numbers[: np.searchsorted(numbers, size)]


def as_path(node: schema.Node) -> Path:
    """For functions that use no more of a path than every node has."""
    return cast("Path", node)
