"""The neighbours that a map was made of, as a column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from t3vis.example_columns import Rows
from t3vis.exports.table import ArrowColumn
from t3vis.store import schema
from t3vis.store.reader import Run, Split
from t3vis.store.sealed import open_sealed


def neighbours_of(run: Run, split: Split, map_name: str, *, k: int = 15) -> ArrowColumn | None:
    """The nearest examples in the hidden space that a map is of; ``None`` where they are not kept.

    Parameters
    ----------
    map_name
        Such as ``tsne_p0003_l12``.
    k
        How many of them, at most.

    Returns
    -------
    A column ``neighbors`` of structs: ``ids``, example ids, and ``distances``, cosine distances. Null for an example
    that is not on the map.
    """
    group = run.path / "analysis" / split.name / f"neighbours_{map_name.partition('_')[2]}"
    if not schema.node_exists(group):
        return None
    indices, distances = (open_sealed(group / name, 0) for name in ("indices", "distances"))

    def read(rows: Rows) -> pa.Array:
        if isinstance(rows, slice):
            wanted = range(*rows.indices(split.n_examples))
            return _structs(indices.read((), wanted)[:, :k], distances.read((), wanted)[:, :k])
        return _structs(indices.take((), rows)[:, :k], distances.take((), rows)[:, :k])

    return ArrowColumn("neighbors", read)


def _structs(indices: NDArray[np.integer], distances: NDArray[np.floating]) -> pa.Array:
    lengths = np.full(len(indices), indices.shape[1])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    ids = pa.ListArray.from_arrays(offsets, pa.array(indices.ravel().astype(np.int64)))
    far = pa.ListArray.from_arrays(offsets, pa.array(distances.ravel().astype(np.float64)))
    return pa.StructArray.from_arrays([ids, far], ["ids", "distances"], mask=pa.array(indices[:, 0] < 0))
