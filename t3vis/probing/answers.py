"""What a model answers about each example, in one form for every task: loss, right or wrong, how far apart.

An answer is a distribution over classes at one or more places: one place for a class of the whole example, two for the
start and the end of a span, and as many as there are labelled tokens for classes of tokens and for language models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from t3vis.errors import ProbingError
from t3vis.losses import IGNORED_LABEL, Kind, gold_classes, kind_of, unreduced
from t3vis.probing.model import forward


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of a model to a batch.

    ``logits`` has shape (n, n_places, n_classes), float32. ``targets`` are gold classes, shape (n, n_places), or for
    several labels and for numbers their values, shape (n, 1, n_classes); ``None`` where they are not known.
    ``weights``, shape (n, n_places), say how much each place counts; they sum to one in each example, or to zero
    without a label. ``is_whole``: there is one place, the example as a whole.
    """

    kind: Kind
    logits: Tensor
    targets: Tensor | None
    weights: Tensor
    is_whole: bool = False

    @property
    def loss(self) -> Tensor:
        """Loss of each example, shape (n,), nats; NaN where it has no label.

        Raises
        ------
        ProbingError
            If the batch has no labels.
        """
        return self._mean(unreduced(self.kind, self.logits, self._targets()))

    @property
    def score(self) -> Tensor:
        """Share of the places answered right, shape (n,); for numbers minus the loss.

        Raises
        ------
        ProbingError
            If the batch has no labels.
        """
        targets = self._targets()
        if self.kind == "classes":
            return self._mean((self.logits.argmax(2) == targets).float())
        if self.kind == "labels":
            return self._mean(((self.logits > 0) == (targets > 0.5)).float().mean(2))
        return -self.loss

    def divergence(self, other: Answers) -> Tensor:
        """KL divergence from these answers to ``other``, shape (n_other,), nats; half the squared distance of numbers.

        ``other`` may repeat the examples: (n_repeats * n) rows, all examples once, then once more, and so on.
        """
        own, others = self.logits, other.logits.view(-1, *self.logits.shape)
        if self.kind == "classes":
            log_p, log_q = own.log_softmax(2), others.log_softmax(3)
            apart = (log_p.exp() * (log_p - log_q)).sum(3)
        elif self.kind == "labels":
            both = torch.stack([own, -own]), torch.stack([others, -others])
            log_p, log_q = F.logsigmoid(both[0])[:, None], F.logsigmoid(both[1])
            apart = (log_p.exp() * (log_p - log_q)).sum(0).mean(3)
        else:
            apart = (own - others).square().mean(3) / 2
        return (apart * self.weights).sum(2).flatten()

    def _mean(self, values: Tensor) -> Tensor:
        total = (values * self.weights).sum(1)
        return total.where(self.weights.any(1), torch.nan)

    def _targets(self) -> Tensor:
        if self.targets is None:
            raise ProbingError("the examples have no labels; expected a column 'labels' (or 'label').")
        return self.targets


def answers(model: Any, inputs: Mapping[str, Tensor]) -> Answers:
    """Call the model on a batch, and read its answers.

    Parameters
    ----------
    inputs
        What the model is called with, and ``labels``, or ``start_positions`` and ``end_positions``.

    Raises
    ------
    ProbingError
        If the model returns neither logits nor those of a span, or they do not go with the labels.
    """
    return answers_of(model, inputs, forward(model, question(model, inputs)))


def question(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs without the labels, but for those that a model of two stacks makes its decoder's input from."""
    asked = {name: value for name, value in inputs.items() if name not in ("start_positions", "end_positions")}
    labels = inputs.get("labels")
    two_stacks = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if labels is not None and not (two_stacks and labels.dim() == 2 and not labels.is_floating_point()):
        del asked["labels"]
    return asked


def answers_of(model: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> Answers:
    """The answers in what the model returned for a batch.

    Raises
    ------
    ProbingError
        As ``answers``.
    """
    if isinstance(outputs.get("start_logits"), Tensor):
        return _of_span(inputs, outputs)
    logits, labels = outputs.get("logits"), inputs.get("labels")
    if not isinstance(logits, Tensor):
        raise ProbingError(f"{type(model).__name__} returns no logits but {', '.join(outputs)}; it has no task head.")
    if logits.dim() == 2:
        return _of_example(model, logits.float(), labels)
    if logits.dim() == 3:
        return _of_tokens(model, logits.float(), labels, inputs)
    raise ProbingError(f"expected logits of shape (n, classes) or (n, tokens, classes), found {tuple(logits.shape)}.")


def _of_example(model: Any, logits: Tensor, labels: Tensor | None) -> Answers:
    kind = kind_of(logits.shape[1], labels, getattr(getattr(model, "config", None), "problem_type", None))
    weights = torch.ones(len(logits), 1, device=logits.device)
    if labels is None:
        return Answers(kind, logits[:, None], None, weights, is_whole=True)
    if kind == "classes":
        gold = gold_classes(labels.reshape(-1, 1).long(), logits.shape[1])
        return Answers(kind, logits[:, None], gold, (gold != IGNORED_LABEL).float(), is_whole=True)
    return Answers(kind, logits[:, None], labels.reshape(logits.shape).float()[:, None], weights, is_whole=True)


def _of_tokens(model: Any, logits: Tensor, labels: Tensor | None, inputs: Mapping[str, Tensor]) -> Answers:
    shifted = any(kind.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for kind in type(model).__mro__)
    mask = inputs.get("attention_mask")
    if labels is None and shifted and "input_ids" in inputs:
        labels = inputs["input_ids"]
        labels = labels if mask is None else labels.where(mask.bool(), IGNORED_LABEL)
    if labels is None:
        counts = torch.ones(logits.shape[:2], device=logits.device) if mask is None else mask.float()
        return Answers("classes", logits, None, counts / counts.sum(1, keepdim=True).clamp(min=1))
    if labels.shape != logits.shape[:2]:
        raise ProbingError(
            f"labels have shape {tuple(labels.shape)}, logits {tuple(logits.shape)}; expected a label for each token."
        )
    gold = gold_classes(labels, logits.shape[2], shifted=shifted)
    counts = (gold != IGNORED_LABEL).float()
    return Answers("classes", logits, gold, counts / counts.sum(1, keepdim=True).clamp(min=1))


def _of_span(inputs: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> Answers:
    logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1).float()
    mask = inputs.get("attention_mask")
    if mask is not None:  # how far an example was padded is not to change its answer
        logits = logits.masked_fill(~mask.bool()[:, None], torch.finfo(logits.dtype).min / 2)
    weights = torch.full(logits.shape[:2], 0.5, device=logits.device)
    if "start_positions" not in inputs:
        return Answers("classes", logits, None, weights)
    gold = torch.stack([inputs["start_positions"], inputs["end_positions"]], dim=1).view(-1, 2)
    gold = gold_classes(gold, logits.shape[2])
    counts = (gold != IGNORED_LABEL).float()
    return Answers("classes", logits, gold, counts / counts.sum(1, keepdim=True).clamp(min=1))
