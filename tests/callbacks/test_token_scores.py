"""Scores of tokens: by hand, against a plain log_softmax in float64, and in bounded memory."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t3vis.callbacks import token_scores as module
from t3vis.callbacks.token_scores import CHUNK_VALUES, TokenScores, token_scores

THIRDS = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))


def all_scores(logits: Tensor, gold: Tensor) -> TokenScores:
    """Scores of every token."""
    rows, columns = torch.ones_like(gold).nonzero(as_tuple=True)
    return token_scores(logits, rows, columns, gold.flatten())


def test_by_hand() -> None:
    scores = all_scores(THIRDS, torch.tensor([[0, 2]]))
    torch.testing.assert_close(scores.logprob, torch.tensor([math.log(0.5), math.log(0.1)]))
    assert scores.prediction.tolist() == [0, 1]
    assert scores.rank.tolist() == [0, 1]  # 0.8 is before it; an equal score is not
    entropy = [1.5 * math.log(2), -0.8 * math.log(0.8) - 0.2 * math.log(0.1)]
    torch.testing.assert_close(scores.entropy, torch.tensor(entropy))


def test_only_the_tokens_that_are_asked_for() -> None:
    scores = token_scores(THIRDS, torch.tensor([0]), torch.tensor([1]), torch.tensor([1]))
    torch.testing.assert_close(scores.logprob, torch.tensor([math.log(0.8)]))


def test_no_tokens() -> None:
    none = torch.empty(0, dtype=torch.int64)
    scores = token_scores(THIRDS, none, none, none)
    assert [len(values) for values in vars(scores).values()] == [0, 0, 0, 0]


def test_classes_that_are_ruled_out() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf], [0.0, 0.0, -torch.inf]]])
    scores = all_scores(logits, torch.tensor([[0, 2]]))
    torch.testing.assert_close(scores.logprob, torch.tensor([-math.log(2), -torch.inf]))
    torch.testing.assert_close(scores.entropy, torch.full((2,), math.log(2)))
    assert scores.rank.tolist() == [0, 2]


@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 40)),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 3000.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    chunk_values=st.integers(1, 100),
)
@settings(deadline=None)
def test_equal_to_a_plain_log_softmax(
    seed: int, shape: tuple[int, int, int], scale: float, dtype: torch.dtype, chunk_values: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(shape, generator=generator)).to(dtype)
    before = logits.clone()
    gold = torch.randint(shape[2], shape[:2], generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_VALUES", chunk_values)
        scores = all_scores(logits, gold)
    assert torch.equal(logits, before)
    exact = logits.float().double().log_softmax(-1)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(scores.logprob, exact.gather(2, gold[..., None]).flatten(), **close)
    np.testing.assert_allclose(scores.entropy, torch.special.entr(exact.exp()).sum(-1).flatten(), **close)
    of_gold = logits.gather(2, gold[..., None])
    assert scores.rank.tolist() == (logits.float() > of_gold.float()).sum(-1).flatten().tolist()
    assert scores.prediction.tolist() == logits.float().argmax(-1).flatten().tolist()
    assert (scores.logprob <= 0).all()
    assert (scores.entropy >= -1e-5).all()


class Allocations(TorchDispatchMode):
    """The largest tensor that was made, and the most bytes that were alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self._count(made)
        return result

    def _count(self, made: Tensor) -> None:
        n_bytes = made.untyped_storage().nbytes()
        self._alive += n_bytes
        self.largest, self.peak = max(self.largest, n_bytes), max(self.peak, self._alive)
        weakref.finalize(made.untyped_storage(), self._free, n_bytes)

    def _free(self, n_bytes: int) -> None:
        self._alive -= n_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_bounded_by_the_chunk(dtype: torch.dtype) -> None:
    """No temporary is larger than a chunk in float32, and never are there more than two of them."""
    n_classes = 5000
    logits = torch.zeros(2, 1 + CHUNK_VALUES // n_classes, n_classes, dtype=dtype)
    gold = torch.zeros(logits.shape[:2], dtype=torch.int64)
    with Allocations() as allocations:
        all_scores(logits, gold)
    assert logits.numel() > 2 * CHUNK_VALUES
    assert 2 * CHUNK_VALUES < allocations.largest <= 4 * CHUNK_VALUES
    assert allocations.largest < allocations.peak <= 2.1 * 4 * CHUNK_VALUES
