"""Examples of a dataset as padded batches: those of like length together, and results back in the order of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from t3vis.errors import ProbingError
from t3vis.losses import IGNORED_LABEL
from t3vis.probing.model import accepted, device_of

_MAIN = ("input_ids", "inputs_embeds", "pixel_values")


class Examples(Protocol):
    """Rows by number, each a mapping of columns, such as a ``datasets.Dataset`` or a list of dictionaries."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """A few examples: ``ids`` are their numbers, shape (n,); ``inputs`` what the model is called with, and labels."""

    ids: NDArray[np.int64]
    inputs: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)


def batches(
    model: Any,
    examples: Examples,
    *,
    batch_size: int = 32,
    ids: Sequence[int] | NDArray[np.integer] | None = None,
    what: str | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    """The examples as padded batches on the device of the model.

    Examples of like length stand together, so that little is padding; the batches come in random order, so that what
    is known after a few of them holds for all.

    Parameters
    ----------
    examples
        Rows with ``input_ids`` (or ``pixel_values``), and whatever else the model takes; other columns are left out.
        ``label`` counts as ``labels``. An ``attention_mask`` is made where there is none.
    batch_size
        Examples in a batch.
    ids
        Which examples; by default all.
    what
        Shown on a progress bar, if this takes more than a second.
    seed
        Of the order of the batches.

    Raises
    ------
    ProbingError
        If an example has no input that the model takes.
    """
    chosen = np.arange(len(examples)) if ids is None else np.asarray(ids, dtype=np.int64)
    columns = accepted(model)
    lengths = np.array([_length(_columns(examples[int(i)], columns), int(i)) for i in chosen])
    by_length = chosen[np.argsort(lengths, kind="stable")]
    groups = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    order = np.random.default_rng(seed).permutation(len(groups))
    fill = _pad_token(model)
    with tqdm(total=len(chosen), desc=what, unit=" examples", delay=1, leave=False, disable=what is None) as bar:
        for group in (groups[number] for number in order):
            rows = [_columns(examples[int(i)], columns) for i in group]
            inputs = collated(rows, pad_token=fill)
            if "input_ids" in inputs and "attention_mask" not in inputs and "attention_mask" in columns:
                inputs["attention_mask"] = _mask([len(row["input_ids"]) for row in rows])
            yield Batch(group, {name: value.to(device_of(model)) for name, value in inputs.items()})
            bar.update(len(group))


def collated(rows: Sequence[Mapping[str, Any]], *, pad_token: int = 0) -> dict[str, Tensor]:
    """Rows side by side; those of different lengths are padded on the right.

    Token ids are padded with ``pad_token``, labels of tokens with what is ignored, everything else with zeros.

    Examples
    --------
    >>> collated([{"input_ids": [5, 6], "labels": 1}, {"input_ids": [7], "labels": 0}])
    {'input_ids': tensor([[5, 6],
            [7, 0]]), 'labels': tensor([1, 0])}
    """
    fills = {"input_ids": pad_token, "decoder_input_ids": pad_token, "labels": IGNORED_LABEL}
    return {name: _padded([torch.as_tensor(row[name]) for row in rows], fills.get(name, 0)) for name in rows[0]}


def _padded(values: Sequence[Tensor], fill: int) -> Tensor:
    longest = max((len(value) for value in values), default=0) if values[0].dim() else 0
    if all(value.shape == values[0].shape for value in values):
        return torch.stack(list(values))
    out = values[0].new_full((len(values), longest, *values[0].shape[1:]), fill)
    for row, value in zip(out, values, strict=True):
        row[: len(value)] = value
    return out


def _mask(lengths: Sequence[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def _columns(row: Mapping[str, Any], columns: set[str]) -> dict[str, Any]:
    """What of an example the model takes."""
    named = {"labels" if name == "label" else name: value for name, value in row.items()}
    return {name: value for name, value in named.items() if name in columns and value is not None}


def _length(row: Mapping[str, Any], number: int) -> int:
    main = next((row[name] for name in _MAIN if name in row), None)
    if main is None:
        raise ProbingError(f"example {number} has none of {', '.join(_MAIN)}; tokenize the texts first.")
    return len(main)


def _pad_token(model: Any) -> int:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "pad_token_id", None)
    return 0 if found is None else int(found)
