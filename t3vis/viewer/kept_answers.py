"""What a model says to a few examples, and why, written down for a page that has no server to ask."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t3vis.checkpointed import pass_with_checkpoint
from t3vis.errors import ProbingError
from t3vis.store.reader import Run, Split
from t3vis.viewer.attentions import Layer, pictured, read
from t3vis.viewer.framing import framed
from t3vis.viewer.instances import Asked, explained, of_run, predicted_everywhere
from t3vis.viewer.models import Loaded, Models

MOST_EXPLAINED = 8
"""Choices of an example whose saliency is written down: the most probable, as many as the page lists, and its label."""
MOST_WEIGHTS = 4 << 20
"""Attention weights of an example that are written down, 8 MB of them; of longer ones there are the small pictures."""


class KeptAnswers:
    """The answers of one split's model about some of its examples.

    Parameters
    ----------
    run, split
        Whose examples they are.
    models
        Of which the one that was named answers, else that of the last checkpoint.
    named
        Whether one was named.
    say
        Is told what is left out.

    Raises
    ------
    ProbingError
        If there is no model, or it cannot be loaded.
    """

    def __init__(self, run: Run, split: Split, models: Models, *, named: bool, say: Callable[[str], None]) -> None:
        self._run, self._split, self._say = run, split, say
        self._loaded = models.of(split, None)
        self._pass_index = None if named else pass_with_checkpoint(split)[0].index
        self._kept: list[int] = []

    def described(self) -> dict[str, Any]:
        """In JSON, for the page: which model answered, at which pass (none if it was named), about which examples."""
        return {"epoch": self._pass_index, "model": self._loaded.name, "ids": self._kept}

    def resources(self, ids: Sequence[int]) -> Iterator[tuple[str, bytes]]:
        """For each example, by name: predictions and saliency, small pictures of the heads, their weights in full."""
        for number in ids:
            try:
                yield from self._of_example(number)
            except (IndexError, ProbingError, RuntimeError, ValueError) as error:
                self._leave_out(f"the rest of what the model says to example {number}", error)

    def _of_example(self, number: int) -> Iterator[tuple[str, bytes]]:
        (asked,) = of_run(self._run, self._split, self._loaded, [number])
        yield f"{number}.json", json.dumps(_said(self._loaded, asked), separators=(",", ":")).encode()
        self._kept.append(number)
        layers = read(self._loaded, asked.example, ())
        yield f"{number}-pictures.bin", pictured(self._loaded, asked.example, layers)
        n_weights = sum(layer.weights.numel() for layer in layers)
        if n_weights > MOST_WEIGHTS:
            self._leave_out(f"the attention weights of example {number}", f"{n_weights:,}, over {MOST_WEIGHTS:,}")
        else:
            yield f"{number}-weights.bin", _weights(layers)

    def _leave_out(self, what: str, why: object) -> None:
        self._say(f"left out: {what} of {self._split.name} ({why})")


def _said(loaded: Loaded, asked: Asked) -> dict[str, Any]:
    predicted = predicted_everywhere(loaded, asked)
    choices = sorted(predicted["choices"], key=_rank)
    listed = [choice["class"] for choice in choices[:MOST_EXPLAINED]]
    label = asked.label
    if getattr(label, "ndim", 1) == 0 and int(label) not in listed and int(label) < len(choices):
        listed.append(int(label))
    saliency = {number: explained(loaded, asked, (), None, number, None) for number in listed}
    return {"predicted": predicted, "saliency": saliency}


def _rank(choice: dict[str, Any]) -> float:
    """The most probable first, what is not finite last."""
    return math.inf if choice["logit"] is None else -choice["logit"]


def _weights(layers: list[Layer]) -> bytes:
    """All heads in full, float16."""
    shapes = [list(layer.weights.shape) for layer in layers]
    return framed(
        {"dtype": "f2", "shapes": shapes}, b"".join(layer.weights.numpy().astype("<f2").tobytes() for layer in layers)
    )
