"""A forward pass between the step that takes it and the log: its rows may still be on their way to the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.callbacks.capture import Captured
from t3vis.callbacks.gates import GateGradients, shortcomings
from t3vis.callbacks.host_copies import HostCopies
from t3vis.callbacks.scales import OwnLoss
from t3vis.store import schema
from t3vis.store.ragged import Ragged


@dataclass(frozen=True)
class ForwardPass:
    """What was taken of one micro-batch, and what its rows belong to: fixed when it is taken, logged later.

    ``is_first``: nothing of the split was recorded before it in this attempt. ``head_gradients`` are there once the
    backward pass is over; ``unread`` then names the modules that no gradient came back to, ``None`` where that is not
    to be spoken of.
    """

    split: str
    step: int
    taken: Captured
    is_first: bool
    head_gradients: HostCopies | None = None
    unread: list[str] | None = None

    def rows(self) -> dict[str, Any]:
        """Its rows, in the dimensions of a segment, once they have arrived on the host."""
        rows: dict[str, Any] = self.taken.rows()
        rows["step"] = np.full(len(rows["example"]), self.step, np.int64)
        if self.head_gradients is not None:
            values = self.head_gradients.arrays()["head_gradients"]
            values[:, np.isnan(rows["loss"])] = np.nan
            rows["head_gradients"] = values
        return rows

    def shortcomings(self, rows: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Why head gradients among its rows are not known: a word for the kind, and what to tell the user."""
        if self.unread is None:
            return []
        return list(shortcomings(rows["head_gradients"], rows["loss"], self.unread))


@dataclass(frozen=True)
class BeforeBackward:
    """A forward pass whose backward pass is still to come, what that is to leave, and the loss it is to be of."""

    forward: ForwardPass
    gradients: GateGradients
    own: OwnLoss


def row_shapes(rows: Mapping[str, NDArray[Any] | Ragged]) -> dict[str, tuple[int, ...]]:
    """Shape of one row of each array."""
    axes = {name: len(schema.PASS_ARRAYS[name].leading) for name in rows if name in schema.PASS_ARRAYS}
    return {name: rows[name].shape[:axis] + rows[name].shape[axis + 1 :] for name, axis in axes.items()}
