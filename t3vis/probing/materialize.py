"""A smaller model that is the pruned one, if its architecture can say so: weights cut, config changed, same outputs.

Transformers' configs know one number of heads for all layers. So every layer keeps as many as the layer that needs
most; where it needs fewer, the columns of the output projection that read the others are zero. And the width of a head
must stand in the config by itself (``head_dim``): where it is the hidden size over the number of heads, a model with
fewer heads would have wider ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from t3vis.errors import ProbingError
from t3vis.gates import Projection, linear_layers
from t3vis.probing.gating import Head, Heads, answer, gated, n_inputs, n_outputs
from t3vis.probing.model import forward, probed

_WIDTH = "head_dim"
_TOLERANCE = 1e-4

Layout = Literal["side by side", "by group"]
"""How query, key and value stand in a layer that makes all three."""


@dataclass(frozen=True)
class _Cut:
    """Which heads of a layer stay, in their new order, of which groups; those that only fill up are silenced."""

    heads: tuple[int, ...]
    groups: tuple[int, ...]
    silenced: tuple[int, ...]


def materialize(heads: Heads, pruned: Collection[Head], inputs: Mapping[str, Any]) -> Any:
    """A new model without these heads, its outputs those of the gated one.

    Parameters
    ----------
    pruned
        Pairs of layer and head.
    inputs
        Keywords of the model's forward, on which the two are compared.

    Returns
    -------
    A model of the same class in eval mode, to be saved with ``save_pretrained`` and loaded as any other; the model
    that was given is left as it was.

    Raises
    ------
    ProbingError
        If the architecture does not allow it, with the reason; or there is no such head, or nothing becomes smaller.
    """
    model, name = heads.model, type(heads.model).__name__
    gates = heads.without(pruned)
    config = getattr(model, "config", None)
    if getattr(config, _WIDTH, None) is None:
        raise ProbingError(
            f"{name} with fewer heads cannot be saved: its config has no {_WIDTH}, the width of a head is the hidden "
            "size over the number of heads; keep the model and prune it by gates (t3vis.probing.pruning.prune)."
        )
    if len({projection.module for projection in heads.projections}) < heads.n_layers or len(set(heads.n_heads)) > 1:
        raise ProbingError(f"{name} with fewer heads cannot be saved: its layers share weights, or differ in heads.")
    groups = [_n_groups(projection) for projection in heads.projections]
    kept = [[head for head in range(n) if gates[layer, head]] for layer, n in enumerate(heads.n_heads)]
    cuts = _cuts(kept, heads.n_heads[0], groups[0])
    if len(cuts[0].heads) == heads.n_heads[0]:
        raise ProbingError(
            f"nothing becomes smaller: a layer of {name} keeps all heads, or one of each group that shares keys and "
            "values, and its config has one number of heads for all layers."
        )
    changes = {"num_attention_heads": len(cuts[0].heads), "num_key_value_heads": len(cuts[0].groups)}
    with probed(model), torch.no_grad():
        with gated(heads, gates):
            expected = answer(forward(model, inputs))
        for layout in ("side by side", "by group"):
            made = _made(heads, cuts, changes, groups[0], layout)
            error = float((answer(forward(made, inputs)) - expected).abs().max() / expected.abs().max())
            if error <= _TOLERANCE:
                return made
    raise ProbingError(f"{name} with its weights cut answers differently: off by {error:.1e} of the answer's size.")


def _cuts(kept: list[list[int]], n_heads: int, n_groups: int) -> list[_Cut]:
    """The same number of groups, and of heads in each group, for all layers."""
    each = n_heads // n_groups
    by_group = [[[head for head in of_layer if head // each == g] for g in range(n_groups)] for of_layer in kept]
    new_groups = max(1, *(sum(map(bool, of_layer)) for of_layer in by_group))
    new_each = max(1, *(len(heads) for of_layer in by_group for heads in of_layer))
    return [_cut(of_layer, each, new_groups, new_each) for of_layer in by_group]


def _cut(by_group: list[list[int]], each: int, new_groups: int, new_each: int) -> _Cut:
    wanted = sorted(range(len(by_group)), key=lambda g: not by_group[g])[:new_groups]
    heads: list[int] = []
    silenced: list[int] = []
    for group in sorted(wanted):
        others = [head for head in range(group * each, (group + 1) * each) if head not in by_group[group]]
        filling = others[: new_each - len(by_group[group])]
        heads += by_group[group] + filling
        silenced += filling
    return _Cut(tuple(heads), tuple(sorted(wanted)), tuple(silenced))


def _made(heads: Heads, cuts: list[_Cut], changes: dict[str, int], n_groups: int, layout: Layout) -> Any:
    model = heads.model
    settings = model.config.to_dict() | {_WIDTH: getattr(model.config, _WIDTH)}
    settings |= {name: value for name, value in changes.items() if name in settings}
    state = dict(model.state_dict())
    names = {module: name for name, module in model.named_modules()}
    for projection, cut in zip(heads.projections, cuts, strict=True):
        _cut_columns(state, names[projection.module], projection, cut)
        for module in linear_layers(projection.caller):
            if module is not projection.module:
                _cut_rows(state, names[module], module, projection, cut, n_groups, layout)
    made = type(model)(type(model.config).from_dict(settings))
    own = made.state_dict()
    wrong = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise ProbingError(
            f"{type(model).__name__} with fewer heads cannot be saved: {wrong[0]} does not fit its config with "
            f"{', '.join(f'{name}={value}' for name, value in changes.items())}."
        )
    made.load_state_dict(state)
    return made.to(device=next(model.parameters()).device, dtype=next(model.parameters()).dtype).eval()


def _cut_columns(state: dict[str, Tensor], name: str, projection: Projection, cut: _Cut) -> None:
    weight = state[f"{name}.weight"]
    by_input = (weight if isinstance(projection.module, Conv1D) else weight.T).clone()
    by_head = by_input.view(projection.n_heads, -1, by_input.shape[1])
    by_head[list(cut.silenced)] = 0
    chosen = by_head[list(cut.heads)].flatten(0, 1)
    state[f"{name}.weight"] = (chosen if isinstance(projection.module, Conv1D) else chosen.T).contiguous()


def _cut_rows(
    state: dict[str, Tensor],
    name: str,
    module: Any,
    projection: Projection,
    cut: _Cut,
    n_groups: int,
    layout: Layout,
) -> None:
    parts = _parts(module, projection, cut, n_groups, layout)
    for parameter in ("weight", "bias"):
        value = state.get(f"{name}.{parameter}")
        if value is not None and parts is not None:
            turned = isinstance(module, Conv1D) and parameter == "weight"
            by_part = (value.T if turned else value).reshape(-1, _width(projection), *value.shape[1:])
            chosen = by_part[parts].flatten(0, 1)
            state[f"{name}.{parameter}"] = (chosen.T if turned else chosen).contiguous()


def _parts(module: Any, projection: Projection, cut: _Cut, n_groups: int, layout: Layout) -> list[int] | None:
    """Which of the widths that a layer returns stay, in their new order; ``None`` where it does not return heads."""
    n_parts, rest = divmod(n_outputs(module), _width(projection))
    if rest:
        return None
    if n_parts == projection.n_heads:
        return list(cut.heads)
    if n_parts == n_groups:
        return list(cut.groups)
    if n_parts != projection.n_heads + 2 * n_groups:
        return None
    if layout == "side by side":
        keys = [projection.n_heads + group for group in cut.groups]
        return [*cut.heads, *keys, *(key + n_groups for key in keys)]
    each, new_each = projection.n_heads // n_groups, len(cut.heads) // len(cut.groups)
    found = []
    for number, group in enumerate(cut.groups):
        own = cut.heads[number * new_each : (number + 1) * new_each]
        found += [group * (each + 2) + head % each for head in own]
        found += [group * (each + 2) + each, group * (each + 2) + each + 1]
    return found


def _n_groups(projection: Projection) -> int:
    """How many groups of heads there are, each with keys and values of its own."""
    found = getattr(projection.caller, "num_key_value_groups", None)
    return projection.n_heads // found if isinstance(found, int) and found > 0 else projection.n_heads


def _width(projection: Projection) -> int:
    return n_inputs(projection.module) // projection.n_heads
