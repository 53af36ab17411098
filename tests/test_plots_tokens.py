"""Figures of tokens: the numbers that are given stand where they belong."""

import numpy as np
import pytest

from t3vis.errors import AnalysisError
from t3vis.plots import write_figure
from t3vis.plots_tokens import plot_tokens

VALUES = np.array([[0.5, -1.0, 0.0], [0.25, 2.0, -0.125]])
TOKENS = ["good", "$x$", " "]


def test_every_value_stands_in_its_cell(tmp_path):
    figure = plot_tokens(VALUES, TOKENS, columns=["before", "after"], notes=["a", "b"], title="Example $1$")
    (ax,) = figure.axes
    cells = {(round(t.get_position()[0]), round(t.get_position()[1])): t.get_text() for t in ax.texts[:6]}
    assert cells == {(c, t): f"{VALUES[c, t]:+.2f}" for c in range(2) for t in range(3)}
    assert [label.get_text() for label in ax.get_yticklabels()] == ["good", "$x$", "' '"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["before", "after"]
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), VALUES.T)
    assert image.norm(0) == 0.5
    write_figure(figure, tmp_path / "tokens.png")
    boxes = [text.get_window_extent() for text in (*ax.get_yticklabels(), *ax.get_xticklabels(), *figure.texts)]
    for box in boxes:
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0)
        assert figure.bbox.containsy(box.y1)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(AnalysisError, match=r"shape \(2, 3\); expected \(1, 3\)"):
        plot_tokens(VALUES, TOKENS, columns=["one"])
    with pytest.raises(AnalysisError, match="200 tokens cannot be drawn"):
        plot_tokens(np.zeros((1, 200)), ["a"] * 200, columns=["one"])
    with pytest.raises(AnalysisError, match="not finite"):
        plot_tokens(np.full((1, 3), np.nan), TOKENS, columns=["one"])
