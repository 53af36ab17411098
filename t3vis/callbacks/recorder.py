"""RecorderCallback: the timeline of a training run. What it records is decided in ``capture`` and ``tasks``."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from t3vis.callbacks.attachment import Attachment, calling_trainer
from t3vis.callbacks.capture import Batch, Capture, Layers, Pooling
from t3vis.callbacks.example_ids import instrument, source_dataset, take_ids
from t3vis.callbacks.examples import TextColumns
from t3vis.callbacks.session import Session, Settings
from t3vis.errors import ConfigurationError, RecordingError


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
        text: TextColumns = "auto",
        id_column: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self._settings = Settings(hidden_states, pooling, text, id_column, on_error)
        self._resume = resume
        self._overwrite = overwrite
        self._check_settings()
        self._attachment: Attachment | None = None
        self._capture: Capture | None = None
        self._session: Session | None = None
        self._training = False
        self._has_trained = False
        self._epoch = -1

    def attach(self, trainer: Trainer) -> None:
        """Record this Trainer.

        Happens by itself when the callback is given to the Trainer's constructor, or at the latest when training
        begins; call it where a callback added later is to record an evaluation before that.

        Raises
        ------
        ConfigurationError
            If another recorder records this Trainer.
        """
        if self._attachment is not None and self._attachment.trainer is trainer:
            return
        self.detach()
        wrappers: dict[str, Callable[..., Any]] = {
            "train": self._around_train,
            "get_train_dataloader": self._around_get_train_dataloader,
            "get_eval_dataloader": self._around_get_eval_dataloader,
            "get_test_dataloader": self._around_get_eval_dataloader,
            "evaluation_loop": self._around_evaluation_loop,
            "training_step": self._around_training_step,
            "prediction_step": self._around_prediction_step,
        }
        self._attachment = Attachment(trainer, self, wrappers)

    def detach(self) -> None:
        """Put everything on disk, and leave the Trainer and its model as they were."""
        self._stop()
        if self._attachment is not None:
            self._attachment.release()
        self._attachment = self._session = None

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
        if self._attachment is None:
            self.on_init_end(args, state, control)
        if args.n_gpu > 1:
            raise ConfigurationError(
                f"torch.nn.DataParallel over {args.n_gpu} GPUs cannot be recorded: it copies the model for every "
                "step; launch with torchrun (one process per GPU), or set CUDA_VISIBLE_DEVICES to one."
            )
        loader = instrument(kwargs["train_dataloader"], self._settings.id_column)
        self._session = self._open_session(state.global_step)
        self._session.add_train_split(_raw_dataset(loader, self._trainer.train_dataset))
        n_batches = len(loader) if has_length(loader) else state.max_steps * args.gradient_accumulation_steps
        steps_per_epoch = max(-(-n_batches // args.gradient_accumulation_steps), 1)
        self._epoch = state.global_step // steps_per_epoch - 1
        self._training = True

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the next pass over the training set."""
        self._epoch += 1
        self._open.begin_epoch(self._epoch)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the epoch on disk and have it sealed."""
        self._open.end_epoch(self._epoch)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Flush: what a checkpoint knows, the store knows."""
        self._open.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Seal what is left and take the hooks off the model; evaluations that follow are still recorded."""
        self._stop()

    # Methods of the Trainer

    def _around_train(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            if self._training:  # an exception or Ctrl-C: there was no on_train_end
                self._stop()

    def _around_get_train_dataloader(self, original: Callable[..., Any]) -> Any:
        return instrument(original(), self._settings.id_column)

    def _around_get_eval_dataloader(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loader = instrument(original(*args, **kwargs), self._settings.id_column)
        given = args[0] if args else next(iter(kwargs.values()), None)
        sets: Any = self._trainer.eval_dataset
        named = sets if given is None else sets[given] if isinstance(given, str) else given
        loader._t3vis_dataset = _raw_dataset(loader, named)
        return loader

    def _around_evaluation_loop(
        self, original: Callable[..., Any], dataloader: Any, description: str, *args: Any, **kwargs: Any
    ) -> Any:
        prefix = kwargs.get("metric_key_prefix", args[2] if len(args) > 2 else "eval")
        dataset = getattr(dataloader, "_t3vis_dataset", None)
        if dataset is not None and self._session is None:
            self._session = self._open_session(None)
        evaluation = nullcontext() if dataset is None else self._open.evaluation(prefix, dataset)
        try:
            with evaluation:
                return original(dataloader, description, *args, **kwargs)
        finally:
            if not self._training:
                self._stop()

    def _around_training_step(
        self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return self._around_step(original, model, inputs, args, kwargs, training=True)

    def _around_prediction_step(
        self, original: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return self._around_step(original, model, inputs, args, kwargs, training=False)

    def _around_step(
        self, original: Callable[..., Any], model: Any, inputs: Any, args: Any, kwargs: Any, *, training: bool
    ) -> Any:
        """Take the ids out of the micro-batch, and its forward pass as theirs."""
        ids = take_ids(inputs)
        if ids is None or self._session is None:
            return original(model, inputs, *args, **kwargs)
        names = dict.fromkeys((*self._trainer.label_names, "labels"))
        labels = next((inputs[name] for name in names if name in inputs), None)
        if training and labels is None and not self._session.is_described:
            raise ConfigurationError(
                f"the training batches hold no labels: found {', '.join(inputs)}, expected {' or '.join(names)}; "
                "add a column of labels to the dataset, or name it in TrainingArguments(label_names=[...])."
            )
        capture = self._hooked()
        capture.arm(Batch(ids, labels, inputs.get("attention_mask"), training))
        try:
            result = original(model, inputs, *args, **kwargs)
        finally:
            taken = capture.disarm()
        if not taken:
            error = RecordingError("the model's forward was not called in this step, or not for a gradient")
            self._session.report(error, len(ids))
        return result

    # What is open

    @property
    def _trainer(self) -> Trainer:
        if self._attachment is None:
            raise ConfigurationError("the recorder knows no Trainer; call recorder.attach(trainer) first.")
        return self._attachment.trainer

    @property
    def _open(self) -> Session:
        if self._session is None:
            raise ConfigurationError("the recorder has no open run; it records while a Trainer trains or evaluates.")
        return self._session

    def _open_session(self, start_step: int | None) -> Session:
        """A session for a training that starts at ``start_step``, or for evaluations only."""
        ours = self._session is not None
        if ours and self._has_trained and start_step == 0:
            ours = False
            self.path = _next_path(self.path)
        elif self._resume and not ours and start_step == 0 and self.path.exists():
            raise ConfigurationError(
                f"resume=True was asked for {self.path}, but training starts at step 0, which would take back all "
                "that was recorded; call train(resume_from_checkpoint=...), or pass overwrite=True instead."
            )
        session = Session(
            self._trainer,
            self.path,
            self._settings,
            start_step=start_step,
            resume=self._resume or ours,
            overwrite=self._overwrite and not ours,
        )
        self._has_trained = False
        return session

    def _hooked(self) -> Capture:
        """Hooks on the Trainer's model, made anew when the model is another one."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        if self._capture is None or self._capture.model is not model:
            self._unhook()
            wanted = self._settings.hidden_states is not None
            self._capture = Capture(model, self._open.take, hidden_states=wanted)
        return self._capture

    def _unhook(self) -> None:
        if self._capture is not None:
            self._capture.remove()
        self._capture = None

    def _stop(self) -> None:
        """End of a training or of an evaluation by itself: nothing stays in memory, or on the model."""
        self._has_trained = self._has_trained or self._training
        self._training = False
        self._unhook()
        if self._session is not None:
            self._session.finish()

    def _check_settings(self) -> None:
        settings = self._settings
        layers = settings.hidden_states
        if not (
            layers in ("all", "last", None)
            or (isinstance(layers, list | tuple | range) and layers and all(isinstance(i, int) for i in layers))
        ):
            raise ConfigurationError(f"hidden_states={layers!r}: expected 'all', 'last', a list of numbers, or None.")
        if settings.pooling not in ("mean", "first", "last") and not callable(settings.pooling):
            raise ConfigurationError(
                f"pooling={settings.pooling!r}: expected 'mean', 'first', 'last', or a function of states and mask."
            )
        if isinstance(settings.text, str) and settings.text != "auto":
            raise ConfigurationError(f"text={settings.text!r}: expected 'auto', a list of column names, or None.")
        if settings.on_error not in ("warn", "raise"):
            raise ConfigurationError(f"on_error={settings.on_error!r}: expected 'warn' or 'raise'.")
        if self._resume and self._overwrite:
            raise ConfigurationError("resume=True and overwrite=True exclude each other; choose one.")


def _raw_dataset(loader: Any, dataset: Any) -> Any:
    """The dataset as the user gave it, with all its columns; that of the loader if it is another one."""
    loaded = source_dataset(loader)
    if hasattr(dataset, "__len__") and hasattr(loaded, "__len__") and len(dataset) == len(loaded):
        return dataset
    return loaded


def _next_path(path: Path) -> Path:
    """The first of ``x-2.zarr``, ``x-3.zarr``, ... that is free."""
    number = 2
    while (found := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return found
