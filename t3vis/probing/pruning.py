"""Pruning: a model without some of its attention heads, what that does to examples, and in which order to take them.

Heads are removed by gates of 0; the weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from t3vis.analysis.head_importance import mean_importance
from t3vis.errors import ProbingError
from t3vis.probing.ablation import ablation
from t3vis.probing.answers import answers
from t3vis.probing.batches import Examples, batches
from t3vis.probing.gating import Head, Heads, gated, heads_of
from t3vis.probing.model import example_inputs, probed

By = Literal["loss_change", "divergence", "score_change"]


@contextmanager
def prune(model: Any, heads: Collection[Head]) -> Iterator[Any]:
    """Within, the model has these heads no more, whatever is done with it; afterwards it is as it was.

    Parameters
    ----------
    model
        A model, or the ``Heads`` found in one. Of a model they are found, and checked, on a few made-up examples.
    heads
        Pairs of layer and head, both from 0; layers are the attentions in order, as in ``Heads``.

    Raises
    ------
    ProbingError
        If there is no such head, or the model has none that are found.

    Examples
    --------
    ::

        with prune(model, {(3, 7), (5, 0)}):
            model(**inputs).logits
    """
    found = model if isinstance(model, Heads) else heads_of(model, example_inputs(model))
    with gated(found, found.without(heads)):
        yield found.model


@dataclass(frozen=True, eq=False)
class Effect:
    """What pruning does to each example: values with all heads, and without some; shape (n_examples,) each.

    NaN for examples that were not asked for.
    """

    loss: NDArray[np.float32]
    loss_without: NDArray[np.float32]
    score: NDArray[np.float32]
    """Share answered right; for numbers minus the loss."""
    score_without: NDArray[np.float32]
    divergence: NDArray[np.float32]
    """KL divergence from the prediction of the whole model to that of the pruned one, nats."""


def effect(
    heads: Heads,
    examples: Examples,
    pruned: Collection[Head],
    *,
    ids: NDArray[np.integer] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Effect:
    """What pruning some heads does to the loss, the score and the predictions of examples.

    Parameters
    ----------
    examples
        With labels; see ``batches``.
    pruned
        Pairs of layer and head.
    ids, batch_size, seed
        As for ``ablation``.

    Raises
    ------
    ProbingError
        If there is no such head, or the examples have no labels.
    """
    gates = heads.without(pruned)
    found = Effect(*(np.full(len(examples), np.nan, np.float32) for _ in range(5)))
    with probed(heads.model), torch.inference_mode():
        for batch in batches(heads.model, examples, batch_size=batch_size, ids=ids, what="pruned", seed=seed):
            whole = answers(heads.model, batch.inputs)
            with gated(heads, gates):
                without = answers(heads.model, batch.inputs)
            for array, values in (
                (found.loss, whole.loss),
                (found.loss_without, without.loss),
                (found.score, whole.score),
                (found.score_without, without.score),
                (found.divergence, whole.divergence(without)),
            ):
                array[batch.ids] = values.cpu().numpy()
    return found


def effect_on_example(
    heads: Heads,
    example: Mapping[str, Any],
    pruned: Collection[Head],
    *,
    more: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One example with all heads, and without some.

    Parameters
    ----------
    example
        A row of the dataset; a label is not needed.
    pruned
        Pairs of layer and head.
    more
        Further quantities by name, such as attention or saliency: functions of the model and the example.

    Returns
    -------
    Two dictionaries with the same keys: ``logits``, shape (n_places, n_classes), ``loss`` where the example has a
    label, and ``more``.

    Raises
    ------
    ProbingError
        If there is no such head.
    """

    def seen() -> dict[str, Any]:
        batch = next(batches(heads.model, [example]))
        with torch.inference_mode():
            found = answers(heads.model, batch.inputs)
            values: dict[str, Any] = {"logits": found.logits[0].cpu().numpy()}
            if found.targets is not None:
                values["loss"] = float(found.loss[0])
        return values | {name: function(heads.model, example) for name, function in (more or {}).items()}

    with probed(heads.model):
        before = seen()
        with prune(heads, pruned):
            return before, seen()


@dataclass(frozen=True, eq=False)
class PruningCurve:
    """Loss and score as more and more heads are removed: entry k is the model without the first k of ``order``."""

    order: list[Head]
    n_pruned: NDArray[np.int64]
    loss: NDArray[np.float64]
    score: NDArray[np.float64]
    score_low: NDArray[np.float64]
    score_high: NDArray[np.float64]
    """Interval of the score when other examples are drawn, 95 %."""
    n_examples: int


def pruning_curve(
    heads: Heads,
    examples: Examples,
    order: Sequence[Head],
    *,
    n_pruned: Sequence[int] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> PruningCurve:
    """What is left of a model when heads are removed one after another.

    Parameters
    ----------
    examples
        With labels; see ``batches``.
    order
        Heads, the first to go first; by importance, take the ranking of a score from its end.
    n_pruned
        After how many heads to look; by default after each.
    batch_size, seed
        As for ``ablation``.

    Raises
    ------
    ProbingError
        If there is no such head, or the examples have no labels.
    """
    counts = np.arange(len(order) + 1) if n_pruned is None else np.asarray(n_pruned, np.int64)
    losses = np.full((len(counts), len(examples)), np.nan)
    scores = np.full_like(losses, np.nan)
    gates = [heads.without(order[:count]) for count in counts]
    with probed(heads.model), torch.inference_mode():
        for batch in batches(heads.model, examples, batch_size=batch_size, what="pruning curve", seed=seed):
            for number, own in enumerate(gates):
                with gated(heads, own):
                    found = answers(heads.model, batch.inputs)
                losses[number, batch.ids] = found.loss.cpu().numpy()
                scores[number, batch.ids] = found.score.cpu().numpy()
    of_scores = mean_importance(scores[:, :, None], seed=seed)
    return PruningCurve(
        order=list(order),
        n_pruned=counts,
        loss=np.nanmean(losses, axis=1),
        score=of_scores.value[:, 0],
        score_low=of_scores.low[:, 0],
        score_high=of_scores.high[:, 0],
        n_examples=of_scores.n_examples,
    )


def greedy_order(
    heads: Heads,
    examples: Examples,
    *,
    n_pruned: int,
    by: By = "loss_change",
    batch_size: int = 32,
    seed: int = 0,
) -> list[Head]:
    """Heads in the order in which they are missed least: each is the one that costs least to remove from what is left.

    Every head that is left is truly removed in every step: about ``n_pruned`` times as much work as ``ablation``.

    Parameters
    ----------
    examples
        With labels; few are enough, see ``batches``.
    n_pruned
        How many heads.
    by
        What counts as a cost: the rise of the loss, the divergence of the predictions, or the fall of the score.
    batch_size, seed
        As for ``ablation``.

    Raises
    ------
    ProbingError
        If the model has fewer heads, or the examples have no labels.
    """
    if not 0 <= n_pruned <= len(heads):
        raise ProbingError(f"{n_pruned} heads cannot be removed from {len(heads)}.")
    gone: list[Head] = []
    for _ in tqdm(range(n_pruned), desc="greedy pruning", unit=" heads", delay=1, leave=False):
        left = set(heads) - set(gone)
        found = ablation(heads, examples, among=left, gates=heads.without(gone), batch_size=batch_size, seed=seed)
        changes = {head: float(np.nanmean(getattr(found, by)[head[0], :, head[1]])) for head in sorted(left)}
        gone.append((max if by == "score_change" else min)(changes, key=changes.__getitem__))
    return gone
