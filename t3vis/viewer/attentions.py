"""What the heads of a model attend to in one example: small pictures of all, one in full, one token's row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from t3vis.errors import ProbingError
from t3vis.probing.attention import ORDER, AttentionCall, AttentionReader
from t3vis.probing.encoded import Encoded, stacked
from t3vis.probing.gating import Head
from t3vis.probing.model import device_of
from t3vis.probing.pruning import prune
from t3vis.viewer.framing import framed
from t3vis.viewer.models import Loaded

SIDE = 48
"""Most rows and columns of a small picture; of more tokens, each stands for several, by the greatest of them."""
HELD_BYTES = 160_000_000
"""Weights that were read last are held up to this size: two examples of 512 tokens in a model of 12 x 12 heads."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention of a model in one example.

    ``weights`` is a float16 tensor of shape (n_heads, n_queries, n_keys), ``pictures`` uint8 of (n_heads, rows,
    columns): 255 is the greatest weight of the head, which ``greatest``, shape (n_heads,), holds.
    """

    kind: str
    weights: Tensor
    pictures: NDArray[np.uint8]
    greatest: NDArray[np.float32]


class Attentions:
    """Reads the attention of single examples, and holds what was read last."""

    def __init__(self) -> None:
        self._held: OrderedDict[Any, list[Layer]] = OrderedDict()

    def of(self, loaded: Loaded, example: Encoded, pruned: Iterable[Head]) -> list[Layer]:
        """All layers: of two stacks first the encoder's, then the decoder's, then cross-attention.

        Raises
        ------
        ProbingError
            If the model does not give its attention weights, or has no such heads to prune.
        """
        gone = tuple(sorted(set(pruned)))
        key = (loaded.key, tuple(example.inputs["input_ids"].tolist()), gone)
        if key not in self._held:
            self._held[key] = read(loaded, example, gone)
            while len(self._held) > 1 and sum(map(_size, self._held.values())) > HELD_BYTES:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]


def read(loaded: Loaded, example: Encoded, pruned: Iterable[Head]) -> list[Layer]:
    """Run the model on an example and keep its attention.

    Raises
    ------
    ProbingError
        As ``Attentions.of``.
    """
    found: dict[tuple[int, int], Layer] = {}

    def keep(call: AttentionCall) -> None:
        found[ORDER.index(call.kind), call.index] = _layer(call)

    inputs = stacked([example], pad_id=0, device=device_of(loaded.model))
    with AttentionReader(loaded.model) as reader:
        if pruned:
            with prune(loaded.heads, list(pruned)):
                reader.read(inputs, keep)
        else:
            reader.read(inputs, keep)
    return [found[place] for place in sorted(found)]


def _layer(call: AttentionCall) -> Layer:
    weights = call.weights[0].float()
    shape = [min(n, SIDE) for n in weights.shape[1:]]
    small = F.adaptive_max_pool2d(weights, shape) if shape != list(weights.shape[1:]) else weights
    greatest = small.amax((1, 2))
    scaled = small * (255 / greatest.clamp_min(torch.finfo(torch.float32).tiny))[:, None, None]
    return Layer(
        kind=call.kind,
        weights=weights.half().cpu(),
        pictures=scaled.round().to(torch.uint8).cpu().numpy(),
        greatest=greatest.cpu().numpy(),
    )


def head_of(layers: list[Layer], head: Head) -> Tensor:
    """The weights of one head, shape (n_queries, n_keys).

    Raises
    ------
    ProbingError
        If there is none.
    """
    layer, number = head
    if not (0 <= layer < len(layers) and 0 <= number < len(layers[layer].weights)):
        raise ProbingError(f"there is no head {layer}.{number}; the model has {len(layers)} layers, counted from 0.")
    return layers[layer].weights[number]


def pictured(loaded: Loaded, example: Encoded, layers: list[Layer]) -> bytes:
    """The pictures of all heads, framed: JSON of what they are, then uint8 of each layer."""
    described = [
        {
            "kind": layer.kind,
            "shape": list(layer.pictures.shape),
            "of": list(layer.weights.shape[1:]),
            "greatest": layer.greatest.tolist(),
        }
        for layer in layers
    ]
    said = {"model": loaded.name, "layers": described, "tokens": list(example.tokens), "dtype": "u1"}
    return framed(said, b"".join(layer.pictures.tobytes() for layer in layers))


def _size(layers: list[Layer]) -> int:
    return sum(layer.weights.nbytes + layer.pictures.nbytes for layer in layers)
