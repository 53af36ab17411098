"""What a model says to one example, and why: prediction, saliency, with some heads pruned, on a selection.

Models are looked at in eval mode. Pruned heads are closed by gates for the time of one call; weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t3vis.analysis.head_importance import head_importance, mean_importance
from t3vis.errors import ProbingError
from t3vis.probing.answers import Answers, answers_of
from t3vis.probing.encoded import Encoded, encoded, stacked
from t3vis.probing.gating import Head
from t3vis.probing.head_importance import head_gradients
from t3vis.probing.model import device_of, forward, probed
from t3vis.probing.predicted import predicted_target
from t3vis.probing.pruning import effect, prune
from t3vis.probing.saliency import METHODS, default_method, saliencies
from t3vis.probing.targets import Number, Target
from t3vis.recorded_example import recorded_examples
from t3vis.store.reader import Run, Split
from t3vis.viewer.heads import finite
from t3vis.viewer.models import Loaded
from t3vis.viewer.worker import Work

MOST_CHOICES = 12
"""Of a vocabulary the most probable words are listed; of a classifier all classes."""
MOST_EXAMPLES = 512
"""Of a larger selection so many, by chance."""
STEP = 16
"""Examples between which other work may go first."""
UNSIGNED = ("gradient_norm", "attention_rollout")


@dataclass(frozen=True)
class Asked:
    """One example: its tokens, and its gold label, ``None`` where there is none (as of a text of one's own)."""

    example: Encoded
    label: Any = None


def of_run(run: Run, split: Split, loaded: Loaded, ids: Sequence[int]) -> list[Asked]:
    """Examples of the run.

    Raises
    ------
    IndexError
        If one of them is not there.
    ProbingError
        If neither tokens nor texts were recorded.
    """
    has_labels = split.attributes.get("task") in ("single_label", "multi_label", "regression")
    labels = split.labels if has_labels else None
    examples = recorded_examples(run, split, ids, loaded.tokenizer)
    return [Asked(example, _label(labels, i)) for example, i in zip(examples, ids, strict=True)]


def of_text(loaded: Loaded, texts: Sequence[str]) -> Asked:
    """A text, or a pair of them.

    Raises
    ------
    ProbingError
        If the model has no tokenizer, or the text has no tokens.
    """
    if loaded.tokenizer is None:
        raise ProbingError(f"{loaded.name} has no tokenizer, without which a text cannot be read.")
    return Asked(encoded(loaded.tokenizer, *texts))


def predicted(loaded: Loaded, asked: Asked, pruned: Collection[Head], position: int | None) -> dict[str, Any]:
    """What the model says to an example, in JSON.

    Parameters
    ----------
    pruned
        Heads that are closed.
    position
        Of models that answer at every token, where; by default at the last token of a language model, else at the
        first that is not special.
    """
    return _described(loaded, asked, _answers(loaded, asked, pruned), position)


def predicted_everywhere(loaded: Loaded, asked: Asked) -> dict[str, Any]:
    """What `predicted` says, and at ``places`` what it would say at each position, of models that answer at each."""
    found = _answers(loaded, asked, ())
    first = _described(loaded, asked, found, None)
    if first["position"] is None:
        return first
    everywhere = [_described(loaded, asked, found, position) for position in range(len(asked.example))]
    return {**first, "places": [{name: said[name] for name in ("position", "choices")} for said in everywhere]}


def compared(loaded: Loaded, asked: Asked, pruned: Collection[Head], position: int | None) -> dict[str, Any]:
    """The same with all heads and without some, and the KL divergence between the two, nats."""
    whole, without = _answers(loaded, asked, ()), _answers(loaded, asked, pruned)
    return {
        "whole": _described(loaded, asked, whole, position),
        "pruned": _described(loaded, asked, without, position),
        "divergence": finite(float(whole.divergence(without)[0])),
    }


def explained(
    loaded: Loaded,
    asked: Asked,
    pruned: Collection[Head],
    position: int | None,
    number: int | None,
    method: str | None,
) -> dict[str, Any]:
    """What each token says for one of the choices, in JSON; by default for what is predicted, by ``default_method``."""
    method = default_method(loaded.model) if method is None else method
    if method not in METHODS:
        raise ProbingError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}.")
    target = _target(loaded, asked, number, position)
    with _pruned(loaded, pruned):
        found = saliencies(loaded.model, [asked.example], [target], method=method, tokenizer=loaded.tokenizer)[0]
    return {
        "model": loaded.name,
        "method": method,
        "is_signed": method not in UNSIGNED,
        "class": target[0].index,
        "name": target[0].name,
        "number": finite(float(found.numbers.sum())),
        "values": finite(found.values.sum(0)),
        "rest": finite(float(found.rest.sum())),
        "error": finite(float(found.error.max())),
        **_tokens(asked.example),
    }


def measured(
    run: Run, split: Split, loaded: Loaded, ids: NDArray[np.int64], pruned: Collection[Head], seed: int = 0
) -> Work:
    """What pruning does to loss and score of a selection, in steps; of many examples on some by chance."""
    chosen = sampled(ids, seed)
    rows = [_row(asked) for asked in of_run(run, split, loaded, chosen.tolist())]
    parts = []
    for start in range(0, len(rows), STEP):
        parts.append(effect(loaded.heads, rows[start : start + STEP], list(pruned)))
        yield
    values = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("loss", "loss_without", "score", "score_without", "divergence")
    }
    changes = {}
    for name in ("loss", "score"):
        change = mean_importance((values[f"{name}_without"] - values[name])[None, :, None])
        changes[name] = {
            "whole": finite(float(np.nanmean(values[name]))),
            "without": finite(float(np.nanmean(values[f"{name}_without"]))),
            "change": finite(change.value.item()),
            "low": finite(change.low.item()),
            "high": finite(change.high.item()),
        }
    return {
        "model": loaded.name,
        "n": len(rows),
        "n_selected": len(ids),
        **changes,
        "divergence": finite(float(np.nanmean(values["divergence"]))),
        "worse": int((values["score_without"] < values["score"]).sum()),
        "better": int((values["score_without"] > values["score"]).sum()),
        "is_accuracy": split.attributes.get("task") == "single_label",
    }


def weighed(run: Run, split: Split, loaded: Loaded, ids: NDArray[np.int64], seed: int = 0) -> Work:
    """Importance of each head on some examples, from the gradients of its gate in eval mode, in steps."""
    chosen = sampled(ids, seed)
    rows = [_row(asked) for asked in of_run(run, split, loaded, chosen.tolist())]
    parts = []
    for start in range(0, len(rows), STEP):
        parts.append(head_gradients(loaded.heads, rows[start : start + STEP]).gradients)
        yield
    gradients = np.concatenate(parts, axis=1)
    of = head_importance(gradients, n_resamples=1000 if len(rows) > 1 else 0)
    return {
        "model": loaded.name,
        "n": len(rows),
        "n_selected": len(ids),
        "attention": [projection.attention for projection in loaded.heads.projections],
        "value": finite(gradients[:, 0] if len(rows) == 1 else of.value),
        "low": finite(of.low) if len(rows) > 1 else None,
        "high": finite(of.high) if len(rows) > 1 else None,
    }


def sampled(ids: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """Ids, or so many of them by chance, each once and in order."""
    known = np.unique(ids)
    if len(known) <= MOST_EXAMPLES:
        return known
    return np.sort(np.random.default_rng(seed).choice(known, MOST_EXAMPLES, replace=False))


@contextmanager
def _pruned(loaded: Loaded, heads: Collection[Head]) -> Iterator[None]:
    if not heads:
        yield
        return
    with prune(loaded.heads, list(heads)):
        yield


def _answers(loaded: Loaded, asked: Asked, pruned: Collection[Head]) -> Answers:
    if getattr(loaded.model.config, "is_encoder_decoder", False) and loaded.model.can_generate():
        raise ProbingError(f"{loaded.name} writes texts of its own from another; such predictions are not shown.")
    inputs = stacked([asked.example], pad_id=0, device=device_of(loaded.model))
    labels = {} if asked.label is None else {"labels": torch.as_tensor(asked.label)[None].to(device_of(loaded.model))}
    with probed(loaded.model), torch.inference_mode(), _pruned(loaded, pruned):
        return answers_of(loaded.model, {**inputs, **labels}, forward(loaded.model, inputs))


def _described(loaded: Loaded, asked: Asked, found: Answers, position: int | None) -> dict[str, Any]:
    known: dict[str, Any] = {"model": loaded.name, "kind": found.kind, "position": None, "choices": []}
    known["loss"] = finite(float(found.loss[0])) if found.targets is not None and found.is_whole else None
    known |= _tokens(asked.example)
    if not found.is_whole and _is_of_spans(loaded.model, found, asked.example):
        target = _target(loaded, asked, None, None)
        known["span"] = [number.index for number in target]
        return known
    if not found.is_whole:
        known["position"] = _position(loaded.model, asked.example, position)
    logits = found.logits[0, known["position"] or 0]
    probs = _probs(found.kind, logits)
    order = range(len(logits)) if found.is_whole else logits.argsort(descending=True)[:MOST_CHOICES].tolist()
    known["choices"] = [
        {
            "class": i,
            "name": _name(loaded, i),
            "logit": finite(float(logits[i])),
            "prob": None if probs is None else finite(float(probs[i])),
        }
        for i in order
    ]
    return known


def _probs(kind: str, logits: Tensor) -> Tensor | None:
    return {"classes": logits.softmax(0), "labels": logits.sigmoid()}.get(kind)


def _is_of_spans(model: Any, found: Answers, example: Encoded) -> bool:
    return type(model).__name__.endswith("ForQuestionAnswering") and found.logits.shape[2] == len(example)


def _position(model: Any, example: Encoded, position: int | None) -> int:
    if position is None:
        plain_tokens = np.flatnonzero(~example.is_special)
        last = model.can_generate() or not len(plain_tokens)
        return len(example) - 1 if last else int(plain_tokens[0])
    if not 0 <= position < len(example):
        raise ProbingError(f"the example has {len(example)} tokens, none at {position}.")
    return position


def _target(loaded: Loaded, asked: Asked, number: int | None, position: int | None) -> Target:
    """What is explained: a choice, by default what is predicted."""
    kind = type(loaded.model).__name__
    of_words = not kind.endswith(("ForSequenceClassification", "ForMultipleChoice", "ForQuestionAnswering"))
    place = _position(loaded.model, asked.example, position) if of_words else None
    if number is None:
        return predicted_target(loaded.model, asked.example, loaded.tokenizer, position=place)
    return (Number(_name(loaded, number), number, place),)


def _name(loaded: Loaded, number: int) -> str:
    """A class by its name, a word of the vocabulary as it reads."""
    names = getattr(loaded.model.config, "id2label", None) or {}
    is_word = loaded.model.can_generate() or loaded.model.get_output_embeddings() is not None
    if is_word and loaded.tokenizer is not None:
        return str(loaded.tokenizer.decode([number]))
    return str(names.get(number, number))


def _tokens(example: Encoded) -> dict[str, Any]:
    return {
        "texts": list(example.texts),
        "tokens": list(example.tokens),
        "gaps": example.gaps(),
        "special": example.is_special.tolist(),
    }


def _label(labels: NDArray[Any] | None, number: int) -> Any:
    if labels is None:
        return None
    label = labels[number]
    known = np.isfinite(label).all() if labels.ndim > 1 else label >= 0
    return label if known else None


def _row(asked: Asked) -> dict[str, Any]:
    """An example as a row of a dataset."""
    inputs = {name: values.tolist() for name, values in asked.example.inputs.items()}
    return inputs if asked.label is None else {**inputs, "labels": asked.label.tolist()}
