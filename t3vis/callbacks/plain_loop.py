"""Recorder: for those who write their own training loop. It says when an epoch, an evaluation and a step begin."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Literal, cast

import torch
from accelerate.utils import extract_model_from_parallel
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers import Trainer
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.trainer_utils import IntervalStrategy, has_length

from t3vis.callbacks.batches import Batch, batch_of
from t3vis.callbacks.capture import Layers, Pooling
from t3vis.callbacks.examples import TextColumns
from t3vis.callbacks.gates import GateGradients
from t3vis.callbacks.hooks import Capture, called_module
from t3vis.callbacks.processes import ALONE
from t3vis.callbacks.session import Session
from t3vis.callbacks.settings import Settings
from t3vis.callbacks.tasks import NamedTask
from t3vis.callbacks.trainers import shifts_labels
from t3vis.errors import ConfigurationError, RecordingError
from t3vis.store.codecs import Compression
from t3vis.store.durable import Durability
from t3vis.store.options import StorageOptions

_LABELS = ("labels", "label", "label_ids")


class Loop:
    """What a session asks of a Trainer, for a loop that has none."""

    label_smoother = compute_loss_func = None  # what is trained is the loop's own affair

    def __init__(self, model: nn.Module, processor: Any, global_step: int) -> None:
        self.model = model
        self.processing_class = processor
        self.label_names = list(_LABELS)
        self.args = SimpleNamespace(process_index=0, world_size=1, eval_strategy=IntervalStrategy.NO)
        self.state = SimpleNamespace(global_step=global_step, epoch=0.0, num_train_epochs=1)
        is_shifted = LOSS_MAPPING.get(getattr(model, "loss_type", "")) is ForCausalLMLoss
        config = getattr(model, "config", None)
        self._loss_shifts_labels = is_shifted and not getattr(config, "is_encoder_decoder", False)


class Recorder:
    """Records logits, loss and hidden states of every example in every epoch of a loop of one's own.

    The loop says which epoch it is in, and in each step which examples the model is about to be called with::

        with Recorder("runs/x.zarr", model, dataset=train) as recorder:
            for epoch in range(3):
                with recorder.epoch(epoch):
                    for ids, batch in loader:
                        with recorder.step(ids, labels=batch["labels"]):
                            loss = model(**batch).loss
                        ...

    Parameters
    ----------
    path
        Directory of the run, new or empty.
    model
        The model that the loop calls; it may be compiled.
    dataset
        What is trained on, with a length; the id of an example is its row number there.
    processor
        The tokenizer, if its vocabulary is to be kept.
    global_step
        Optimizer steps completed before, where training goes on from a checkpoint (``resume=True``).
    hidden_states, pooling, task, text, on_error, resume, overwrite, compression, durability, keep_epochs
        As those of ``RecorderCallback``.

    Raises
    ------
    ConfigurationError
        If a setting is not one of these, or the loop runs in several processes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        *,
        dataset: Any,
        processor: Any = None,
        global_step: int = 0,
        hidden_states: Layers = "all",
        pooling: Pooling = "mean",
        task: NamedTask | None = None,
        text: TextColumns = "auto",
        on_error: Literal["warn", "raise"] = "warn",
        resume: bool = False,
        overwrite: bool = False,
        compression: Compression = None,
        durability: Durability = "process",
        keep_epochs: int | None = None,
    ) -> None:
        self.path = Path(path)
        _check_single_process()
        _check_length(dataset)
        if resume == (global_step == 0):
            raise ConfigurationError(
                f"resume={resume} and global_step={global_step} do not go together; to go on from a checkpoint pass "
                "resume=True and the optimizer steps that its model has taken, else neither."
            )
        storage = StorageOptions(compression, durability, keep_epochs)
        settings = Settings(hidden_states, pooling, text, None, on_error, resume, overwrite, storage, False, task)
        self._model = model
        inner = extract_model_from_parallel(model, keep_torch_compile=False)
        self._loop = Loop(inner, processor, global_step)
        self._session = Session(
            cast(Trainer, self._loop),
            self.path,
            settings,
            start_step=global_step,
            resume=resume,
            overwrite=overwrite,
            place=ALONE,
            train_dataset=dataset,
        )
        self._capture = Capture(inner, self._receive, hidden_states=hidden_states is not None)
        self._sizes = {"train": len(dataset)}
        self._open: str | None = None  # what is going on: "train", or the name of an evaluation
        self._in_step = self._is_closed = False
        self._epoch = -1
        self._called_with: Mapping[str, Any] = {}

    @property
    def global_step(self) -> int:
        """Optimizer steps completed."""
        return int(self._loop.state.global_step)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Put everything on disk and wait until it is sealed."""
        if not self._is_closed:
            self._is_closed, self._open = True, None
            self._session.finish()

    @contextmanager
    def epoch(self, number: int) -> Iterator[None]:
        """One pass over the training set, numbered from 0 on; sealed at its end, unless that is an error.

        Raises
        ------
        ConfigurationError
            If another epoch or evaluation is going on, or the number is not larger than that of the one before.
        """
        self._check_free(f"epoch({number})")
        if number <= self._epoch:
            raise ConfigurationError(f"epoch({number}) after epoch({self._epoch}): each epoch comes once, in order.")
        if self._epoch < 0:
            self._session.seal_before(number)
        self._epoch, self._open = number, "train"
        self._loop.state.epoch = float(number)
        self._session.begin_epoch(number)
        try:
            yield
            self._loop.state.epoch = number + 1.0
            if not self._is_closed:
                self._session.end_epoch()
        finally:
            self._open = None

    @contextmanager
    def evaluation(self, name: str, dataset: Any) -> Iterator[None]:
        """One pass over another dataset, or over the training set, with the model in eval mode.

        It may stand between two epochs or within one, outside the steps.

        Raises
        ------
        ConfigurationError
            If a step or another evaluation is going on, or the dataset has no length.
        """
        if self._open != "train":
            self._check_free(f"evaluation({name!r})")
        self._check_outside_step(f"evaluation({name!r})")
        _check_length(dataset)
        if name == "train":
            raise ConfigurationError("evaluation('train'): that is the name of the training; choose another one.")
        before, self._open, self._sizes[name] = self._open, name, len(dataset)
        try:
            with self._session.evaluation(name, dataset):
                yield
        finally:
            self._open = before

    @contextmanager
    def step(
        self,
        ids: ArrayLike | Tensor,
        *,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_step: int | None = None,
    ) -> Iterator[None]:
        """The first call of the model in here is with these examples (in training, the first that builds a graph).

        Parameters
        ----------
        ids
            Shape (n,): row numbers in the dataset, in the order of the batch. Better not on a GPU: they are checked at
            once, and those there would be waited for.
        labels, attention_mask
            As the model takes them, if it is not called with them.
        global_step
            Optimizer steps completed before this one, where several micro-batches make one; else each step in an
            epoch counts as one.

        Raises
        ------
        ConfigurationError
            If no epoch or evaluation is going on, the model is in the other mode, or an id is none of the dataset's.
        """
        if self._is_closed or self._open is None:
            state = "the recorder is closed" if self._is_closed else "no epoch or evaluation is going on"
            raise ConfigurationError(f"step(): {state}; steps stand within recorder.epoch(n) or recorder.evaluation().")
        self._check_outside_step("step()")
        training = self._open == "train"
        if self._model.training != training:
            raise ConfigurationError(
                f"step(): the model is in {'train' if self._model.training else 'eval'} mode in "
                f"{'an epoch' if training else 'an evaluation'}; call model.{'train' if training else 'eval'}() first."
            )
        batch = Batch(_checked_ids(ids, self._open, self._sizes[self._open]), labels, attention_mask, None, training)
        if training and global_step is not None:
            self._loop.state.global_step = global_step
        with self._recorded(batch):
            yield
        if training and global_step is None:
            self._loop.state.global_step += 1

    def save_point(self, checkpoint: str | os.PathLike[str] | None = None) -> None:
        """Put everything on disk: the loop has saved its model, from which training may go on.

        Parameters
        ----------
        checkpoint
            The file or directory that it was saved to; the run names it for those who want to load it.
        """
        if self._is_closed:
            raise ConfigurationError("save_point(): the recorder is closed.")
        self._check_outside_step("save_point()")
        self._session.save_point(None if checkpoint is None else Path(checkpoint))

    # Steps

    @contextmanager
    def _recorded(self, batch: Batch) -> Iterator[None]:
        """Take the forward pass in here as that of a batch."""
        self._in_step = True
        called = called_module(self._model, self._loop.model)
        note = called.register_forward_pre_hook(self._note, with_kwargs=True)
        try:
            self._capture.arm(batch, called)
            try:
                yield
            except BaseException:
                self._capture.disarm(failed=True)
                raise
            if not self._capture.disarm():
                graph = " for a gradient" if batch.training else ""
                self._session.lose(batch, RecordingError(f"the model was not called{graph} within this step"))
        except ConfigurationError:
            self._session.abandon()
            if self.path.exists():  # there was something before
                self.close()
            self._is_closed = True
            raise
        finally:
            note.remove()
            self._in_step, self._called_with = False, {}

    def _note(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        signature = inspect.signature(self._loop.model.forward)
        self._called_with = {**signature.bind_partial(*args).arguments, **kwargs}

    def _receive(self, batch: Batch, outputs: Any, gradients: GateGradients | None) -> None:
        """Record a batch with what the model was called with, where the loop has not said it."""
        shifted = shifts_labels(cast(Trainer, self._loop), self._session.task)
        called = batch_of(
            batch.ids, self._called_with, self._loop.model, _LABELS, training=batch.training, shifted=shifted
        )
        labels = called.labels if batch.labels is None else batch.labels
        mask = called.mask if batch.mask is None else batch.mask
        batch = replace(called, labels=labels, mask=mask)
        if batch.training and batch.labels is None and batch.spans is None and self._session.is_first("train"):
            raise ConfigurationError("the model was called without labels; pass them: recorder.step(ids, labels=...).")
        self._session.take(batch, outputs, gradients)

    # What is open

    def _check_free(self, what: str) -> None:
        if self._is_closed:
            raise ConfigurationError(f"{what}: the recorder is closed.")
        if self._open is not None:
            now = f"epoch {self._epoch}" if self._open == "train" else f"the evaluation {self._open!r}"
            raise ConfigurationError(f"{what} within {now}: end that one first.")

    def _check_outside_step(self, what: str) -> None:
        if self._in_step:
            raise ConfigurationError(f"{what} within a step: end that one first.")


def _check_single_process() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        n_processes = torch.distributed.get_world_size()
        if n_processes > 1:
            raise ConfigurationError(
                f"a loop of {n_processes} processes cannot be recorded by Recorder; use a Trainer with "
                "RecorderCallback, which records each of them."
            )


def _check_length(dataset: Any) -> None:
    if not has_length(dataset):
        raise ConfigurationError(
            f"dataset={type(dataset).__name__} has no length; ids are row numbers, so give the dataset that has them."
        )


def _checked_ids(ids: ArrayLike | Tensor, name: str, n_examples: int) -> Tensor:
    """The ids as int64, shape (n,)."""
    found = torch.as_tensor(ids)
    if found.dim() != 1 or found.is_floating_point() or found.dtype == torch.bool or not len(found):
        raise ConfigurationError(
            f"step(): ids of shape {tuple(found.shape)} and type {found.dtype}, expected a whole number for each "
            "example of the batch."
        )
    if found.min() < 0 or found.max() >= n_examples:
        raise ConfigurationError(
            f"step(): ids from {int(found.min())} to {int(found.max())}, but {name} has {n_examples} examples; pass "
            "the row numbers of the examples in the dataset."
        )
    return found.to(torch.int64)
