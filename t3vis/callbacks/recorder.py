"""RecorderCallback: the timeline of a training run. What it records is decided in ``capture`` and ``tasks``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from t3vis.callbacks.attachment import Attachment, calling_trainer
from t3vis.callbacks.capture import Layers, Pooling
from t3vis.callbacks.example_ids import (
    IDS_KEY,
    WithoutIds,
    instrument,
    is_instrumented,
    source_dataset,
    take_ids,
)
from t3vis.callbacks.examples import TextColumns
from t3vis.callbacks.gates import check_not_compiled
from t3vis.callbacks.hooks import Capture, called_module
from t3vis.callbacks.probes import (
    SPLIT,
    Probe,
    ProbeAt,
    call_arguments,
    refusal,
    rows_of_process,
    undisturbed,
    what_is_probed,
)
from t3vis.callbacks.processes import on_first_process, place_of, wait_for_all
from t3vis.callbacks.session import Session
from t3vis.callbacks.settings import Settings
from t3vis.callbacks.splits import size_of
from t3vis.callbacks.tasks import NamedTask
from t3vis.callbacks.trainers import (
    batch_given,
    check_devices,
    check_evaluation_sets,
    check_labels,
    check_trainer,
    checkpoint_of,
)
from t3vis.errors import ConfigurationError, RecordingError
from t3vis.store.codecs import Compression
from t3vis.store.durable import Durability
from t3vis.store.options import StorageOptions

if TYPE_CHECKING:
    from t3vis.callbacks.trackers import EpochLogs

_DATASET = "_t3vis_dataset"  # on an evaluation loader: the dataset as the user gave it


class RecorderCallback(TrainerCallback):
    """Records logits, loss and hidden states of every example in every epoch into a Zarr store.

    Give it to ``Trainer(callbacks=[RecorderCallback("runs/x.zarr")])``; nothing else changes. Evaluations are
    recorded too, under the names that the Trainer gives their metrics (``eval``, ``eval_<name>``, ``test``).

    Parameters
    ----------
    path
        Directory of the run, new or empty. A further ``train()`` of the same Trainer that starts from step 0 again
        is recorded next to it, ``x-2.zarr``.
    hidden_states
        Which hidden states to keep, by transformers' numbering (0 is the output of the embeddings): ``"all"``,
        ``"last"``, a list of numbers, or ``None``.
    pooling
        How the hidden states of an example's tokens become one vector: their ``"mean"``, that of the ``"first"`` or
        ``"last"`` token that is not padding, or a function of the states (n, n_tokens, hidden) and the mask
        (n, n_tokens) that returns (n, features).
    heads
        Whether to keep, of every training pass, the gate gradient of each attention head for each example: the
        gradient of the example's loss with respect to a factor in front of what the head hands on. It is read in the
        backward pass of the training itself. Not for compiled models.
    task
        What the model is trained for, which decides what is recorded of its outputs: ``"single_label"``,
        ``"multi_label"``, ``"regression"``, ``"multiple_choice"``, ``"question_answering"``,
        ``"token_classification"``, ``"masked_lm"``, ``"causal_lm"`` or ``"seq2seq_lm"``. ``None`` chooses by the
        model's class, its config and the labels; name it for a model that is not one of transformers'.
    text
        Which text columns of the dataset to keep in the store: ``"auto"`` for all, their names, or ``None``.
    id_column
        Column of an ``IterableDataset`` that numbers its examples from 0 on.
    on_error
        What a failure to record does to training: ``"warn"`` says so once and counts the rows in the store,
        ``"raise"`` stops with a ``RecordingError``. A wrong configuration always stops, before the first step.
    resume
        Go on with the run at ``path``, from the checkpoint that ``train(resume_from_checkpoint=...)`` loads.
    overwrite
        Delete the run that is at ``path``.
    compression
        Codec of a new run's sealed arrays: ``None``, ``"lz4"`` (lossless; real hidden states hardly shrink), or
        ``"bitround"`` (hidden states rounded to 7 mantissa bits first, about a third smaller).
    durability
        What a flushed row survives: the death of the ``"process"``, or with ``"fsync"`` also a loss of power.
    keep_epochs
        Keep the hidden states of so many last epochs (and evaluations, and probes) only, for want of disk; all else is
        kept of every epoch. ``None`` keeps them all.
    shared
        Whether all processes of the training see ``path``. If not, those of each machine record to a run of their own,
        which holds the examples that they saw, and ``t3vis merge`` makes one run of these.
    probe
        A dataset, or ``"train"`` for the training set, of which a pass in eval mode is recorded between the steps of
        the training, as the split ``probe``; nothing of the training is disturbed. One of its own is numbered by its
        rows, or by its ``id_column``.
    probe_at
        When that is: before the first step (``"begin"``, the pretrained model), after each ``"epoch"``, at the
        ``"end"`` of the training, unless the model is the one that was probed last.
    log_to_trackers
        Whether means of the loss and of the data map go to ``Trainer.log`` after each epoch, and so to whatever the
        Trainer reports to and to its ``log_history``; and from the second epoch on the data map as a picture, to
        TensorBoard, W&B, MLflow and Trackio.

    Raises
    ------
    ConfigurationError
        If a setting is not one of the above; further checks are made when training begins.

    Notes
    -----
    Training rows are those of the training pass itself: dropout on, the model as it is at that step. Weights after
    training are bit-identical with and without the recorder. The class does not export state to checkpoints: the
    epoch after a resume follows from the Trainer's global step.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        hidden_states: Layers = "all",
        pooling: Pooling = "mean",
        heads: bool = False,
        task: NamedTask | None = None,
        text: TextColumns = "auto",
        id_column: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        resume: bool = False,
        overwrite: bool = False,
        compression: Compression = None,
        durability: Durability = "process",
        keep_epochs: int | None = None,
        shared: bool = True,
        probe: Any = None,
        probe_at: Sequence[ProbeAt] = ("begin", "epoch", "end"),
        log_to_trackers: bool = False,
    ) -> None:
        self.path = Path(path)
        self._first_path = self.path
        storage = StorageOptions(compression, durability, keep_epochs)
        self._settings = Settings(
            hidden_states, pooling, text, id_column, on_error, resume, overwrite, storage, heads, task, log_to_trackers
        )
        self._shared = shared
        self._probe = None if probe is None else Probe(probe, probe_at)
        self._probed: Any = None  # the dataset of the probe in this training
        self._probed_step: int | None = None  # of the model that was probed last
        self._attachment: Attachment | None = None
        self._logs: EpochLogs | None = None
        self._capture: Capture | None = None
        self._captured: Any = None  # the Trainer's model that ``_capture`` hooks, perhaps wrapped
        self._session: Session | None = None
        self._began = False  # whether what is at the path was begun, or gone on with, by this recorder
        self._has_trained = False
        self._training = False
        self._detached = False  # by the user: a training that begins is not recorded
        self._detaching = False  # in mid-training: ids are still to be taken out of its batches
        self._epoch = -1

    def attach(self, trainer: Trainer) -> None:
        """Record this Trainer.

        Happens by itself when the callback is given to the Trainer's constructor, or at the latest when training
        begins. Call it where a callback comes later and is to record an evaluation before any training, or to keep
        the last rows of a training that is interrupted.

        Raises
        ------
        ConfigurationError
            If another recorder records this Trainer.
        """
        if self._attachment is not None and self._attachment.trainer is trainer:
            return
        self.detach()
        self._detached = False
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        wrappers: dict[str, Callable[..., Any]] = {
            "train": self._around_train,
            "get_eval_dataloader": self._around_get_eval_dataloader,
            "get_test_dataloader": self._around_get_eval_dataloader,
            "evaluation_loop": self._around_evaluation_loop,
            "training_step": self._around_training_step,
            "prediction_step": self._around_prediction_step,
        }
        self._attachment = Attachment(trainer, self, wrappers)

    def detach(self) -> None:
        """Put everything on disk, and leave the Trainer and its model as they were, until ``attach``.

        During a training this stops the recording at once; the Trainer's methods are its own again when it ends.
        """
        self._detached, self._detaching = True, self._training
        self._stop()
        self._session = None
        if not self._detaching:
            self._release()

    # Events of the Trainer

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Attach to the Trainer that is being constructed."""
        trainer = calling_trainer(self)
        if trainer is not None:
            self.attach(trainer)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the configuration, open the store, and find out which epoch comes first."""
        if self._detached:
            return
        self.on_init_end(args, state, control)  # a callback added later, or given to two Trainers
        check_trainer(self._trainer)
        loader = instrument(kwargs["train_dataloader"], self._settings.id_column)
        self._trainer.callback_handler.train_dataloader = WithoutIds(loader)
        check_evaluation_sets(self._trainer, self._settings.id_column)
        if self._settings.heads:
            check_not_compiled(kwargs["model"], args.torch_compile)
        own = getattr(self._trainer.get_train_dataloader, "__func__", None) is not Trainer.get_train_dataloader
        dataset = source_dataset(loader) if own else self._trainer.train_dataset
        self._probed = None if self._probe is None else self._probe.of(dataset, self._settings.id_column)
        self._session = self._open_session(state.global_step, dataset)
        n_batches = len(loader) if has_length(loader) else state.max_steps * args.gradient_accumulation_steps
        steps_per_epoch = max(-(-n_batches // args.gradient_accumulation_steps), 1)
        self._epoch = state.global_step // steps_per_epoch - 1
        self._session.seal_before(self._epoch + 1)
        self._training, self._probed_step = True, None
        if self._settings.log_to_trackers:
            from t3vis.callbacks.trackers import EpochLogs  # the analyses, which recording by itself does not need

            self._logs = EpochLogs(self._trainer, self.path, self._session.report_log)
        if self._probe is not None:
            self._session.to_come = [(size_of(self._probed) or 0, self._probe.n_passes(state.num_train_epochs))]
        if state.global_step == 0:
            self._run_probe("begin")

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the next pass over the training set."""
        if self._session is not None and self._training:
            self._epoch += 1
            self._session.begin_epoch(self._epoch)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the epoch on disk and have it sealed."""
        if self._session is not None and self._training:
            self._session.end_epoch()
            if self._logs is not None:
                self._logs.log(self._epoch)
            self._run_probe("epoch")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put everything on disk: what a checkpoint knows, the store knows."""
        if self._session is not None and self._training:
            self._session.save_point(checkpoint_of(self._trainer))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse an evaluation of a Trainer that this recorder is not attached to; show others its loader without ids.

        Raises
        ------
        ConfigurationError
            If no Trainer, or another one, is attached.
        """
        trainer = None if self._detached else calling_trainer(self)
        if trainer is None:
            return
        if self._attachment is None or self._attachment.trainer is not trainer:
            raise ConfigurationError(
                "this evaluation cannot be recorded: the Trainer says nothing of itself to a callback that comes after "
                "it was made, or that another Trainer has been given since; call recorder.attach(trainer) first."
            )
        handler = trainer.callback_handler
        if type(handler.eval_dataloader) is not WithoutIds and is_instrumented(handler.eval_dataloader):
            handler.eval_dataloader = WithoutIds(handler.eval_dataloader)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seal what is left and take the hooks off the model; evaluations that follow are still recorded."""
        try:
            self._run_probe("end")
        finally:
            self._end_training()

    # Methods of the Trainer

    def _around_train(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            try:
                self._end_without_event()
            except RecordingError as later:  # it must not stand in front of what stopped the training
                error.add_note(f"and when training ended: {later}")
            raise
        self._end_without_event()
        return result

    def _around_get_eval_dataloader(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Note on the loader which dataset the user gave; the Trainer takes columns off it."""
        loader = original(*args, **kwargs)
        if not hasattr(loader, _DATASET):  # a loader with persistent workers is handed out again and again
            given = args[0] if args else next(iter(kwargs.values()), None)
            sets: Any = self._trainer.eval_dataset
            named = sets if given is None else sets[given] if isinstance(given, str) else given
            own = getattr(original, "__func__", None) not in (Trainer.get_eval_dataloader, Trainer.get_test_dataloader)
            setattr(loader, _DATASET, source_dataset(loader) if own else named)
        return loader

    def _around_evaluation_loop(
        self, original: Callable[..., Any], dataloader: Any, description: str, *args: Any, **kwargs: Any
    ) -> Any:
        dataset = getattr(dataloader, _DATASET, None)
        if dataset is None or not self._is_active or not self._can_tell_apart(dataloader):
            return original(dataloader, description, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
        if self._session is None:
            self._session = self._open_session(None)
        try:
            with self._session.evaluation(prefix, dataset):
                return original(dataloader, description, *args, **kwargs)
        finally:
            if not self._training:
                self._stop()

    def _around_training_step(
        self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        with self._recorded(model, inputs, training=True):
            return original(model, inputs, *args, **kwargs)

    def _around_prediction_step(
        self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        with self._recorded(model, inputs, training=False):
            return original(model, inputs, *args, **kwargs)

    @contextmanager
    def _recorded(self, model: Any, inputs: Any, *, training: bool) -> Iterator[None]:
        """Take the ids out of a micro-batch, and its forward pass by the model as theirs."""
        ids, session = take_ids(inputs), self._session
        opened = session.open_pass(training=training) if session is not None and self._is_active else None
        if ids is None or session is None or opened is None:
            yield
            return
        try:
            batch = batch_given(self._trainer, session.task, ids, inputs, training=training)
            if training and session.is_first(opened.split):
                check_labels(self._trainer, batch, inputs)
            capture = self._captures(session)
            capture.arm(batch, called_module(model, capture.model))
            try:
                yield
            except BaseException:
                capture.disarm(failed=True)
                session.settle(interrupted=True)
                raise
            if not capture.disarm():
                error = RecordingError(
                    "the model was not called with the examples of this step, or not for a gradient (an evaluation "
                    "that only generates has no such call: give it labels, or predict_with_generate=False)"
                )
                session.lose(batch, error)
            session.settle()
        except ConfigurationError:
            self._abandon(session)
            raise

    def _run_probe(self, at: ProbeAt) -> None:
        """Record the model as it is now, in eval mode, unless that has been done; see ``probes``."""
        probe, session = self._probe, self._session
        if probe is None or at not in probe.at or session is None or not (self._training and self._is_active):
            return
        trainer, (step, of_pass) = self._trainer, what_is_probed(self._trainer, at)
        if step == self._probed_step:
            return
        self._probed_step = step
        n_left = rows_of_process(trainer, size_of(self._probed))
        with (
            undisturbed(trainer) as model,
            session.evaluation(SPLIT, self._probed, of_split=probe.attributes, of_pass=of_pass),
        ):
            try:
                for batch in instrument(trainer.get_test_dataloader(self._probed), self._settings.id_column):
                    inputs = trainer._prepare_inputs(batch)
                    n_rows = len(inputs[IDS_KEY])
                    with self._recorded(model, inputs, training=False), trainer.compute_loss_context_manager():
                        model(**call_arguments(trainer, inputs))
                    n_left -= n_rows
            except RecordingError:
                raise
            except Exception as error:
                if at == "begin":
                    self._abandon(session)
                    raise refusal(error) from error
                session.report(error, SPLIT, max(n_left, 1))  # training is not to suffer from it

    # What is open

    @property
    def _is_active(self) -> bool:
        return self._attachment is not None and self._attachment.is_active and not self._detaching

    @property
    def _trainer(self) -> Trainer:
        trainer = None if self._attachment is None else self._attachment.trainer
        if trainer is None:
            raise ConfigurationError("the recorder knows no Trainer; call recorder.attach(trainer) first.")
        return trainer

    def _open_session(self, start_step: int | None, train_dataset: Any = None) -> Session:
        """A session for a training that starts at ``start_step``, or for evaluations only."""
        settings = self._settings
        check_devices(self._trainer)
        if self._session is not None:
            self._session.finish()  # a restart with a smaller batch: nothing may be sealed behind its back
            wait_for_all(self._trainer)  # the run is not gone on with while another process still writes it
        self._capture = self._captured = None
        place = place_of(self._trainer, self._first_path, shared=self._shared)
        if self._has_trained and start_step == 0:
            self.path = on_first_process(self._trainer, lambda: _free_path(self._first_path), place)
            self._began = self._has_trained = False
        elif settings.resume and start_step == 0 and not self._training:
            on_first_process(self._trainer, self._check_nothing_trained, place)
        session = Session(
            self._trainer,
            self.path,
            settings,
            start_step=start_step,
            resume=settings.resume or self._began,
            overwrite=settings.overwrite and not self._began,
            place=place,
            train_dataset=train_dataset,
        )
        self._began = True
        return session

    def _check_nothing_trained(self) -> None:
        if (self.path / "train").exists():
            raise ConfigurationError(
                f"resume=True was asked for {self.path}, but training starts at step 0, which would take back all "
                "that was recorded; call train(resume_from_checkpoint=...), or pass overwrite=True instead."
            )

    def _can_tell_apart(self, loader: Any) -> bool:
        """Let the batches of an evaluation carry ids; during training, one that cannot is reported, not refused."""
        try:
            instrument(loader, self._settings.id_column)
        except ConfigurationError as error:
            if self._session is None or not self._training:
                raise
            self._session.report(error, "eval", 0)
            return False
        return True

    def _captures(self, session: Session) -> Capture:
        """What hooks the Trainer's model, made anew when the model is another one."""
        trainer, settings = self._trainer, self._settings
        if self._capture is None or self._captured is not trainer.model:
            model, wanted = trainer.accelerator.unwrap_model(trainer.model), settings.hidden_states is not None
            self._capture = Capture(model, session.take, hidden_states=wanted, heads=settings.heads)
            self._captured = trainer.model
        return self._capture

    def _stop(self) -> None:
        """End of a training or of an evaluation by itself: nothing stays in memory, or on the model."""
        self._has_trained = self._has_trained or self._training
        self._training = False
        self._capture = self._captured = None
        if self._logs is not None:
            self._logs.close()
            self._logs = None
        if self._session is not None:
            self._session.finish()

    def _end_without_event(self) -> None:
        """After an exception or Ctrl-C, or where the callback was taken off, there was no ``on_train_end``."""
        if self._training or self._detaching:
            self._end_training()

    def _end_training(self) -> None:
        self._stop()
        if self._detaching:
            self._release()

    def _abandon(self, session: Session) -> None:
        """After a configuration that cannot be recorded: as if nothing had begun."""
        session.abandon()
        self._capture = self._captured = None
        self._session, self._training, self._began = None, False, self._began and self.path.exists()

    def _release(self) -> None:
        """Take the wrappers off the Trainer, and forget the loaders that it keeps and whose batches carry ids."""
        if self._attachment is not None:
            self._attachment.release()
            kept: dict[str, Any] = getattr(self._attachment.trainer, "_eval_dataloaders", {})
            for name in [name for name, loader in kept.items() if is_instrumented(loader)]:
                del kept[name]
        self._attachment, self._detaching = None, False


def _free_path(path: Path) -> Path:
    """The first of ``x-2.zarr``, ``x-3.zarr``, ... that is free."""
    number = 2
    while (found := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return found
