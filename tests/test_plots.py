"""The figures: what is drawn in them, what they say, and the files they become."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from t3vis import plots
from t3vis.analysis.data_map import DataMap, data_map
from t3vis.errors import AnalysisError, ConfigurationError
from t3vis.plots import plot_data_map, write_figure
from t3vis.plots_trajectories import plot_trajectories


def recorded(n_examples: int, *, n_epochs: int = 6, seed: int = 0) -> DataMap:
    """A data map of logits that drift towards the label at different speeds, two classes."""
    rng = np.random.default_rng(seed)
    epochs = np.arange(1, n_epochs + 1)[:, np.newaxis]
    margin = epochs * rng.normal(0.4, 0.6, n_examples) + rng.normal(0, 1, (n_epochs, n_examples))
    return data_map(np.stack([margin, np.zeros_like(margin)], axis=-1), np.zeros(n_examples, dtype=np.int64))


def repeated(examples: DataMap, times: int) -> DataMap:
    columns = {name: np.repeat(column, times) for name, column in examples.as_columns().items()}
    return DataMap(**columns, n_epochs=examples.n_epochs)


def with_gaps() -> DataMap:
    """Ten examples over four epochs: 0 and 1 never seen, 2 without a label, 3 seen twice."""
    logits = np.random.default_rng(0).normal(size=(4, 10, 2))
    logits[:, :2] = np.nan
    logits[:2, 3] = np.nan
    return data_map(logits, np.array([0, 0, -1, 1, 0, 1, 0, 1, 0, 1]))


def map_axes(figure: Figure) -> Axes:
    return next(ax for ax in figure.axes if ax.get_ylabel() == "confidence")


def histogram(figure: Figure, name: str) -> Axes:
    return next(ax for ax in figure.axes if ax.get_xlabel() == name and ax.get_ylabel() == "examples")


def markers(figure: Figure) -> list[PathCollection]:
    drawn = [artist for artist in map_axes(figure).collections if isinstance(artist, PathCollection)]
    return [artist for artist in drawn if len(artist.get_facecolors())]


def rings(figure: Figure) -> np.ndarray:
    drawn = [artist for artist in map_axes(figure).collections if isinstance(artist, PathCollection)]
    (found,) = [artist for artist in drawn if not len(artist.get_facecolors())]
    return np.asarray(found.get_offsets())


def hexagon_artists(figure: Figure) -> list[PolyCollection]:
    return [artist for artist in map_axes(figure).collections if isinstance(artist, PolyCollection)]


def legends(figure: Figure) -> list[Legend]:
    return [artist for artist in map_axes(figure).get_children() if isinstance(artist, Legend)]


def legend_rows(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in legend.get_texts()] for legend in legends(figure)]


def footer(figure: Figure) -> list[str]:
    return figure.texts[-1].get_text().split("  ·  ")


def in_rows(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.T)]


class TestPointsOfDataMap:
    def test_every_example_is_one_marker_at_its_place(self):
        examples = recorded(300)
        drawn = np.concatenate([artist.get_offsets() for artist in markers(plot_data_map(examples))])
        assert_allclose(
            in_rows(drawn), in_rows(np.stack([examples.variability, examples.confidence], axis=1)), rtol=0, atol=0
        )

    def test_marker_and_colour_are_those_of_the_correctness(self):
        examples = recorded(300, n_epochs=3)
        figure = plot_data_map(examples)
        shapes = set()
        for artist in markers(figure):
            shapes.add(artist.get_paths()[0].vertices.tobytes())
            places = {tuple(place) for place in np.asarray(artist.get_offsets())}
            here = [(x, y) in places for x, y in zip(examples.variability, examples.confidence, strict=True)]
            (correctness,) = np.unique(examples.correctness[here])
            expected = plots.CORRECTNESS_COLORS(correctness)
            assert_allclose(artist.get_facecolors()[0][:3], expected[:3])
        assert len(shapes) == 4
        assert legend_rows(figure) == [["correctness", "0", "0.33", "0.67", "1"]]

    def test_many_epochs_are_told_in_fifths(self):
        figure = plot_data_map(recorded(200, n_epochs=30))
        assert legend_rows(figure) == [["correctness", "0", "0.2", "0.4", "0.6", "0.8", "1"]]
        assert footer(figure)[-1] == "correctness to the nearest 0.2"

    def test_axes_are_the_same_for_every_data_map(self):
        for figure in (plot_data_map(recorded(3)), plot_data_map(recorded(300), max_points=10)):
            ax = map_axes(figure)
            assert ax.get_xlabel() == "variability"
            assert ax.get_xlim()[0] < 0 < 0.5 < ax.get_xlim()[1] < 0.53
            assert ax.get_ylim()[0] < 0 < 1 < ax.get_ylim()[1] < 1.06
            names = [text.get_text() for text in ax.texts]
            assert names == ["easy-to-learn", "hard-to-learn", "ambiguous"]

    def test_names_of_the_regions_hide_no_example(self):
        figure = plot_data_map(recorded(3, n_epochs=3))
        figure.draw_without_rendering()
        ax = map_axes(figure)
        angle = np.linspace(-np.pi / 2, np.pi / 2, 1000)
        furthest = ax.transData.transform(
            np.stack([0.5 * np.cos(angle), 0.5 + 0.5 * np.sin(angle)], axis=1) * (0.98, 1)
        )
        for name in ax.texts:
            assert name.get_bbox_patch().get_window_extent().count_contains(furthest) == 0, name.get_text()

    def test_after_one_epoch_the_empty_map_is_explained(self):
        figure = plot_data_map(recorded(50, n_epochs=1))
        names = [text.get_text() for text in map_axes(figure).texts]
        assert "ambiguous" not in names
        assert "after one epoch variability\nis 0 for every example" in names
        assert sum(len(artist.get_offsets()) for artist in markers(figure)) == 50
        assert footer(figure)[1] == "1 epoch"

    def test_examples_all_predicted_right_are_one_group_of_markers(self):
        logits = np.log(np.random.default_rng(0).uniform(0.01, 0.4, size=(6, 40)))
        examples = data_map(np.stack([np.zeros_like(logits), logits], axis=-1), np.zeros(40, dtype=np.int64))
        drawn = [artist for artist in markers(plot_data_map(examples)) if len(artist.get_offsets())]
        assert [len(artist.get_offsets()) for artist in drawn] == [40]

    def test_title_is_not_read_as_a_formula(self, tmp_path):
        figure = plot_data_map(recorded(3), title="costs $5_ and $6", highlight=[0], highlight_label="$5_ and $6")
        write_figure(figure, tmp_path / "map.png")
        assert figure.get_suptitle() == "costs $5_ and $6"


class TestGaps:
    def test_unseen_and_unlabelled_examples_are_left_out_and_counted(self):
        figure = plot_data_map(with_gaps())
        assert sum(len(artist.get_offsets()) for artist in markers(figure)) == 7
        assert footer(figure) == [
            "7 of 10 examples",
            "4 epochs",
            "2 never seen",
            "1 seen in some epochs only",
            "1 without a label",
        ]

    def test_nothing_to_draw_is_an_error(self):
        logits = np.full((2, 5, 3), np.nan)
        with pytest.raises(AnalysisError, match="none of the 5 examples can be drawn"):
            plot_data_map(data_map(logits, np.zeros(5, dtype=np.int64)))

    def test_no_examples_is_an_error(self):
        empty, none = np.zeros(0), np.zeros(0, dtype=np.int64)
        examples = DataMap(empty, empty, empty, empty, none, np.zeros(0, dtype=np.bool_), none, n_epochs=2)
        with pytest.raises(AnalysisError, match="none of the 0 examples"):
            plot_data_map(examples)


class TestHexagonsOfDataMap:
    def test_more_than_max_points_are_hexagons(self):
        examples = recorded(2_000)
        assert not hexagon_artists(plot_data_map(examples, max_points=2_000))
        figure = plot_data_map(examples, max_points=1_999)
        assert not markers(figure)
        (drawn,) = hexagon_artists(figure)
        cells = plots.hexagons(plots.Cloud(examples.variability, examples.confidence, examples.correctness, 6))
        assert_array_equal(drawn.get_array(), cells.correctness)
        assert len(drawn.get_paths()) == cells.n_examples.size < 2_000

    def test_colour_is_the_mean_correctness_from_zero_to_one(self):
        (drawn,) = hexagon_artists(plot_data_map(recorded(2_000), max_points=0))
        assert drawn.get_clim() == (0, 1)
        drawn.update_scalarmappable()
        assert_allclose(drawn.get_facecolors(), plots.CORRECTNESS_COLORS(drawn.get_array()))

    def test_the_fullest_hexagon_is_full_and_that_of_one_example_is_three_tenths(self):
        examples = recorded(5_000)
        cells = plots.hexagons(plots.Cloud(examples.variability, examples.confidence, examples.correctness, 6))
        (drawn,) = hexagon_artists(plot_data_map(examples, max_points=0))
        full = np.ptp(cells.corners[:, 1])
        heights = np.array([np.ptp(path.vertices[:, 1]) for path in drawn.get_paths()])
        assert_allclose(heights[cells.n_examples.argmax()], full)
        assert_allclose(heights[cells.n_examples == 1], 0.3 * full)

    def test_hexagons_are_regular_on_the_page(self):
        examples = recorded(2_000)
        figure = plot_data_map(examples, max_points=0)
        (drawn,) = hexagon_artists(figure)
        corners = map_axes(figure).transData.transform(drawn.get_paths()[0].vertices[:6])
        sides = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
        assert_allclose(sides, sides[0], rtol=1e-6)

    def test_legend_tells_sizes_by_the_power_of_ten(self):
        examples = recorded(3)
        figure = plot_data_map(repeated(examples, 15_000))
        assert legend_rows(figure) == [
            ["mean correctness", "0", "0.17", "0.33", "0.5", "0.67", "0.83", "1"],
            ["examples per hexagon", "1", "10", "100", "1k", "10k"],
        ]
        figure.draw_without_rendering()
        one, other = (artist.get_window_extent() for artist in legends(figure))
        assert not one.overlaps(other)

    def test_one_hexagon_of_equal_examples(self):
        examples = recorded(1)
        (drawn,) = hexagon_artists(plot_data_map(repeated(examples, 30), max_points=1))
        assert_allclose(drawn.get_array(), examples.correctness)

    @given(
        places=st.lists(
            st.tuples(st.floats(0, 0.5), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=60
        )
    )
    def test_every_example_is_counted_once_in_the_nearest_hexagon(self, places):
        variability, confidence, correctness = np.array(places).T
        cells = plots.hexagons(plots.Cloud(variability, confidence, correctness, 2))
        width, height = np.ptp(cells.corners, axis=0)
        away = cells.centers[:, np.newaxis] - np.stack([variability, confidence], axis=1)
        # In units in which the hexagon is regular with side one.
        squared = (away[..., 0] / width * np.sqrt(3)) ** 2 + (away[..., 1] / height * 2) ** 2
        assert np.all(squared.min(axis=0) <= 1 + 1e-9)
        assert cells.n_examples.sum() == len(places)
        assert_allclose(cells.correctness @ cells.n_examples, correctness.sum(), atol=1e-9)
        nearest_two = np.sort(np.vstack([squared, np.full(len(places), np.inf)]), axis=0)[:2]
        if not np.any(np.isclose(*nearest_two)):
            assert_array_equal(cells.n_examples, np.bincount(squared.argmin(axis=0), minlength=len(squared)))


class TestHistograms:
    @pytest.mark.parametrize("max_points", [25_000, 10])
    @pytest.mark.parametrize("name", ["confidence", "variability", "correctness"])
    def test_bars_count_every_example(self, name, max_points):
        examples = recorded(400)
        bars = histogram(plot_data_map(examples, max_points=max_points), name).patches
        assert sum(bar.get_height() for bar in bars) == 400

    def test_bars_stand_over_their_correctness_in_its_colour(self):
        examples = recorded(400, n_epochs=2)
        bars = [bar for bar in histogram(plot_data_map(examples), "correctness").patches if bar.get_height()]
        counts = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in bars}
        assert counts == {step: np.count_nonzero(examples.correctness == step) for step in (0, 0.5, 1)}
        assert [bar.get_facecolor() for bar in bars] == [plots.CORRECTNESS_COLORS(step) for step in (0.0, 0.5, 1.0)]

    def test_a_mean_a_hair_above_one_is_counted(self):
        examples = recorded(4)
        examples.confidence[0] = np.nextafter(1, 2)
        bars = histogram(plot_data_map(examples), "confidence").patches
        assert sum(bar.get_height() for bar in bars) == 4


class TestHighlight:
    @pytest.mark.parametrize("max_points", [25_000, 10])
    def test_rings_are_exactly_at_the_examples_chosen(self, max_points):
        examples = recorded(500)
        chosen = np.array([7, 3, 499])
        figure = plot_data_map(examples, highlight=chosen, highlight_label="planted", max_points=max_points)
        expected = np.stack([examples.variability[chosen], examples.confidence[chosen]], axis=1)
        assert_array_equal(in_rows(rings(figure)), in_rows(expected))
        assert legend_rows(figure)[-1] == ["planted (3)"]

    def test_mask_and_ids_are_the_same(self):
        examples = recorded(20)
        mask = np.zeros(20, dtype=bool)
        mask[[2, 5]] = True
        by_mask, by_ids = plot_data_map(examples, highlight=mask), plot_data_map(examples, highlight=[5, 2, 2])
        assert_array_equal(rings(by_mask), rings(by_ids))

    def test_examples_that_are_not_on_the_map_are_counted(self):
        figure = plot_data_map(with_gaps(), highlight=[0, 2, 4], highlight_label="flipped")
        assert len(rings(figure)) == 1
        assert legend_rows(figure)[-1] == ["flipped (1; 2 not on the map)"]

    def test_nothing_to_ring_is_said(self):
        figure = plot_data_map(recorded(5), highlight=[])
        assert len(rings(figure)) == 0
        assert legend_rows(figure)[-1] == ["highlighted (0)"]

    def test_too_many_rings_are_a_sample_that_follows_the_seed(self):
        examples = recorded(12_000)
        everything = np.ones(12_000, dtype=bool)
        first, again, other = (rings(plot_data_map(examples, highlight=everything, seed=seed)) for seed in (0, 0, 1))
        assert len(first) == 1_000
        assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        row = legend_rows(plot_data_map(examples, highlight=everything))[-1]
        assert row == ["highlighted (12,000; 1,000 ringed)"]

    @pytest.mark.parametrize(
        ("highlight", "message"),
        [
            (np.ones(4, dtype=bool), r"the mask has shape \(4,\) but there are 5 examples"),
            ([0, 5], "there is no example 5; pass ids from 0 to 4"),
            ([-1], "there is no example -1"),
            ([0.5], "must be integers"),
            ([[0, 1]], "must be integers in one dimension"),
        ],
    )
    def test_wrong_examples_are_an_error(self, highlight, message):
        with pytest.raises(AnalysisError, match=message):
            plot_data_map(recorded(5), highlight=highlight)


class TestTrajectories:
    gold_probs = np.random.default_rng(0).uniform(size=(5, 20))

    def test_each_panel_has_its_own_line_in_the_order_of_the_ids(self):
        figure = plot_trajectories(self.gold_probs, ids=[9, 2, 4])
        assert len(figure.axes) == 3
        for ax, example_id in zip(figure.axes, [9, 2, 4], strict=True):
            own = ax.lines[-1]
            assert_array_equal(own.get_xdata(), np.arange(5))
            assert_array_equal(own.get_ydata(), self.gold_probs[:, example_id])
            assert own.get_color() != ax.lines[0].get_color()
            assert ax.get_title(loc="left") == f"example {example_id}"
            assert ax.get_ylim() == (0, 1)

    def test_the_others_are_in_the_background(self):
        ax = plot_trajectories(self.gold_probs, ids=[9, 2, 4]).axes[1]
        behind = [line.get_ydata() for line in ax.lines[:-1]]
        assert_array_equal(behind, self.gold_probs[:, [9, 4]].T)
        assert {to_rgba(line.get_color()) for line in ax.lines[:-1]} == {to_rgba(plots.PALE)}

    def test_an_epoch_not_seen_is_a_gap(self):
        gold_probs = self.gold_probs.copy()
        gold_probs[2, 0] = np.nan
        own = plot_trajectories(gold_probs, ids=[0]).axes[0].lines[-1]
        assert_array_equal(np.isnan(own.get_ydata()), [False, False, True, False, False])

    def test_long_names_are_shortened_to_two_lines(self, tmp_path):
        names = ["it costs $5 or $6\n" + "word " * 30, "short"]
        figure = plot_trajectories(self.gold_probs, ids=[0, 1], names=names)
        lines = figure.axes[0].get_title(loc="left").split("\n")
        assert lines[:2] == ["example 0", "it costs $5 or $6 word word word"]
        assert lines[2].endswith(" …")
        assert len(lines) == 3
        assert figure.axes[1].get_title(loc="left") == "example 1\nshort"
        write_figure(figure, tmp_path / "names.png")

    def test_twelve_panels_do_not_overlap(self):
        figure = plot_trajectories(self.gold_probs, ids=range(12), names=["word " * 30] * 12)
        figure.draw_without_rendering()
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        assert len(boxes) == 12
        assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[place + 1 :])
        assert all(figure.bbox.containsx(box.x1) and figure.bbox.containsy(box.y0) for box in boxes)

    @pytest.mark.parametrize(
        ("gold_probs", "options", "message"),
        [
            (np.zeros(5), {"ids": [0]}, r"shape \(n_epochs, n_examples\)"),
            (np.zeros((0, 5)), {"ids": [0]}, "at least one epoch"),
            (np.zeros((2, 5)), {"ids": []}, "0 examples; choose 1 to 12"),
            (np.zeros((2, 20)), {"ids": range(13)}, "13 examples; choose 1 to 12"),
            (np.zeros((2, 5)), {"ids": [5]}, "there is no example 5"),
            (np.zeros((2, 5)), {"ids": [1, 2], "names": ["one"]}, "names has 1 texts but ids has 2"),
            (np.full((2, 5), 1.5), {"ids": [1]}, "pass probabilities, not logits"),
        ],
    )
    def test_wrong_arrays_are_an_error(self, gold_probs, options, message):
        with pytest.raises(AnalysisError, match=message):
            plot_trajectories(gold_probs, **options)


class TestWriteFigure:
    def test_png_decodes_to_a_picture_with_the_colours_in_it(self, tmp_path):
        write_figure(plot_data_map(recorded(2_000), max_points=10), tmp_path / "map.png")
        with Image.open(tmp_path / "map.png") as image:
            assert image.size == (1500, 945)
            colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20)}
        right = tuple(round(255 * part) for part in to_rgba(plots.CORRECTNESS_COLORS(1.0))[:3])
        assert right in colours

    def test_svg_is_xml_and_small_for_many_examples(self, tmp_path):
        write_figure(plot_data_map(recorded(60_000)), tmp_path / "map.SVG")
        root = ElementTree.parse(tmp_path / "map.SVG").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert (tmp_path / "map.SVG").stat().st_size < 1_000_000

    def test_svg_of_many_markers_holds_them_as_an_image(self, tmp_path):
        write_figure(plot_data_map(recorded(20_000), highlight=np.arange(3_000)), tmp_path / "map.svg")
        assert (tmp_path / "map.svg").stat().st_size < 1_500_000

    def test_pdf(self, tmp_path):
        write_figure(plot_trajectories(np.zeros((3, 2)), ids=[0]), str(tmp_path / "lines.pdf"))
        assert (tmp_path / "lines.pdf").read_bytes().startswith(b"%PDF")

    @pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
    def test_equal_figures_are_equal_bytes(self, tmp_path, suffix, monkeypatch):
        for name, epoch in (("one", "0"), ("two", "1000000000")):
            monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
            write_figure(plot_data_map(recorded(50), highlight=[1]), tmp_path / f"{name}.{suffix}")
        one, two = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two"))
        assert one == two

    @pytest.mark.parametrize("name", ["map.jpg", "map"])
    def test_another_suffix_is_an_error_and_writes_nothing(self, tmp_path, name):
        with pytest.raises(ConfigurationError, match=r"use \.png, \.svg or \.pdf"):
            write_figure(plot_data_map(recorded(3)), tmp_path / name)
        assert not list(tmp_path.iterdir())


def test_settings_of_matplotlib_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    write_figure(plot_data_map(recorded(30), highlight=[0]), tmp_path / "map.svg")
    plot_trajectories(np.zeros((3, 2)), ids=[0])
    assert dict(matplotlib.rcParams) == before


def test_pyplot_and_torch_are_not_imported():
    code = "import sys, t3vis.plots; print(sorted({'matplotlib.pyplot', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_matplotlib_the_extra_is_named():
    code = "import sys; sys.modules['matplotlib'] = None; import t3vis.plots"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'ImportError: t3vis.plots needs matplotlib; install it with: pip install "t3vis[plots]"' in done.stderr
