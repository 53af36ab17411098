"""Whose tokens are whose: batches without padding, pairs, and outputs of the wrong number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t3vis.callbacks.batches import Batch
from t3vis.errors import ConfigurationError


def batch(n: int, positions: list[int] | None = None, *, mask: Tensor | None = None, paired: bool = False) -> Batch:
    given = None if positions is None else torch.tensor([positions])
    return Batch(torch.arange(n), None, mask, None, training=True, position_ids=given, paired=paired)


def test_a_row_without_padding_is_split_where_positions_begin_anew() -> None:
    found = batch(3, [0, 1, 2, 0, 0, 1]).split_up()
    assert found.lengths == [3, 1, 2]
    assert found.mask is not None
    assert found.mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    own = found.own(torch.arange(12.0).view(1, 6, 2), "states")
    assert own[:, :, 0].tolist() == [[0, 2, 4], [6, 0, 0], [8, 10, 0]]


def test_other_batches_are_left_alone() -> None:
    for other in (batch(2), batch(1, [0, 1], mask=torch.ones(1, 2))):
        assert other.split_up() is other
    rows = Batch(torch.arange(2), None, None, None, training=True, position_ids=torch.tensor([[0, 1], [0, 1]]))
    assert rows.split_up() is rows
    assert rows.own(STATES, "states") is not None


STATES = torch.arange(8.0).view(2, 2, 2)


@pytest.mark.parametrize("positions", [[0, 1, 0, 1, 0, 1], [0, 1, 2, 3], [1, 2, 0]])
def test_more_or_fewer_sequences_than_examples(positions: list[int]) -> None:
    n_found = positions.count(0)
    with pytest.raises(ConfigurationError, match=f"holds {n_found} sequences for 2 examples of the dataset"):
        batch(2, positions).split_up()


def test_the_chosen_ones_of_pairs() -> None:
    assert batch(1, paired=True).own(STATES, "states").tolist() == STATES[:1].tolist()
    with pytest.raises(ConfigurationError, match="2 rows of states for 2 examples"):
        batch(2, paired=True).own(STATES, "states")
    with pytest.raises(ConfigurationError, match="2 rows of states for 3 examples"):
        batch(3).own(STATES, "states")
