"""Importance of heads by their parameters, those of the output projection and those that make query, key and value.

The parameters of a head are found by how many values a layer of its attention returns: as many as the heads have
together, or the groups of heads that share keys and values; or query, key and value in one, side by side or for each
head in turn. Which of the two is told by the gradients: the value's own are the gradient of the gate (for a group of
heads, of all their gates).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from t3vis.analysis.head_importance import HeadImportance, quadratic_importance
from t3vis.errors import ProbingError
from t3vis.gates import Projection, linear_layers
from t3vis.probing.answers import answers
from t3vis.probing.batches import Batch, Examples, batches
from t3vis.probing.gating import Heads, n_inputs, n_outputs
from t3vis.probing.model import probed

_TOLERANCE = 1e-2  # part of its size by which the gradient of a value's rows may be off that of the gates


@dataclass(frozen=True, eq=False)
class Rows:
    """The values that a layer returns for each head (``is_output``), or those that it reads of each.

    ``places`` has shape (n_heads, n); heads that share keys and values have the same.
    """

    module: Any
    places: Tensor
    is_output: bool

    def of_heads(self) -> Tensor:
        """W * dL/dW of each head's parameters, those of the bias included, shape (n_heads, n_parameters)."""
        weight = self.module.weight
        products = weight.detach() * weight.grad
        by_row = products.T if isinstance(self.module, Conv1D) is self.is_output else products
        parts = [by_row[self.places].flatten(1)]
        if self.is_output and self.module.bias is not None:
            bias = self.module.bias
            parts.append((bias.detach() * bias.grad)[self.places])
        return torch.cat(parts, dim=1).float()


def parameter_importance(
    heads: Heads, examples: Examples, *, n_groups: int = 16, batch_size: int = 32, seed: int = 0
) -> dict[str, HeadImportance]:
    """Importance of each head by the gradients of its parameters, summed over the examples before they are squared.

    Memory: the gradients of the attentions' parameters, ``n_groups`` times.

    Parameters
    ----------
    examples
        With labels; see ``batches``.
    n_groups
        In how many groups of batches the examples are taken; intervals are those of drawing groups anew.
    batch_size
        Examples in a batch.
    seed
        Of the order of the batches and of the resampling.

    Returns
    -------
    ``parameter_group``: the square of the sum of W * dL/dW over a head's parameters, L the mean loss.
    ``parameter_elements``: the sum of their squares.

    Raises
    ------
    ProbingError
        If it cannot be told which parameters belong to a head, or the examples have no labels.

    References
    ----------
    Molchanov et al. (2019), "Importance Estimation for Neural Network Pruning", section 3.1; Li et al. (2021),
    "T3-Vis", appendix A.1, for all parameters of a head and the gradient of the whole validation loss.
    """
    parts = [[*found, _columns(p)] for p, found in zip(heads.projections, _rows_found(heads, examples), strict=True)]
    with probed(heads.model):
        _ask(heads, parts)
        found: list[list[Tensor]] = [[] for _ in parts]
        sizes: list[int] = []
        every = batches(heads.model, examples, batch_size=batch_size, what="gradients of parameters", seed=seed)
        n_batches = -(-len(examples) // batch_size)
        for group in batched(every, -(-n_batches // n_groups)):
            heads.model.zero_grad()
            for batch in group:
                _backward(heads.model, batch)
            sizes.append(sum(map(len, group)))
            for of_layer, gathered in zip(parts, found, strict=True):
                gathered.append(torch.cat([rows.of_heads() for rows in of_layer], dim=1))
    shape = *heads.shape, len(sizes), len(sizes)
    sums, squares = np.full(shape, np.nan), np.full(shape, np.nan)
    for layer, gathered in enumerate(found):
        terms = torch.stack(gathered, dim=1)
        totals, own = terms.sum(2), slice(heads.n_heads[layer])
        sums[layer, own] = (totals[:, :, None] * totals[:, None]).cpu().numpy()
        squares[layer, own] = torch.bmm(terms, terms.transpose(1, 2)).cpu().numpy()
    return {
        "parameter_group": quadratic_importance(sums, np.array(sizes), seed=seed),
        "parameter_elements": quadratic_importance(squares, np.array(sizes), seed=seed),
    }


def batched(every: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """So many batches at a time."""
    while group := list(islice(every, size)):
        yield group


def _backward(model: Any, batch: Batch) -> None:
    answers(model, batch.inputs).loss.nansum().backward()  # type: ignore[no-untyped-call]


def _columns(projection: Projection) -> Rows:
    places = torch.arange(n_inputs(projection.module)).view(projection.n_heads, -1)
    return Rows(projection.module, places, is_output=False)


def _rows_found(heads: Heads, examples: Examples) -> list[list[Rows]]:
    """For each layer the rows of the layers that make query, key and value."""
    with probed(heads.model):
        possible = [list(_possible_rows(projection)) for projection in heads.projections]
        _ask(heads, [[rows for layer in layers for choice in layer for rows in choice] for layers in possible])
        batch = next(batches(heads.model, examples))
        _backward(heads.model, batch)
        return [
            [rows for choices in layers for rows in _chosen(projection, choices)]
            for projection, layers in zip(heads.projections, possible, strict=True)
        ]


def _possible_rows(projection: Projection) -> Iterator[list[tuple[Rows, ...]]]:
    """For each layer in the attention the ways in which its rows may belong to the heads."""
    n_heads, width = projection.n_heads, n_inputs(projection.module) // projection.n_heads
    for module in linear_layers(projection.caller):
        n_parts, rest = divmod(n_outputs(module), width)
        if module is projection.module or rest:
            continue
        rows = torch.arange(n_parts * width).view(n_parts, width)
        if n_heads % n_parts == 0:
            yield [(Rows(module, _shared(rows, n_heads), is_output=True),)]
        elif n_parts > n_heads:
            yield [
                tuple(Rows(module, _shared(rows[part], n_heads), is_output=True) for part in parts)
                for parts in _in_one(n_parts, n_heads)
            ]


def _in_one(n_parts: int, n_heads: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Which parts of query, key and value in one are which: side by side, or group by group."""
    n_groups, rest = divmod(n_parts - n_heads, 2)
    if rest or n_heads % n_groups:
        return
    numbers, each = torch.arange(n_parts), n_heads // n_groups
    yield numbers[:n_heads], numbers[n_heads : n_heads + n_groups], numbers[n_heads + n_groups :]
    grouped = numbers.view(n_groups, each + 2)
    yield grouped[:, :each].flatten(), grouped[:, each], grouped[:, each + 1]


def _shared(rows: Tensor, n_heads: int) -> Tensor:
    """Rows of each head where those of several heads are the same."""
    return rows.repeat_interleave(n_heads // len(rows), dim=0)


def _chosen(projection: Projection, choices: list[tuple[Rows, ...]]) -> tuple[Rows, ...]:
    """Of several ways the one whose value has the gradient of the gates."""
    if len(choices) == 1:
        return choices[0]
    gates = _columns(projection).of_heads().sum(1)
    for choice in choices:
        value = choice[-1]
        n_groups = len({tuple(places) for places in value.places.tolist()})
        of_groups = gates.view(n_groups, -1).sum(1)
        found = value.of_heads().sum(1).view(n_groups, -1)[:, 0]
        if (found - of_groups).abs().max() <= _TOLERANCE * of_groups.abs().max():
            return choice
    raise ProbingError(
        f"cannot tell which rows of {type(projection.caller).__name__} make the value of which head; use the gradients "
        "of the gates."
    )


def _ask(heads: Heads, parts: list[list[Rows]]) -> None:
    """Have the parameters that are read hold their gradients."""
    for module in {rows.module for found in parts for rows in found} | {p.module for p in heads.projections}:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)
