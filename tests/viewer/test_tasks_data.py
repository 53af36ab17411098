"""The tasks of the Projection View and the Data Table, done by clicking, each answer held against the store."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from t3vis.analysis.data_map import regions
from t3vis.analyze import (
    analyzed_data_map,
    analyzed_drift,
    analyzed_pass_outliers,
    analyzed_separability,
    analyzed_suspects,
)
from tests.viewer.browser import opened
from tests.viewer.clicks import add_column, choose, saved, shown_map, sorted_down
from tests.viewer.topics import Probed


def test_t1_how_good_each_layer_is_before_training(page, probed: Probed):
    opened(page, probed.served)
    choose(page, "split", "probe")
    expect(page.locator(".facts")).to_contain_text("eval mode")
    page.get_by_role("tab", name="Layers").click()
    choose(page, "figure", "knn_accuracy")
    before = page.locator("tr").filter(has=page.get_by_role("rowheader", name="0", exact=True))
    best = before.locator("td.best")
    expect(best.first).to_be_visible(timeout=60_000)

    found = analyzed_separability(probed.run, probed.run.evals["probe"])
    row = found.figures["knn_accuracy"][0]
    assert [float(text) for text in before.get_by_role("cell").all_inner_texts()] == pytest.approx(row, abs=5e-4)
    assert {int(cell.get_attribute("data-column")) for cell in best.all()} == set(np.flatnonzero(row == row.max()))

    best.first.get_by_role("button").click()
    layer = found.layers[int(np.argmax(row))]
    shown_map(page, f"x:pca:{layer}@0")
    expect(page.get_by_label("layer", exact=True)).to_have_value(str(layer))
    expect(page.get_by_label("colour", exact=True)).to_have_value("label")


def test_t2_outliers_before_and_after_training(page, probed: Probed):
    opened(page, probed.served)
    choose(page, "split", "probe")
    expect(page.locator(".facts")).to_contain_text("eval mode")
    probe = probed.run.evals["probe"]
    last = probe.passes[-1].index
    for index in (0, last):
        title = f"outlier score (epoch {probe.passes[index].epoch:g})"
        add_column(page, title)
        sorted_down(page, title)
        outliers = analyzed_pass_outliers(probed.run, probe, index)
        highest = outliers.ranking()[0]
        expect(page.get_by_role("gridcell").first).to_have_text(str(highest))
    page.get_by_role("gridcell").first.click()
    expect(page.get_by_role("region", name="Instance Investigation View")).to_contain_text(f"example {highest}")
    expect(page.get_by_role("region", name="Instance Investigation View")).to_contain_text(
        probe.text["text"][int(highest)]
    )

    choose(page, "map", "pca")
    shown_map(page, f"x:pca:{probe.layers[-1]}@{last}")
    choose(page, "colour", f"outlier@{last}")
    expect(page.locator(".legend")).to_contain_text("outlier score")
    expect(page.locator(".chosen-point")).to_be_visible()


def test_t6_how_the_model_changes_over_training(page, probed: Probed):
    opened(page, probed.served)
    choose(page, "split", "probe")
    expect(page.locator(".facts")).to_contain_text("eval mode")
    probe = probed.run.evals["probe"]
    layer, last = probe.layers[-1], probe.passes[-1].index
    choose(page, "map", "tsne")
    shown_map(page, f"x:tsne:{layer}@{last}")
    page.get_by_role("button", name="compare").click()
    page.get_by_label("epoch 2", exact=True).fill("0")
    shown_map(page, f"x:tsne:{layer}@0", plot=1)
    shown_map(page, f"x:tsne:{layer}@{last}")
    choose(page, "colour 2", "displacement")
    expect(page.locator('.plot[data-plot="1"] .legend')).to_contain_text("moved")

    drift = analyzed_drift(probed.run, probe)
    add_column(page, "moved")
    sorted_down(page, "moved")
    expect(page.get_by_role("gridcell").first).to_have_text(str(np.argmax(drift.displacement)))

    page.get_by_role("tab", name="Layers").click()
    choose(page, "figure", "cka")
    expect(page.locator("td").first).to_be_visible()
    told = [float(text) for text in page.locator("td").all_inner_texts()]
    assert told == pytest.approx(drift.cka.ravel(), abs=5e-4)


def test_t8_which_examples_are_mislabelled(page, probed: Probed):
    opened(page, probed.served)
    page.get_by_role("tab", name="Label errors").click()
    suspects, train = analyzed_suspects(probed.run, probed.run.train), probed.run.train
    ranking = suspects.ranking()
    queue = page.locator(".suspects")
    expect(queue).to_have_attribute("data-example", str(ranking[0]))
    expect(queue).to_contain_text(train.text["text"][int(ranking[0])])
    queue.focus()
    for number, key in enumerate("ssk"):
        expect(queue).to_have_attribute("data-example", str(ranking[number]))
        page.keyboard.press(key)
    expect(queue).to_have_attribute("data-example", str(ranking[3]))

    with page.expect_download() as download:
        page.get_by_role("button", name="save CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    names = train.class_names
    assert [int(row["example"]) for row in rows] == ranking[:3].tolist()
    assert [row["label"] for row in rows] == [names[train.labels[i]] for i in ranking[:3]]
    kept = names[train.labels[ranking[2]]]
    assert [row["new_label"] for row in rows] == [*(names[suspects.suggested_label[i]] for i in ranking[:2]), kept]
    assert np.isin(ranking[: len(probed.wrong)], probed.wrong).mean() > 0.5  # what is asked about is worth asking

    page.keyboard.press("Control+z")
    expect(queue).to_contain_text("2 decided")


def test_t9_which_examples_are_easy_ambiguous_and_hard(page, probed: Probed):
    opened(page, probed.served)
    found = regions(analyzed_data_map(probed.run, probed.run.train))
    choose(page, "add", "region")
    filters = page.get_by_role("complementary", name="Filters")
    filters.get_by_role("button", name="none").click()
    expect(page.get_by_text("No example passes the filters.").first).to_be_visible()
    for name in ("ambiguous", "easy and ambiguous", "ambiguous and hard", "all"):
        filters.get_by_label(name, exact=True).check()
    ambiguous = np.flatnonzero(found.ambiguous)
    expect(page.locator(".count")).to_contain_text(f"{len(ambiguous)} of {probed.run.train.n_examples}")
    assert [int(line) for line in saved(page, "table", "ids").split()] == ambiguous.tolist()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="undo").click()
    expect(filters.get_by_label("all", exact=True)).not_to_be_checked()
