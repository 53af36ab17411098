"""One attempt at a run: its writer, its splits and passes, and what a failure to record does."""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import extract_model_from_parallel
from transformers import Trainer

from t3vis.callbacks import provenance
from t3vis.callbacks.batches import Batch
from t3vis.callbacks.capture import captured
from t3vis.callbacks.descriptions import described, known_of_dataset, not_recorded
from t3vis.callbacks.disk import check_room
from t3vis.callbacks.example_ids import check_ids
from t3vis.callbacks.examples import is_readable, text_columns, write_examples, write_vocabulary
from t3vis.callbacks.forward_pass import BeforeBackward, ForwardPass, row_shapes
from t3vis.callbacks.gates import GateGradients
from t3vis.callbacks.host_copies import HostCopies
from t3vis.callbacks.processes import Place, on_first_process, wait_for_all
from t3vis.callbacks.scales import OwnLoss, own_loss
from t3vis.callbacks.settings import Settings
from t3vis.callbacks.splits import free_name, label_smoothing, size_of, split_attributes, split_name
from t3vis.callbacks.tasks import TOKEN_TASKS, Task, task_of_model
from t3vis.errors import ConfigurationError, RecordingError, StoreError
from t3vis.store import schema
from t3vis.store.writer import create_run, join_run

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class OpenPass:
    """The pass of a split that rows belong to now; ``index`` is ``None`` where it could not be begun."""

    split: str
    index: int | None


class Session:
    """Records one attempt of one Trainer.

    Parameters
    ----------
    path
        The run's directory.
    start_step
        Optimizer steps completed when training begins, ``None`` where only evaluations are recorded.
    resume, overwrite
        What to do with a run that is there; see ``create_run``.
    place
        Which processes write the run.
    train_dataset
        What is trained on, ``None`` where only evaluations are recorded.

    Raises
    ------
    ConfigurationError
        If the store cannot be opened as asked; a run that is there is left as it was.
    """

    def __init__(
        self,
        trainer: Trainer,
        path: Path,
        settings: Settings,
        *,
        start_step: int | None,
        resume: bool,
        overwrite: bool,
        place: Place,
        train_dataset: Any = None,
    ) -> None:
        self.trainer: Trainer = weakref.proxy(trainer)  # the Trainer holds the recorder: no circle of references
        self.path = path
        self._settings = settings
        self.task: Task | None = settings.task or task_of_model(extract_model_from_parallel(trainer.model))
        self._place = place
        self._is_first_rank = place.rank == 0
        self._training: OpenPass | None = None
        self._evaluation: OpenPass | None = None
        self._evaluation_sets: dict[tuple[str, int], tuple[str, Any]] = {}  # keeps the dataset: its id() stays its own
        self._n_passes: dict[str, int] = {}
        self._n_examples: dict[str, int | None] = {}
        self._static: dict[str, tuple[str, ...]] = {}
        self._row_shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # of the splits whose first batch was recorded
        self._waiting: BeforeBackward | None = None
        self._pending: ForwardPass | None = None  # the last one taken, while its rows are on their way to the host
        self.to_come: Sequence[tuple[int, int]] = ()  # examples and passes beside those of training and evaluation
        self._warned = False
        self._said: set[str] = set()
        self._first(lambda: self._create(train_dataset, start_step, resume=resume, overwrite=overwrite))
        if not self._is_first_rank:
            self._writer = join_run(path, rank=place.rank, n_ranks=place.n_ranks)
        if train_dataset is not None:
            self._enter_train(train_dataset)

    def _first(self, work: Callable[[], T]) -> T:
        """What the first of the processes that write this run does, and tells the others."""
        return on_first_process(self.trainer, work, self._place)

    # The run and its splits

    def abandon(self) -> None:
        """Remove the run if this attempt began it and nothing was recorded, so that the next one finds the path free.

        The session cannot be used any more.
        """
        self._training = self._evaluation = None
        if self._is_first_rank and self._writer.attempt == 0 and not self._row_shapes:
            shutil.rmtree(self.path, ignore_errors=True)

    def save_point(self, checkpoint: Path | None) -> None:
        """Put every row taken so far on disk, and note that the model was saved at this step."""
        try:
            self._log_pending()
        finally:
            with self._recording():
                self._writer.save_point(self.trainer.state.global_step, checkpoint)

    def flush(self) -> None:
        """Put every row taken so far on disk."""
        try:
            self._log_pending()
        finally:
            with self._recording():
                self._writer.flush()

    def finish(self) -> None:
        """Put everything on disk and wait until it is sealed; recording can go on afterwards."""
        self.flush()  # by itself, so that what is on disk is sealed even if this fails
        with self._recording():
            self._writer.close()

    def _create(self, train_dataset: Any, start_step: int | None, *, resume: bool, overwrite: bool) -> None:
        """Open the run on the first process, once it is sure that it can be recorded as asked."""
        if train_dataset is not None:
            text_columns(train_dataset, self._settings.text)
        if resume and schema.node_exists(self.path):
            self._check_resumable(train_dataset)
        self._writer = create_run(
            self.path,
            self._run_attributes(),
            start_step=start_step,
            resume=resume,
            overwrite=overwrite,
            options=self._settings.storage,
            n_ranks=self._place.n_ranks,
        )

    def _check_resumable(self, train_dataset: Any) -> None:
        attributes = schema.run_attributes(self.path)
        known, part = attributes["recorder"], attributes.get("part", {})
        expected_ranks = self._place.attributes().get("part", {}).get("ranks")
        if part.get("ranks") != expected_ranks:
            raise ConfigurationError(
                f"{self.path} was recorded by processes {part.get('ranks', 'that all saw it')}, found "
                f"{expected_ranks or 'processes that all see it'}; go on with as many processes, placed in the same "
                "way, and with the same shared=, or record to another path."
            )
        if known != self._settings.attributes():
            raise ConfigurationError(
                f"{self.path} was recorded with {known}, found {self._settings.attributes()}; go on with the same "
                "settings of the recorder, or record to another path."
            )
        if train_dataset is None or not schema.node_exists(self.path / "train"):
            return
        expected = schema.read_metadata(self.path / "train")["attributes"]
        found = write_examples(None, train_dataset, **self._reading(train_dataset, "train"))
        if found != expected["fingerprint"]:
            raise ConfigurationError(
                f"the training dataset is not the one that {self.path} was recorded from: found a "
                f"{type(train_dataset).__name__} of {size_of(train_dataset)} examples with fingerprint {found}, "
                f"expected a {expected.get('dataset_type', 'dataset')} of {expected['n_examples']} with "
                f"{expected['fingerprint']}; train on the same data, in the same order, or record to another path."
            )

    def _enter_train(self, dataset: Any) -> None:
        try:
            self._first(lambda: self._enter("train", "train", dataset))
        except Exception as error:
            self.abandon()
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(
                f"the training set cannot be entered in {self.path}: {type(error).__name__}: {error}; choose a path "
                "with room, or text=None if it is a column of text that cannot be kept."
            ) from error
        self._n_examples["train"] = size_of(dataset)

    def _enter(self, name: str, kind: schema.SplitKind, dataset: Any, of_split: Mapping[str, Any] = {}) -> str:
        """Enter a split on the first process; a dataset other than the one of that name gets a name of its own."""
        write_vocabulary(self.path, getattr(self.trainer, "processing_class", None))
        reading = self._reading(dataset, kind)
        known = schema.node_exists(self.path / name)
        if known and kind == "train":
            return name  # it is the same: that was checked before the run was resumed
        fingerprint = write_examples(None if known else self.path / name, dataset, **reading)
        if known and fingerprint != schema.read_metadata(self.path / name)["attributes"]["fingerprint"]:
            name = f"{name}-{fingerprint[:8]}"
            if not schema.node_exists(self.path / name):
                write_examples(self.path / name, dataset, **reading)
        self._writer.add_split(name, {**split_attributes(self.trainer, kind, dataset, fingerprint), **of_split})
        return name

    def _reading(self, dataset: Any, kind: schema.SplitKind) -> dict[str, Any]:
        """How the examples of a dataset are read; of an evaluation set, those text columns that it has."""
        text = self._settings.text
        if kind == "eval" and text not in ("auto", None):
            text = [column for column in text_columns(dataset, "auto") if column in (text or ())]
        names = self.trainer.label_names
        of_tokens = self.task in (*TOKEN_TASKS, "question_answering") or "start_positions" in names
        return {
            "label_names": None if of_tokens else names,
            "text": text,
            "processor": getattr(self.trainer, "processing_class", None),
        }

    # Passes

    def begin_epoch(self, epoch: int) -> None:
        """Rows of the training set now belong to this epoch."""
        self._log_pending()
        self._training = OpenPass("train", None)
        with self._recording():
            self._writer.begin_pass("train", epoch, {"epoch": epoch})
            self._training = OpenPass("train", epoch)

    def seal_before(self, epoch: int) -> None:
        """Have earlier epochs sealed, also those whose process died between their last step and their end."""
        if self._is_first_rank:
            with self._recording():
                self._writer.seal_before("train", epoch)

    def end_epoch(self) -> None:
        """Put the epoch on disk and have it sealed."""
        self._end(self._training)
        self._training = None

    @contextmanager
    def evaluation(
        self, prefix: str, dataset: Any, *, of_split: Mapping[str, Any] = {}, of_pass: Mapping[str, Any] = {}
    ) -> Iterator[None]:
        """One evaluation, under the prefix that the Trainer gives its metrics; what else is to be said of it."""
        self._log_pending()
        before, self._evaluation = self._evaluation, OpenPass(split_name(prefix), None)
        with self._recording():
            self._evaluation = self._begin_evaluation(prefix, dataset, of_split, of_pass)
        try:
            yield
        finally:
            self._end(self._evaluation)
            self._evaluation = before

    def _begin_evaluation(
        self, prefix: str, dataset: Any, of_split: Mapping[str, Any], of_pass: Mapping[str, Any]
    ) -> OpenPass:
        key = prefix, id(dataset)
        if key not in self._evaluation_sets:
            taken = {name for name, _ in self._evaluation_sets.values()}
            wanted = split_name(prefix) if is_readable(dataset) else free_name(split_name(prefix), taken)
            name = self._first(lambda: self._enter(wanted, "eval", dataset, of_split))
            self._evaluation_sets[key] = name, dataset
            self._n_examples[name] = size_of(dataset)
        name, _ = self._evaluation_sets[key]
        if name not in self._n_passes:
            self._n_passes[name] = self._writer.next_pass(name)
            wait_for_all(self.trainer)  # before another rank's first segment is there to be counted
        index = self._n_passes[name]
        state = self.trainer.state
        self._writer.begin_pass(name, index, {"epoch": float(state.epoch or 0.0), "step": state.global_step, **of_pass})
        self._n_passes[name] += 1
        return OpenPass(name, index)

    def _end(self, ended: OpenPass | None) -> None:
        """Put the rows of every process on disk, then have the pass sealed."""
        self.flush()
        wait_for_all(self.trainer)
        if ended is not None and ended.index is not None:
            with self._recording():
                self._writer.seal(ended.split, ended.index)

    # Micro-batches

    def open_pass(self, *, training: bool) -> OpenPass | None:
        """The pass that rows of a training or an evaluation step belong to now, if one is being recorded."""
        return self._training if training else self._evaluation

    def is_first(self, split: str) -> bool:
        """Whether nothing of this split has been recorded in this attempt."""
        return split not in self._row_shapes

    def take(self, batch: Batch, outputs: Any, gradients: GateGradients | None = None) -> None:
        """Record one forward pass; one whose backward pass is to leave gradients waits for ``settle``.

        Its rows are logged when the next one has been taken, or when all is put on disk: until then they are on their
        way from the device. Those of the first one of a split are waited for.

        Raises
        ------
        ConfigurationError
            If it is the first of the attempt, or of the training set, and cannot be recorded: others could not either.
        RecordingError
            If it, or the one before, cannot be recorded and errors are to be raised.
        """
        opened = self.open_pass(training=batch.training)
        if opened is None:
            return
        if opened.index is None:
            self._writer.count_missing(opened.split, len(batch.ids))
            return
        try:
            forward, own = self._taken(opened.split, batch, outputs, gradients)
        except Exception as error:  # noqa: BLE001  whatever it is, training is not to suffer from it
            self.lose(batch, error)
            return
        if gradients is not None and own is not None:
            gradients.own = own
            self._waiting = BeforeBackward(forward, gradients, own)
        else:
            self._log_later(forward)

    def settle(self, *, interrupted: bool = False) -> None:
        """Go on with the pass that waited, and what its backward pass has left; ``interrupted`` if that failed."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        forward, gradients = waiting.forward, waiting.gradients
        try:
            values = HostCopies({"head_gradients": gradients.per_example(waiting.own)})
        except Exception as error:  # noqa: BLE001  as in ``take``
            self.report(error, forward.split, forward.taken.n_examples)
            return
        unread = None if interrupted or gradients.error is not None else gradients.unread
        self._log_later(replace(forward, head_gradients=values, unread=unread))
        if gradients.error is not None:
            self.report(gradients.error, forward.split, 0)

    def _log_later(self, forward: ForwardPass) -> None:
        """Log the pass before, now that the device has the next one to work on."""
        try:
            self._log_pending()
        finally:
            self._pending = forward
        if forward.is_first:  # what is wrong with it is to be known before the first optimizer step
            self._log_pending()

    def _log_pending(self) -> None:
        """Log the pass that was taken last, waiting for its rows if they have not arrived."""
        forward, self._pending = self._pending, None
        if forward is None:
            return
        try:
            rows = self._rows(forward)
        except Exception as error:  # noqa: BLE001  as in ``take``
            self.report(error, forward.split, forward.taken.n_examples)
            return
        with self._recording():
            self._writer.log(forward.split, rows)

    def lose(self, batch: Batch, error: Exception) -> None:
        """Report the rows of a micro-batch as lost, or stop if it is the first one; see ``take``."""
        opened = self.open_pass(training=batch.training)
        split = opened.split if opened is not None else "train"
        if self._row_shapes and not (batch.training and self.is_first(split)):
            self.report(error, split, len(batch.ids))
        elif isinstance(error, ConfigurationError):
            raise error
        else:
            raise ConfigurationError(
                f"the first batch cannot be recorded: {type(error).__name__}: {error}; check the recorder's "
                "pooling and hidden_states, and what the model returns."
            ) from error

    def _taken(
        self, split: str, batch: Batch, outputs: Any, gradients: GateGradients | None
    ) -> tuple[ForwardPass, OwnLoss | None]:
        """A forward pass, which is not waited for unless it is the first one of its split."""
        taken = captured(
            batch,
            outputs,
            hidden_states=self._settings.hidden_states,
            pooling=self._settings.pooling,
            task=self.task,
            problem_type=getattr(getattr(self.trainer.model, "config", None), "problem_type", None),
        )
        own = own_loss(taken.task, batch, outputs, label_smoothing(self.trainer)) if gradients is not None else None
        forward = ForwardPass(split, self.trainer.state.global_step, taken, is_first=self.is_first(split))
        if forward.is_first:
            self._begin_split(forward, gradients, own)
        return forward, own

    def _begin_split(self, forward: ForwardPass, gradients: GateGradients | None, own: OwnLoss | None) -> None:
        """See whether the first micro-batch of a split can be recorded, and whether there is room for all of them."""
        split, rows = forward.split, forward.rows()
        check_ids(rows["example"], self._n_examples[split])
        self._describe(forward, rows, gradients, own)
        if split == "train":
            check_room(
                self.path,
                self.trainer,
                rows,
                self._n_examples[split],
                self._settings.storage.keep_epochs,
                to_come=self.to_come,
                say=self._is_first_rank,
            )
        self._row_shapes[split] = row_shapes(rows)

    def _rows(self, forward: ForwardPass) -> dict[str, Any]:
        """What is logged of a forward pass, once it has arrived."""
        split, rows = forward.split, forward.rows()
        check_ids(rows["example"], self._n_examples[split])
        shapes = row_shapes(rows)
        self._row_shapes[split] = expected = {**shapes, **self._row_shapes[split]}
        if any(shapes[name] != expected[name] for name in shapes):
            raise RecordingError(f"rows have the shapes {shapes}, those before them had {expected}")
        for kind, message in forward.shortcomings(rows):
            if kind not in self._said:
                logger.warning(message)
            self._said.add(kind)
        for name in self._static[split]:
            rows.pop(name, None)
        return rows

    def _describe(
        self, forward: ForwardPass, rows: Mapping[str, Any], gradients: GateGradients | None, own: OwnLoss | None
    ) -> None:
        """Say in the store what the first micro-batch of a split has shown, and aloud what is not recorded."""
        split, taken, settings = forward.split, forward.taken, self._settings
        self._static[split] = static = known_of_dataset(self.path / split / "examples")
        if not self._is_first_rank:
            return
        missed = not_recorded(self.trainer.model, taken, settings, gradients, own)
        if missed:
            recorded = ", ".join(name for name in rows if name in schema.PASS_ARRAYS and name not in static)
            logger.warning(
                "%s: not recorded of %s: %s. What is recorded of each example: %s.",
                type(self.trainer.model).__name__,
                split,
                "; ".join(missed),
                recorded,
            )
        projections = gradients.projections if gradients is not None and own is not None else None
        self._writer.describe(split, described(self.trainer, taken, rows, settings, projections))

    # Failures

    def report(self, error: Exception, split: str, n_rows: int) -> None:
        """Count rows that were lost; say so loudly, once, or stop.

        Raises
        ------
        RecordingError
            If errors are to be raised.
        """
        if n_rows:
            self._writer.count_missing(split, n_rows, error)
        if self._settings.on_error == "raise":
            raise RecordingError(f"recording to {self.path} failed: {error}") from error
        if not self._warned:
            self._warned = True
            logger.error(
                "t3vis could not record to %s: %s: %s. Training goes on; rows that are missing are counted in the "
                "store, further failures are not reported. Pass on_error='raise' to stop instead.",
                self.path,
                type(error).__name__,
                str(error).removesuffix("."),
            )

    def report_log(self, error: Exception) -> None:
        """Say that an epoch could not be logged to the trackers, or stop; nothing that was recorded is lost.

        Raises
        ------
        RecordingError
            If errors are to be raised.
        """
        if self._settings.on_error == "raise":
            raise RecordingError(f"logging of {self.path} to the trackers failed: {error}") from error
        logger.error(
            "t3vis could not log to the trackers: %s: %s. Training and recording go on; epochs that cannot be logged "
            "are counted, further failures are not reported. Pass on_error='raise' to stop instead.",
            type(error).__name__,
            str(error).removesuffix("."),
        )

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """What the disk refuses in here is reported; the writer has counted the rows already."""
        try:
            yield
        except (RecordingError, StoreError, OSError) as error:
            self.report(error, "train", 0)

    def _run_attributes(self) -> dict[str, Any]:
        return {
            "model": provenance.model_facts(self.trainer.model),
            "training_arguments": provenance.training_arguments(self.trainer.args),
            "recorder": self._settings.attributes(),
            "versions": provenance.library_versions(),
            **self._place.attributes(),
        }
