"""One example as a reader meets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """One example: what it is, and its trajectory.

    ``arrays`` holds, for each recorded array, its values over the passes, such as ``loss`` of shape (n_passes,),
    ``logits`` (n_passes, n_classes) and ``hidden_states`` (n_passes, n_layers, hidden). ``ragged`` holds for each
    ragged array a list of its values in every pass, such as one number per token.
    """

    example_id: int
    text: dict[str, str]
    token_ids: NDArray[np.int32] | None
    label: Any
    label_name: str | None
    arrays: dict[str, NDArray[Any]]
    ragged: dict[str, list[NDArray[Any]]]
    class_names: list[str] | None

    @property
    def logits(self) -> NDArray[Any]:
        """Shape (n_passes, n_classes)."""
        return self.arrays["logits"]

    @property
    def loss(self) -> NDArray[Any]:
        """Shape (n_passes,)."""
        return self.arrays["loss"]

    @property
    def hidden_states(self) -> NDArray[Any]:
        """Shape (n_passes, n_layers, hidden)."""
        return self.arrays["hidden_states"]

    def __repr__(self) -> str:
        lines = [f"example {self.example_id}, label {self.label_name or self.label}"]
        lines += [f"  {column}: {text}" for column, text in self.text.items()]
        if "loss" in self.arrays:
            lines.append("  loss: " + " ".join(f"{value:.3f}" for value in self.loss))
        if "logits" in self.arrays and np.ndim(self.label) == 0:
            best = self.logits.argmax(-1)
            known = self.class_names or []
            names = [known[i] if i < len(known) else str(i) for i in best]
            seen = np.isfinite(self.logits).all(-1)
            lines.append("  predicted: " + " ".join(name if ok else "-" for name, ok in zip(names, seen, strict=True)))
        return "\n".join(lines)
