"""The models that are at hand: the run's checkpoints and one that was named, of which few are held at a time."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers

from t3vis.checkpointed import pass_with_checkpoint
from t3vis.errors import ProbingError
from t3vis.probing.gating import Heads, heads_of
from t3vis.probing.model import example_inputs, load_model
from t3vis.recorded_example import tokenizer_of
from t3vis.store.reader import Split

MOST_HELD = 2
"""As many as are compared."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in eval mode, its tokenizer if it has one, and what to call it."""

    model: Any
    tokenizer: Any
    name: str
    key: str
    """Another one for each state of the weights."""

    @cached_property
    def heads(self) -> Heads:
        """Its heads, found and checked once.

        Raises
        ------
        ProbingError
            If none are found.
        """
        return heads_of(self.model, example_inputs(self.model))


class Models:
    """Loads models when they are asked for, and holds those that were asked for last.

    Parameters
    ----------
    model
        The folder of a model that is taken where no epoch is named; by default the last checkpoint is.
    trust_remote_code
        Whether a checkpoint's own code may run.
    """

    def __init__(self, model: Path | None, *, trust_remote_code: bool) -> None:
        self._model = model
        self._trusts = trust_remote_code
        self._held: OrderedDict[str, Loaded] = OrderedDict()

    def of(self, split: Split, index: int | None) -> Loaded:
        """The model of a pass of a split.

        Raises
        ------
        ProbingError
            If there is none, or it cannot be loaded.
        """
        if index is None and self._model is not None:
            folder, name, key = self._model, self._model.name, str(self._model)
        else:
            chosen, checkpoint = pass_with_checkpoint(split, index)
            folder, name = checkpoint.path, f"epoch {chosen.epoch:g}"
            key = f"{folder}:{checkpoint.crc32c}"
        if key not in self._held:
            while len(self._held) >= MOST_HELD:
                self._held.popitem(last=False)
            self._held[key] = Loaded(
                self._loaded(folder), tokenizer_of(folder, trust_remote_code=self._trusts), name, key
            )
        self._held.move_to_end(key)
        return self._held[key]

    def _loaded(self, folder: Path) -> Any:
        own = _own_class(folder) if self._trusts else None
        if own is None:
            return load_model(folder)
        return own.from_pretrained(folder, local_files_only=True, trust_remote_code=True).eval()


def _own_class(folder: Path) -> Any:
    """The auto class that loads a model whose code lies beside its weights; ``None`` where transformers has the class.

    Raises
    ------
    ProbingError
        If there is no checkpoint.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ProbingError(f"{folder} is no checkpoint of a model: {error}; give a folder with config.json.") from error
    names = config.get("architectures") or [""]
    if hasattr(transformers, names[0]):
        return None
    autos = [auto for auto, path in config.get("auto_map", {}).items() if path.endswith(f".{names[0]}")]
    return getattr(transformers, autos[0]) if autos else None
