"""Whether attention heads find syntactic relations: scores of each head, and of a rule that knows only the distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Direction = Literal["to_head", "to_dependent"]
DIRECTIONS: tuple[Direction, ...] = ("to_head", "to_dependent")
"""What attends: the dependent to its head, or the head to its dependent."""


@dataclass(frozen=True, eq=False)
class RelationScores:
    """How often the word that a head attends to most is the one that a relation leads to.

    Self-attention and special tokens are passed over. In either direction a head picks, for each dependent, its head:
    the word that the dependent attends to most, or the word that attends most to it.
    """

    relations: tuple[str, ...]
    attention: tuple[str, ...]
    """Of each layer."""
    accuracy: NDArray[np.float64]
    """Shape (n_layers, n_heads, n_directions, n_relations); NaN where no arc can be seen."""
    n_arcs: NDArray[np.int64]
    """Shape (n_layers, n_directions, n_relations): arcs whose target the dependent, or the head, may see."""
    baseline: NDArray[np.float64]
    """Shape (n_relations,): share of the arcs that the best fixed offset finds."""
    offset: NDArray[np.int64]
    """Shape (n_relations,): that offset from the dependent to its head, in words."""


@dataclass(frozen=True)
class RelationHead:
    """The best head for a relation."""

    relation: str
    layer: int
    head: int
    direction: Direction
    accuracy: float
    baseline: float
    offset: int
    n_arcs: int


def best_heads(scores: RelationScores, *, min_arcs: int = 50) -> list[RelationHead]:
    """For each relation with at least ``min_arcs`` arcs the head that finds it most often; the most frequent first.

    Examples
    --------
    >>> accuracy = np.array([[[[0.2], [0.1]], [[0.3], [0.8]]]])  # one layer, two heads, two directions, one relation
    >>> arcs = np.full((1, 2, 1), 60)
    >>> scores = RelationScores(("det",), ("self",), accuracy, arcs, np.array([0.4]), np.array([1]))
    >>> (best,) = best_heads(scores)
    >>> best.layer, best.head, best.direction == DIRECTIONS[1], best.accuracy
    (0, 1, True, 0.8)
    >>> best_heads(scores, min_arcs=61)
    []
    """
    found = []
    for number, relation in enumerate(scores.relations):
        accuracy = scores.accuracy[..., number]
        if scores.n_arcs[..., number].max() < min_arcs or np.isnan(accuracy).all():
            continue
        layer, head, direction = (int(i) for i in np.unravel_index(np.nanargmax(accuracy), accuracy.shape))
        n_arcs = int(scores.n_arcs[layer, direction, number])
        best, baseline = float(accuracy[layer, head, direction]), float(scores.baseline[number])
        offset = int(scores.offset[number])
        found.append(RelationHead(relation, layer, head, DIRECTIONS[direction], best, baseline, offset, n_arcs))
    return sorted(found, key=lambda row: -row.n_arcs)
