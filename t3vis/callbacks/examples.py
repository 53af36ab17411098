"""What the examples of a dataset are: labels, lengths, texts and token ids, read column-wise in batches.

Only a ``datasets.Dataset`` is read this way: its columns can be had without running the user's own code. Of any
other dataset the store learns labels and lengths from the batches.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from t3vis.errors import ConfigurationError
from t3vis.store import schema
from t3vis.store.examples import Columns, ExamplesWriter

TextColumns = Literal["auto"] | Sequence[str] | None

BATCH_ROWS = 2000
DECODED_COLUMN = "decoded"


def write_examples(
    split: Path | None, dataset: Any, *, label_names: Sequence[str] | None, text: TextColumns, processor: Any
) -> str:
    """Write what is known of the examples to the split's ``examples`` group.

    Parameters
    ----------
    split
        The split's group; ``None`` only computes the fingerprint.
    label_names
        Names under which the Trainer knows labels, tried before ``labels``, ``label`` and ``label_ids``; ``None`` where
        labels are those of tokens, which are recorded with the batches.
    text
        Which text columns to keep: all of them, those named, or none.
    processor
        The Trainer's ``processing_class``; if it is a tokenizer and the dataset has no text, token ids are decoded.

    Returns
    -------
    A fingerprint of the examples; equal for equal content in equal order. Of a dataset that has no columns to read
    it covers the number of examples and the dataset's type only.

    Raises
    ------
    ConfigurationError
        If a text column was named that the dataset does not have.
    """
    target = None if split is None else split / "examples"
    if target is not None and target.exists():
        shutil.rmtree(target)  # left behind by a process that died here: the split does not exist yet
    names = text_columns(dataset, text)
    if not is_readable(dataset):
        size = len(dataset) if hasattr(dataset, "__len__") else None
        return hashlib.blake2b(f"{type(dataset).__name__} {size}".encode(), digest_size=16).hexdigest()
    writer = ExamplesWriter(target, len(dataset))
    decode = text == "auto" and not names
    for columns in read_columns(dataset, label_names, names, processor if decode else None):
        writer.add(columns)
    return f"{writer.close()}-{len(dataset)}"


def is_readable(dataset: Any) -> bool:
    """Whether the examples can be had column by column, without running the user's own code."""
    return isinstance(dataset, datasets.Dataset)


def read_columns(
    dataset: datasets.Dataset, label_names: Sequence[str] | None, texts: Sequence[str], decoder: Any
) -> Iterator[Columns]:
    """The examples as batches of columns, in order; formats and transforms of the dataset are passed by.

    A ``decoder``, if it is a tokenizer, turns token ids into one more column of text.
    """
    plain = dataset.with_format("arrow")
    label = None if label_names is None else label_column(dataset, label_names)
    if label is not None and not of_examples(plain, label):
        label = None
    has_ids = "input_ids" in dataset.column_names and _is_flat(plain[:1].column("input_ids").type)
    decode = getattr(decoder, "batch_decode", None) if has_ids else None
    for start in range(0, len(dataset), BATCH_ROWS):
        table: pa.Table = plain[start : start + BATCH_ROWS]
        labels, targets = _labels(table, label)
        token_ids, n_token_ids = _ragged(table, "input_ids") if has_ids else (None, None)
        kept = {column: table.column(column).to_pylist() for column in texts}
        if decode is not None:
            ids = table.column("input_ids").to_pylist()
            kept[DECODED_COLUMN] = decode(ids, skip_special_tokens=True)
        yield Columns(labels, targets, _length(table, n_token_ids), token_ids, n_token_ids, kept)


def of_examples(plain: datasets.Dataset, column: str) -> bool:
    """Whether labels are those of examples; lists of several lengths, or of classes, are labels of their tokens.

    ``plain`` is in the format ``"arrow"``.
    """
    lists = plain.select_columns([column])
    if not len(lists) or not _is_list(lists[:1].column(column).type):
        return True
    widths: set[int] = set()
    for start in range(0, len(lists), BATCH_ROWS):
        values, lengths = _ragged(lists[start : start + BATCH_ROWS], column)
        widths |= set(np.unique(lengths).tolist())
        are_values = values.dtype.kind == "f" or (values.dtype.kind in "biu" and np.isin(values, (0, 1)).all())
        if len(widths) > 1 or not are_values:
            return False
    return True


def label_column(dataset: Any, label_names: Sequence[str]) -> str | None:
    """Name of the column of labels, or ``None``."""
    names = getattr(dataset, "column_names", None) or []
    return next((name for name in (*label_names, "labels", "label", "label_ids") if name in names), None)


def text_columns(dataset: Any, text: TextColumns) -> list[str]:
    """Names of the columns of text to keep.

    Raises
    ------
    ConfigurationError
        If one was named that is not there to read.
    """
    features = dataset.features if is_readable(dataset) else {}
    found = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    ]
    if text == "auto":
        return found
    absent = [name for name in text or () if name not in found]
    if absent:
        has = f"has the text columns {found}" if features else f"is a {type(dataset).__name__} without any to read"
        raise ConfigurationError(
            f"text names {absent}, but the dataset {has}; name text columns that the datasets.Dataset given to the "
            "Trainer has, or leave text='auto'."
        )
    return list(text or ())


def class_names(dataset: Any, label_names: Sequence[str], config: Any) -> list[str] | None:
    """Names of the classes: those the model was given, else those of the dataset's ``ClassLabel``."""
    id2label: dict[int, str] = getattr(config, "id2label", None) or {}
    given = [id2label[i] for i in sorted(id2label)]
    if given and given != [f"LABEL_{i}" for i in range(len(given))]:
        return given
    label = label_column(dataset, label_names)
    feature = getattr(dataset, "features", {}).get(label) if label is not None else None
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def write_vocabulary(run: Path, processor: Any) -> None:
    """Keep the tokenizer's tokens by id, so that token ids can be read without it."""
    vocabulary: dict[str, int] = processor.get_vocab() if hasattr(processor, "get_vocab") else {}
    if not vocabulary or schema.node_exists(run / "tokenizer"):
        return
    tokens = [""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        tokens[token_id] = token
    writer = ExamplesWriter(run / "tokenizer", len(tokens))
    writer.add(Columns(texts={"token": tokens}))
    writer.close()


def _labels(table: pa.Table, column: str | None) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """Classes, or values, of a batch."""
    if column is None:
        return None, None
    labels = table.column(column).combine_chunks()
    if pa.types.is_integer(labels.type):
        classes = pc.fill_null(labels.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        return np.maximum(classes, -1), None
    if pa.types.is_floating(labels.type):
        return None, labels.to_numpy(zero_copy_only=False).astype(np.float32)[:, None]
    if _is_list(labels.type):
        values, lengths = _ragged(table, column)
        return None, values.astype(np.float32).reshape(len(lengths), -1)
    return None, None


def _ragged(table: pa.Table, column: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values one after another, and how many each example has."""
    lists = table.column(column).combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False), lengths


def _length(table: pa.Table, n_token_ids: NDArray[np.int64] | None) -> NDArray[np.int32] | None:
    """Tokens that are not padding: counted in the attention mask where there is one."""
    if n_token_ids is None:
        return None
    if "attention_mask" not in table.column_names or not _is_flat(table.column("attention_mask").type):
        return n_token_ids.astype(np.int32)
    mask, lengths = _ragged(table, "attention_mask")
    total = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
    ends = np.cumsum(lengths)
    counts: NDArray[np.int64] = total[ends] - total[ends - lengths]
    return counts.astype(np.int32)


def _is_flat(kind: pa.DataType) -> bool:
    """Whether it is a list of values: the token ids of several choices are a list of lists."""
    return _is_list(kind) and not _is_list(kind.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
