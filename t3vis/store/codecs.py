"""Compression by name, through codecs that any Zarr v3 reader knows.

``"lz4"`` is blosc with lz4 and bit shuffling. ``"bitround"`` is the same after hidden states were rounded to 7
mantissa bits, which is lossy: a relative error of at most 2**-8. Nothing but hidden states is ever rounded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from t3vis.errors import StoreError
from t3vis.store.shard import Buffer, Codec

Compression = Literal["lz4", "bitround"] | None

COMPRESSIONS: tuple[Compression, ...] = (None, "lz4", "bitround")
LEVEL = 5
ROUNDED_ARRAYS = ("hidden_states", "decoder_hidden_states")
KEPT_MANTISSA_BITS = 7
_FLOAT16_MANTISSA_BITS = 10


def codec_metadata(compression: Compression, dtype: np.dtype[Any]) -> tuple[dict[str, Any], ...]:
    """The bytes-to-bytes codecs of an inner chunk, as ``zarr.json`` names them."""
    if compression is None:
        return ()
    configuration = {
        "cname": "lz4",
        "clevel": LEVEL,
        "shuffle": "bitshuffle",
        "typesize": dtype.itemsize,
        "blocksize": 0,
    }
    return ({"name": "blosc", "configuration": configuration},)


def compression_of(path: Path, metadata: dict[str, Any]) -> Compression:
    """What the chunks of an array are compressed with, given its metadata; values are not rounded anew.

    Raises
    ------
    StoreError
        If it is nothing that t3vis writes.
    """
    inner = metadata["codecs"][0]["configuration"]["codecs"][1:]
    for compression in COMPRESSIONS:
        if inner == list(codec_metadata(compression, np.dtype(metadata["data_type"]))):
            return compression
    raise StoreError(f"{path} is encoded with {inner}; this version of t3vis cannot add a pass to it.")


def encoder(compression: Compression, dtype: np.dtype[Any]) -> Codec | None:
    """What turns the bytes of an inner chunk into those of its codec; none leaves them as they are."""
    if compression is None:
        return None
    from numcodecs.blosc import BITSHUFFLE, Blosc  # slow to import, and not needed without compression

    codec = Blosc(cname="lz4", clevel=LEVEL, shuffle=BITSHUFFLE)
    typesize = dtype.itemsize

    def encode(chunk: Buffer) -> bytes:
        encoded: bytes = codec.encode(np.frombuffer(chunk, f"V{typesize}"))
        return encoded

    return encode


def rounded(compression: Compression, name: str, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of one array as they are stored: rounded, if that was asked for and they are hidden states."""
    if compression == "bitround" and name in ROUNDED_ARRAYS:
        return bitrounded(rows)
    return rows


def bitrounded(values: NDArray[np.float16]) -> NDArray[np.float16]:
    """Round to 7 mantissa bits, half to even; NaN and infinities stay, and nothing finite becomes infinite.

    References
    ----------
    Klöwer et al. (2021), "Compressing atmospheric data into its real information content", round to nearest.

    Examples
    --------
    >>> bitrounded(np.array([1.0, 1.0009765625, 1.005859375, np.nan], np.float16))
    array([1.   , 1.   , 1.008,   nan], dtype=float16)
    """
    dropped = _FLOAT16_MANTISSA_BITS - KEPT_MANTISSA_BITS
    bits = np.ascontiguousarray(values).view(np.uint16)
    mask = np.uint16(0xFFFF ^ ((1 << dropped) - 1))
    result = bits >> dropped
    result &= 1
    result += bits
    result += np.uint16((1 << (dropped - 1)) - 1)
    result &= mask
    magnitude = bits & 0x7FFF
    extreme = magnitude >= np.uint16(0x7C00 - (1 << (dropped - 1)))  # would become infinite, or is not finite
    if extreme.any():
        towards_zero = np.where(magnitude < 0x7C00, bits & mask, bits)
        result[extreme] = towards_zero[extreme]
    return result.view(np.float16)
