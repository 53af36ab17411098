"""What a model predicts for an example, as a target that can be explained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from t3vis.errors import ProbingError
from t3vis.probing.encoded import Encoded, stacked
from t3vis.probing.model import device_of, forward, probed
from t3vis.probing.targets import Target, class_target, generation_target, span_target, token_target


def predicted_target(
    model: Any, example: Encoded, tokenizer: PreTrainedTokenizerBase | None = None, *, position: int | None = None
) -> Target:
    """The logit of what the model predicts.

    Of a classifier the class with the largest logit; of a model that classifies tokens that of the token at
    ``position``; of a model that finds answers the best first and the best last token; of a masked language model the
    word at ``position``, by default at the only mask token; of a language model the next token.

    Parameters
    ----------
    model
        Of transformers, with a head.
    example
        What it reads.
    tokenizer
        Reads predicted tokens; without one they are named by their ids.
    position
        Of the token that is meant.

    Raises
    ------
    ProbingError
        If the output is none of these, or the token is not said.
    """
    with probed(model), torch.inference_mode():
        outputs = forward(model, stacked([example], pad_id=0, device=device_of(model)))
    if "start_logits" in outputs:
        return _span(outputs, example)
    logits = outputs.get("logits")
    if logits is None or logits.dim() not in (2, 3):
        raise ProbingError(f"{type(model).__name__} has no logits; load it with the head that is to be explained.")
    if logits.dim() == 2:
        best = int(logits[0].argmax())
        return class_target([best], _names(model, logits.shape[1]))
    if model.can_generate():
        best = int(logits[0, -1].argmax())
        return generation_target([best], first=logits.shape[1], names=_read(tokenizer, [best]))
    position = _position(model, example, tokenizer) if position is None else position
    if not 0 <= position < logits.shape[1]:
        raise ProbingError(f"the example has {logits.shape[1]} tokens, none at {position}.")
    best = int(logits[0, position].argmax())
    if model.get_output_embeddings() is not None:
        (name,) = _read(tokenizer, [best])
        return generation_target([best], first=position + 1, names=[name])
    return token_target(position, [best], _names(model, logits.shape[2]))


def generated(
    model: Any, tokenizer: PreTrainedTokenizerBase, example: Encoded, *, n_tokens: int
) -> tuple[Encoded, Target]:
    """What a language model goes on with, most probable token by most probable token.

    Parameters
    ----------
    model
        One that generates.
    tokenizer
        That of the model.
    example
        The prompt; without a special token at its end.
    n_tokens
        At most so many; fewer where the model ends by itself.

    Returns
    -------
    The example with what was generated, and the logit of each generated token as the target. Of an encoder-decoder
    model the example stays as it is, and what was generated is what its decoder reads.

    Raises
    ------
    ProbingError
        If the model does not generate.
    """
    if not model.can_generate():
        raise ProbingError(f"{type(model).__name__} does not generate text.")
    inputs = {name: values[None].to(device_of(model)) for name, values in example.inputs.items()}
    with probed(model):
        found = model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False, num_beams=1)[0].tolist()
    if model.config.is_encoder_decoder:
        decoded = {**example.inputs, "decoder_input_ids": torch.tensor(found[:-1])}
        new = found[1:]
        return (
            Encoded(decoded, example.tokens, example.offsets, example.segments, example.is_special, example.texts),
            generation_target(new, first=1, names=_read(tokenizer, new)),
        )
    new = found[len(example) :]
    read = _read(tokenizer, new)
    return example.continued(new, read), generation_target(new, first=len(example), names=read)


def _span(outputs: Any, example: Encoded) -> Target:
    """The best pair of a start and an end behind it."""
    start, end = (outputs[name][0, : len(example)] for name in ("start_logits", "end_logits"))
    sums = (start[:, None] + end[None]).triu()
    sums[torch.ones_like(sums).tril(-1).bool()] = -torch.inf
    first, last = divmod(int(sums.argmax()), len(end))
    return span_target(first, last)


def _position(model: Any, example: Encoded, tokenizer: PreTrainedTokenizerBase | None) -> int:
    mask_id = None if tokenizer is None else tokenizer.mask_token_id
    masks = [i for i, token in enumerate(example.inputs["input_ids"].tolist()) if token == mask_id]
    if len(masks) != 1:
        raise ProbingError(
            f"{type(model).__name__} has logits for each token; say the position of the one that is meant."
        )
    return masks[0]


def _names(model: Any, n_classes: int) -> list[str]:
    names = getattr(model.config, "id2label", None) or {}
    return [str(names.get(i, i)) for i in range(n_classes)]


def _read(tokenizer: PreTrainedTokenizerBase | None, ids: list[int]) -> list[str]:
    return [str(i) for i in ids] if tokenizer is None else [str(tokenizer.decode([i])) for i in ids]
