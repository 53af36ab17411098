"""RunWriter: rows into segments as they arrive, sealed passes when they are complete.

One writer per process. It holds one buffer of rows for each split, whatever the size of the dataset.
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import ConfigurationError, RecordingError, StoreError
from t3vis.store import schema, segments
from t3vis.store.layout import segment_rows
from t3vis.store.seal import remove_sealed_segments
from t3vis.store.sealed import SealedArray, open_sealed
from t3vis.store.segments import split_names

logger = logging.getLogger(__name__)

Rows = Mapping[str, NDArray[Any]]


@dataclass
class _Buffer:
    """Rows of one split that are not yet on disk."""

    index: int = 0
    of_pass: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    capacity: int = 0
    n_rows: int = 0
    sequence: int = 0

    def allocate(self, rows: Rows, n_examples: int | None) -> None:
        """Room for a segment of rows like these."""
        per_row = {name: _row_shape(name, array) for name, array in rows.items()}
        row_bytes = sum(
            np.dtype(_spec(name).dtype).itemsize * int(np.prod(lead + trail, dtype=np.int64))
            for name, (lead, trail) in per_row.items()
        )
        self.capacity = segment_rows(row_bytes, n_examples)
        self.arrays = {
            name: np.empty((*lead, self.capacity, *trail), _spec(name).dtype) for name, (lead, trail) in per_row.items()
        }

    def fits(self, rows: Rows) -> bool:
        """Whether rows of this kind are what the buffer was allocated for."""
        return rows.keys() == self.arrays.keys() and all(
            _row_shape(name, array) == _row_shape(name, self.arrays[name]) for name, array in rows.items()
        )


class RunWriter:
    """Writes one run on behalf of one process.

    Parameters
    ----------
    path
        Directory of the run.
    attempt, rank
        Which attempt at the run this is (0, or one more for every resumption), and which process of it.
    start_step
        Optimizer steps completed when this attempt began; rows of older attempts from that step on are superseded.
        ``None`` for an attempt that only evaluates: it supersedes nothing.
    """

    def __init__(self, path: Path, *, attempt: int, rank: int, start_step: int | None) -> None:
        self.path = path
        self.attempt = attempt
        self.rank = rank
        self.missing_rows: dict[str, int] = {}
        self._first_error: str | None = None
        self._start_step = start_step
        self._started = _now()
        self._buffers: dict[str, _Buffer] = {}
        self._to_seal: list[str] = []
        self._sealer: subprocess.Popen[bytes] | None = None
        self._sealer_output: IO[bytes] | None = None
        self._write_attempt()

    # Splits and passes

    def add_split(self, name: str, attributes: dict[str, Any]) -> None:
        """Enter a split: ``kind``, ``mode``, ``n_examples`` and whatever else is known of its dataset.

        Raises
        ------
        ConfigurationError
            If the run already holds a split of that name over a dataset with another fingerprint.
        """
        split = self.path / name
        if schema.node_exists(split):
            known = schema.read_metadata(split)["attributes"]
            if known["fingerprint"] != attributes["fingerprint"]:
                raise ConfigurationError(
                    f"the {name} dataset is not the one that {self.path} was recorded from: found "
                    f"{attributes['n_examples']} examples with fingerprint {attributes['fingerprint']}, expected "
                    f"{known['n_examples']} with {known['fingerprint']}; train on the same data, in the same order, "
                    "or record to another path."
                )
            return
        for group in ("segments", "commits"):
            schema.write_metadata(split / group, schema.group_metadata())
        schema.write_metadata(split, schema.group_metadata({"arrays": {}, **attributes}))

    def describe(self, name: str, attributes: dict[str, Any]) -> None:
        """Add to what the split says of itself, once the first batch has shown it."""
        split = self.path / name
        known = schema.read_metadata(split)["attributes"]
        if {**known, **attributes} != known:
            schema.write_metadata(split, schema.group_metadata({**known, **attributes}))

    def next_pass(self, name: str) -> int:
        """Number of the first pass that nothing has been recorded of."""
        split = self.path / name
        return max([*committed_passes(split), *segments.unsealed_passes(split)], default=-1) + 1

    def begin_pass(self, name: str, index: int, of_pass: dict[str, Any]) -> None:
        """From now on rows of the split belong to pass ``index``; ``of_pass`` is kept with the pass."""
        self.flush_split(name)
        buffer = self._buffers.setdefault(name, _Buffer())
        buffer.index, buffer.of_pass = index, of_pass

    def log(self, name: str, rows: Rows) -> None:
        """Take rows over, in order of arrival.

        Parameters
        ----------
        rows
            ``example`` and any of the arrays of a pass, in the dimensions of a segment.

        Raises
        ------
        RecordingError
            If a full buffer could not be written; the rows lost are counted, and later ones are taken as before.
        """
        buffer = self._buffers[name]
        if not buffer.fits(rows):
            self.flush_split(name)
            buffer.allocate(rows, self._n_examples(name))
        n_rows, taken = len(rows["example"]), 0
        while taken < n_rows:
            count = min(n_rows - taken, buffer.capacity - buffer.n_rows)
            for key, array in rows.items():
                axis = len(_spec(key).leading)
                into = (slice(None),) * axis + (slice(buffer.n_rows, buffer.n_rows + count),)
                source = (slice(None),) * axis + (slice(taken, taken + count),)
                buffer.arrays[key][into] = array[source]
            buffer.n_rows += count
            taken += count
            if buffer.n_rows == buffer.capacity:
                try:
                    self.flush_split(name)
                except RecordingError:
                    self.count_missing(name, n_rows - taken)
                    raise

    def flush(self) -> None:
        """Put every row taken so far on disk before returning.

        Raises
        ------
        RecordingError
            If a split could not be written; the others are written nevertheless.
        """
        errors = []
        for name in list(self._buffers):
            try:
                self.flush_split(name)
            except RecordingError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def flush_split(self, name: str) -> None:
        """Write the buffered rows of one split as a segment."""
        buffer = self._buffers.get(name)
        if buffer is None or not buffer.n_rows:
            return
        n_rows, buffer.n_rows = buffer.n_rows, 0
        rows = {
            key: array[(slice(None),) * len(_spec(key).leading) + (slice(n_rows),)]
            for key, array in buffer.arrays.items()
        }
        segment = f"{schema.pass_name(buffer.index)}_s{buffer.sequence:06d}"
        path = self.path / name / "segments" / schema.rank_name(self.attempt, self.rank) / segment
        attributes = {
            "pass": buffer.index,
            "attempt": self.attempt,
            "rank": self.rank,
            "sequence": buffer.sequence,
            "n_rows": n_rows,
            "of_pass": buffer.of_pass,
        }
        buffer.sequence += 1
        try:
            if not schema.node_exists(path.parent):
                schema.write_metadata(path.parent, schema.group_metadata())
            segments.write_segment(path, rows, attributes)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            self.count_missing(name, n_rows, error)
            raise RecordingError(
                f"{n_rows} rows of {name} could not be written to {self.path}: {error}; free the disk or record "
                "elsewhere. The rows lost are counted in the run's attempts group."
            ) from error

    def count_missing(self, name: str, n_rows: int, error: BaseException | None = None) -> None:
        """Note that rows were lost, and why; kept in the store as soon as the disk takes it."""
        self.missing_rows[name] = self.missing_rows.get(name, 0) + n_rows
        if self._first_error is None and error is not None:
            self._first_error = f"{type(error).__name__}: {error}"
        try:
            self._write_attempt()
        except OSError:
            logger.debug("the count of missing rows could not be written yet", exc_info=True)

    # Sealing

    def seal(self, name: str, index: int) -> None:
        """Have a pass sealed in the background, as soon as the one being sealed is done."""
        self._to_seal.append(f"{name}:{index}")
        if self._sealer is None or self._sealer.poll() is not None:
            self._reap_sealer()
            self._start_sealer()

    def close(self) -> None:
        """Flush, wait until every pass handed to ``seal`` is sealed, and remove segments no longer needed.

        The writer can be used again afterwards.
        """
        self.flush()
        self._reap_sealer()
        self._start_sealer()
        self._reap_sealer()
        if self.rank == 0:
            for split in split_names(self.path):
                remove_sealed_segments(self.path, split)
        self._write_attempt(finished=_now())

    def _start_sealer(self) -> None:
        if not self._to_seal:
            return
        package_root = str(Path(__file__).parents[2])
        search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        environment = {
            **os.environ,
            "PYTHONPATH": search_path,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._sealer_output = tempfile.TemporaryFile()  # noqa: SIM115  closed in _reap_sealer
        self._sealer = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "t3vis.store.seal", str(self.path), *self._to_seal],
            stdin=subprocess.DEVNULL,
            stdout=self._sealer_output,
            stderr=self._sealer_output,
            env=environment,
            start_new_session=True,  # Ctrl-C in the trainer must not reach it
        )
        self._to_seal = []

    def _reap_sealer(self) -> None:
        """Wait for the running sealer, and report a failure; the segments stay readable then."""
        if self._sealer is None or self._sealer_output is None:
            return
        code = self._sealer.wait()
        with self._sealer_output as output:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        self._sealer = self._sealer_output = None
        if code:
            logger.warning(
                "sealing %s ended with code %d; the run stays readable from its segments. %s",
                self.path,
                code,
                said,
            )

    # Metadata

    def _n_examples(self, name: str) -> int | None:
        n_examples: int | None = schema.read_metadata(self.path / name)["attributes"]["n_examples"]
        return n_examples

    def _write_attempt(self, finished: str | None = None) -> None:
        attributes = {
            "attempt": self.attempt,
            "rank": self.rank,
            "start_step": self._start_step,
            "started": self._started,
            "finished": finished,
            "missing_rows": self.missing_rows,
            "first_error": self._first_error,
        }
        node = self.path / "attempts" / schema.rank_name(self.attempt, self.rank)
        schema.write_metadata(node, schema.group_metadata(attributes))


def create_run(
    path: Path,
    attributes: dict[str, Any],
    *,
    start_step: int | None = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> RunWriter:
    """Start a run at ``path``, or a further attempt at the one that is there.

    Parameters
    ----------
    attributes
        What the root says of the run beside its format: model, settings, versions. Kept from the first attempt.
    start_step
        Optimizer steps that the Trainer has already completed; ``None`` if it does not train, only evaluates.
    resume
        Go on with the run that is there: rows from ``start_step`` on are superseded by those of this attempt.
    overwrite
        Delete the run that is there.

    Raises
    ------
    ConfigurationError
        If something is there and neither was asked for, if it is no run, or if the path cannot be written.
    """
    _check_target(path, resume=resume, overwrite=overwrite)
    try:
        if overwrite and path.exists():
            shutil.rmtree(path)
        if not schema.node_exists(path):
            own = {"format": schema.FORMAT, "version": schema.FORMAT_VERSION, "created": _now()}
            schema.write_metadata(path / "attempts", schema.group_metadata())
            schema.write_metadata(path, schema.group_metadata({"t3vis": own, **attributes}))
        attempt = max((known["attempt"] for known in segments.attempts(path)), default=-1) + 1
        writer = RunWriter(path, attempt=attempt, rank=0, start_step=start_step)
        if attempt:
            _rewind(writer, start_step)
    except OSError as error:
        raise ConfigurationError(
            f"a run cannot be written at {path}: {error}; "
            "choose a path on a disk that you may write to and that has room."
        ) from error
    return writer


def join_run(path: Path, *, rank: int) -> RunWriter:
    """Join, as another process, the attempt that rank 0 has started."""
    latest = max(segments.attempts(path), key=lambda attributes: attributes["attempt"])
    return RunWriter(path, attempt=latest["attempt"], rank=rank, start_step=latest["start_step"])


def committed_passes(split: Path) -> list[int]:
    """Numbers of the passes that are sealed and committed, in increasing order."""
    return sorted(int(node.parent.name[1:]) for node in split.glob("commits/p*/zarr.json"))


def _check_target(path: Path, *, resume: bool, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        attributes = schema.run_attributes(path)
    except StoreError as error:
        raise ConfigurationError(
            f"{path} already exists and is not a t3vis run ({error}); nothing was touched: choose another path."
        ) from error
    if not (resume or overwrite):
        created = attributes["t3vis"]["created"]
        raise ConfigurationError(
            f"{path} already holds a run, created {created}; pass resume=True to go on with it from a checkpoint, "
            "overwrite=True to delete it, or choose another path."
        )


def _rewind(writer: RunWriter, start_step: int | None) -> None:
    """Take back what the attempts before this one recorded of steps that this one takes again."""
    if start_step is None:
        return
    for name in split_names(writer.path):
        split = writer.path / name
        kind = schema.read_metadata(split)["attributes"]["kind"]
        for index in committed_passes(split):
            segments.remove_segments(split, index)  # the sealed arrays hold all of them
            manifest = schema.read_metadata(split / "commits" / schema.pass_name(index))["attributes"]
            if kind == "train" and manifest["last_step"] >= start_step:
                _unseal(writer, name, index, before_step=start_step)
            elif kind == "eval" and manifest["step"] > start_step:
                _drop_commit(split, index)
        if kind == "eval":
            for index in segments.unsealed_passes(split):
                found = segments.list_segments(split, index)
                if not found or found[0].attributes["of_pass"]["step"] > start_step:
                    segments.remove_segments(split, index)


def _unseal(writer: RunWriter, name: str, index: int, *, before_step: int) -> None:
    """Turn the rows of a sealed epoch that still count into segments of this attempt, then take its commit back."""
    split = writer.path / name
    arrays = {}
    for key, spec in schema.PASS_ARRAYS.items():
        if schema.node_exists(split / key):
            arrays[key] = open_sealed(split / key, 1 + len(spec.leading))
    steps = arrays["step"].read_all((index,))
    kept = np.flatnonzero((steps >= 0) & (steps < before_step))
    if len(kept):
        row_bytes = sum(
            array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)) // array.shape[array.row_axis]
            for array in arrays.values()
        )
        capacity = segment_rows(max(row_bytes, 1), None)
        writer.begin_pass(name, index, {})
        for start in range(0, len(kept), capacity):
            ids = kept[start : start + capacity]
            rows = {key: _read_as_segment(array, index, ids) for key, array in arrays.items()}
            writer.log(name, {"example": ids, **rows})
        writer.flush_split(name)
    _drop_commit(split, index)


def _read_as_segment(array: SealedArray, index: int, ids: NDArray[np.int64]) -> NDArray[Any]:
    if array.row_axis == 1:
        return array.read((index,), ids)
    return np.stack([array.read((index, layer), ids) for layer in range(array.shape[1])])


def _drop_commit(split: Path, index: int) -> None:
    """The commit first, then the shards that it vouched for."""
    shutil.rmtree(split / "commits" / schema.pass_name(index))
    for key in schema.PASS_ARRAYS:
        shutil.rmtree(split / key / "c" / str(index), ignore_errors=True)


def _spec(name: str) -> schema.ArraySpec:
    return schema.EXAMPLE_ID if name == schema.EXAMPLE_ID.name else schema.PASS_ARRAYS[name]


def _row_shape(name: str, array: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes before and after the axis of rows."""
    axis = len(_spec(name).leading)
    return array.shape[:axis], array.shape[axis + 1 :]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
