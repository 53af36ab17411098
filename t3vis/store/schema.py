"""What a run holds: every array by name, with its dimensions, type, fill value and meaning.

This module and ``docs/format.md`` say the same thing; a test compares them. Metadata is written here as plain
Zarr v3 JSON rather than through zarr-python, so that neither the trainer nor the sealing subprocess starts
zarr's event loop; that zarr-python reads it without a warning is tested.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from t3vis.errors import StoreError

FORMAT = "t3vis-run"
FORMAT_VERSION = 1

SplitKind = Literal["train", "eval"]
PASS_DIM: dict[SplitKind, str] = {"train": "epoch", "eval": "evaluation"}
EARLY_DIMS = {"attention": "layer", "decoder_layer": "layer"}
"""What these dimensions were named when a group could have dimensions of one name and several sizes."""


class Node(Protocol):
    """A place in a run: a ``Path``, or its like in a copy at a URL (``storage.RemotePath``). Reading needs no more."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def parent(self) -> Node: ...  # noqa: D102

    def __truediv__(self, name: str, /) -> Node: ...

    def joinpath(self, *names: str) -> Node: ...  # noqa: D102

    def exists(self) -> bool: ...  # noqa: D102

    def is_file(self) -> bool: ...  # noqa: D102

    def read_bytes(self) -> bytes: ...  # noqa: D102

    def glob(self, pattern: str, /) -> Iterable[Node]: ...  # noqa: D102


@dataclass(frozen=True)
class ArraySpec:
    """One array of a split: what a row of it is and means.

    ``leading`` are the dimensions before that of the rows (beside the pass), ``trailing`` those after it. A ragged
    array, whose rows are of different lengths, is stored as the arrays that are its ``parts``.
    """

    name: str
    dtype: str
    fill: float | int
    meaning: str
    leading: tuple[str, ...] = ()
    trailing: tuple[str, ...] = ()
    rows: str = "example"
    is_ragged: bool = False

    def dims(self, kind: SplitKind) -> tuple[str, ...]:
        """Dimensions of the sealed array, outermost first."""
        return (PASS_DIM[kind], *self.leading, self.rows, *self.trailing)

    def segment_dims(self) -> tuple[str, ...]:
        """Dimensions of the array in a segment, whose rows are in order of arrival."""
        return (*self.leading, "row" if self.rows == "example" else self.rows, *self.trailing)

    @property
    def row_axis(self) -> int:
        """Which axis of the sealed array counts rows."""
        return 1 + len(self.leading)

    def n_rows(self, n_examples: int) -> int | None:
        """Size of that axis; ``None`` where the number of examples does not tell."""
        return {"example": n_examples, "offset": n_examples + 1}.get(self.rows)

    @property
    def parts(self) -> tuple[ArraySpec, ...]:
        """The arrays that it is stored as: itself, or the values and offsets of a ragged array."""
        if not self.is_ragged:
            return (self,)
        values = ArraySpec(f"{self.name}/values", self.dtype, self.fill, f"{self.meaning}; {_VALUES}", rows="value")
        return values, ArraySpec(f"{self.name}/offsets", "<i8", -1, _OFFSETS, rows="offset")


_VALUES = "values of one example after those of another"
_OFFSETS = "where the values of each example begin, and after the last one where they end; -1 beyond that"


PASS_ARRAYS: dict[str, ArraySpec] = {
    spec.name: spec
    for spec in (
        ArraySpec(
            "logits",
            "<f4",
            np.nan,
            "outputs of the task head before softmax or sigmoid; NaN where the example was not seen",
            trailing=("class",),
        ),
        ArraySpec(
            "loss",
            "<f4",
            np.nan,
            "the task's own loss of this example, unreduced, from its logits and label: cross-entropy in nats for "
            "single-label and multiple choice, mean binary cross-entropy in nats for multi-label, mean squared error "
            "for regression, mean of the negative log-probabilities of start and end for question answering, mean "
            "negative log-likelihood of the scored tokens for tasks of tokens (its exponential is the perplexity); NaN "
            "where the example was not seen or has no label",
        ),
        ArraySpec(
            "n_tokens",
            "<i4",
            -1,
            "how many tokens of the example were scored; -1 where it was not seen",
        ),
        ArraySpec(
            "token_accuracy",
            "<f4",
            np.nan,
            "fraction of the example's scored tokens that were predicted right; NaN where there are none",
        ),
        ArraySpec(
            "span_logprob",
            "<f4",
            np.nan,
            "log-probabilities, in nats, of the gold start and of the gold end of an answer, among the tokens that are "
            "not padding; NaN where there is none",
            trailing=("edge",),
        ),
        ArraySpec(
            "span_prediction",
            "<i4",
            -1,
            "first and last token of the predicted answer, as positions in the input, padding included: the pair with "
            "the largest sum of logits, the first not after the last; -1 where the example was not seen",
            trailing=("edge",),
        ),
        ArraySpec(
            "span_label",
            "<i4",
            -1,
            "first and last token of the gold answer, as positions in the input, padding included; -1 where there is "
            "none",
            trailing=("edge",),
        ),
        ArraySpec(
            "hidden_states",
            "<f2",
            np.nan,
            "hidden states of each recorded layer, pooled over the example's tokens; index 0 of all layers is the "
            "output of the embeddings; values beyond the range of float16 are saturated; NaN where not seen",
            leading=("layer",),
            trailing=("hidden",),
        ),
        ArraySpec(
            "decoder_hidden_states",
            "<f2",
            np.nan,
            "of an encoder-decoder, hidden states of each recorded layer of the decoder, pooled over its tokens, where "
            "hidden_states are those of the encoder; otherwise like these",
            leading=("decoder_layer",),
            trailing=("hidden",),
        ),
        ArraySpec(
            "head_gradients",
            "<f4",
            np.nan,
            "gradient of the example's own loss with respect to a gate on each attention head, from the backward pass "
            "of the training step: the sum of x * dL/dx over the tokens and the head's values, x being the input of "
            "the output projection; NaN where a layer has fewer heads, and where not known",
            leading=("attention",),
            trailing=("head",),
        ),
        ArraySpec(
            "step",
            "<i8",
            -1,
            "optimizer steps completed when the example was seen; -1 where it was not seen",
        ),
        ArraySpec(
            "visits",
            "<i4",
            0,
            "how often the example was seen in this pass; the other arrays hold the first of these visits",
        ),
        ArraySpec(
            "labels",
            "<i8",
            -1,
            "gold class as it stood in the batch, recorded where the dataset has no label column; -1 where unknown",
        ),
        ArraySpec(
            "targets",
            "<f4",
            np.nan,
            "gold values of a multi-label or regression example as they stood in the batch, recorded where the "
            "dataset has no label column; NaN where unknown",
            trailing=("class",),
        ),
        ArraySpec(
            "length",
            "<i4",
            -1,
            "tokens of the example that are not padding, recorded where the dataset has no token ids; -1 where unknown",
        ),
        ArraySpec(
            "token_position",
            "<i4",
            -1,
            "position of each scored token in the example's labels, padding included; tokens whose label is -100 are "
            "not scored",
            is_ragged=True,
        ),
        ArraySpec(
            "token_label",
            "<i4",
            -1,
            "gold class, or token id, of each scored token",
            is_ragged=True,
        ),
        ArraySpec(
            "token_prediction",
            "<i4",
            -1,
            "class, or token id, with the largest logit at each scored token",
            is_ragged=True,
        ),
        ArraySpec(
            "token_logprob",
            "<f4",
            np.nan,
            "log-probability, in nats, of the gold class or token at each scored token; its negative is the loss there",
            is_ragged=True,
        ),
        ArraySpec(
            "token_entropy",
            "<f4",
            np.nan,
            "entropy, in nats, of the predicted distribution at each scored token",
            is_ragged=True,
        ),
        ArraySpec(
            "token_rank",
            "<i4",
            -1,
            "how many tokens were predicted with a larger logit than the gold one, at each scored token",
            is_ragged=True,
        ),
    )
}

STORED_ARRAYS: dict[str, ArraySpec] = {part.name: part for spec in PASS_ARRAYS.values() for part in spec.parts}
"""The arrays of a pass as they are stored, by their path in the split: ragged ones as values and offsets."""

THINNED = ("hidden_states", "decoder_hidden_states")
"""Arrays of which ``keep_epochs`` keeps the last passes only; they are most of what is recorded."""

EXAMPLE_ID = ArraySpec("example", "<i8", -1, "id of the example that each row of the segment belongs to")


def spec_of(name: str) -> ArraySpec:
    """What an array of a segment is."""
    return EXAMPLE_ID if name == EXAMPLE_ID.name else PASS_ARRAYS[name]


def pass_name(index: int) -> str:
    """Name of one pass (an epoch, or one evaluation), as groups are named: ``p0003``."""
    return f"p{index:04d}"


def rank_name(attempt: int, rank: int) -> str:
    """Name of what one process wrote in one attempt: ``a0000_r0000``."""
    return f"a{attempt:04d}_r{rank:04d}"


def group_metadata(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}


def array_metadata(
    *,
    shape: tuple[int, ...],
    shard_shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    dtype: str,
    fill: float | int,
    dims: tuple[str, ...],
    attributes: dict[str, Any],
    codecs: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    """The ``zarr.json`` of an array of whole ``sharding_indexed`` shards.

    ``codecs`` are the bytes-to-bytes codecs of each inner chunk; none means that a chunk is its plain
    little-endian bytes.
    """
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if isinstance(fill, float) and np.isnan(fill) else fill,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(chunk_shape),
                    "codecs": [little_endian, *codecs],
                    "index_codecs": [little_endian, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": list(dims),
        "attributes": attributes,
        "storage_transformers": [],
    }


def write_metadata(node: Path, metadata: dict[str, Any]) -> None:
    """Create ``node`` if need be and put ``metadata`` there as its ``zarr.json``, whole or not at all."""
    node.mkdir(parents=True, exist_ok=True)
    partial = node / f"zarr.json.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(metadata), encoding="utf-8")
        partial.replace(node / "zarr.json")
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        error.add_note(f"while writing {node / 'zarr.json'}")
        raise


def read_metadata(node: Node) -> dict[str, Any]:
    """The ``zarr.json`` of ``node``.

    Raises
    ------
    FileNotFoundError
        If there is no such node.
    StoreError
        If what is there is not a JSON object.
    """
    raw = (node / "zarr.json").read_bytes()
    try:
        metadata = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{node / 'zarr.json'} is not JSON ({error}); the run is damaged there.") from error
    if not isinstance(metadata, dict):
        raise StoreError(f"{node / 'zarr.json'} is not a JSON object; the run is damaged there.")
    return metadata


def node_exists(node: Node) -> bool:
    """Whether a Zarr group or array stands at ``node``."""
    return (node / "zarr.json").is_file()


def run_attributes(path: Node) -> dict[str, Any]:
    """What the root of the run at ``path`` says of itself.

    Raises
    ------
    StoreError
        If nothing is there, if it is no t3vis run, or if its format is newer than this version of t3vis reads.
    """
    try:
        attributes: dict[str, Any] = read_metadata(path).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError):
        found = "nothing" if not path.exists() else "no zarr.json"
        raise StoreError(
            f"expected a t3vis run at {path}, found {found}; "
            f"check the path that was given to RecorderCallback (it usually ends in .zarr)."
        ) from None
    own = attributes.get("t3vis")
    if not isinstance(own, dict) or own.get("format") != FORMAT:
        raise StoreError(f"{path} is a Zarr group, but not a t3vis run; open it with zarr instead.")
    version = own.get("version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"{path} is a run of format version {version}, this t3vis reads up to {FORMAT_VERSION}; upgrade t3vis."
        )
    return attributes
