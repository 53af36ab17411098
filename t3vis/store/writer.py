"""RunWriter: rows into segments as they arrive, sealed passes when they are complete.

One writer per process. It holds one buffer of rows for each split, whatever the size of the dataset.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from t3vis.errors import ConfigurationError, RecordingError, StoreError
from t3vis.store import schema, segments
from t3vis.store.buffer import Buffer, Rows, chosen_rows, n_rows_of, row_shape
from t3vis.store.checkpoints import noted
from t3vis.store.commits import (
    commit_of,
    committed_passes,
    complete_passes,
    drop_commit,
    lineage_of,
    lineage_within,
    locked,
    sealed_rows,
    writer_said,
)
from t3vis.store.liveness import WriterMark, has_other_writers
from t3vis.store.options import StorageOptions
from t3vis.store.seal import remove_sealed_segments
from t3vis.store.sealer import Sealer
from t3vis.store.segment_thread import SegmentThread
from t3vis.store.segments import split_names

logger = logging.getLogger(__name__)

_MAX_ID = int(np.iinfo(np.int64).max)


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
    parent
        The attempt that wrote the checkpoint this one started from.
    n_ranks
        How many processes write this attempt; they divide the work of sealing among them.
    """

    def __init__(
        self,
        path: Path,
        *,
        attempt: int,
        rank: int,
        start_step: int | None,
        parent: int | None = None,
        n_ranks: int = 1,
    ) -> None:
        self.path = path
        self.attempt = attempt
        self.rank = rank
        self.missing_rows: dict[str, int] = {}
        self._first_error: str | None = None
        self._start_step = start_step
        self._parent = parent
        self._saved_steps: list[int] = []
        self._checkpoints: list[dict[str, Any]] = []
        self._options = StorageOptions.of(path)
        self._started = _now()
        self._buffers: dict[str, Buffer] = {}
        self._thread = SegmentThread(path, attempt=attempt, rank=rank, options=self._options)
        self._complete: list[str] = []
        self._to_seal: list[str] = []
        self._sealer = Sealer(path, schema.rank_name(attempt, rank), share=rank, n_shares=n_ranks)
        self._mark = WriterMark(path)
        self._mark.hold()
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
        """Add to what the split says of itself, once the first batch has shown it.

        Raises
        ------
        ConfigurationError
            If the run was begun with other settings of an array, such as other layers.
        """
        split = self.path / name
        known = schema.read_metadata(split)["attributes"]
        arrays = attributes.get("arrays", {})
        for array, said in arrays.items():
            before = known["arrays"].get(array, said)
            if before != said:
                raise ConfigurationError(
                    f"{array} of {name} is recorded with {said}, but {self.path} was begun with {before}; "
                    "use the same settings for the whole run, or record to another path."
                )
        now = {**known, **attributes, "arrays": {**known["arrays"], **arrays}}
        if now != known:
            schema.write_metadata(split, schema.group_metadata(now))

    def next_pass(self, name: str) -> int:
        """Number of the first pass that nothing has been recorded of."""
        split = self.path / name
        return max([*committed_passes(split), *segments.unsealed_passes(split)], default=-1) + 1

    def begin_pass(self, name: str, index: int, of_pass: dict[str, Any]) -> None:
        """From now on rows of the split belong to pass ``index``; ``of_pass`` is kept with the pass.

        A pass that was sealed although its epoch had not ended, as when ``max_steps`` cuts training short, is
        opened again.

        Raises
        ------
        RecordingError
            If rows of the pass before could not be written; the new one has begun nevertheless.
        """
        self._mark.hold()
        buffer = self._buffer(name)
        try:
            self.flush()
        finally:
            buffer.index, buffer.of_pass = index, of_pass
        if self.rank == 0 and index in committed_passes(self.path / name):
            self._reopen(name, index, segments.lineage(self.path))

    def log(self, name: str, rows: Rows) -> None:
        """Take rows over, in order of arrival: they are copied, and written in the background.

        Parameters
        ----------
        rows
            ``example``, ``step`` and any other arrays of a pass, in the dimensions of a segment.

        Raises
        ------
        ConfigurationError
            If the first rows of an attempt have other shapes than what the run holds.
        RecordingError
            If earlier rows could not be written, or these are not what the split consists of; those lost are
            counted, and later ones are taken as before.
        """
        buffer = self._buffers[name]
        self._check_ids(name, rows)
        if not buffer.fits(rows):
            self._check_shapes(name, rows)
            self._thread.end_segment(name, buffer)
            buffer.allocate(rows)
        n_rows, taken = len(rows["example"]), 0
        while taken < n_rows:
            taken += buffer.take(rows, taken)
            if buffer.is_full or buffer.is_due:
                self._thread.hand_over(name, buffer, ends_segment=buffer.ends_segment)
        self._collect()

    def flush(self) -> None:
        """Put every row taken so far on disk before returning.

        Raises
        ------
        RecordingError
            If a split could not be written; the others are written nevertheless.
        """
        for name, buffer in self._buffers.items():
            self._thread.end_segment(name, buffer)
        self._collect(wait=True)

    def save_point(self, step: int, checkpoint: Path | None = None) -> None:
        """Flush, and note that there is a checkpoint of the model after ``step`` steps, from which training may go on.

        Parameters
        ----------
        checkpoint
            Where it is, for those who want to load the model as it was; noted by the first process.

        Raises
        ------
        RecordingError
            As ``flush``.
        """
        self._saved_steps.append(step)
        if checkpoint is not None and self.rank == 0:
            with suppress(OSError):  # deleted already, by who keeps but a few, or not to be read
                self._checkpoints.append(noted(self.path, checkpoint, step))
        self._note_attempt()
        self.flush()

    def _collect(self, *, wait: bool = False) -> None:
        """See which rows have been written, all of them if ``wait``; what is lost is counted, then reported."""
        found = self._thread.lost(wait=wait)
        for lost in found:
            self.count_missing(lost.split, lost.n_rows, lost.error)
        if found:
            first = found[0]
            raise RecordingError(
                f"{first.n_rows} rows of {first.split} could not be written to {self.path}: {first.error}; free the "
                "disk or record elsewhere. The rows lost are counted in the run's attempts group."
            ) from first.error

    def count_missing(self, name: str, n_rows: int, error: BaseException | None = None) -> None:
        """Note that rows were lost, and why; kept in the store as soon as the disk takes it."""
        self.missing_rows[name] = self.missing_rows.get(name, 0) + n_rows
        if self._first_error is None and error is not None:
            self._first_error = f"{type(error).__name__}: {error}"
        self._note_attempt()

    # Resuming

    def rewind(self, start_step: int) -> None:
        """Take back what was recorded of steps that this attempt takes again, or that its weights did not come through.

        Rows of training steps are set aside, not deleted: a later attempt may go on from a checkpoint after them.
        """
        before, now = segments.lineage(self.path, before=self.attempt), segments.lineage(self.path)
        for name in split_names(self.path):
            split = self.path / name
            is_train = schema.read_metadata(split)["attributes"]["kind"] == "train"
            for index in committed_passes(split):
                manifest = commit_of(split, index)
                sealed = lineage_of(manifest, before)
                segments.remove_sealed(split, index, sealed)
                if is_train and sealed != lineage_within(now, manifest):
                    self._reopen(name, index, before)
                elif not is_train and manifest["last_step"] > start_step:
                    drop_commit(split, index)
            for index in [] if is_train else segments.unsealed_passes(split):
                found = segments.list_segments(split, index)
                if segments.merge(found, {}, None, "eval").last_step > start_step:
                    segments.remove_segments(split, index)

    def _reopen(self, name: str, index: int, lineage: Sequence[segments.Window]) -> None:
        """Turn the rows of a sealed pass into segments of the attempts that recorded them, then take its commit back.

        The manifest tells these attempts by the steps of the rows, or ``lineage`` where it does not.
        """
        split = self.path / name
        manifest = commit_of(split, index)
        of_pass, lineage = writer_said(manifest), lineage_of(manifest, lineage)
        taken = [segment.sequence for segment in segments.list_segments(split, index)]
        buffer = self._buffer(name)
        first = max([*taken, buffer.sequence - 1], default=-1) + 1
        for sequence, rows in enumerate(sealed_rows(split, index), first):
            buffer.sequence = sequence + 1
            ids, steps = np.asarray(rows["example"]), np.asarray(rows["step"])
            for window in lineage:
                chosen = (steps >= window.start) & (steps < window.stop)
                chosen &= ~segments.holds(split, index, window.attempt, ids, steps)
                if not chosen.any():
                    continue
                attributes = {
                    "pass": index,
                    "attempt": window.attempt,
                    "rank": 0,
                    "sequence": sequence,
                    "of_pass": of_pass,
                }
                part = {key: chosen_rows(key, column, chosen) for key, column in rows.items()}
                self._thread.write_now(segments.segment_path(split, attributes), part, attributes)
        drop_commit(split, index)

    # Sealing

    def seal(self, name: str, index: int) -> None:
        """Have a complete pass sealed in the background, as soon as the one being sealed is done.

        Called by every process, once all of them have flushed; the others than the first one do a share of the work.
        """
        if self.rank == 0:
            self._complete.append(f"{name}:{index}")
            self._note_attempt()  # a later writer seals the pass if this one cannot
        self._to_seal.append(f"{name}:{index}")
        if not self._sealer.is_busy:
            self._start_sealer()

    def seal_before(self, name: str, index: int) -> None:
        """Have all earlier passes sealed: they are over, whether or not the process that recorded them could say so."""
        split = self.path / name
        for earlier in sorted({*segments.unsealed_passes(split)} - {*committed_passes(split)}):
            if earlier < index:
                self.seal(name, earlier)

    def close(self) -> None:
        """Flush, wait until every complete pass is sealed, and remove segments no longer needed.

        Passes whose sealer died, here or in an earlier attempt, are sealed again. The writer can be used afterwards.

        Raises
        ------
        RecordingError
            If rows could not be written; what is on disk is sealed nevertheless.
        """
        try:
            self.flush()
        finally:
            self._thread.stop()
            self._sealer.wait()
            if self.rank:
                self._to_seal = []  # the first process does what is left
            else:
                self._to_seal = list(dict.fromkeys([*self._to_seal, *complete_passes(self.path)]))
                self._start_sealer()
                self._sealer.wait()
                for split in split_names(self.path):
                    remove_sealed_segments(self.path, split)
            self._write_attempt(finished=_now())
            self._mark.release()

    def _start_sealer(self) -> None:
        self._sealer.start(self._to_seal)
        self._to_seal = []

    # Rows and where they wait

    def _buffer(self, name: str) -> Buffer:
        if name not in self._buffers:
            self._buffers[name] = Buffer(n_examples=schema.read_metadata(self.path / name)["attributes"]["n_examples"])
        return self._buffers[name]

    def _check_ids(self, name: str, rows: Rows) -> None:
        """Refuse ids that no example has: one of them would make the whole pass unreadable."""
        ids = np.asarray(rows["example"], np.int64)
        n_examples = self._buffers[name].n_examples
        limit = _MAX_ID if n_examples is None else n_examples
        if len(ids) and np.maximum.reduce(ids.view(np.uint64)) >= limit:  # what is negative is huge there
            of = "from 0 on" if n_examples is None else f"of {n_examples} examples"
            problem = f"ids {ids.min()} to {ids.max()} were given, expected ids {of}; number the examples from 0 on."
            raise self._refused(name, rows, problem)

    def _check_shapes(self, name: str, rows: Rows) -> None:
        """Refuse rows that no array of the run has room for."""
        n_rows = len(rows["example"])
        for key, array in rows.items():
            if n_rows_of(key, array) != n_rows:
                dims = schema.spec_of(key).segment_dims()
                problem = f"{key} has shape {array.shape}, expected dimensions {dims} with {n_rows} rows"
                raise self._refused(name, rows, problem)
            found, expected = row_shape(key, array), segments.row_shape(self.path / name, key)
            if expected is not None and found != expected:
                problem = (
                    f"{key} of {name} has rows of shape {found[0] + found[1]}, but those in {self.path} have "
                    f"{expected[0] + expected[1]}; record another model to another path."
                )
                if not self._buffers[name].capacity:
                    raise ConfigurationError(problem)
                raise self._refused(name, rows, problem)

    def _refused(self, name: str, rows: Rows, problem: str) -> RecordingError:
        error = RecordingError(f"{len(rows['example'])} rows of {name} cannot be recorded: {problem}")
        self.count_missing(name, len(rows["example"]), error)
        return error

    # Metadata

    def _note_attempt(self) -> None:
        """Write what is known of the attempt if the disk takes it now; it is written again later."""
        try:
            self._write_attempt()
        except OSError:
            logger.debug("the attempt's record could not be written yet", exc_info=True)

    def _write_attempt(self, finished: str | None = None) -> None:
        attributes = {
            "attempt": self.attempt,
            "rank": self.rank,
            "start_step": self._start_step,
            "started": self._started,
            "finished": finished,
            "missing_rows": self.missing_rows,
            "first_error": self._first_error,
            "complete": self._complete,
            "saved_steps": self._saved_steps,
            "checkpoints": self._checkpoints,
            "parent": self._parent,
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
    options: StorageOptions | None = None,
    n_ranks: int = 1,
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
    options
        How a new run is stored; one that is there goes on as it was begun.
    n_ranks
        How many processes will write it; the others call ``join_run``.

    Raises
    ------
    ConfigurationError
        If something is there and neither was asked for, if it is no run, if another process is writing it, or if
        the path cannot be written.
    """
    _check_target(path, resume=resume, overwrite=overwrite)
    try:
        if overwrite and schema.node_exists(path):
            with locked(path):  # a sealer may have outlived the trainer that started it
                _check_unwritten(path)
                shutil.rmtree(path)
        if not schema.node_exists(path):
            own = {"format": schema.FORMAT, "version": schema.FORMAT_VERSION, "created": _now()}
            storage = dataclasses.asdict(options or StorageOptions())
            schema.write_metadata(path, schema.group_metadata({"t3vis": own, "storage": storage, **attributes}))
        if not schema.node_exists(path / "attempts"):
            schema.write_metadata(path / "attempts", schema.group_metadata())
        with locked(path):
            _check_unwritten(path)
            attempt = max((known["attempt"] for known in segments.attempts(path)), default=-1) + 1
            parent = None if start_step is None else segments.parent_of(path, start_step)
            writer = RunWriter(path, attempt=attempt, rank=0, start_step=start_step, parent=parent, n_ranks=n_ranks)
            if start_step is not None:
                writer.rewind(start_step)
    except (OSError, RecordingError) as error:
        raise ConfigurationError(
            f"a run cannot be written at {path}: {error}; "
            "choose a path on a disk that you may write to and that has room."
        ) from error
    return writer


def join_run(path: Path, *, rank: int, n_ranks: int) -> RunWriter:
    """Join, as another process, the attempt that rank 0 has started.

    Raises
    ------
    ConfigurationError
        If this process does not see that attempt.
    """
    if not any(attempt["rank"] == 0 and attempt["finished"] is None for attempt in segments.attempts(path)):
        raise ConfigurationError(
            f"process {rank} finds no run at {path} that process 0 has begun; choose a path on a disk that all "
            "processes of the training see."
        )
    latest = max(segments.attempts(path), key=lambda attributes: attributes["attempt"])
    return RunWriter(
        path,
        attempt=latest["attempt"],
        rank=rank,
        start_step=latest["start_step"],
        parent=latest["parent"],
        n_ranks=n_ranks,
    )


def _check_unwritten(path: Path) -> None:
    if has_other_writers(path):
        raise ConfigurationError(
            f"{path} is being written by another process; wait until it has ended, or record to another path."
        )


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


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
