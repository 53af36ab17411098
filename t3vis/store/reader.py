"""Run: a lazy, read-only view of a run, finished or still training.

Every access looks at the disk anew: a pass that is committed is read from the sealed arrays, one that is not from
its segments. What is held between accesses, metadata and open shards of sealed passes and where the rows of the last
unsealed pass go, counts only as long as the files it was taken from are the same.

A copy at a URL is read as it was when it was opened, or when it last turned out to have changed.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.checkpoints import Checkpoint, checkpoints
from t3vis.store.commits import commit_of, committed_passes
from t3vis.store.examples import RaggedColumn, static_array, text_columns, token_ids
from t3vis.store.indexing import Indices, orthogonal
from t3vis.store.ragged import Ragged
from t3vis.store.sealed import N_REMOTE_THREADS, HeldShards, SealedArray, open_sealed, ragged_rows
from t3vis.store.segments import split_names
from t3vis.store.shard import room
from t3vis.store.storage import HeldFile, RemotePath, file_stamp, locate, names_in, stamp

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
    _split: Split = field(repr=False, compare=False)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint of the model that belongs to the pass, if one was saved and is still there.

        Of an epoch it is the last one saved in it, at its end at the latest; of an evaluation that of the very model
        that was evaluated. A copy at a URL has none.
        """
        return self._split._checkpoint(self)


class RunArray:
    """One array over all passes of a split, with the dimensions of ``dims``; NumPy indexing reads what it names.

    Examples
    --------
    ``run.train.logits[-1]`` is the last epoch, ``run.train.hidden_states[0, -1, 17]`` one example's last layer in
    the first, ``run.train.loss[:, ids]`` the trajectories of chosen examples.
    """

    def __init__(self, split: Split, name: str) -> None:
        self.name = name
        self._split = split
        self._spec = schema.PASS_ARRAYS[name]

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        return self._spec.dims(self._split.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions, as of now."""
        leading, trailing = self._split._row_shape(self.name)
        return (self._split._n_passes(), *leading, self._split.n_examples, *trailing)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(self._spec.dtype)

    @property
    def attributes(self) -> dict[str, Any]:
        """Meaning, mode, and what was chosen when recording."""
        return self._split._array_attributes(self._spec)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        found = self._split._read_directly(self._spec, key)
        if found is not None:
            return found
        n_leading = 1 + len(self._spec.leading)
        shape = self.shape
        wanted, remainder = orthogonal(key, shape)
        block = room((*map(len, wanted[: n_leading + 1]), *shape[n_leading + 1 :]), self.dtype)
        layers = list(product(*wanted[1:n_leading]))
        self._split._read_all(self._spec, wanted[0], layers, wanted[n_leading], block)
        for axis in range(n_leading + 1, len(shape)):
            if not isinstance(wanted[axis], range) or wanted[axis] != range(shape[axis]):
                block = np.take(block, wanted[axis], axis)
        return block[remainder]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.name} is read from disk; a NumPy array of it is always a copy.")
        return np.asarray(self[:], dtype=dtype)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in zip(self.dims, self.shape, strict=True))
        return f"<{self.name} ({sizes}) {self.dtype}>"


class RaggedRunArray:
    """One ragged array over all passes of a split, such as one value per token of each example.

    Examples
    --------
    ``run.train.ragged("token_logprob")[-1]`` is the last epoch as ``Ragged`` rows, ``[-1, 17]`` the values of one
    example in it, ``[-1, [3, 5]]`` the rows of two, and ``[:, 17]`` a list of its values in every pass.
    """

    def __init__(self, split: Split, name: str) -> None:
        self.name = name
        self._split = split
        self._spec = schema.PASS_ARRAYS[name]

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions; the length of the last one differs from row to row."""
        return (*self._spec.dims(self._split.kind), "token")

    @property
    def shape(self) -> tuple[int, int]:
        """Passes and examples, as of now."""
        return self._split._n_passes(), self._split.n_examples

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return np.dtype(self._spec.dtype)

    @property
    def attributes(self) -> dict[str, Any]:
        """Meaning, mode, and what was chosen when recording."""
        return self._split._array_attributes(self._spec)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        passes, examples = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if isinstance(passes, slice):
            return [self[index, examples] for index in range(len(self))[passes]]
        if not isinstance(passes, int | np.integer):
            raise IndexError(f"{key!r} is no index: expected a pass, or a pass and examples")
        wanted, remainder = orthogonal((passes, examples), self.shape)
        if len(wanted) != 2 or np.ndim(remainder[1]) > 1:
            raise IndexError(f"{key!r} is no index: expected a pass, or a pass and one dimension of examples")
        return self._split._read_ragged(self._spec, int(wanted[0][0]), wanted[1])[remainder[1]]

    def __repr__(self) -> str:
        n_passes, n_examples = self.shape
        return f"<{self.name} ({self.dims[0]}: {n_passes}, example: {n_examples}, token: ragged) {self.dtype}>"


class Split:
    """The training set, or one evaluation set: its examples, and what was recorded of them in every pass."""

    def __init__(self, run_path: schema.Node, name: str, held: HeldShards) -> None:
        self.name = name
        self.path = run_path / name
        self._run_path = run_path
        self._held = held
        self._sealed_passes: dict[int, _SealedPass] = {}
        self._recorded: set[str] = set()
        self._merges: dict[Hashable, segments.Merge] = {}
        attributes = self.attributes
        self.kind: schema.SplitKind = attributes["kind"]

    @property
    def attributes(self) -> dict[str, Any]:
        """What the split says of itself: task, class names, mode, fingerprint, ..."""
        attributes: dict[str, Any] = schema.read_metadata(self.path)["attributes"]
        return attributes

    @property
    def n_examples(self) -> int:
        """Number of examples; where the dataset did not tell, the largest id seen so far and one."""
        n_examples = self.attributes["n_examples"]
        if n_examples is not None:
            return int(n_examples)
        return max((record.n_examples for record in self.passes), default=0)

    def __len__(self) -> int:
        return self.n_examples

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the logits, where they are known."""
        names: list[str] | None = self.attributes.get("class_names")
        return names

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays recorded so far, but for the ragged ones."""
        return [name for name, spec in schema.PASS_ARRAYS.items() if not spec.is_ragged and self._has(name)]

    @property
    def ragged_arrays(self) -> list[str]:
        """Names of the arrays recorded so far that hold one value for each token."""
        return [name for name, spec in schema.PASS_ARRAYS.items() if spec.is_ragged and self._has(name)]

    @property
    def logits(self) -> RunArray:
        """Outputs of the task head, float32, dims (pass, example, class)."""
        return self.array("logits")

    @property
    def loss(self) -> RunArray:
        """Loss of each example, float32, dims (pass, example)."""
        return self.array("loss")

    @property
    def step(self) -> RunArray:
        """Optimizer steps completed when each example was seen, int64, dims (pass, example); -1 = not seen."""
        return self.array("step")

    @property
    def visits(self) -> RunArray:
        """How often each example was seen in a pass, int32, dims (pass, example)."""
        return self.array("visits")

    @property
    def hidden_states(self) -> RunArray:
        """Pooled hidden states, float16, dims (pass, layer, example, hidden)."""
        return self.array("hidden_states")

    @property
    def head_gradients(self) -> RunArray:
        """Gradients of a gate on each attention head, float32, dims (epoch, layer, example, head)."""
        return self.array("head_gradients")

    @property
    def layers(self) -> list[int]:
        """Which hidden states the layers of ``hidden_states`` are; 0 is the output of the embeddings."""
        layers: list[int] = self.attributes["arrays"].get("hidden_states", {}).get("layers", [])
        return layers

    def array(self, name: str) -> RunArray:
        """One of ``arrays`` by name.

        Raises
        ------
        StoreError
            If nothing of that name has been recorded.
        """
        self._check_recorded(name, is_ragged=False)
        return RunArray(self, name)

    def ragged(self, name: str) -> RaggedRunArray:
        """One of ``ragged_arrays`` by name.

        Raises
        ------
        StoreError
            If nothing of that name has been recorded.
        """
        self._check_recorded(name, is_ragged=True)
        return RaggedRunArray(self, name)

    @property
    def labels(self) -> NDArray[Any]:
        """Gold labels.

        Shape (n_examples,) int64 of classes, -1 where unknown; or, for multi-label and regression, shape
        (n_examples, n_outputs) float32, NaN where unknown. From the dataset, else as first seen in a batch.
        """
        for name in ("labels", "targets"):
            static = static_array(self.path, name)
            if static is not None:
                return static.read_all()
        for name in ("labels", "targets"):
            if self._has(name):
                return self._first_seen(name)
        return np.full(self.n_examples, -1, np.int64)

    @property
    def length(self) -> NDArray[Any]:
        """Tokens of each example that are not padding, shape (n_examples,) int32; -1 where unknown."""
        static = static_array(self.path, "length")
        if static is not None:
            return static.read_all()
        return self._first_seen("length") if self._has("length") else np.full(self.n_examples, -1, np.int32)

    @property
    def text(self) -> dict[str, RaggedColumn]:
        """Raw text columns by name, read on demand."""
        return text_columns(self.path)

    @property
    def token_ids(self) -> RaggedColumn | None:
        """Token ids of each example, read on demand; ``None`` where the dataset had none."""
        return token_ids(self.path)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What is known of each epoch, or evaluation, that anything was recorded of."""
        return tuple(self._retry(self._pass, index) for index in self._indices())

    @property
    def epochs(self) -> NDArray[np.float64]:
        """Epoch of each pass: 0, 1, 2, ... in training; how many had been trained, for an evaluation."""
        return np.array([record.epoch for record in self.passes])

    def example(self, example_id: int) -> Example:
        """Everything recorded of one example, over all passes.

        Raises
        ------
        IndexError
            If the split has no such example.
        """
        n_examples = self.n_examples
        if not 0 <= example_id < n_examples:
            raise IndexError(f"example {example_id} of {self.name}, which has {n_examples}")
        ids = self.token_ids
        labels, names = self.labels, self.class_names
        label = labels[example_id]
        known = labels.ndim == 1 and names is not None and 0 <= label < len(names)
        return Example(
            example_id=example_id,
            text={column: texts[example_id] for column, texts in self.text.items()},
            token_ids=None if ids is None else ids[example_id],
            label=label,
            label_name=names[label] if known and names is not None else None,
            arrays={
                name: self.array(name)[(..., example_id, *(slice(None) for _ in schema.PASS_ARRAYS[name].trailing))]
                for name in self.arrays
            },
            ragged={name: self.ragged(name)[:, example_id] for name in self.ragged_arrays},
            class_names=names,
        )

    def summary(self) -> str:
        """A few lines of text: examples, arrays, passes and what is missing."""
        lines = [f"{self.name}: {self.n_examples:,} examples, recorded in {self.attributes['mode']} mode"]
        lines += [f"  {self.array(name)!r}" for name in self.arrays]
        lines += [f"  {self.ragged(name)!r}" for name in self.ragged_arrays]
        for record in self.passes:
            what = f"epoch {record.epoch:g}" if self.kind == "train" else f"evaluation at epoch {record.epoch:g}"
            gaps = f", {record.n_never:,} never" if record.n_never else ""
            gaps += f", {record.n_repeated:,} more than once" if record.n_repeated else ""
            gaps += f", without {', '.join(record.attributes['dropped'])}" if record.attributes.get("dropped") else ""
            state = "" if record.sealed else " (in progress)"
            lines.append(f"  {what}: step {record.step}, {record.n_seen:,} seen{gaps}{state}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{self.name} of {self._run_path.name}: {self.n_examples:,} examples, {len(self._indices())} passes>"

    # What has been recorded

    def _check_recorded(self, name: str, *, is_ragged: bool) -> None:
        if name in self._recorded:
            return
        recorded = self.ragged_arrays if is_ragged else self.arrays
        if name not in recorded:
            others = self.arrays if is_ragged else self.ragged_arrays
            hint = f" {name} is asked for by {'array' if is_ragged else 'ragged'}({name!r})." if name in others else ""
            found = ", ".join(recorded) or "none"
            kind = "ragged arrays" if is_ragged else "arrays"
            raise StoreError(f"{self.path} holds no {name} (yet) among its {kind}: {found}.{hint}")
        self._recorded.add(name)

    def _array_attributes(self, spec: schema.ArraySpec) -> dict[str, Any]:
        of_split = self.attributes
        said = of_split["arrays"].get(spec.name, {})
        return {"description": spec.meaning, "mode": of_split["mode"], **said}

    def _n_passes(self) -> int:
        return max((index + 1 for index in self._indices()), default=0)

    # How passes are found

    def _indices(self) -> list[int]:
        # Looked for twice, since a pass may move from here to there, or back, in the meantime.
        committed = self._committed()
        unsealed = segments.unsealed_passes(_as_path(self.path)) if self._may_have_segments() else []
        return sorted({*committed, *unsealed, *self._committed()})

    def _committed(self) -> list[int]:
        if isinstance(self.path, RemotePath):
            return committed_passes(_as_path(self.path))
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
        manifest = commit_of(_as_path(self.path), index)
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
            _split=self,
        )

    def _checkpoint(self, of: Pass) -> Checkpoint | None:
        if not isinstance(self._run_path, Path):
            return None
        first = last = of.attributes.get("model_step", of.step)
        if self.kind == "train":
            first, last = of.attributes["first_step"] + 1, of.last_step + 1
        return next((known for known in reversed(checkpoints(self._run_path)) if first <= known.step <= last), None)

    def _merge(self, index: int) -> segments.Merge:
        found = segments.list_segments(_as_path(self.path), index)
        limits = segments.limits(_as_path(self._run_path))
        paths = tuple((segment.path, stamp(segment.path)) for segment in found)
        key = index, paths, tuple(limits.items())
        if key not in self._merges:
            self._merges = {key: segments.merge(found, limits, self.attributes["n_examples"], self.kind)}
        return self._merges[key]

    # How rows are read

    def _read_directly(self, spec: schema.ArraySpec, key: Any) -> Any:
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

    def _read_all(
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

    def _read_ragged(self, spec: schema.ArraySpec, index: int, rows: Indices) -> Ragged:
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

    def _has(self, name: str) -> bool:
        return segments.row_shape(_as_path(self.path), name) is not None

    def _row_shape(self, name: str) -> segments.RowShape:
        """Sizes before and after the example in one row of an array."""
        shape = segments.row_shape(_as_path(self.path), name)
        if shape is None:
            raise StoreError(f"{self.path} holds no {name}.")
        return shape

    def _first_seen(self, name: str) -> NDArray[Any]:
        """A value that the batches carried, from the first pass in which each example was seen."""
        array, step = self.array(name), self.array("step")
        _, trailing = self._row_shape(name)
        out = np.full((self.n_examples, *trailing), schema.PASS_ARRAYS[name].fill, array.dtype)
        unknown = np.ones(len(out), bool)
        for index in self._indices():
            now = unknown & (step[index] >= 0)
            out[now] = array[index, now]
            unknown &= ~now
        return out


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


def _as_path(node: schema.Node) -> Path:
    """For functions that use no more of a path than every node has."""
    return cast("Path", node)


@dataclass(frozen=True)
class Example:
    """One example: what it is, and its trajectory.

    ``arrays`` holds, for each recorded array, its values over the passes, such as ``loss`` of shape (n_passes,),
    ``logits`` (n_passes, n_classes) and ``hidden_states`` (n_passes, n_layers, hidden). ``ragged`` holds for each
    ragged array a list of its values in every pass, such as one number per token.
    """

    example_id: int
    text: dict[str, str]
    token_ids: NDArray[np.int32] | None
    label: Any
    label_name: str | None
    arrays: dict[str, NDArray[Any]]
    ragged: dict[str, list[NDArray[Any]]]
    class_names: list[str] | None

    @property
    def logits(self) -> NDArray[Any]:
        """Shape (n_passes, n_classes)."""
        return self.arrays["logits"]

    @property
    def loss(self) -> NDArray[Any]:
        """Shape (n_passes,)."""
        return self.arrays["loss"]

    @property
    def hidden_states(self) -> NDArray[Any]:
        """Shape (n_passes, n_layers, hidden)."""
        return self.arrays["hidden_states"]

    def __repr__(self) -> str:
        lines = [f"example {self.example_id}, label {self.label_name or self.label}"]
        lines += [f"  {column}: {text}" for column, text in self.text.items()]
        if "loss" in self.arrays:
            lines.append("  loss: " + " ".join(f"{value:.3f}" for value in self.loss))
        if "logits" in self.arrays and np.ndim(self.label) == 0:
            best = self.logits.argmax(-1)
            known = self.class_names or []
            names = [known[i] if i < len(known) else str(i) for i in best]
            seen = np.isfinite(self.logits).all(-1)
            lines.append("  predicted: " + " ".join(name if ok else "-" for name, ok in zip(names, seen, strict=True)))
        return "\n".join(lines)


class Evaluations(Mapping[str, Split]):
    """The evaluation sets of a run by the names that the Trainer gives their metrics: ``eval``, ``eval_<name>``."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __getitem__(self, name: str) -> Split:
        if name not in list(self):
            raise KeyError(f"{name!r}; recorded are: {', '.join(self) or 'no evaluations'}")
        return self._run._split(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in split_names(_as_path(self._run.path)) if name != "train")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<evaluations: {', '.join(self) or 'none'}>"


class Run:
    """A recorded run, read-only and lazy; it grows under the reader's eyes while training goes on."""

    def __init__(self, path: schema.Node) -> None:
        self.path = path
        self._splits: dict[str, Split] = {}
        self._held = HeldShards()
        schema.run_attributes(path)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run says of itself: model, TrainingArguments, recorder settings, library versions."""
        return schema.run_attributes(self.path)

    @property
    def train(self) -> Split:
        """The training set.

        Raises
        ------
        StoreError
            If nothing has been trained in this run (yet).
        """
        if "train" in self._splits:
            return self._splits["train"]
        if not schema.node_exists(self.path / "train"):
            raise StoreError(
                f"{self.path} holds no training pass (yet); evaluations: {', '.join(self.evals) or 'none'}."
            )
        return self._split("train")

    @property
    def evals(self) -> Evaluations:
        """The evaluation sets by name."""
        return Evaluations(self)

    @property
    def splits(self) -> dict[str, Split]:
        """All splits by name."""
        return {name: self._split(name) for name in split_names(_as_path(self.path))}

    def _split(self, name: str) -> Split:
        split = self._splits.get(name)
        if split is None:
            split = self._splits[name] = Split(self.path, name, self._held)
        return split

    @property
    def epochs(self) -> tuple[Pass, ...]:
        """What is known of each epoch of training."""
        return self.train.passes

    @property
    def missing_rows(self) -> int:
        """Rows that could not be recorded, over all processes and attempts."""
        return sum(sum(attempt["missing_rows"].values()) for attempt in segments.attempts(_as_path(self.path)))

    def tokens(self, ids: ArrayLike) -> list[str]:
        """Token ids as the tokens they stand for.

        Raises
        ------
        StoreError
            If the run was recorded without a tokenizer.
        """
        vocabulary = self.path / "tokenizer" / "text" / "token"
        if not schema.node_exists(vocabulary / "values"):
            raise StoreError(f"{self.path} holds no vocabulary; give the Trainer its tokenizer as processing_class.")
        column = RaggedColumn(vocabulary, text=True)
        return [column[int(i)] for i in np.asarray(ids)]

    def summary(self) -> str:
        """The run in a few lines of text: model, versions, and each split's arrays, passes and gaps."""
        attributes = self.attributes
        model = attributes.get("model", {})
        lines = [
            f"{self.path}: {model.get('class', 'unknown model')}, begun {attributes['t3vis']['created']}",
            *(split.summary() for split in self.splits.values()),
        ]
        attempts = segments.attempts(_as_path(self.path))
        if len({attempt["attempt"] for attempt in attempts}) > 1:
            starts = [known["start_step"] for known in attempts if known["attempt"] and known["start_step"]]
            lines += [f"resumed from step {', '.join(map(str, starts))}"] if starts else []
        if self.missing_rows:
            causes = {attempt["first_error"] for attempt in attempts if attempt["first_error"]}
            lines.append(f"{self.missing_rows:,} rows could not be recorded: {'; '.join(sorted(causes))}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<t3vis run {self.path}>\n{self.summary()}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run for reading, also one that is still being recorded.

    Parameters
    ----------
    path
        Of its directory; or the URL of a copy made by ``push``, such as ``s3://bucket/run.zarr``, of which only what
        is asked for is fetched.

    Raises
    ------
    StoreError
        If there is no t3vis run at ``path``, or its format is newer than this t3vis; or if the protocol of a URL
        is not known, or needs a package that is not installed.
    """
    return Run(locate(path))
