"""What a training records, whoever kills it: its examples in order, and values that tell where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

N_CLASSES = 4


@dataclass(frozen=True)
class Plan:
    """Sizes, and the seed of the order of the examples."""

    seed: int = 0
    n_examples: int = 2003
    n_epochs: int = 6
    batch: int = 64
    n_layers: int = 4
    hidden: int = 16
    n_eval: int = 101
    pace: float = 0.012  # seconds that a step takes beside recording
    segment_bytes: int = 24 << 10  # so that buffers fill up, and go round, between flushes

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n_examples // (2 * self.batch))

    @property
    def n_steps(self) -> int:
        return self.n_epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Epoch:
    """The visits of one epoch in order; the last batch is filled up with the first examples, as samplers do."""

    example: Ints
    step: Ints
    rank: Ints
    nth: Ints  # which of the example's visits it is


@cache
def epoch_of(plan: Plan, epoch: int) -> Epoch:
    order = np.random.default_rng([plan.seed, epoch]).permutation(plan.n_examples)
    n_visits = plan.steps_per_epoch * 2 * plan.batch
    at = np.arange(n_visits)
    return Epoch(
        example=np.resize(order, n_visits).astype(np.int64),
        step=epoch * plan.steps_per_epoch + at // (2 * plan.batch),
        rank=at // plan.batch % 2,
        nth=(at >= plan.n_examples).astype(np.int64),
    )


@cache
def visit_steps(plan: Plan, epoch: int) -> Ints:
    """Step of the first and the second visit of each example, shape (2, n_examples); -1 where there is none."""
    visits = epoch_of(plan, epoch)
    steps = np.full((2, plan.n_examples), -1)
    steps[visits.nth, visits.example] = visits.step
    return steps


def key(*parts: Any) -> Ints:
    """14 bits that depend on all of the integers."""
    mixed = np.zeros(1, np.uint64)
    for part in parts:
        mixed = (mixed ^ np.asarray(part, np.int64).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = mixed ^ (mixed >> np.uint64(29))
    return (mixed >> np.uint64(50)).astype(np.int64)


def values(plan: Plan, name: str, of: tuple[str, int], example: Ints, origin: Ints, layer: int = 0) -> NDArray[Any]:
    """Rows of one array: of a split and pass, for examples and origins; shape (n, *trailing)."""
    seed = (*map(ord, of[0]), of[1], example, origin)
    if name == "loss":
        return (origin * 2**14 + key(1, *seed)).astype(np.float32)
    if name == "logits":
        columns = [key(2, column, *seed) for column in range(N_CLASSES)]
        columns[0] = columns[0] + origin * 2**14
        return np.stack(columns, -1).astype(np.float32)
    columns = [origin, *(key(3, layer, column, *seed) % 2048 for column in range(1, plan.hidden))]
    return np.stack(columns, -1).astype(np.float16)


def rows_of(plan: Plan, of: tuple[str, int], example: Ints, step: Ints, origin: Ints) -> dict[str, NDArray[Any]]:
    """A batch as the recorder hands it over."""
    hidden = [values(plan, "hidden_states", of, example, origin, layer) for layer in range(plan.n_layers)]
    return {
        "example": example,
        "step": step,
        "logits": values(plan, "logits", of, example, origin),
        "loss": values(plan, "loss", of, example, origin),
        "hidden_states": np.stack(hidden),
    }


def origins(plan: Plan, name: str, of: tuple[str, int], example: Ints, found: NDArray[Any], layer: int = 0) -> Ints:
    """Where rows that were read come from, -1 where they are fill value; they are nothing else."""
    first = (found if name == "loss" else found[:, 0]).astype(np.float64)
    scale = 1 if name == "hidden_states" else 2**14
    origin = np.where(np.isnan(first), -1, np.nan_to_num(first) // scale).astype(np.int64)
    expected = values(plan, name, of, example, origin, layer)
    expected[origin < 0] = np.nan
    equal = (found == expected) | (np.isnan(found) & np.isnan(expected))
    wrong = ~equal.all(axis=tuple(range(1, found.ndim)))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"{name} of {of}, layer {layer}: {wrong.sum()} of {len(found)} rows are torn or of another example; "
            f"example {example[i]} holds {found[i]}, which is {expected[i]} for origin {origin[i]}"
        )
    return origin


def check_owners(plan: Plan, epoch: int, ids: Ints, origin: Ints, owners: Ints) -> None:
    """Rows of an epoch are of the attempts that took their steps on the way to the weights."""
    steps = visit_steps(plan, epoch)[origin % 2, ids]
    wrong = (origin >= 0) & (owners[steps] != origin // 2)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"epoch {epoch}: {wrong.sum()} rows of {len(ids)} are of attempts that the weights did not come through; "
            f"example {ids[i]}, step {steps[i]}: attempt {origin[i] // 2}, expected {owners[steps[i]]}"
        )
