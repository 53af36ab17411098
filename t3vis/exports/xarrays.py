"""A run as an ``xarray.DataTree``: every recorded array, labelled, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from t3vis.errors import ConfigurationError
from t3vis.store import schema
from t3vis.store.ragged import offsets_of
from t3vis.store.reader import Run, Split
from t3vis.store.results import read_result, result_names

try:
    import xarray as xr
    from xarray.backends import BackendArray
    from xarray.core import indexing
except ImportError as error:
    raise ConfigurationError("xarray is not installed; pip install 't3vis[xarray]'.") from error

TEXT = "text"
TOKENS = "tokens"
ANALYSIS = "analysis"


def to_xarray(run: Run) -> xr.DataTree:
    """The run as a tree.

    Returns
    -------
    A group for each split, with its recorded arrays, ``labels`` and ``length``; in it the groups ``text`` and, of tasks
    of tokens, ``tokens``. A group ``tokens/p0003`` has one row for each scored token of pass 3, with the id of its
    example. A group ``analysis/<split>/<name>`` is one result. Only results, labels, sizes and names are read at once.
    """
    groups: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=run.attributes)}
    for name, split in run.splits.items():
        groups[name] = _recorded(split)
        groups[f"{name}/{TEXT}"] = _texts(split)
        for record in split.passes if split.ragged_arrays else ():
            groups[f"{name}/{TOKENS}/{schema.pass_name(record.index)}"] = _tokens(split, record.index)
        for result in result_names(run.path, name):
            found = _result(run, name, result)
            if found is not None:
                groups[f"{ANALYSIS}/{name}/{result}"] = found
    return xr.DataTree.from_dict(groups)


class LazyArray(BackendArray):
    """What xarray reads on demand: whatever takes one index for each dimension, each a number, slice or array."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[Any], Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self._read = read

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)


def _lazy(dims: tuple[str, ...], array: LazyArray, attributes: dict[str, Any]) -> xr.Variable:
    return xr.Variable(dims, indexing.LazilyIndexedArray(array), attributes)


def _recorded(split: Split) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for name in split.arrays:
        array = split.array(name)
        if name not in ("labels", "targets", "length"):
            variables[name] = _lazy(
                array.dims, LazyArray(array.shape, array.dtype, array.__getitem__), array.attributes
            )
    labels = split.labels
    variables["labels"] = (("example", "class")[: labels.ndim], labels)
    variables["length"] = ("example", split.length)
    return xr.Dataset(variables, _coordinates(split, variables), split.attributes)


def _coordinates(split: Split, variables: dict[str, Any]) -> dict[str, Any]:
    """Names and numbers of what stands along the dimensions."""
    records = {record.index: record for record in split.passes}
    n_passes = max(records, default=-1) + 1
    found: dict[str, Any] = {"example": pd.RangeIndex(split.n_examples)}
    leading = schema.PASS_DIM[split.kind]
    if any(leading in getattr(variable, "dims", ()) for variable in variables.values()):
        found[leading] = np.arange(n_passes)
        of_pass = [records.get(index) for index in range(n_passes)]
        found["step_of_pass"] = leading, [-1 if record is None else record.step for record in of_pass]
        if split.kind == "eval":
            found["epoch"] = leading, [np.nan if record is None else record.epoch for record in of_pass]
    arrays = split.attributes.get("arrays", {})
    for dim, name in (("layer", "hidden_states"), ("decoder_layer", "decoder_hidden_states")):
        if name in variables:
            found[dim] = arrays.get(name, {}).get("layers", np.arange(variables[name].sizes[dim]))
    if "head_gradients" in variables:
        found["attention"] = np.arange(variables["head_gradients"].shape[1])
        found["module"] = "attention", arrays["head_gradients"]["modules"]
        found["attention_kind"] = "attention", arrays["head_gradients"]["attention"]
    logits = variables.get("logits")
    if split.class_names and logits is not None and len(split.class_names) == logits.shape[-1]:
        found["class"] = split.class_names
    return found


def _texts(split: Split) -> xr.Dataset:
    def read(name: str, key: tuple[Any, ...]) -> Any:
        found = texts[name][key[0]]
        return found if isinstance(found, str) else np.array(found, dtype=object)

    texts = split.text
    variables = {
        name: _lazy(("example",), LazyArray((len(column),), np.dtype(object), partial(read, name)), {})
        for name, column in texts.items()
    }
    return xr.Dataset(variables)


def _tokens(split: Split, index: int) -> xr.Dataset:
    """Scored tokens of one pass, those of an example after those of another."""
    arrays = {name: split.ragged(name) for name in split.ragged_arrays}
    offsets = offsets_of(_n_tokens(split, index, next(iter(arrays))))
    shape = (int(offsets[-1]),)

    def values(name: str, key: tuple[Any, ...]) -> Any:
        return _of_tokens(offsets, key[0], lambda examples: arrays[name][index, examples].values)

    def examples(key: tuple[Any, ...]) -> Any:
        return np.searchsorted(offsets, np.arange(shape[0])[key[0]], side="right") - 1

    variables = {
        name: _lazy(("token",), LazyArray(shape, array.dtype, partial(values, name)), array.attributes)
        for name, array in arrays.items()
    }
    of_example = _lazy(("token",), LazyArray(shape, np.dtype(np.int64), examples), {})
    return xr.Dataset(variables, {"example_id": of_example})


def _n_tokens(split: Split, index: int, name: str) -> NDArray[np.int64]:
    if "n_tokens" in split.arrays:
        return np.asarray(np.maximum(split.array("n_tokens")[index], 0), np.int64)
    lengths: NDArray[np.int64] = split.ragged(name)[index].lengths
    return lengths


def _of_tokens(offsets: NDArray[np.int64], key: Any, read: Callable[[slice], NDArray[Any]]) -> Any:
    """Values of some tokens, of which the examples from the first to the last are read."""
    numbers = np.arange(offsets[-1])[key]
    if not np.size(numbers):
        return read(slice(0, 0))
    first, last = np.searchsorted(offsets, [np.min(numbers), np.max(numbers)], side="right") - 1
    return read(slice(int(first), int(last) + 1))[numbers - offsets[first]]


def _result(run: Run, split: str, name: str) -> xr.Dataset | None:
    """A result of an analysis; it is small beside what it is of, and read at once."""
    found = read_result(run.path, split, name)
    if found is None:
        return None
    dims = {column: _dims(run, split, name, column) for column in found.columns}
    return xr.Dataset(
        {column: (dims[column], values) for column, values in found.columns.items()}, attrs=found.attributes
    )


def _dims(run: Run, split: str, name: str, column: str) -> tuple[str, ...]:
    metadata = schema.read_metadata(run.path / ANALYSIS / split / name / column)
    return tuple(metadata["dimension_names"])
