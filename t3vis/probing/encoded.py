"""An example as a model is given it: token ids with the text that each token stands for, alone and in a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from t3vis.errors import ProbingError

NOWHERE = (-1, -1)
"""Offsets of a token that stands for no piece of the text."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of one example, without padding.

    Parameters
    ----------
    inputs
        What the model is called with: tensors by name, one value per token, ``input_ids`` among them; for an
        encoder-decoder model also ``decoder_input_ids``, which may be of another length.
    tokens
        What each token reads.
    offsets
        Shape (n_tokens, 2): first character and the one after the last, in ``texts[segment]``; -1 where there is none.
    segments
        Shape (n_tokens,): which text a token is of, -1 for a special token or where it is not known.
    is_special
        Shape (n_tokens,): tokens that the tokenizer has added, such as [CLS].
    texts
        The text, or the two of a pair; empty where only the tokens are known.
    """

    inputs: Mapping[str, Tensor]
    tokens: tuple[str, ...]
    offsets: NDArray[np.int64]
    segments: NDArray[np.int64]
    is_special: NDArray[np.bool_]
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def gaps(self) -> list[str]:
        """What stands between each token and the one before: the text there, or a blank where it is not known."""
        found, last, at = [], -2, 0
        for i, ((start, end), segment) in enumerate(zip(self.offsets.tolist(), self.segments.tolist(), strict=True)):
            if segment < 0:
                found.append(" " if i else "")
            else:
                found.append(self.texts[segment][at:start] if segment == last else " " if i else "")
                at = max(end, at) if segment == last else end
            last = segment
        return found

    def continued(self, ids: Sequence[int], tokens: Sequence[str]) -> Encoded:
        """The example with further tokens behind it, such as those that a model has generated."""
        n_more = len(ids)
        further = {name: _continued(name, values, ids) for name, values in self.inputs.items()}
        return replace(
            self,
            inputs=further,
            tokens=(*self.tokens, *tokens),
            offsets=np.concatenate([self.offsets, np.full((n_more, 2), -1)]),
            segments=np.concatenate([self.segments, np.full(n_more, -1)]),
            is_special=np.concatenate([self.is_special, np.zeros(n_more, bool)]),
        )


def encoded(
    tokenizer: PreTrainedTokenizerBase, text: str, text_pair: str | None = None, *, max_length: int | None = None
) -> Encoded:
    """A text, or a pair of them, as the tokenizer splits it.

    Parameters
    ----------
    tokenizer
        A fast one also tells the characters that a token stands for.
    text, text_pair
        What is to be read.
    max_length
        Tokens at which it is cut; by default where the tokenizer says.

    Raises
    ------
    ProbingError
        If the text has no tokens.
    """
    fits = tokenizer.model_max_length < 1_000_000
    found = tokenizer(
        text,
        text_pair,
        truncation=max_length is not None or fits,
        max_length=max_length,
        return_special_tokens_mask=True,
        return_offsets_mapping=tokenizer.is_fast,
    )
    ids = found["input_ids"]
    if not ids:
        raise ProbingError(f"the text {text!r} has no tokens; there is nothing to explain.")
    is_special = np.array(found.pop("special_tokens_mask"), bool)
    segments = np.array([-1 if part is None else part for part in found.sequence_ids()]) if tokenizer.is_fast else None
    offsets = np.array(found.pop("offset_mapping", [NOWHERE] * len(ids)), np.int64).reshape(-1, 2)
    if segments is None:
        segments = np.full(len(ids), -1)
    offsets = np.where((segments >= 0)[:, None], offsets, -1)
    texts = (text,) if text_pair is None else (text, text_pair)
    readings = [
        texts[segment][start:end] if segment >= 0 and end > start else token
        for token, segment, (start, end) in zip(
            tokenizer.convert_ids_to_tokens(ids), segments.tolist(), offsets.tolist(), strict=True
        )
    ]
    inputs = {name: torch.tensor(values) for name, values in found.items() if len(values) == len(ids)}
    return Encoded(inputs, tuple(readings), offsets, segments.astype(np.int64), is_special, texts)


def from_ids(ids: Sequence[int], tokens: Sequence[str], *, special: Iterable[int] = ()) -> Encoded:
    """An example of which only the token ids are known and what they read, such as a recorded one.

    Parameters
    ----------
    ids, tokens
        One each per token.
    special
        Ids of special tokens.
    """
    known = set(special)
    return Encoded(
        inputs={"input_ids": torch.tensor(list(ids)), "attention_mask": torch.ones(len(ids), dtype=torch.long)},
        tokens=tuple(tokens),
        offsets=np.full((len(ids), 2), -1),
        segments=np.full(len(ids), -1),
        is_special=np.array([i in known for i in ids], bool),
    )


def stacked(examples: Sequence[Encoded], *, pad_id: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Examples as one batch, padded on the right so that each token keeps its place.

    Returns
    -------
    Tensors of shape (n_examples, n_tokens of the longest), an ``attention_mask`` among them.
    """
    batch: dict[str, Tensor] = {}
    for name in examples[0].inputs:
        fill = pad_id if name.endswith("input_ids") else 0
        rows = [example.inputs[name] for example in examples]
        batch[name] = pad_sequence(rows, batch_first=True, padding_value=fill).to(device)
    if "attention_mask" not in batch:
        ones = [torch.ones(len(example), dtype=torch.long) for example in examples]
        batch["attention_mask"] = pad_sequence(ones, batch_first=True).to(device)
    return batch


def _continued(name: str, values: Tensor, ids: Sequence[int]) -> Tensor:
    if name == "decoder_input_ids":
        return values
    if name == "input_ids":
        return torch.cat([values, values.new_tensor(list(ids))])
    return torch.cat([values, values[-1:].expand(len(ids))])
