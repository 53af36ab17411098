"""One example in JSON: what it is, and its trajectory over the passes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.store.reader import Run, Split


def example(run: Run, split: Split, number: int) -> dict[str, Any]:
    """Everything recorded of one example, but for its hidden states.

    Raises
    ------
    IndexError
        If the split has no such example.
    """
    if not 0 <= number < split.n_examples:
        raise IndexError(f"{split.name} has no example {number}; it has {split.n_examples}.")
    arrays = split.arrays
    indices = [record.index for record in split.passes]
    found: dict[str, Any] = {
        "id": number,
        "text": {name: column[number] for name, column in split.text.items()},
        "label": _plain(split.label(number)),
        "passes": indices,
        "tokens": _tokens(run, split, number),
    }
    for name in ("loss", "step", "visits"):
        if name in arrays:
            found[name] = _plain(split.array(name)[indices, number])
    if "logits" in arrays:
        logits = split.logits[indices, number]
        found["logits"] = _plain(logits)
        if split.attributes["task"] == "single_label":
            shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
            found["probs"] = _plain(shifted / shifted.sum(axis=-1, keepdims=True))
    return found


def _tokens(run: Run, split: Split, number: int) -> list[str] | None:
    """The tokens of an example, where both their ids and the vocabulary were recorded."""
    if split.token_ids is None or not run.has_tokens:
        return None
    return run.tokens(split.token_ids[number])


def _plain(values: NDArray[Any] | np.generic) -> Any:
    """Numbers as JSON knows them; what is not finite is null."""
    if isinstance(values, np.ndarray) and values.ndim:
        return [_plain(value) for value in values]
    value = values.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
