"""What removing each attention head by itself does to a model: to the loss, to what it predicts, and to a score.

Nothing is estimated. All heads of a layer are removed side by side in one batch, which begins where the head would
have been: what lies before is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3vis.errors import ProbingError
from t3vis.probing.answers import Answers, answers
from t3vis.probing.batches import Examples, batches
from t3vis.probing.gating import Head, Heads
from t3vis.probing.model import device_of, probed
from t3vis.probing.prefix import Prefix

MAX_ROWS = {"cpu": 64, "cuda": 1024}
"""Examples times heads that go through the model at once: what the caches of a CPU hold, and what keeps a GPU busy."""

Metric = Callable[[NDArray[np.float32], NDArray[Any]], float]
"""Of predictions, logits of shape (n_examples, n_classes), and labels."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """Effects of removing each head, of each example.

    Arrays over heads have shape (n_layers, n_examples, n_heads), NaN where a layer has fewer heads, for heads that were
    not asked for, and for examples that have not been seen.
    """

    loss: NDArray[np.float32]
    """Of the whole model, shape (n_examples,)."""
    loss_change: NDArray[np.float32]
    """Loss without the head minus loss with it: above 0, the head helps."""
    divergence: NDArray[np.float32]
    """KL divergence from the prediction of the whole model to that without the head, nats."""
    score: NDArray[np.float32]
    """Share answered right by the whole model, shape (n_examples,); for numbers minus the loss."""
    score_change: NDArray[np.float32]
    """Score without the head minus score with it: below 0, the head helps."""
    logits: NDArray[np.float32] | None
    """Of the whole model, shape (n_examples, n_classes); ``None`` where there is more than one place to answer at."""
    logits_without: NDArray[np.float32] | None
    """Shape (n_layers, n_examples, n_heads, n_classes)."""
    labels: NDArray[Any]
    """Shape (n_examples,), or (n_examples, n_classes) of values; of more than one place, nothing."""

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which examples have been seen, shape (n_examples,)."""
        return ~np.isnan(self.loss)

    def metric_change(self, metric: Metric) -> NDArray[np.float64]:
        """What removing each head does to a metric of the whole dataset, shape (n_layers, n_heads).

        Parameters
        ----------
        metric
            Such as F1 or a correlation; given the logits and the labels of the examples that were seen.

        Raises
        ------
        ProbingError
            If the model answers at several places of an example.
        """
        if self.logits is None or self.logits_without is None:
            raise ProbingError("a metric of logits needs one answer for each example; use score_change.")
        seen, (n_layers, _, n_heads) = self.seen, self.loss_change.shape
        whole = metric(self.logits[seen], self.labels[seen])
        changes = np.full((n_layers, n_heads), np.nan)
        for layer, head in np.argwhere(~np.isnan(self.loss_change[:, seen]).all(axis=1)).tolist():
            changes[layer, head] = metric(self.logits_without[layer, seen, head], self.labels[seen]) - whole
        return changes


def ablation(
    heads: Heads,
    examples: Examples,
    *,
    among: set[Head] | None = None,
    gates: Tensor | None = None,
    ids: NDArray[np.integer] | None = None,
    batch_size: int = 32,
    watch: Callable[[Ablation], None] | None = None,
    seed: int = 0,
) -> Ablation:
    """Remove each head by itself, and see what becomes of the loss, the predictions and the score of each example.

    Parameters
    ----------
    examples
        With labels; see ``batches``.
    among
        Which heads; by default all.
    gates
        Of the model that they are removed from, shape (n_layers, most heads); by default all heads are there.
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
        If the examples have no labels, or the model no answers.
    """
    found: _Found | None = None
    most = MAX_ROWS.get(device_of(heads.model).type, MAX_ROWS["cuda"])
    layers = [
        [head for head in range(n) if among is None or (layer, head) in among] for layer, n in enumerate(heads.n_heads)
    ]
    with probed(heads.model), torch.inference_mode():
        for batch in batches(heads.model, examples, batch_size=batch_size, ids=ids, what="heads removed", seed=seed):
            prefix = Prefix(heads, batch.inputs)
            whole = prefix.first_pass(lambda inputs: answers(heads.model, inputs), gates)
            found = found or _Found(heads, len(examples), whole)
            found.add_whole(batch.ids, whole)
            for layer, wanted in enumerate(layers):
                for some in _parts(wanted, max(most // len(batch), 1)):
                    without = prefix.removed(lambda inputs: answers(heads.model, inputs), layer, some, gates)
                    found.add(batch.ids, layer, some, whole, without)
            if watch is not None:
                watch(found.ablation)
    if found is None:
        raise ProbingError("there are no examples to remove heads for.")
    return found.ablation


def _parts(wanted: list[int], size: int) -> Iterator[list[int]]:
    return (wanted[start : start + size] for start in range(0, len(wanted), size))


class _Found:
    """Arrays that are filled batch by batch."""

    def __init__(self, heads: Heads, n_examples: int, first: Answers) -> None:
        n_layers, most = heads.shape
        over_heads = n_layers, n_examples, most
        targets = first.targets
        logits = (first.logits.shape[2],) if first.is_whole else None
        kind = np.dtype(np.int64 if first.kind == "classes" else np.float32)
        wide = () if first.kind == "classes" or targets is None else targets.shape[2:]
        self.ablation = Ablation(
            loss=_unknown(n_examples),
            loss_change=_unknown(*over_heads),
            divergence=_unknown(*over_heads),
            score=_unknown(n_examples),
            score_change=_unknown(*over_heads),
            logits=None if logits is None else _unknown(n_examples, *logits),
            logits_without=None if logits is None else _unknown(*over_heads, *logits),
            labels=np.zeros((n_examples if first.is_whole else 0, *wide), kind),
        )

    def add_whole(self, ids: NDArray[np.int64], whole: Answers) -> None:
        out = self.ablation
        out.loss[ids], out.score[ids] = _numpy(whole.loss), _numpy(whole.score)
        if out.logits is not None and whole.targets is not None:
            out.logits[ids], out.labels[ids] = _numpy(whole.logits[:, 0]), _numpy(whole.targets[:, 0])

    def add(self, ids: NDArray[np.int64], layer: int, some: list[int], whole: Answers, without: Answers) -> None:
        out, at = self.ablation, np.ix_(ids, np.array(some))
        for values, array in (
            (without.loss.view(len(some), -1) - whole.loss, out.loss_change),
            (whole.divergence(without).view(len(some), -1), out.divergence),
            (without.score.view(len(some), -1) - whole.score, out.score_change),
        ):
            array[layer][at] = _numpy(values).T
        if out.logits_without is not None:
            n_classes = without.logits.shape[2]
            out.logits_without[layer][at] = _numpy(without.logits.view(len(some), -1, n_classes)).swapaxes(0, 1)


def _unknown(*shape: int) -> NDArray[np.float32]:
    return np.full(shape, np.nan, np.float32)


def _numpy(values: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = values.cpu().numpy()
    return found
