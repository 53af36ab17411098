"""Texts and parsed documents as examples that a model can be probed with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from t3vis.analysis.conllu import Sentence

MAX_TOKENS = 512
"""Longer texts are cut."""


@dataclass(frozen=True)
class Documents:
    """Examples, and for each the number of the sentence that each token belongs to, -1 of special tokens."""

    rows: list[dict[str, Any]]
    sentence_ids: list[list[int]]


def text_rows(texts: Sequence[str], tokenizer: Any, *, max_tokens: int = MAX_TOKENS) -> list[dict[str, Any]]:
    """Each text as an example."""
    encoded = tokenizer(list(texts), truncation=True, max_length=min(max_tokens, tokenizer.model_max_length))
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(texts))]


def document_rows(parsed: Sequence[Sentence], tokenizer: Any, *, max_tokens: int = 128) -> Documents:
    """Sentences of one document after another as one example, as many as ``max_tokens`` hold.

    Parameters
    ----------
    parsed
        Sentences in order; the comment ``newdoc id`` begins a document.
    tokenizer
        A fast one, which knows the words of its tokens.
    max_tokens
        With special tokens. A sentence that is longer is cut.
    """
    max_tokens = min(max_tokens, tokenizer.model_max_length)
    found = Documents([], [])
    for group in _groups(parsed, tokenizer, max_tokens):
        words = [word for sentence in group for word in sentence.words]
        numbers = [number for number, sentence in enumerate(group) for _ in sentence.words]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_tokens)
        found.rows.append(dict(encoded))
        found.sentence_ids.append([-1 if word is None else numbers[word] for word in encoded.word_ids()])
    return found


def _groups(parsed: Sequence[Sentence], tokenizer: Any, max_tokens: int) -> Iterator[list[Sentence]]:
    room = max_tokens - tokenizer.num_special_tokens_to_add()
    words = [list(sentence.words) for sentence in parsed]
    sizes = map(len, tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"])
    group: list[Sentence] = []
    used = 0
    for sentence, size in zip(parsed, sizes, strict=True):
        if group and (used + size > room or any(name.startswith("newdoc") for name in sentence.comments)):
            yield group
            group, used = [], 0
        group.append(sentence)
        used += size
    if group:
        yield group
