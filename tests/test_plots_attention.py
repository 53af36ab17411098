"""The figures of attention: what is drawn in them, and that all of it is on the page."""

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from t3vis.errors import AnalysisError
from t3vis.plots_attention import COLORS, plot_attention, plot_head_patterns, plot_offsets
from tests.analysis.test_attention_patterns import made_of
from tests.test_plots_layers import fits


@pytest.fixture
def patterns():
    found = made_of({"previous": 0.99}, {"next": 0.4}, {"sep": 0.9}, {"entropy": 0.95}, n_layers=2)
    found.by_offset[:] = [[0, 0.9, 0.1, 0, 0], [0, 0, 0.1, 0.7, 0]]
    return found


def test_each_head_shows_its_pattern_and_its_mass(patterns):
    figure = plot_head_patterns(patterns)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["previous", "0.99", "next", "0.40", "sep", "0.90"]
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert len(cells) == 4
    strong, weak = (np.array(cell.get_facecolor()[:3]) for cell in cells[:2])
    assert np.abs(strong - to_rgb(COLORS["previous"])).max() < 0.02
    assert (weak > to_rgb(COLORS["next"])).all()  # paler, as less of its attention follows
    assert to_hex(cells[3].get_facecolor()) == COLORS["broad"]
    assert fits(figure)


def test_a_head_that_follows_two_patterns_shows_both():
    figure = plot_head_patterns(made_of({"same_token": 0.35, "cls": 0.45}, {"next": 0.4}))
    assert [text.get_text() for text in figure.axes[0].texts] == ["cls 0.45", "same token 0.35", "next", "0.40"]
    upper, lower, alone = (patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle))
    assert upper.get_y() + upper.get_height() == pytest.approx(lower.get_y())
    assert upper.get_height() + lower.get_height() == pytest.approx(alone.get_height())
    assert {"cls (1)", "same token (1)", "next (1)"} <= {text.get_text() for text in figure.texts}
    assert fits(figure)


def test_the_legend_counts_the_heads(patterns):
    words = [text.get_text() for text in plot_head_patterns(patterns).texts]
    assert {"previous (1)", "next (1)", "sep (1)", "attends broadly (1)"} <= set(words)


def test_many_heads_fit():
    heads = [{"previous": 0.9} if i % 2 else {"next": 0.5} for i in range(24 * 24)]
    assert fits(plot_head_patterns(made_of(*heads, n_layers=24)))


def test_the_weights_of_an_example():
    weights = np.eye(3)[::-1]
    figure = plot_attention(weights, ["[CLS]", "a$b$", "[SEP]"])
    ax = figure.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), weights)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["[CLS]", "a$b$", "[SEP]"]
    assert fits(figure)
    crossed = plot_attention(np.ones((1, 2)), ["x"], keys=["y", "z"]).axes[0]
    assert [label.get_text() for label in crossed.get_xticklabels()] == ["y", "z"]
    with pytest.raises(AnalysisError, match="2 queries and 2 keys"):
        plot_attention(weights, ["a", "b"])


def test_lines_by_offset(patterns):
    figure = plot_offsets(patterns, [(0, 0), (0, 1)])
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["L0H0", "L0H1"]
    np.testing.assert_array_equal(lines[0].get_xdata(), [-2, -1, 0, 1, 2])
    np.testing.assert_array_equal(lines[1].get_ydata(), patterns.by_offset[0, 1])
    assert fits(figure)
    with pytest.raises(AnalysisError, match="not \\[\\(9, 9\\)\\]"):
        plot_offsets(patterns, [(9, 9)])
