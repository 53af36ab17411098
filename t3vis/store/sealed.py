"""One sealed array as it lies on disk, read without zarr-python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.layout import RowLayout
from t3vis.store.shard import Buffer, Codec, RowNumbers, read_rows


@dataclass(frozen=True)
class SealedArray:
    """An array of whole shards whose leading axes are chunked by one and whose trailing axes are whole."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float | int
    dims: tuple[str, ...]
    attributes: dict[str, Any]
    layout: RowLayout
    row_axis: int
    decode: Codec | None

    def read(self, leading: tuple[int, ...], rows: RowNumbers) -> NDArray[Any]:
        """Rows (in increasing order, or a range of step 1) of one leading index, shape (n, *trailing)."""
        out = np.empty((len(rows), *self.shape[self.row_axis + 1 :]), self.dtype)
        read_rows(self.path, leading, rows, out, self.layout, self.fill, self.decode)
        return out

    def read_all(self, leading: tuple[int, ...] = ()) -> NDArray[Any]:
        """All rows of one leading index."""
        return self.read(leading, range(self.shape[self.row_axis]))


def open_sealed(path: Path, row_axis: int) -> SealedArray:
    """Open the array at ``path``, whose axis ``row_axis`` counts rows.

    Raises
    ------
    FileNotFoundError
        If no array is there.
    StoreError
        If it is laid out in a way that t3vis does not write.
    """
    metadata = schema.read_metadata(path)
    try:
        sharding = metadata["codecs"][0]["configuration"]
        names = [codec["name"] for codec in sharding["codecs"]]
        shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"][row_axis]
        layout = RowLayout(sharding["chunk_shape"][row_axis], shard_rows)
    except (KeyError, IndexError, TypeError) as error:
        raise StoreError(f"{path} is not an array of sharding_indexed shards, as t3vis writes them.") from error
    fill = metadata["fill_value"]
    return SealedArray(
        path=path,
        shape=tuple(metadata["shape"]),
        dtype=np.dtype(metadata["data_type"]).newbyteorder("<"),
        fill=float("nan") if fill == "NaN" else fill,
        dims=tuple(metadata["dimension_names"]),
        attributes=metadata["attributes"],
        layout=layout,
        row_axis=row_axis,
        decode=_decoder(path, names[1:]),
    )


def _decoder(path: Path, names: list[str]) -> Codec | None:
    if not names:
        return None
    if names != ["zstd"]:
        raise StoreError(f"{path} is encoded with {names}; this version of t3vis reads zstd or no codec.")
    from numcodecs.zstd import Zstd  # needed by few arrays, and slow to import

    return partial(_as_bytes, Zstd().decode)


def _as_bytes(decode: Callable[[Buffer], Any], data: Buffer) -> bytes:
    return bytes(decode(data))
