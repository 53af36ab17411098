"""What the user asked to be recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from t3vis.callbacks import provenance
from t3vis.callbacks.capture import Layers, Pooling
from t3vis.callbacks.examples import TextColumns
from t3vis.callbacks.tasks import NAMED_TASKS, NamedTask
from t3vis.errors import ConfigurationError
from t3vis.store.options import StorageOptions


@dataclass(frozen=True)
class Settings:
    """Options of a recording; the names and meanings are those of the parameters of ``RecorderCallback``.

    Raises
    ------
    ConfigurationError
        If one is not what ``RecorderCallback`` takes.
    """

    hidden_states: Layers
    pooling: Pooling
    text: TextColumns
    id_column: str | None
    on_error: Literal["warn", "raise"]
    resume: bool
    overwrite: bool
    storage: StorageOptions
    heads: bool
    task: NamedTask | None = None
    log_to_trackers: bool = False

    def __post_init__(self) -> None:
        layers, pooling = self.hidden_states, self.pooling
        named = layers is None or (isinstance(layers, str) and layers in ("all", "last"))
        if not named and not _is_sequence_of(int, layers):
            raise ConfigurationError(f"hidden_states={layers!r}: expected 'all', 'last', a list of numbers, or None.")
        if not callable(pooling) and pooling not in ("mean", "first", "last"):
            raise ConfigurationError(
                f"pooling={pooling!r}: expected 'mean', 'first', 'last', or a function of states and mask."
            )
        if self.text not in ("auto", None, [], ()) and not _is_sequence_of(str, self.text):
            raise ConfigurationError(f"text={self.text!r}: expected 'auto', a list of column names, or None.")
        if not isinstance(self.id_column, str | None):
            raise ConfigurationError(f"id_column={self.id_column!r}: expected the name of a column, or None.")
        if self.on_error not in ("warn", "raise"):
            raise ConfigurationError(f"on_error={self.on_error!r}: expected 'warn' or 'raise'.")
        if not isinstance(self.heads, bool):
            raise ConfigurationError(f"heads={self.heads!r}: expected True or False.")
        if not isinstance(self.log_to_trackers, bool):
            raise ConfigurationError(f"log_to_trackers={self.log_to_trackers!r}: expected True or False.")
        if self.task is not None and self.task not in NAMED_TASKS:
            names = ", ".join(map(repr, NAMED_TASKS))
            raise ConfigurationError(f"task={self.task!r}: expected {names}, or None to choose by the model.")
        if self.resume and self.overwrite:
            raise ConfigurationError("resume=True and overwrite=True exclude each other; choose one.")

    @property
    def pooling_name(self) -> str:
        """The pooling, in a word."""
        return self.pooling if isinstance(self.pooling, str) else getattr(self.pooling, "__name__", "callable")

    def attributes(self) -> dict[str, Any]:
        """What decides how rows look, as JSON takes it; a run is resumed with the same."""
        chosen: dict[str, Any] = {"hidden_states": self.hidden_states, "pooling": self.pooling_name, "text": self.text}
        chosen |= {"heads": True} if self.heads else {}  # runs from before there were any are gone on with
        chosen |= {"task": self.task} if self.task is not None else {}
        return {name: provenance.jsonable(value) for name, value in chosen.items()}


def _is_sequence_of(kind: type, values: Any) -> bool:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
