"""Finding the Trainer that a callback belongs to, and wrapping methods of that one instance."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback

from t3vis.errors import ConfigurationError

_OWNER = "_t3vis_owner"


def calling_trainer(callback: TrainerCallback) -> Trainer | None:
    """The Trainer whose method is calling the callback: no event hands it over, but its frame is on the stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        handler = getattr(owner, "callback_handler", None) if isinstance(owner, Trainer) else None
        if handler is not None and callback in handler.callbacks:
            return owner
        frame = frame.f_back
    return None


class Attachment:
    """Methods of one Trainer, wrapped on that instance only, until ``release``.

    A wrapper is called as ``wrapper(original, *args, **kwargs)``; once the callback has been removed from the
    Trainer, the original is called alone.

    Raises
    ------
    ConfigurationError
        If another recorder has wrapped methods of this Trainer.
    """

    def __init__(self, trainer: Trainer, callback: TrainerCallback, wrappers: dict[str, Callable[..., Any]]) -> None:
        if any(hasattr(method, _OWNER) for method in vars(trainer).values()):
            raise ConfigurationError(
                "this Trainer has a RecorderCallback already; give it one only, or detach() the first."
            )
        self.trainer = trainer
        self._callback = callback
        self._replaced: dict[str, Any] = {}
        for name, wrapper in wrappers.items():
            self._wrap(name, wrapper)

    def release(self) -> None:
        """Put the original methods back, save where somebody else has wrapped them since."""
        for name, replaced in self._replaced.items():
            if getattr(vars(self.trainer).get(name), _OWNER, None) is not self:
                continue
            if replaced is None:
                delattr(self.trainer, name)
            else:
                setattr(self.trainer, name, replaced)
        self._callback = _Nobody()

    def _wrap(self, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(self.trainer, name)
        self._replaced[name] = vars(self.trainer).get(name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._callback not in self.trainer.callback_handler.callbacks:
                return original(*args, **kwargs)
            return wrapper(original, *args, **kwargs)

        setattr(wrapped, _OWNER, self)
        setattr(self.trainer, name, wrapped)


class _Nobody(TrainerCallback):
    """Stands in no Trainer's list of callbacks."""
