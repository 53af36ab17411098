"""The examples of a split as Arrow: recorded values, results of analyses and texts side by side, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t3vis.analyze import current_results
from t3vis.analyze_projection import kept_projection
from t3vis.errors import AnalysisError
from t3vis.example_columns import Column, Rows, columns_of
from t3vis.store import schema
from t3vis.store.examples import RaggedColumn
from t3vis.store.reader import Run, Split

ROWS = 10_000
"""Examples that are read at a time."""
EXAMPLE = "example"
NAMES = {"score": "suspicion"}
"""Columns that have another name beside those of other analyses."""


@dataclass(frozen=True)
class ArrowColumn:
    """A named column, of which some rows can be read; what has to be computed is computed before the first of them."""

    name: str
    read: Callable[[Rows], pa.Array]

    @property
    def is_nested(self) -> bool:
        """Whether it holds several values for each example."""
        return bool(pa.types.is_nested(self.read(slice(0, 0)).type))


def table(run: Run, split: Split, *, epoch: int = -1, columns: Sequence[str] | None = None) -> pa.Table:
    """What is known of every example; see `Run.table`."""
    read = arrow_columns(run, split, epoch=epoch, columns=columns)
    return pa.Table.from_batches(batches(read, split.n_examples))


def batches(
    columns: Sequence[ArrowColumn], n_examples: int, ids: NDArray[np.int64] | None = None
) -> Iterator[pa.RecordBatch]:
    """Columns in the order of the example ids, or of the ids that are given; at least one batch, which may be empty."""
    size = n_examples if ids is None else len(ids)
    for start in range(0, max(size, 1), ROWS):
        stop = min(start + ROWS, size)
        rows: Rows = slice(start, stop) if ids is None else ids[start:stop]
        yield pa.RecordBatch.from_arrays([column.read(rows) for column in columns], [column.name for column in columns])


def arrow_columns(
    run: Run, split: Split, *, epoch: int = -1, columns: Sequence[str] | None = None
) -> list[ArrowColumn]:
    """The columns of those names, ids first; see `Run.table`.

    Raises
    ------
    AnalysisError
        If one is not there, or cannot be computed.
    """
    made = _Columns(run, split, epoch)
    wanted = made.default() if columns is None else [EXAMPLE, *(name for name in columns if name != EXAMPLE)]
    return [made.of(name) for name in wanted]


def default_columns(run: Run, split: Split, *, epoch: int = -1) -> list[str]:
    """Names of the columns of a table of which none are named."""
    return _Columns(run, split, epoch).default()


def available(run: Run, split: Split, *, epoch: int = -1) -> list[str]:
    """Names of all columns."""
    return _Columns(run, split, epoch).names()


def of_catalogue(column: Column, name: str) -> ArrowColumn:
    """A column of the catalogue: categories as their names, missing values as nulls.

    Raises
    ------
    AnalysisError
        If it cannot be computed.
    """
    if column.is_by_rows:
        return ArrowColumn(name, lambda rows: _as_arrow(column, column.read(rows)))
    whole = _as_arrow(column, column.values())
    return ArrowColumn(name, lambda rows: whole[rows] if isinstance(rows, slice) else whole.take(pa.array(rows)))


def of_texts(split: Split, taken: Collection[str]) -> dict[str, ArrowColumn]:
    """The text columns by their names; one whose name is taken is called ``<name>_text``."""
    named = {f"{name}_text" if name in taken else name: texts for name, texts in split.text.items()}
    return {name: ArrowColumn(name, partial(_texts, texts)) for name, texts in named.items()}


def ids_of_rows(n_examples: int) -> ArrowColumn:
    """The column ``example``."""

    def read(rows: Rows) -> pa.Array:
        return pa.array(np.arange(n_examples)[rows] if isinstance(rows, slice) else rows, pa.int64())

    return ArrowColumn(EXAMPLE, read)


def pass_index(split: Split, epoch: int) -> int:
    """The number of a pass; negative counts from the last.

    Raises
    ------
    AnalysisError
        If it was not recorded.
    """
    indices = [record.index for record in split.passes]
    if epoch in indices:
        return epoch
    if -len(indices) <= epoch < 0:
        return indices[epoch]
    raise AnalysisError(f"{split.path} holds no pass {epoch}; it holds: {', '.join(map(str, indices)) or 'none'}.")


def vectors(values: NDArray[np.floating]) -> pa.Array:
    """Rows of shape (n, size) as lists of that size; a row that is not known, all NaN, is null."""
    known = ~np.isnan(values).all(axis=1)
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pa.array(~known))


class _Columns:
    """Finds the columns of a split by the names that they have in a table of one pass."""

    def __init__(self, run: Run, split: Split, epoch: int) -> None:
        self._run = run
        self._split = split
        self._index = pass_index(split, epoch) if split.passes or epoch != -1 else None
        self._known = {self._name(column): column for column in columns_of(run, split)}
        self._map = kept_projection(run, split) if split.layers else None
        self._made = {EXAMPLE: ids_of_rows(split.n_examples), **self._recorded(), **self._coordinates()}
        self._texts = of_texts(split, {*self._known, *self._made})
        self._kept = current_results(run, split)

    def default(self) -> list[str]:
        """Ids, texts and labels, what was recorded of the pass, and the results of the analyses that have been made."""
        analyses = [name for name, column in self._known.items() if column.is_analysis and self._is_kept(column)]
        plain = [name for name, column in self._known.items() if not column.is_analysis and "@" not in name]
        recorded = [name for name in self._made if name not in (EXAMPLE, *"xy") and "hidden_states" not in name]
        return [EXAMPLE, *self._texts, *plain, *recorded, *analyses, *(axis for axis in "xy" if axis in self._made)]

    def of(self, name: str) -> ArrowColumn:
        """The column of that name."""
        column = self._known.get(name)
        if column is not None:
            return of_catalogue(column, name)
        made = {**self._made, **self._texts}
        if name not in made:
            there = [known for known in self.names() if ":" not in known and "@" not in known]
            raise AnalysisError(f"{self._split.path} holds no column {name!r}; it holds: {', '.join(there)}.")
        return made[name]

    def names(self) -> list[str]:
        """All of them."""
        return [*self._made, *self._texts, *self._known]

    def _name(self, column: Column) -> str:
        """The name without its pass, if that is the one that is asked for."""
        of_this = column.pass_index is not None and column.pass_index == self._index
        name = column.id.removesuffix(f"@{self._index}") if of_this else column.id
        return NAMES.get(name, name)

    def _is_kept(self, column: Column) -> bool:
        if column.pass_index is not None:
            of_pass = column.pass_index == self._index and column.layer is None
            return of_pass and f"outliers_{schema.pass_name(column.pass_index)}" in self._kept
        return column.group == "data map" or _RESULTS[column.group] in self._kept

    def _recorded(self) -> dict[str, ArrowColumn]:
        """Arrays of the pass that are no columns of the catalogue."""
        split, index = self._split, self._index
        found: dict[str, Callable[[Rows], pa.Array]] = {}
        labels = split.labels
        if labels.ndim == 2:
            found["label"] = lambda rows: vectors(labels[rows])
        for name in split.arrays if index is not None else ():
            spec, array = schema.PASS_ARRAYS[name], split.array(name)
            if name in self._known or name in ("labels", "targets", "length") or spec.leading:
                continue
            as_column = vectors if spec.trailing else _numbers
            found[name] = partial(lambda array, as_column, rows: as_column(array[index, rows]), array, as_column)
        for number, layer in enumerate(split.layers if index is not None else ()):
            states = partial(lambda number, rows: vectors(split.hidden_states[index, number, rows]), number)
            found |= {f"hidden_states:{layer}": states, "hidden_states": states}
        return {name: ArrowColumn(name, read) for name, read in found.items()}

    def _coordinates(self) -> dict[str, ArrowColumn]:
        if self._map is None:
            return {}
        return {
            axis: ArrowColumn(axis, partial(lambda values, rows: _numbers(values[rows]), values))
            for axis, values in zip("xy", self._map.coordinates.T, strict=True)
        }


_RESULTS = {
    "label quality": "label_quality", "difficulty": "difficulty", "outliers": "outliers", "change": "drift",
}  # fmt: skip


def _numbers(values: NDArray[np.generic], *, is_count: bool = False) -> pa.Array:
    if values.dtype.kind != "f":
        return pa.array(values)
    unknown = np.isnan(values)
    if is_count:
        return pa.array(np.where(unknown, 0, values).astype(np.int64), mask=unknown)
    return pa.array(values, mask=unknown)


def _as_arrow(column: Column, values: NDArray[np.generic]) -> pa.Array:
    if column.kind != "category" or values.dtype == bool:
        return _numbers(values, is_count=column.is_count)
    names = np.array([*column.categories, None], dtype=object)
    codes = values.astype(np.int64)
    known = (codes >= 0) & (codes < len(column.categories))
    return pa.array(names[np.where(known, codes, -1)], pa.string())


def _texts(texts: RaggedColumn, rows: Rows) -> pa.Array:
    if not isinstance(rows, slice):
        return pa.array(texts[rows], pa.string())
    start, stop, _ = rows.indices(len(texts))
    values, offsets = texts.encoded(start, stop)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets, np.int64)), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.large_string(), stop - start, buffers).cast(pa.string())
