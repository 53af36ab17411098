"""What the attention heads of a run's model attend to, on the run's own examples; kept in the store while current."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.attention_patterns import KINDS, PATTERNS, HeadPatterns
from t3vis.analysis.nearest import sample_of
from t3vis.checkpointed import pass_with_checkpoint, provenance
from t3vis.errors import ProbingError
from t3vis.store.reader import Run, Split
from t3vis.store.results import current_result, write_result
from t3vis.store.schema import pass_name

MAX_EXAMPLES = 1000
TABLES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "patterns": (
        ("layer", "head", "pattern"),
        {
            "mass": "share of the attention that follows the pattern",
            "error": "standard error of that over examples",
            "top": "share of the queries whose most attended key follows it",
            "holds": "share of the examples of which at least half of the attention follows it",
        },
    ),
    "chances": (
        ("layer", "pattern"),
        {
            "chance": "mass of a head that attends to all it may see alike",
            "n_examples": "examples in which the pattern can be told",
        },
    ),
    "heads": (
        ("layer", "head"),
        {
            "entropy": "nats, mean over queries",
            "relative_entropy": "that in units of attention to all alike",
            "distance": "tokens, mean distance of attention from words to words",
        },
    ),
    "offsets": (("layer", "head", "offset"), {"by_offset": "mean attention to the word so much further on"}),
    "positions": (
        ("layer", "head", "from_part", "to_part"),
        {"by_position": "attention from one part of the text to another, all texts stretched to one length"},
    ),
    "kinds": (
        ("layer", "head", "from_kind", "to_kind"),
        {"by_kind": "attention from tokens of one kind to those of another"},
    ),
}
"""Results in the store, ``attention_<table>_<pass>``: their dimensions, and what their columns mean."""


def analyzed_attention(
    run: Run,
    split: Split,
    *,
    pass_index: int | None = None,
    model: Path | None = None,
    max_examples: int = MAX_EXAMPLES,
    seed: int = 0,
) -> HeadPatterns:
    """What each head attends to, from the store if it is there and current, else computed and written.

    Parameters
    ----------
    run, split
        Whose examples to read; the split needs their token ids or a text.
    pass_index
        Number of the pass whose checkpoint is taken; by default the last that has one.
    model
        The folder of a model to take instead; what is found of it is not kept.
    max_examples
        Of a larger split so many examples are taken by chance.
    seed
        Of that chance.

    Raises
    ------
    ProbingError
        If there is no checkpoint, no tokenizer in it, or nothing to read of the examples.
    """
    ids = sample_of(split.n_examples, max_examples, seed=seed)
    if model is not None:
        return _probed(model, split, ids)
    chosen, checkpoint = pass_with_checkpoint(split, pass_index)
    made_of = {**provenance(split, checkpoint), "n_examples": len(ids), "seed": seed}
    known = _kept(run, split, chosen.index, made_of)
    if known is not None:
        return known
    found = _probed(checkpoint.path, split, ids)
    _keep(run, split, chosen.index, found, made_of)
    return found


def known_attention(
    run: Run, split: Split, index: int, n_examples: Sequence[int] = (MAX_EXAMPLES,)
) -> HeadPatterns | None:
    """What ``analyzed_attention`` has kept of a pass and is still current; nothing is computed.

    Parameters
    ----------
    n_examples
        How many it may have been asked to read at most, the first choice first.
    """
    record = next((record for record in split.passes if record.index == index), None)
    checkpoint = None if record is None else record.checkpoint
    if checkpoint is None:
        return None
    for most in n_examples:
        made_of = {**provenance(split, checkpoint), "n_examples": min(split.n_examples, most), "seed": 0}
        known = _kept(run, split, index, made_of)
        if known is not None:
            return known
    return None


def _probed(folder: Path, split: Split, ids: NDArray[np.int64]) -> HeadPatterns:
    from t3vis.probing.attention_patterns import attention_patterns, vocabulary_of  # torch takes seconds to load
    from t3vis.probing.model import load_model

    tokenizer = load_tokenizer(folder)
    rows = example_rows(split, ids, tokenizer)
    return attention_patterns(load_model(folder), rows, vocabulary_of(tokenizer), what="attention")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that was saved with a model.

    Raises
    ------
    ProbingError
        If there is none.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise ProbingError(f"{folder} holds no tokenizer; give the Trainer its tokenizer as processing_class.")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def example_rows(split: Split, ids: NDArray[np.int64], tokenizer: Any) -> list[dict[str, Any]]:
    """Examples of a run as a model is given them: their token ids, or else their first text.

    Raises
    ------
    ProbingError
        If the run holds neither.
    """
    if split.token_ids is not None:
        return [{"input_ids": split.token_ids[int(i)].tolist()} for i in ids]
    from t3vis.probing.attention_texts import text_rows

    texts = list(split.text.values())
    if not texts:
        raise ProbingError(f"{split.path} holds neither token ids nor texts of its examples; record with text=.")
    return text_rows([texts[0][int(i)] for i in ids], tokenizer)


def _kept(run: Run, split: Split, index: int, made_of: dict[str, Any]) -> HeadPatterns | None:
    columns: dict[str, NDArray[Any]] = {}
    attention: tuple[str, ...] = ()
    for table in TABLES:
        result = current_result(run.path, split.name, f"attention_{table}_{pass_name(index)}", made_of)
        if result is None:
            return None
        columns |= result.columns
        attention = tuple(result.attributes["attention"])
    return HeadPatterns(attention=attention, **columns)


def _keep(run: Run, split: Split, index: int, found: HeadPatterns, made_of: dict[str, Any]) -> None:
    axes = {"attention": list(found.attention), "patterns": list(PATTERNS), "kinds": list(KINDS)}
    for table, (dims, meanings) in TABLES.items():
        write_result(
            run.path,
            split.name,
            f"attention_{table}_{pass_name(index)}",
            {name: getattr(found, name) for name in meanings},
            meanings=meanings,
            attributes={**made_of, **axes, "offset_of_first": -found.max_offset},
            dims=dims,
        )
