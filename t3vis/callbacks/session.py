"""One attempt at a run: its writer, its splits and passes, and what a failure to record does."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate.utils import broadcast_object_list
from transformers import Trainer

from t3vis.callbacks import provenance
from t3vis.callbacks.capture import Batch, Layers, Pooling, accepts_output_hidden_states, captured
from t3vis.callbacks.examples import TextColumns, class_names, label_column, write_examples, write_vocabulary
from t3vis.callbacks.tasks import LOSS_NAME, Task
from t3vis.errors import ConfigurationError, RecordingError
from t3vis.store import schema
from t3vis.store.writer import create_run, join_run

logger = logging.getLogger(__name__)

RESERVED_NAMES = ("train", "analysis", "attempts", "tokenizer")


@dataclass(frozen=True)
class Settings:
    """What the user asked to be recorded; the same names as the parameters of ``RecorderCallback``."""

    hidden_states: Layers
    pooling: Pooling
    text: TextColumns
    id_column: str | None
    on_error: Literal["warn", "raise"]

    @property
    def pooling_name(self) -> str:
        """The pooling, in a word."""
        return self.pooling if isinstance(self.pooling, str) else getattr(self.pooling, "__name__", "callable")


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

    Raises
    ------
    ConfigurationError
        If the store cannot be opened as asked.
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
    ) -> None:
        self.trainer = trainer
        self.path = path
        self.split = "train"
        self._settings = settings
        self._is_first_rank = trainer.args.process_index == 0
        self._evaluation_sets: dict[tuple[str, int], tuple[str, Any]] = {}  # keeps the dataset: its id() stays its own
        self._n_passes: dict[str, int] = {}
        self._described: set[str] = set()
        self._static: dict[str, tuple[str, ...]] = {}
        self._warned = False
        if self._is_first_rank:
            self._writer = create_run(
                path, self._run_attributes(), start_step=start_step, resume=resume, overwrite=overwrite
            )
            write_vocabulary(path, getattr(trainer, "processing_class", None))
        self._wait_for_all()
        if not self._is_first_rank:
            self._writer = join_run(path, rank=trainer.args.process_index)

    # Splits and passes

    def add_train_split(self, dataset: Any) -> None:
        """Enter the training set.

        Raises
        ------
        ConfigurationError
            If the run was recorded from another dataset.
        """
        self._add_split("train", "train", dataset)

    def begin_epoch(self, epoch: int) -> None:
        """Rows of the training set now belong to this epoch."""
        with self._recording():
            self._writer.begin_pass("train", epoch, {"epoch": epoch, "step": self.trainer.state.global_step})

    def end_epoch(self, epoch: int) -> None:
        """Put the epoch on disk and have it sealed."""
        self._end_pass("train", epoch)

    @contextmanager
    def evaluation(self, prefix: str, dataset: Any) -> Iterator[None]:
        """One evaluation, under the prefix that the Trainer gives its metrics."""
        before = self.split
        with self._recording():
            self.split = self._begin_evaluation(prefix, dataset)
        try:
            yield
        finally:
            if self.split != before:
                self._end_pass(self.split, self._n_passes[self.split] - 1)
            self.split = before

    def flush(self) -> None:
        """Put every row taken so far on disk."""
        with self._recording():
            self._writer.flush()

    def finish(self) -> None:
        """Put everything on disk and wait until it is sealed; recording can go on afterwards."""
        with self._recording():
            self._writer.close()

    def _add_split(self, name: str, kind: schema.SplitKind, dataset: Any) -> str:
        """Enter a split; an evaluation set other than the one of that name gets a name of its own."""
        if self._is_first_rank:
            text = self._settings.text
            if kind == "eval" and text not in ("auto", None):
                text = [column for column in text or () if column in getattr(dataset, "column_names", ())]
            options: dict[str, Any] = {
                "label_names": self.trainer.label_names,
                "text": text,
                "processor": getattr(self.trainer, "processing_class", None),
            }
            known = schema.node_exists(self.path / name)
            fingerprint = write_examples(None if known else self.path / name, dataset, **options)
            if known and kind == "eval" and fingerprint != self._fingerprint(name):
                name = f"{name}-{fingerprint[:8]}"
                if not schema.node_exists(self.path / name):
                    write_examples(self.path / name, dataset, **options)
            self._writer.add_split(name, self._split_attributes(kind, dataset, fingerprint))
        if self.trainer.args.world_size > 1:
            name = broadcast_object_list([name])[0]
        return name

    def _split_attributes(self, kind: schema.SplitKind, dataset: Any, fingerprint: str) -> dict[str, Any]:
        labels = self.trainer.label_names
        return {
            "kind": kind,
            "mode": kind,
            "n_examples": len(dataset) if hasattr(dataset, "__len__") else None,
            "fingerprint": fingerprint,
            "dataset_fingerprint": getattr(dataset, "_fingerprint", None),
            "columns": list(getattr(dataset, "column_names", None) or []),
            "label_column": label_column(dataset, labels),
            "class_names": class_names(dataset, labels, getattr(self.trainer.model, "config", None)),
        }

    def _fingerprint(self, name: str) -> str:
        fingerprint: str = schema.read_metadata(self.path / name)["attributes"]["fingerprint"]
        return fingerprint

    def _begin_evaluation(self, prefix: str, dataset: Any) -> str:
        key = prefix, id(dataset)
        if key not in self._evaluation_sets:
            self._evaluation_sets[key] = self._add_split(split_name(prefix), "eval", dataset), dataset
        name = self._evaluation_sets[key][0]
        if name not in self._n_passes:
            self._n_passes[name] = self._writer.next_pass(name)
            self._wait_for_all()  # before another rank's first segment is there to be counted
        index = self._n_passes[name]
        state = self.trainer.state
        self._writer.begin_pass(name, index, {"epoch": float(state.epoch or 0.0), "step": state.global_step})
        self._n_passes[name] += 1
        return name

    def _end_pass(self, name: str, index: int) -> None:
        self.flush()
        self._wait_for_all()
        if self._is_first_rank:
            with self._recording():
                self._writer.seal(name, index)

    # Micro-batches

    @property
    def is_described(self) -> bool:
        """Whether the first micro-batch of the current split has been recorded."""
        return self.split in self._described

    def take(self, batch: Batch, outputs: Any) -> None:
        """Record one forward pass.

        Raises
        ------
        ConfigurationError
            If it is the first of the attempt and cannot be recorded: later ones could not either.
        RecordingError
            If it cannot be recorded and errors are to be raised.
        """
        try:
            rows = self._rows(batch, outputs)
        except Exception as error:
            if not self._described:
                if isinstance(error, ConfigurationError):
                    raise
                raise ConfigurationError(
                    f"the first batch cannot be recorded: {type(error).__name__}: {error}; check the recorder's "
                    "pooling and hidden_states, and what the model returns."
                ) from error
            self.report(error, len(batch.ids))
            return
        with self._recording():
            self._writer.log(self.split, rows)

    def _rows(self, batch: Batch, outputs: Any) -> dict[str, Any]:
        settings, model = self._settings, self.trainer.model
        taken = captured(
            batch,
            outputs,
            hidden_states=settings.hidden_states,
            pooling=settings.pooling,
            problem_type=getattr(getattr(model, "config", None), "problem_type", None),
        )
        rows = taken.rows
        rows["step"] = np.full(len(batch.ids), self.trainer.state.global_step, np.int64)
        if not self.is_described:
            self._describe(taken.task, taken.layers)
        for name in self._static[self.split]:
            rows.pop(name, None)
        return rows

    def _describe(self, task: Task, layers: list[int] | None) -> None:
        """Say in the store what the first micro-batch of a split has shown."""
        examples = self.path / self.split / "examples"
        static = [name for name in ("labels", "targets", "length") if schema.node_exists(examples / name)]
        if "labels" in static or "targets" in static:
            static += ["labels", "targets"]  # one of them is known, the other does not apply
        self._static[self.split] = tuple(static)
        if self._settings.hidden_states is not None and layers is None:
            takes = accepts_output_hidden_states(self.trainer.model)
            logger.warning(
                "%s returns no hidden states%s; logits and loss are recorded without them.",
                type(self.trainer.model).__name__,
                "" if takes else " (its forward takes no output_hidden_states)",
            )
        if self._is_first_rank:
            arrays: dict[str, Any] = {"loss": {"loss": LOSS_NAME[task], **trained_objective(self.trainer)}}
            if layers is not None:
                arrays["hidden_states"] = {"layers": layers, "pooling": self._settings.pooling_name}
            self._writer.describe(self.split, {"task": task, "arrays": arrays})
        self._described.add(self.split)

    # Failures

    def report(self, error: Exception, n_rows: int) -> None:
        """Count rows that were lost; say so loudly, once, or stop.

        Raises
        ------
        RecordingError
            If errors are to be raised.
        """
        if n_rows:
            self._writer.count_missing(self.split, n_rows, error)
        if self._settings.on_error == "raise":
            raise RecordingError(f"recording to {self.path} failed: {error}") from error
        if not self._warned:
            self._warned = True
            logger.error(
                "t3vis could not record to %s: %s: %s. Training goes on; rows that are missing are counted in the "
                "store, further failures are not reported. Pass on_error='raise' to stop instead.",
                self.path,
                type(error).__name__,
                error,
            )

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """What the disk refuses in here is reported; the writer has counted the rows already."""
        try:
            yield
        except (RecordingError, OSError) as error:
            self.report(error, 0)

    def _wait_for_all(self) -> None:
        if self.trainer.args.world_size > 1:
            self.trainer.accelerator.wait_for_everyone()

    def _run_attributes(self) -> dict[str, Any]:
        chosen = {
            "hidden_states": provenance.jsonable(self._settings.hidden_states),
            "pooling": self._settings.pooling_name,
        }
        return {
            "model": provenance.model_facts(self.trainer.model),
            "training_arguments": provenance.training_arguments(self.trainer.args),
            "recorder": chosen,
            "versions": provenance.library_versions(),
        }


def split_name(prefix: str) -> str:
    """Name of an evaluation set's group: the prefix of its metrics, made safe for a file system.

    Examples
    --------
    >>> split_name("eval_matched"), split_name("train"), split_name("eval_en/de")
    ('eval_matched', 'eval_train', 'eval_en_de')
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", prefix).strip("._") or "eval"
    return f"eval_{name}" if name in RESERVED_NAMES else name


def trained_objective(trainer: Trainer) -> dict[str, Any]:
    """Whether what is trained is the loss that is recorded, and if not, what it is."""
    if type(trainer).compute_loss is not Trainer.compute_loss:
        objective = f"the compute_loss of {type(trainer).__name__}"
    elif trainer.compute_loss_func is not None:
        objective = f"the function {getattr(trainer.compute_loss_func, '__name__', 'compute_loss_func')}"
    elif trainer.label_smoother is not None:
        objective = f"cross-entropy with label smoothing {trainer.args.label_smoothing_factor:g}"
    else:
        return {"trained_objective": "the model's own loss", "differs_from_trained": False}
    return {"trained_objective": objective, "differs_from_trained": True}
