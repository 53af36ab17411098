"""The figures of maps: what is drawn in them, and what they say."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from t3vis.analysis.projection_quality import Estimate
from t3vis.errors import AnalysisError
from t3vis.plot_projection import FEW, MANY, UNKNOWN, plot_projection, quality_lines
from t3vis.plots import write_figure


def clouds(n_examples: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """A map of well separated classes, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(n_examples) % n_classes
    middles = 30 * np.stack([np.arange(n_classes) % 9, np.arange(n_classes) // 9], axis=1)
    return middles[labels] + rng.normal(size=(n_examples, 2)), labels


def drawn(figure: Figure) -> dict[tuple[float, ...], np.ndarray]:
    """The places that are drawn, by colour."""
    found: dict[tuple[float, ...], list[np.ndarray]] = {}
    for artist in figure.axes[0].collections:
        assert isinstance(artist, PathCollection)
        places = np.asarray(artist.get_offsets())
        colors = np.broadcast_to(np.atleast_2d(artist.get_facecolors())[:, :3], (len(places), 3))
        for place, color in zip(places, colors.tolist(), strict=True):
            found.setdefault(tuple(color), []).append(place)
    return {color: np.array(places) for color, places in found.items()}


def legend(figure: Figure) -> Legend:
    (found,) = [artist for artist in figure.axes[0].get_children() if isinstance(artist, Legend)]
    return found


def listed(figure: Figure) -> list[str]:
    return [text.get_text() for text in legend(figure).get_texts()]


def heading(figure: Figure) -> str:
    return legend(figure).get_title().get_text()


def names_on_map(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def rgb(color: str) -> tuple[float, ...]:
    return to_rgba(color)[:3]


def test_every_example_is_drawn_in_the_colour_of_its_class():
    places, labels = clouds(60, 3)
    found = drawn(plot_projection(places, labels=labels))
    for label in range(3):
        np.testing.assert_allclose(np.sort(found[rgb(FEW[label])], axis=0), np.sort(places[labels == label], axis=0))


@pytest.mark.parametrize("n_examples", [500, 50_000])
@pytest.mark.parametrize("n_classes", [2, 20, 77])
def test_classes_are_listed_and_told_apart(n_examples, n_classes):
    places, labels = clouds(n_examples, n_classes)
    names = [f"class {label}" for label in range(n_classes)]
    figure = plot_projection(places, labels=labels, class_names=names)
    assert sorted(entry.split(" (")[0] for entry in listed(figure)) == sorted(names)
    assert heading(figure).startswith(f"{n_classes} classes")
    assert ("every 20th has the same colour" in heading(figure)) == (n_classes == 77)
    swatches = {(line.get_markerfacecolor(), line.get_marker()) for line in legend(figure).get_lines()}
    assert len(swatches) == (min(n_classes, len(MANY)) if n_examples > 2_000 else n_classes)
    on_map = names_on_map(figure)
    assert set(on_map) <= set(names)
    assert len(on_map) > 0.8 * n_classes if n_classes > len(FEW) else not on_map  # a few would leave the frame
    figure.draw_without_rendering()
    inside = legend(figure).get_window_extent()
    assert inside.x1 <= figure.bbox.x1
    assert inside.y0 >= figure.bbox.y0


@pytest.mark.parametrize("n_classes", [20, 77])
def test_long_names_that_differ_at_the_end_are_told_apart_and_fit_the_page(n_classes):
    labels = np.repeat(np.arange(n_classes), 1_000)
    places = np.random.default_rng(0).normal(size=(len(labels), 2))
    names = [f"BALANCE_NOT_UPDATED_AFTER_TRANSFER_{label}" for label in range(n_classes)]
    figure = plot_projection(places, labels=labels, class_names=names)
    assert len({entry.split(" (")[0] for entry in listed(figure)}) == n_classes
    figure.draw_without_rendering()
    assert legend(figure).get_window_extent().x1 <= figure.bbox.x1


def test_names_do_not_cover_each_other():
    labels = np.arange(300) % 30
    places = np.random.default_rng(0).normal(size=(300, 2))
    figure = plot_projection(places, labels=labels, class_names=[f"a long name of class {i}" for i in range(30)])
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert 1 < len(boxes) < 30
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])


def test_of_too_many_classes_the_largest_are_listed():
    labels = np.append(np.arange(120), [119] * 50)
    figure = plot_projection(np.random.default_rng(0).normal(size=(170, 2)), labels=labels)
    assert len(listed(figure)) == 90
    assert listed(figure)[0] == "119 (51)"
    assert "the 90 largest are listed" in heading(figure)


def test_examples_without_a_label_or_a_place():
    places, labels = clouds(20, 2)
    labels[:4] = -1
    places[3:6] = np.nan
    figure = plot_projection(places, labels=labels)
    assert len(drawn(figure)[rgb(UNKNOWN)]) == 3
    assert listed(figure)[-1] == "no label (3)"
    assert "17 of 20 examples" in figure.texts[-1].get_text()


def test_without_labels_all_are_grey():
    figure = plot_projection(clouds(10, 2)[0])
    assert list(drawn(figure)) == [rgb(UNKNOWN)]
    assert heading(figure) == "no labels"


def test_values_have_a_scale_from_0_to_1_and_what_was_not_measured_is_grey():
    places, _ = clouds(10, 2)
    values = np.linspace(0.2, 0.9, 10)
    values[[2, 5]] = np.nan
    figure = plot_projection(places, values=values, values_name="neighbour recall")
    assert figure.axes[1].get_title(loc="left") == "neighbour recall"
    assert figure.axes[1].get_ylim() == (0, 1)
    points = figure.axes[0].collections[-1]
    assert points.get_alpha() == points.colorbar.alpha == 1  # no colour that is not on the scale
    assert listed(figure) == ["not measured (2)"]
    np.testing.assert_allclose(np.sort(drawn(figure)[rgb(UNKNOWN)], axis=0), np.sort(places[[2, 5]], axis=0))


def test_no_class_lies_on_top_of_the_others():
    places, labels = clouds(1_000, 2)
    (artist, *_) = plot_projection(np.repeat(places, 3, axis=0), labels=np.repeat(labels, 3)).axes[0].collections
    first = np.asarray(artist.get_facecolors())[:, 0]
    assert 0.4 < (first[1:] != first[:-1]).mean() < 0.6


def test_one_class_at_one_place_can_be_drawn(tmp_path):
    figure = plot_projection(np.ones((5, 2)), labels=np.zeros(5, int), class_names=["$only$ one"], title="$x$")
    assert heading(figure) == "1 class"
    write_figure(figure, tmp_path / "map.svg")
    assert "$only$ one (5)" in (tmp_path / "map.svg").read_text()


def test_quality_is_said_with_what_it_rests_on():
    quality = {"trustworthiness": Estimate(0.91234, 0.0), "distance_correlation": Estimate(0.5, 0.0126)}
    attributes = {"k": 15, "n_sampled": 2_000, "graph_recall": 0.967}
    assert quality_lines(quality, attributes, 50_000) == [
        "trustworthiness 0.912  ·  distance correlation 0.500 ± 0.013",
        (
            "measured on 15 neighbours of each example; ± is the standard error of a sample of 2,000; 96.7% of the "
            "true neighbours are known"
        ),
    ]
    moved = {"displacement": 0.314, "noise_floor": 0.12, "neighbour_overlap": 0.66}
    exact = quality_lines(quality, {**attributes, **moved, "graph_recall": 1}, 2_000)
    assert exact[1:] == [
        "measured on 15 neighbours of each example",
        (
            "moved by 0.31 radii since the map it started from (0.12 where nothing changes); kept 66% of the "
            "neighbours in hidden space"
        ),
    ]


def test_notes_stand_below_the_map():
    figure = plot_projection(clouds(10, 2)[0], notes=["one", "two", "three"])
    figure.draw_without_rendering()
    assert figure.texts[-1].get_text().startswith("one\ntwo\nthree\n10 of 10 examples")
    assert figure.texts[-1].get_window_extent().y1 <= figure.axes[0].get_window_extent().y0


@pytest.mark.parametrize(
    ("places", "labels", "message"),
    [
        (np.zeros((4, 3)), np.zeros(4, int), r"coordinates have shape \(4, 3\)"),
        (np.zeros((4, 2)), np.zeros(3, int), r"what colours them \(3,\)"),
        (np.full((4, 2), np.nan), None, "none of the 4 examples is on the map"),
    ],
)
def test_errors_say_what_is_wrong(places, labels, message):
    with pytest.raises(AnalysisError, match=message):
        plot_projection(places, labels=labels)
