"""How much each attention head of a live model matters: gradients of its gate, of its parameters, and its removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3vis.analysis.head_importance import FORMS, HeadImportance, agreement, head_importance, mean_importance
from t3vis.errors import ProbingError
from t3vis.gates import gate_gradients
from t3vis.probing.ablation import Ablation, ablation
from t3vis.probing.answers import answers, question
from t3vis.probing.batches import Examples, batches
from t3vis.probing.gating import Heads, heads_of
from t3vis.probing.model import probed

N_REMOVED = 256
"""Examples, drawn at random, on which heads are truly removed."""


@dataclass(frozen=True, eq=False)
class HeadGradients:
    """Gradient of a gate on each head, of each example's own loss, in eval mode; NaN for examples not seen (yet)."""

    loss: NDArray[np.float32]
    """Shape (n_examples,)."""
    gradients: NDArray[np.float32]
    """Shape (n_layers, n_examples, n_heads), as the recorder's ``head_gradients`` of one epoch."""


def head_gradients(
    heads: Heads,
    examples: Examples,
    *,
    ids: NDArray[np.integer] | None = None,
    batch_size: int = 32,
    watch: Callable[[HeadGradients], None] | None = None,
    seed: int = 0,
) -> HeadGradients:
    """Gradients of the gates, by one forward and one backward pass over the examples.

    No gradient of a parameter is computed.

    Parameters
    ----------
    examples
        With labels; see ``batches``.
    ids
        Which examples; by default all.
    batch_size
        Examples in a batch.
    watch
        Called after each batch with what is known so far.
    seed
        Of the order of the batches.

    Raises
    ------
    ProbingError
        If the examples have no labels.
    """
    n_layers, most = heads.shape
    found = HeadGradients(
        np.full(len(examples), np.nan, np.float32), np.full((n_layers, len(examples), most), np.nan, np.float32)
    )
    with probed(heads.model), _inputs_of_projections(heads) as inputs:
        for batch in batches(heads.model, examples, batch_size=batch_size, ids=ids, what="head gradients", seed=seed):
            inputs.clear()
            loss = answers(heads.model, batch.inputs).loss
            xs = [inputs[layer] for layer in range(n_layers)]
            gradients = torch.autograd.grad(loss.nansum(), xs, allow_unused=True)
            found.loss[batch.ids] = loss.detach().cpu().numpy()
            for layer, (x, gradient, n) in enumerate(zip(xs, gradients, heads.n_heads, strict=True)):
                if gradient is not None:
                    of_gates = gate_gradients(x.detach(), gradient, len(batch), n)
                    found.gradients[layer, batch.ids, :n] = of_gates.cpu().numpy()
            found.gradients[:, batch.ids[np.isnan(found.loss[batch.ids])]] = np.nan
            if watch is not None:
                watch(found)
    return found


@contextmanager
def _inputs_of_projections(heads: Heads) -> Iterator[dict[int, Tensor]]:
    """Within, each forward pass puts the input of each layer's projection here; the first begins the graph."""
    layers: dict[Any, list[int]] = {}
    for layer, projection in enumerate(heads.projections):
        layers.setdefault(projection.module, []).append(layer)
    inputs: dict[int, Tensor] = {}

    def keep(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        inputs[next(layer for layer in layers[module] if layer not in inputs)] = x
        return (x, *args[1:])

    handles = [module.register_forward_pre_hook(keep) for module in layers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Importances:
    """Every score of the heads of a model on a dataset, and how far the estimates agree with what removal truly does.

    ``scores`` holds the forms of ``t3vis.analysis.head_importance`` over all examples, and over the sample on which
    heads were removed ``loss_change``, ``divergence`` and ``score_change``. ``agreements[form][effect]`` is Spearman's
    correlation of a form with an effect, both over that sample.
    """

    heads: Heads
    scores: dict[str, HeadImportance]
    agreements: dict[str, dict[str, float]]
    gradients: HeadGradients
    removed: Ablation
    sample: NDArray[np.int64] = field(repr=False)
    """Ids of the examples on which heads were removed."""


EFFECTS = ("divergence", "loss_change", "score_change")


def importances(
    model: Any,
    examples: Examples,
    *,
    n_removed: int = N_REMOVED,
    batch_size: int = 32,
    watch: Callable[[HeadGradients], None] | None = None,
    seed: int = 0,
) -> Importances:
    """Importance of every head over a dataset: gate gradients of all examples, true removal on a sample of them.

    Parameters
    ----------
    model
        Left as it was.
    examples
        With labels; see ``batches``.
    n_removed
        Examples in the sample.
    batch_size
        Examples in a batch.
    watch
        Called after each batch of gradients with what is known so far.
    seed
        Of the order of the batches, the sample and the resampling.

    Raises
    ------
    ProbingError
        If no heads are found, or the examples have no labels.
    """
    heads = found_heads(model, examples)
    gradients = head_gradients(heads, examples, batch_size=batch_size, watch=watch, seed=seed)
    known = np.flatnonzero(~np.isnan(gradients.loss))
    sample = np.sort(np.random.default_rng(seed).permutation(known)[:n_removed])
    removed = ablation(heads, examples, ids=sample, batch_size=batch_size, seed=seed)
    effects = {name: mean_importance(getattr(removed, name), seed=seed) for name in EFFECTS}
    scores: dict[str, HeadImportance] = {form: head_importance(gradients.gradients, form, seed=seed) for form in FORMS}
    of_sample = gradients.gradients[:, sample]
    estimates = {form: head_importance(of_sample, form, n_resamples=0) for form in FORMS}
    agreements: dict[str, dict[str, float]] = {
        form: {name: agreement(estimate.value, effect.value) for name, effect in effects.items()}
        for form, estimate in estimates.items()
    }
    return Importances(heads, {**scores, **effects}, agreements, gradients, removed, sample)


def found_heads(model: Any, examples: Examples) -> Heads:
    """The heads of the model, found and checked on the first examples.

    Raises
    ------
    ProbingError
        If there are no examples, or no heads are found.
    """
    first = next(batches(model, examples, batch_size=3, ids=np.arange(min(3, len(examples)))), None)
    if first is None:
        raise ProbingError("there are no examples.")
    return heads_of(model, question(model, first.inputs))
