"""The controls of the Projection View: each is used as a user would."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from playwright.sync_api import expect

from t3vis import open_run
from t3vis.analyze import analyzed_data_map
from t3vis.analyze_projection import analyzed_projection
from tests.viewer.browser import opened
from tests.viewer.clicks import choose, drag, painted, saved, shown_map, state_of

A_VIEW = re.compile("view%22%3A%5B")  # "view":[ in an address
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def train(recorded_run):
    return open_run(recorded_run).train


@pytest.fixture(scope="module")
def data_map(recorded_run, train):
    return analyzed_data_map(open_run(recorded_run), train)


def selected(page):
    return int(page.locator(".count b").nth(1).inner_text().replace(",", ""))


def inside(page, data_map, left, top, right, bottom):
    """Ids of the points in a part of the plot, by the view that shows all with a margin of 6 %."""
    x, y = data_map.variability, data_map.confidence
    px = ((x - (x.min() + x.max()) / 2) / ((x.max() - x.min()) / 2 * 1.06) + 1) / 2
    py = (1 - (y - (y.min() + y.max()) / 2) / ((y.max() - y.min()) / 2 * 1.06)) / 2
    return np.flatnonzero((px > left) & (px < right) & (py > top) & (py < bottom))


def test_box_and_lasso_select_what_is_inside(page, served, data_map):
    opened(page, served)
    painted(page)
    page.keyboard.press("b")
    drag(page, [(0.1, 0.3), (0.45, 0.6)])
    in_box = inside(page, data_map, 0.1, 0.3, 0.45, 0.6)
    assert abs(selected(page) - len(in_box)) <= 1  # one may lie on the edge
    page.keyboard.press("l")
    drag(page, [(0.5, 0.1), (0.6, 0.1), (0.6, 0.9), (0.5, 0.9)], shift=True)
    both = np.union1d(in_box, inside(page, data_map, 0.5, 0.1, 0.6, 0.9))
    assert abs(selected(page) - len(both)) <= 2
    page.keyboard.press("Control+z")
    assert abs(selected(page) - len(in_box)) <= 1
    page.locator("canvas").press("a")
    assert selected(page) == len(data_map.confidence)
    page.keyboard.press("Escape")
    expect(page.locator(".count")).not_to_contain_text("selected")


def test_hovering_tells_and_clicking_shows_an_example(page, served, data_map):
    opened(page, served)
    painted(page)
    page.keyboard.press("m")
    rightmost = int(np.argmax(data_map.variability))
    box = page.locator("canvas").bounding_box()
    x, y = data_map.variability, data_map.confidence
    py = (1 - (y[rightmost] - (y.min() + y.max()) / 2) / ((y.max() - y.min()) / 2 * 1.06)) / 2
    page.mouse.move(box["x"] + (1 + 1 / 1.06) / 2 * box["width"], box["y"] + py * box["height"])
    expect(page.locator(".hover")).to_contain_text(f"example {rightmost}")
    expect(page.locator(".hover")).to_contain_text(f"variability: {x[rightmost]:.4g}"[:18])
    page.mouse.down()
    page.mouse.up()
    expect(page.get_by_role("region", name="Instance Investigation View")).to_contain_text(f"example {rightmost}")
    expect(page.locator(f'.row[data-id="{rightmost}"]')).to_be_visible()  # the table has come to it


def view_of(page):
    return state_of(page)["plots"][0]["view"]


def moved(page, act):
    before = page.url
    act()
    expect(page).not_to_have_url(before)


def test_zoom_and_move_with_wheel_mouse_and_keys(page, served):
    opened(page, served)
    painted(page)
    canvas = page.locator("canvas")
    canvas.hover(position={"x": 200, "y": 150})
    page.mouse.wheel(0, -300)
    expect(page).to_have_url(A_VIEW)
    _, _, rx, ry = view_of(page)
    moved(page, lambda: canvas.press("+"))
    assert view_of(page)[2:] == pytest.approx([rx * 0.8, ry * 0.8], rel=1e-3)
    cx = view_of(page)[0]
    moved(page, lambda: canvas.press("ArrowRight"))
    assert view_of(page)[0] == pytest.approx(cx + 0.2 * 0.8 * rx, rel=1e-3)
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    painted(page)
    assert page.url == address  # the link opens the same view
    page.locator("canvas").press("0")
    expect(page).not_to_have_url(A_VIEW)


def test_three_scales_of_numbers_and_a_legend_that_filters_by_a_category(page, served, train):
    opened(page, served)
    painted(page)
    for scale in ("quantile", "log", "linear"):
        choose(page, "scale", scale)
        painted(page)
        expect(page.get_by_label("scale", exact=True)).to_have_value(scale)
    assert state_of(page).get("plots") is None or state_of(page)["plots"][0]["scale"] == "linear"
    choose(page, "colour", "label")
    page.locator(".legend").get_by_role("button", name=train.class_names[1]).click()
    expect(page.locator(".count")).to_contain_text(f"{np.count_nonzero(train.labels == 1)} of {len(train)}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_lower_end_of_the_scale_can_be_seen_on_either_background(page, served, theme):
    opened(page, served, theme=theme)
    painted(page)
    lowest, back = (
        luminance(page.locator(place).first.evaluate("(node) => getComputedStyle(node).backgroundColor"))
        for place in (".legend .bar i", "body")
    )
    assert (max(lowest, back) + 0.05) / (min(lowest, back) + 0.05) > 2


def luminance(color: str) -> float:
    """Relative luminance of an opaque sRGB colour (WCAG 2.2)."""
    linear = [((value / 255 + 0.055) / 1.055) ** 2.4 for value in map(int, re.findall(r"\d+", color)[:3])]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_two_plots_with_own_epochs_and_a_shared_selection(page, served, recorded_run, train):
    opened(page, served)
    painted(page)
    choose(page, "map", "pca")
    shown_map(page, f"x:pca:{train.layers[-1]}@{train.passes[-1].index}")
    page.keyboard.press("Escape")
    page.locator("canvas").press("c")
    page.get_by_label("epoch 2", exact=True).fill("0")
    choose(page, "layer 2", "0")
    choose(page, "colour 2", "neighbour_recall:pca:0@0")
    shown_map(page, "x:pca:0@0", plot=1)
    page.locator("canvas").first.press("a")
    assert selected(page) == len(train)
    recall = analyzed_projection(open_run(recorded_run), train, pass_index=0, layer=0, method="pca").columns
    shown = page.locator('.plot[data-plot="1"] .ends span').all_inner_texts()
    assert [float(text) for text in shown] == pytest.approx(
        [recall["neighbour_recall"].min(), recall["neighbour_recall"].max()], abs=1e-3
    )
    page.get_by_role("button", name="close plot 1").click()
    shown_map(page, "x:pca:0@0")


def test_of_two_legends_that_say_the_same_one_is_folded(page, served):
    opened(page, served)
    painted(page)
    legends = page.locator("details.legend")
    expect(legends).to_have_attribute("open", "")
    page.locator("canvas").press("c")
    expect(legends).to_have_count(2)
    expect(legends.nth(1)).to_have_attribute("open", "")
    expect(legends.nth(0)).not_to_have_attribute("open", "")
    choose(page, "colour", "label")
    expect(legends.nth(0)).to_have_attribute("open", "")


def test_the_epochs_are_played_and_any_two_columns_shown(page, served, train):
    opened(page, served)
    layer, indices = train.layers[-1], [record.index for record in train.passes]
    choose(page, "map", "pca")
    shown_map(page, f"x:pca:{layer}@{indices[-1]}")
    page.get_by_role("button", name="play the epochs").click()
    for index in indices:
        shown_map(page, f"x:pca:{layer}@{index}")
    expect(page.get_by_role("button", name="play the epochs")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("[")
    shown_map(page, f"x:pca:{layer}@{indices[-2]}")
    choose(page, "map", "columns")
    choose(page, "x", "loss@0")
    choose(page, "y", "loss@2")
    shown_map(page, "loss@0")
    expect(page.locator(".x-axis")).to_have_text("loss, epoch 0")


def test_every_view_becomes_a_picture(page, served, train):
    opened(page, served, example=3)
    painted(page)
    picture = ET.fromstring(saved(page, "projection", "SVG"))
    assert len(picture.findall(f".//{SVG}circle")) >= len(train)
    texts = "".join(element.text or "" for element in picture.iter(f"{SVG}text"))
    assert "correctness" in texts
    assert "variability" in texts
    table = "".join(element.text or "" for element in ET.fromstring(saved(page, "table", "SVG")).iter(f"{SVG}text"))
    assert "confidence" in table
    assert train.class_names[train.labels[0]] in table
    for view in ("projection", "table", "filters"):
        assert saved(page, view, "PNG").startswith(b"\x89PNG")
