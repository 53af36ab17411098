"""Finding the Trainer that a callback belongs to, and wrapping methods of that one instance."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import FrameType, MethodType
from typing import Any

from transformers import Trainer, TrainerCallback

from t3vis.errors import ConfigurationError

_OWNER = "_t3vis_owner"


def calling_trainer(callback: TrainerCallback) -> Trainer | None:
    """The Trainer whose method is calling the callback: no event hands it over, but its frame is on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        handler = getattr(owner, "callback_handler", None) if isinstance(owner, Trainer) else None
        if handler is not None and callback in handler.callbacks:
            return owner
        frame = frame.f_back
    return None


class Attachment:
    """Methods of one Trainer, wrapped on that instance only, until ``release``.

    A wrapper is called as ``wrapper(original, *args, **kwargs)``. Nothing here keeps a Trainer alive that has been
    used: when it is let go of, model and loaders are freed at once, as they would be without the wrappers.

    Raises
    ------
    ConfigurationError
        If another recorder has wrapped methods of this Trainer and is still among its callbacks.
    """

    def __init__(self, trainer: Trainer, callback: TrainerCallback, wrappers: dict[str, Callable[..., Any]]) -> None:
        for owner in {getattr(method, _OWNER) for method in vars(trainer).values() if hasattr(method, _OWNER)}:
            if owner.is_active:
                raise ConfigurationError(
                    "this Trainer has a RecorderCallback already; give it one only, or detach() the first."
                )
            owner.release()
        self._trainer = weakref.ref(trainer)
        self._until_used: Trainer | None = trainer  # in ``Trainer(...).train()`` nobody else holds it
        self._callback = weakref.ref(callback)
        self._released = False
        self._wrapped: dict[str, Callable[..., Any]] = {}
        self._replaced: dict[str, Any] = {}
        for name, wrapper in wrappers.items():
            self._wrap(trainer, name, wrapper)

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer, ``None`` once it is gone."""
        return self._trainer()

    @property
    def is_active(self) -> bool:
        """Whether the callback is (still) among those of the Trainer."""
        trainer = self.trainer
        return not self._released and trainer is not None and self._callback() in trainer.callback_handler.callbacks

    def release(self) -> None:
        """Put the original methods back; one that somebody else has wrapped since only calls the original."""
        self._released = True
        trainer = self.trainer
        for name, replaced in self._replaced.items():
            if trainer is None or vars(trainer).get(name) is not self._wrapped[name]:
                continue
            if replaced is None:
                delattr(trainer, name)
            else:
                setattr(trainer, name, replaced)

    def _wrap(self, trainer: Trainer, name: str, wrapper: Callable[..., Any]) -> None:
        bound = getattr(trainer, name)
        is_own = getattr(bound, "__self__", None) is trainer
        function = bound.__func__ if is_own else bound

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            trainer, self._until_used = self.trainer, None
            original = MethodType(function, trainer) if is_own else function
            return original(*args, **kwargs) if self._released else wrapper(original, *args, **kwargs)

        setattr(wrapped, _OWNER, self)
        self._replaced[name], self._wrapped[name] = vars(trainer).get(name), wrapped
        setattr(trainer, name, wrapped)
