"""Sealed arrays of a run as Dask arrays, whose chunks are the shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.sealed import open_sealed

if TYPE_CHECKING:
    from dask.array import Array

    from t3vis.store.split import Split


def dask_array(split: Split, name: str) -> Array:
    """One recorded array as a Dask array with a chunk for each shard; see ``Split.to_dask``.

    Its name in the graph is that of its content: a pass that was sealed anew makes another one.

    Raises
    ------
    StoreError
        If nothing of that name has been recorded, a pass is not sealed yet, or Dask is not installed.
    """
    try:
        from dask.array import from_array
        from dask.base import tokenize
    except ImportError as error:
        raise StoreError("to_dask needs Dask; install it with: pip install 't3vis[dask]'.") from error
    recorded = split.array(name)
    passes = split.passes
    unsealed = [record.index for record in passes if not record.sealed]
    if unsealed:
        raise StoreError(
            f"passes {unsealed} of {split.path} are not sealed, and only sealed ones have shards to read apart; wait "
            "until they are, or seal them with t3vis repair (with --incomplete if training is not to be resumed)."
        )
    row_axis = schema.PASS_ARRAYS[name].row_axis
    shape = recorded.shape
    chunks = [1] * row_axis + list(shape[row_axis:])
    chunks[row_axis] = min(open_sealed(split.path / name, row_axis).layout.shard_rows, max(shape[row_axis], 1))
    content = tokenize(str(split.path), name, shape, [record.attributes for record in passes])
    return from_array(
        recorded,
        chunks=tuple(chunks),
        name=f"t3vis-{name}-{content}",
        asarray=False,
        inline_array=True,
        meta=np.empty((0,) * len(shape), recorded.dtype),
    )
