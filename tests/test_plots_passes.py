import numpy as np
import pytest

from t3vis.errors import AnalysisError
from t3vis.plots_passes import Curve, plot_passes


def curve(split: str, mode: str, n_passes: int = 3, **figures) -> Curve:
    return Curve(split, mode, [float(i) for i in range(n_passes)], figures)


def test_every_split_has_its_line_in_its_own_mode():
    train = curve("train", "train", accuracy=np.array([0.1, 0.2, 0.3]), loss=np.array([3.0, 2.0, 1.0]))
    held_out = curve("eval", "eval", accuracy=np.array([0.5, np.nan, 0.6]))
    figure = plot_passes([train, held_out])
    accuracy, loss = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy", "mean loss"]
    np.testing.assert_array_equal(accuracy.lines[0].get_xdata(), [0.5, 1.5, 2.5])  # the middle of each epoch
    np.testing.assert_array_equal(accuracy.lines[1].get_xdata(), [0, 1, 2])
    np.testing.assert_array_equal(accuracy.lines[1].get_ydata(), [0.5, np.nan, 0.6])
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "--"]
    assert len(loss.lines) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["train (train mode)", "eval (eval mode)"]


def test_no_two_of_twenty_splits_look_the_same():
    figure = plot_passes([curve(f"eval_{i}", "eval", loss=np.ones(3)) for i in range(20)])
    (ax,) = figure.axes
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 20


def test_a_single_pass_has_whole_epochs_on_its_axis():
    (ax,) = plot_passes([curve("train", "train", 1, loss=np.ones(1))]).axes
    assert all(tick == int(tick) for tick in ax.get_xticks())


def test_nothing_known_is_an_error():
    with pytest.raises(AnalysisError, match="no accuracy or loss is known"):
        plot_passes([curve("train", "train", loss=np.full(3, np.nan))])
