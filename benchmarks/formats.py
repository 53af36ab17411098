"""Other ways to keep a matrix for each layer on disk: written, read in full, and read by row, as their users would.

Used by ``bench_store.py``. Each format is a function that writes an array of shape (n_layers, n_rows, n_columns),
float16, into a folder, and one that opens it. Those that have chunks and shards get those of t3vis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS, SHARD_ROWS = 1024, 42 * 1024  # for 384 values of float16


@dataclass(frozen=True)
class Opened:
    """A written file, ready to be read: one layer in full, or chosen rows of it."""

    layer: Callable[[int], NDArray[Any]]
    rows: Callable[[int, NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True)
class Format:
    """How to write and how to open; ``package`` has to be installed, with NumPy and Zarr."""

    name: str
    write: Callable[[Path, NDArray[Any]], None]
    open: Callable[[Path], Opened]
    package: str | None = None


def available() -> tuple[dict[str, Format], list[str]]:
    """The formats that can be timed here by name, and the names of those whose package is missing."""
    there = {known.name: known for known in FORMATS if known.package is None or find_spec(known.package)}
    return there, [known.name for known in FORMATS if known.name not in there]


def write_npy(folder: Path, states: NDArray[Any]) -> None:
    np.save(folder / "states.npy", states)


def write_memmap(folder: Path, states: NDArray[Any]) -> None:
    target = np.lib.format.open_memmap(folder / "states.npy", "w+", states.dtype, states.shape)
    target[:] = states
    target.flush()


def open_memmap(folder: Path) -> Opened:
    states = np.load(folder / "states.npy", mmap_mode="r")
    return Opened(lambda layer: np.array(states[layer]), lambda layer, rows: states[layer][rows])


def zarr_array(folder: Path, mode: str, shape: tuple[int, ...] | None = None, pipeline: str | None = None) -> Any:
    import zarr

    path = pipeline or "zarr.core.codec_pipeline.BatchedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": path}):
        if shape is None:
            return zarr.open_array(folder / "states.zarr", mode=mode)
        return zarr.create_array(
            folder / "states.zarr",
            shape=shape,
            dtype="float16",
            shards=(1, SHARD_ROWS, shape[2]),
            chunks=(1, CHUNK_ROWS, shape[2]),
            compressors=None,
            fill_value=float("nan"),
        )


def write_zarr(folder: Path, states: NDArray[Any], pipeline: str | None = None) -> None:
    zarr_array(folder, "w", states.shape, pipeline)[:] = states


def open_zarr(folder: Path, pipeline: str | None = None) -> Opened:
    states = zarr_array(folder, "r", pipeline=pipeline)
    return Opened(lambda layer: states[layer], lambda layer, rows: states.oindex[layer, rows])


def tensorstore_spec(folder: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "states.zarr") + "/"}}


def write_tensorstore(folder: Path, states: NDArray[Any]) -> None:
    import tensorstore

    bytes_codec = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [1, CHUNK_ROWS, states.shape[2]],
        "codecs": [bytes_codec],
        "index_codecs": [bytes_codec, {"name": "crc32c"}],
    }
    metadata = {
        "shape": states.shape,
        "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, SHARD_ROWS, states.shape[2]]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    store = tensorstore.open({**tensorstore_spec(folder), "metadata": metadata}, create=True).result()
    store.write(states).result()


def open_tensorstore(folder: Path) -> Opened:
    import tensorstore

    store = tensorstore.open(tensorstore_spec(folder)).result()
    return Opened(
        lambda layer: store[layer].read().result(), lambda layer, rows: store[layer].oindex[rows].read().result()
    )


def write_hdf5(folder: Path, states: NDArray[Any], chunks: bool) -> None:
    import h5py

    with h5py.File(folder / "states.h5", "w") as file:
        file.create_dataset("states", data=states, chunks=(1, CHUNK_ROWS, states.shape[2]) if chunks else None)


def open_hdf5(folder: Path) -> Opened:
    import h5py

    states = h5py.File(folder / "states.h5")["states"]

    def rows(layer: int, numbers: NDArray[np.int64]) -> NDArray[Any]:
        wanted, inverse = np.unique(numbers, return_inverse=True)  # it takes increasing numbers only
        return np.asarray(states[layer, wanted])[inverse]

    return Opened(lambda layer: states[layer], rows)


def as_table(states: NDArray[Any]) -> Any:
    import pyarrow

    width = states.shape[2]
    columns = [pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(layer.reshape(-1)), width) for layer in states]
    return pyarrow.table({f"layer_{number}": column for number, column in enumerate(columns)})


def as_matrix(column: Any) -> NDArray[Any]:
    flat = column.combine_chunks()
    if hasattr(flat, "chunks"):
        flat = flat.chunk(0)
    return np.asarray(flat.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def write_parquet(folder: Path, states: NDArray[Any]) -> None:
    import pyarrow.parquet

    options = {"row_group_size": SHARD_ROWS, "compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(as_table(states), folder / "states.parquet", **options)


def open_parquet(folder: Path) -> Opened:
    import pyarrow.parquet

    def layer_of(layer: int) -> NDArray[Any]:
        name = f"layer_{layer}"
        return as_matrix(pyarrow.parquet.read_table(folder / "states.parquet", columns=[name])[name])

    return Opened(layer_of, lambda layer, rows: layer_of(layer)[rows])


def write_lance(folder: Path, states: NDArray[Any]) -> None:
    import lance

    lance.write_dataset(as_table(states), folder / "states.lance")


def open_lance(folder: Path) -> Opened:
    import lance

    dataset = lance.dataset(folder / "states.lance")

    def layer_of(layer: int) -> NDArray[Any]:
        return as_matrix(dataset.to_table(columns=[f"layer_{layer}"])[f"layer_{layer}"])

    def rows_of(layer: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        return as_matrix(dataset.take(rows.tolist(), columns=[f"layer_{layer}"])[f"layer_{layer}"])

    return Opened(layer_of, rows_of)


ZARRS = "zarrs.ZarrsCodecPipeline"
FORMATS = (
    Format("npy memmap", write_memmap, open_memmap),
    Format("zarr-python", write_zarr, open_zarr),
    Format("zarr with zarrs", partial(write_zarr, pipeline=ZARRS), partial(open_zarr, pipeline=ZARRS), "zarrs"),
    Format("tensorstore", write_tensorstore, open_tensorstore, "tensorstore"),
    Format("h5py contiguous", partial(write_hdf5, chunks=False), open_hdf5, "h5py"),
    Format("h5py chunked", partial(write_hdf5, chunks=True), open_hdf5, "h5py"),
    Format("Parquet", write_parquet, open_parquet, "pyarrow"),
    Format("Lance", write_lance, open_lance, "lance"),
)
