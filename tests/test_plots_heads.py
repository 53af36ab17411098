from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from t3vis.analysis.head_importance import HeadImportance, mean_importance
from t3vis.errors import AnalysisError
from t3vis.plots_heads import plot_heads, plot_pruning


def importance(shift: float = 0.0, shape: tuple[int, int] = (3, 4)) -> HeadImportance:
    values = np.random.default_rng(0).normal(size=(shape[0], 40, shape[1])) + shift
    return mean_importance(values)


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_every_head_has_its_number_and_place() -> None:
    loss = importance()
    loss.value[0, 0] = -0.25
    figure = plot_heads({"gate": importance(3), "loss_change": loss}, title="a run", notes=["a note"])
    of_gate, _, of_loss, _ = figure.axes
    assert len(texts(of_gate)) == len(texts(of_loss)) == 12
    assert texts(of_loss)[0].startswith("-.25")
    np.testing.assert_array_equal(of_loss.images[0].get_array(), loss.value)
    assert of_loss.images[0].get_clim() == (-np.abs(loss.value).max(), np.abs(loss.value).max())
    assert of_gate.images[0].get_clim()[0] == 0
    assert of_gate.get_ylim()[0] < of_gate.get_ylim()[1]
    assert figure._suptitle.get_text() == "a run"
    assert "a note" in figure.texts[-1].get_text()


def test_dots_mark_what_is_not_chance() -> None:
    score = importance()
    figure = plot_heads({"loss_change": score}, which=["loss_change"])
    n_sure = int(((score.low > 0) | (score.high < 0)).sum())
    assert len(figure.axes[0].lines) == n_sure


def test_layers_of_two_stacks_are_named_and_gaps_stay_empty() -> None:
    score = importance()
    score.value[2, 3] = np.nan
    ax = plot_heads({"gate": score}, which=["gate"], attention=["encoder", "decoder", "cross"]).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["encoder 0", "decoder 1", "cross 2"]
    assert len(texts(ax)) == 11


def test_many_heads_are_drawn_without_numbers() -> None:
    assert texts(plot_heads({"gate": importance(shape=(32, 40))}).axes[0]) == []


def curve(name: str, n: int = 4) -> Any:
    score = np.linspace(0.9, 0.5, n)
    return SimpleNamespace(
        order=[(0, 0)] * (n - 1),
        n_pruned=np.arange(n),
        loss=1 - score,
        score=score,
        score_low=score - 0.1,
        score_high=score + 0.1,
        n_examples=12,
    )


def test_a_line_for_each_order() -> None:
    figure = plot_pruning({"greedy": curve("greedy"), "by importance": curve("by importance")})
    of_score, of_loss = figure.axes
    assert [line.get_label() for line in of_score.lines] == ["greedy", "by importance"]
    np.testing.assert_allclose(of_loss.lines[1].get_ydata(), [0.1, 0.1 + 0.4 / 3, 0.1 + 0.8 / 3, 0.5])
    assert {line.get_linestyle() for line in of_score.lines} == {"-", "--"}
    assert "12 examples" in figure.texts[-1].get_text()


def test_nothing_to_draw() -> None:
    with pytest.raises(AnalysisError, match="there is no pruning curve"):
        plot_pruning({})
    with pytest.raises(AnalysisError, match="none of gate, loss_change is known of any head; known are: removal"):
        plot_heads({"removal": importance()})
