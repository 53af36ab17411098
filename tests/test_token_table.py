"""The data map of tokens, by hand, from real stores on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from t3vis import AnalysisError, StoreError, open_run
from t3vis.store.ragged import Ragged
from t3vis.store.seal import seal_pass
from t3vis.token_table import token_table
from tests.store.recordings import new_run, rows_of

TOKENS = {0: [(1, 5), (2, 6)], 1: [], 2: [(0, 7)], 3: [(4, 5)]}  # of each example, position and label of its tokens


def rows(examples: list[int], step: int, said: dict[int, list[tuple[float, int]]]) -> dict[str, np.ndarray | Ragged]:
    """A batch in which these probabilities of the label, and predictions, were found."""
    places = [np.array(TOKENS[i], np.int32).reshape(-1, 2).T for i in examples]
    found = [np.array(said.get(i, []), np.float64).reshape(-1, 2).T for i in examples]
    return {
        **rows_of(examples, step, tokens=False),
        "token_position": Ragged.of([place[0] for place in places], np.int32),
        "token_label": Ragged.of([place[1] for place in places], np.int32),
        "token_logprob": Ragged.of([np.log(part[0]) for part in found], np.float32),
        "token_prediction": Ragged.of([part[1] for part in found], np.int32),
    }


def recorded(path: Path) -> None:
    """Two epochs, one sealed, the other in segments; example 2 is not seen in the second, example 3 in neither."""
    writer = new_run(path, n_examples=4)
    writer.log("train", rows([2, 0, 1], 0, {0: [(0.25, 9), (0.5, 6)], 2: [(0.125, 8)]}))
    writer.flush()
    seal_pass(path, "train", 0)
    writer.begin_pass("train", 1, {"epoch": 1, "step": 1})
    writer.log("train", rows([1, 0], 1, {0: [(0.75, 5), (1.0, 4)]}))
    writer.flush()


def test_every_token_has_a_row(tmp_path: Path) -> None:
    recorded(tmp_path / "run")
    table = token_table(open_run(tmp_path / "run").train)
    assert table.offsets.tolist() == [0, 2, 2, 3, 3]
    assert table.example.tolist() == [0, 0, 2]
    assert table.position.tolist() == [1, 2, 0]
    assert table.label.tolist() == [5, 6, 7]
    assert table.prediction.tolist() == [5, 4, 8]
    np.testing.assert_allclose(table.data_map.confidence, [0.5, 0.75, 0.125])
    np.testing.assert_allclose(table.data_map.variability, [0.25, 0.25, 0])
    np.testing.assert_allclose(table.data_map.correctness, [0.5, 0.5, 0])
    assert table.data_map.forgetting_events.tolist() == [0, 1, 0]
    assert table.data_map.n_seen.tolist() == [2, 2, 1]
    assert table.hardest(2).tolist() == [2, 0]


@pytest.mark.parametrize("other", [[(1, 5), (3, 6)], [(1, 5), (2, 4)], [(1, 5)]], ids=["position", "label", "number"])
def test_tokens_that_are_others_in_another_epoch(
    other: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = new_run(tmp_path / "run", n_examples=4)
    with monkeypatch.context() as patch:
        patch.setitem(TOKENS, 0, other)
        writer.log("train", rows([0], 0, {0: [(0.5, 5)] * len(other)}))
    writer.begin_pass("train", 1, {"epoch": 1, "step": 1})
    writer.log("train", rows([0], 1, {0: [(0.5, 5)] * 2}))
    writer.flush()
    with pytest.raises(AnalysisError, match=r"example 0 has other tokens in pass [01] than in another pass, as where"):
        token_table(open_run(tmp_path / "run").train)


def test_a_run_without_tokens(tmp_path: Path) -> None:
    writer = new_run(tmp_path / "run")
    writer.log("train", rows_of([0], 0, tokens=False))
    writer.flush()
    with pytest.raises(StoreError, match="holds no token_position"):
        token_table(open_run(tmp_path / "run").train)
