"""The figures by layer and by class: what is drawn in them, and what they say."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from t3vis.errors import AnalysisError
from t3vis.plots import write_figure
from t3vis.plots_layers import MAX_CELLS_WITH_NUMBERS, plot_cka, plot_classes, plot_layers


def numbers(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def fits(figure: Figure) -> bool:
    """Whether no text or axis leaves the page."""
    figure.draw_without_rendering()
    box, page = figure.get_tightbbox(), figure.bbox_inches
    return box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= page.x1 + 0.01 and box.y1 <= page.y1 + 0.01


def test_each_cell_of_the_layers_holds_its_number():
    values = np.array([[0.1, np.nan, 0.3], [0.4, 0.5, 12.25]])
    figure = plot_layers(values, passes=[0, 4], layers=[0, 3, 6], quantity="merit")
    ax = figure.axes[0]
    assert numbers(figure) == ["0.10", "0.30", "0.40", "0.50", "12"]
    np.testing.assert_array_equal(ax.images[0].get_array(), values)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "3", "6"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "4"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "pass")
    assert figure.texts[-1].get_text() == "merit"


def test_numbers_can_be_read_on_their_cells():
    figure = plot_layers(np.array([[0.0, 1.0]]), passes=[0], layers=[0, 1])
    light, dark = figure.axes[0].texts
    assert dark.get_color() == "white"
    assert light.get_color() != "white"


def test_many_cells_have_no_numbers_and_few_ticks():
    values = np.random.default_rng(0).random((60, 25))
    assert values.size > MAX_CELLS_WITH_NUMBERS
    figure = plot_layers(values, passes=range(60), layers=range(25))
    assert not numbers(figure)
    assert len(figure.axes[0].get_yticks()) <= 25
    assert fits(figure)


def test_cka_is_coloured_from_0_to_1_whatever_there_is():
    figure = plot_cka(np.array([[0.8, 0.7], [0.6, 0.9]]), passes=(0, 5), layers=[0, 6])
    ax = figure.axes[0]
    assert ax.images[0].get_clim() == (0, 1)
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("layer in pass 0", "layer in pass 5")


def test_classes_stand_in_order_of_their_medians():
    labels = np.repeat([0, 1, 2, 3], [3, 2, 5, 1])
    values = np.array([0.1, 0.2, 0.9, 0.8, 0.9, 0.0, 0.1, 0.1, 0.2, 0.3, np.nan])
    figure = plot_classes(values, labels, class_names=["a", "b", "c", "d"])
    ax = figure.axes[0]
    # From below: the medians are 0.85, 0.2 and 0.1; nothing is known of d.
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a", "c"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.85, 0.2, 0.1])
    assert [text.get_text() for text in ax.texts] == ["2", "3", "5"]


@pytest.mark.parametrize("n_classes", [1, 2, 20, 77])
def test_the_page_is_large_enough_for_all_classes(n_classes):
    rng = np.random.default_rng(0)
    labels = np.arange(500) % n_classes
    names = [f"class {i} " + "of a long name " * (i % 5) for i in range(n_classes)]
    figure = plot_classes(rng.random(500), labels, class_names=names)
    assert fits(figure)
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].get_yticklabels()), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))


@pytest.mark.parametrize(("n_passes", "n_layers"), [(1, 1), (1, 30), (40, 2), (6, 7)])
def test_a_heat_map_of_any_shape_fits_its_page(n_passes, n_layers):
    assert fits(
        plot_layers(
            np.random.default_rng(0).random((n_passes, n_layers)), passes=range(n_passes), layers=range(n_layers)
        )
    )


def test_a_dollar_sign_in_a_name_starts_no_formula(tmp_path):
    figure = plot_classes(np.array([0.5]), np.array([0]), class_names=["$x_{"], title="$\\frac{")
    write_figure(figure, tmp_path / "classes.png")
    assert (tmp_path / "classes.png").stat().st_size


def test_errors_say_what_is_missing():
    with pytest.raises(AnalysisError, match=r"shape \(2, 3\) but there are 2 rows and 2 columns"):
        plot_layers(np.zeros((2, 3)), passes=[0, 1], layers=[0, 1])
    with pytest.raises(AnalysisError, match="no linear CKA is known"):
        plot_cka(np.full((1, 1), np.nan), passes=(0, 1), layers=[0])
    with pytest.raises(AnalysisError, match="no class has a known confidence"):
        plot_classes(np.array([np.nan]), np.array([0]))


def test_of_many_classes_the_hardest_are_drawn_by_names_that_differ():
    n_classes = 150
    names = [f"a class with a name that is much too long to be written as it is, {i}" for i in range(n_classes)]
    confidence = np.linspace(0, 1, n_classes)
    figure = plot_classes(confidence, np.arange(n_classes), class_names=names)
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(set(shown)) == 100
    assert shown[-1].endswith(" 0")
    assert shown[0].endswith(" 99")
    assert "the 100 lowest of 150 classes" in figure.texts[-1].get_text()
