"""The Data Table, the filters and what all views share."""

import csv
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from t3vis import open_run
from t3vis.analyze import analyzed_data_map
from t3vis.store.seal import seal_pass
from t3vis.store.writer import create_run
from tests.viewer.browser import opened
from tests.viewer.clicks import add_column, choose, saved, sorted_down, state_of
from tests.viewer.conftest import serving


@pytest.fixture(scope="module")
def train(recorded_run):
    return open_run(recorded_run).train


def told_count(page):
    return int(page.locator(".count b").first.inner_text().replace(",", ""))


def test_rows_are_there_as_they_are_scrolled_to(page, served, train):
    opened(page, served)
    rows = page.locator(".row[data-id]")
    expect(rows.first).to_have_attribute("data-id", "0")
    assert rows.count() < len(train) / 2
    page.locator(".rows").evaluate("rows => { rows.scrollTop = rows.scrollHeight; }")
    last = page.locator(f'.row[data-id="{len(train) - 1}"]')
    expect(last).to_contain_text(train.text["text"][len(train) - 1][:20])


def test_sorting_up_down_and_not(page, served, train):
    opened(page, served)
    add_column(page, "loss (epoch 1)")
    sorted_down(page, "loss (epoch 1)")
    first = page.get_by_role("gridcell").first
    expect(first).to_have_text(str(np.argmax(train.loss[1])))
    page.get_by_role("columnheader", name="loss (epoch 1)").click()
    expect(first).to_have_text("0")
    page.get_by_role("columnheader", name="loss (epoch 1)").click()
    expect(first).to_have_text(str(np.argmin(train.loss[1])))


def test_filters_all_have_to_pass_and_are_undone(page, served, recorded_run, train):
    found = analyzed_data_map(open_run(recorded_run), train)
    opened(page, served)
    choose(page, "add", "confidence")
    lowest = page.get_by_label("confidence, lowest")
    lowest.focus()
    for _ in range(30):
        page.keyboard.press("PageUp")
        if told_count(page) < len(train):
            break
    low = float(lowest.input_value())
    passing = found.confidence.astype(np.float32) >= low
    assert told_count(page) == np.count_nonzero(passing)
    choose(page, "add", "label")
    filters = page.get_by_role("complementary", name="Filters")
    filters.get_by_label(train.class_names[0], exact=True).uncheck()
    expect(page.locator(".count b").first).to_have_text(str(np.count_nonzero(passing & (train.labels != 0))))
    page.get_by_role("button", name="undo").click()
    expect(page.locator(".count b").first).to_have_text(str(np.count_nonzero(passing)))
    page.get_by_role("button", name="remove all").click()
    expect(page.locator(".count b").first).to_have_text(str(len(train)))


def test_the_selection_leaves_as_csv_parquet_ids_and_python(page, served, recorded_run, train):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened(page, served, selected=[2, 5, 9], shown=["label", "loss@0"])
    expect(page.locator(".count")).to_contain_text("3 selected")
    rows = list(csv.DictReader(io.StringIO(saved(page, "table", "CSV").decode())))
    assert [int(row["example"]) for row in rows] == [2, 5, 9]
    assert [row["text"] for row in rows] == [train.text["text"][i] for i in (2, 5, 9)]
    table = pq.read_table(io.BytesIO(saved(page, "table", "Parquet"))).to_pydict()
    assert table["example"] == [2, 5, 9]
    assert table["loss@0"] == pytest.approx(train.loss[0][[2, 5, 9]])
    assert saved(page, "table", "ids").split() == [b"2", b"5", b"9"]
    page.get_by_role("button", name="save table").click()
    page.get_by_role("menuitem", name="Python").click()
    expect(page.get_by_role("status")).to_contain_text("3 examples copied")
    names = {"run": open_run(recorded_run)}
    exec(page.evaluate("navigator.clipboard.readText()"), names)
    assert names["ids"] == [2, 5, 9]
    assert [row.text["text"] for row in names["rows"]] == [train.text["text"][i] for i in (2, 5, 9)]


def test_a_link_opens_the_same_selection_and_search(page, served):
    opened(page, served, selected=[7, 3, 200], search="the")
    expect(page.locator(".count")).to_contain_text("3 selected")
    assert state_of(page)["selected"] == "3.4.5d"  # steps between the sorted ids, in base 36
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    expect(page.locator(".count")).to_contain_text("3 selected")
    expect(page.get_by_label("search texts")).to_have_value("the")


def test_every_control_has_a_name_and_keys_open_help_theme_and_panels(page, served):
    opened(page, served, example=2)
    expect(page.get_by_role("region", name="Instance Investigation View")).to_contain_text("example 2")
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, select, input, textarea")].filter((control) => {
          const label = control.getAttribute("aria-label") ?? control.textContent.trim();
          return (!label && !control.labels?.length) || control.tabIndex < 0 && !control.closest("[role=grid], svg");
        }).map((control) => control.outerHTML.slice(0, 90))"""
    )
    assert unnamed == []
    page.keyboard.press("?")
    help_ = page.get_by_role("dialog", name="Keyboard help")
    expect(help_).to_contain_text("lasso")
    page.keyboard.press("Escape")
    expect(help_).to_have_count(0)
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 29)"
    page.keyboard.press("3")
    expect(page.get_by_role("tab", name="Layers")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("1")
    page.keyboard.press("/")
    expect(page.get_by_label("search texts")).to_be_focused()


def log_pass(writer, index, n):
    rng = np.random.default_rng(index)
    rows = {"example": np.arange(n), "step": np.full(n, index), "labels": np.zeros(n, np.int64)}
    writer.begin_pass("train", index, {"epoch": index, "step": index})
    writer.log("train", rows | {"logits": rng.standard_normal((n, 2), dtype=np.float32)})
    writer.flush()


def test_a_run_that_is_still_training_grows_on_the_screen(page, tmp_path):
    writer = create_run(tmp_path / "growing.zarr", {"model": {"class": "Tiny"}})
    writer.add_split("train", {"kind": "train", "mode": "train", "n_examples": 30, "fingerprint": "of nothing"})
    writer.describe("train", {"task": "single_label", "class_names": ["a", "b"]})
    log_pass(writer, 0, 30)
    seal_pass(tmp_path / "growing.zarr", "train", 0)
    with serving(tmp_path / "growing.zarr") as served:
        opened(page, served)
        expect(page.locator(".facts")).to_contain_text("1 pass")
        log_pass(writer, 1, 20)
        expect(page.locator(".facts")).to_contain_text(re.compile("2 passes.*recording"))
        add_column(page, "prediction (epoch 1)")
        predicted = open_run(tmp_path / "growing.zarr").train.logits[1].argmax(axis=1)
        cell = page.locator('.row[data-id="3"]').get_by_role("gridcell").nth(-2)
        expect(cell).to_have_text("ab"[predicted[3]])
        page.goto("about:blank")
    writer.close()
