"""An example of a run as a model reads it, and the tokenizer that was saved with the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t3vis.errors import ProbingError
from t3vis.probing.encoded import Encoded, encoded, from_ids
from t3vis.store.reader import Run, Split

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def tokenizer_of(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint; ``None`` if none was saved with it.

    Raises
    ------
    ProbingError
        If it cannot be read, or is code of its own that is not trusted.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ProbingError(f"the tokenizer of {folder} cannot be read: {error}.") from error


def recorded_example(run: Run, split: Split, number: int, tokenizer: Any) -> Encoded:
    """An example of the run, as ``recorded_examples``."""
    return recorded_examples(run, split, [number], tokenizer)[0]


def recorded_examples(run: Run, split: Split, ids: Sequence[int], tokenizer: Any) -> list[Encoded]:
    """Examples of the run: their texts, if these are read as the recorded tokens, else the tokens alone.

    Parameters
    ----------
    ids
        Which.
    tokenizer
        That of the model; may be ``None``.

    Raises
    ------
    IndexError
        If the split has no such example.
    ProbingError
        If neither tokens nor a text that can be read were recorded.
    """
    tokens, columns, n_examples = split.token_ids, list(split.text.values()), split.n_examples
    found = []
    for number in ids:
        if not 0 <= number < n_examples:
            raise IndexError(f"there is no example {number}; {split.name} has {n_examples:,}, counted from 0.")
        token_ids = None if tokens is None else tokens[number].tolist()
        read = _read_again(tokenizer, [column[number] for column in columns], token_ids)
        found.append(_from_tokens(run, split, token_ids, tokenizer) if read is None else read)
    return found


def _read_again(tokenizer: Any, texts: list[str], ids: list[int] | None) -> Encoded | None:
    """The first one or two texts, where they are read as these tokens."""
    if tokenizer is None:
        return None
    for end in range(min(len(texts), 2), 0, -1):
        found = encoded(tokenizer, *texts[:end], max_length=None if ids is None else len(ids))
        if ids is None or found.inputs["input_ids"].tolist() == ids:
            return found
    return None


def _from_tokens(run: Run, split: Split, ids: list[int] | None, tokenizer: Any) -> Encoded:
    if ids is None:
        raise ProbingError(f"{split.path} holds neither tokens nor a text that can be read; record with text=.")
    if tokenizer is not None:
        return from_ids(ids, tokenizer.convert_ids_to_tokens(ids), special=tokenizer.all_special_ids)
    return from_ids(ids, run.tokens(ids) if run.has_tokens else [str(i) for i in ids])
