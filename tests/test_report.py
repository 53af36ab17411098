"""The report on whole runs on disk, ordinary ones and odd ones."""

import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from t3vis import open_run
from t3vis.analyze import analyzed_data_map, analyzed_progress, analyzed_suspects
from t3vis.analyze_projection import analyzed_projection
from t3vis.errors import ConfigurationError
from t3vis.report import report, write_report
from t3vis.report_page import Chapter, Section, Sparkline, Table, Text, rendered
from t3vis.store.results import read_result
from t3vis.store.writer import create_run
from tests.test_analyze import recorded

NASTY = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }} \x00\x1b </table> $a_b$ مرحبا"
VOID = {"meta", "img", "path", "polyline"}


class Page(HTMLParser):
    """What is on a page: tags that were opened and not closed, attributes by tag, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def page_of(run) -> Page:
    page = Page(report(run))
    assert page.open == []
    return page


def missing_of(page: Page) -> list[str]:
    return re.findall(r"Not available\. (.*?)(?= Not available|$)", page.words)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    texts = [f"text {i}" for i in range(39)] + [NASTY]
    names = ["<b>bold</b>", "two", "three"]
    labels = np.random.default_rng(0).integers(0, 3, 40)

    def spoil(rows):
        rows["logits"][rows["example"] == 39] = -np.eye(3, dtype=np.float32)[labels[39]] * 9

    path = tmp_path_factory.mktemp("report") / "<i>run.zarr"
    run = recorded(path, texts=texts, class_names=names, labels=labels, spoil=spoil)
    analyzed_projection(run, run.train, method="pca")
    return run


@pytest.fixture(scope="module")
def html(run) -> str:
    return report(run)


def test_page_is_whole_and_its_links_lead_somewhere(html):
    page = Page(html)
    assert page.open == []
    ids = [given["id"] for _, given in page.seen if "id" in given]
    assert len(ids) == len(set(ids))
    links = [given["href"] for tag, given in page.seen if tag == "a"]
    assert [link.removeprefix("#") for link in links] == ids
    assert "What is missing" in page.words
    assert not missing_of(page)


def test_page_asks_for_nothing_from_elsewhere(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.seen}
    for tag, given in page.seen:
        for name in ("src", "href", "srcset"):
            value = given.get(name) or "#"
            assert value.startswith(("#", "data:image/svg+xml;base64,")), (tag, value[:60])
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in html


def test_what_came_from_the_run_is_escaped(html):
    for raw in ("<script", "<b>bold", "<i>run", "\x00", "\x1b"):
        assert raw not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34; {{ 7 * 7 }} \ufffd\ufffd" in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "<title>&lt;i&gt;run.zarr: t3vis report</title>" in html


def test_page_says_what_the_store_says(run, html):
    words = Page(html).words
    mapped, suspects = analyzed_data_map(run, run.train), analyzed_suspects(run, run.train)
    first = suspects.ranking()[0]
    for part in (
        f"mean confidence {mapped.confidence.mean():.3f}",
        f"never learned {mapped.never_learned.sum()}",
        f"1 {first} {suspects.score[first]:.3f} ",
        f"aum\u00a0{suspects.aum[first]:.3f}".replace("\u00a0", " "),
        "train, recorded in train mode",
        "hidden_states train 3 epoch x 3 layer x 40 example x 6 hidden float16",
        "class Tiny",
    ):
        assert part in words, part
    progress = analyzed_progress(run, run.train)
    right = (run.train.logits[:].argmax(-1) == run.train.labels).mean(axis=1)
    np.testing.assert_allclose(progress.figures["accuracy"], right)
    np.testing.assert_allclose(progress.figures["loss"], run.train.loss[:].mean(axis=1, dtype=float))
    assert f"train train 2 2 to 3 {right[2]:.3f} {progress.figures['gold_prob'][2]:.3f}" in words


def test_every_split_has_a_chapter_in_its_own_mode(tmp_path):
    run = recorded(tmp_path / "run.zarr")
    writer = create_run(run.path, {}, start_step=15, resume=True)
    said = {"kind": "eval", "mode": "eval", "probe": "dataset", "n_examples": 5, "fingerprint": "e"}
    writer.add_split("eval", said)
    writer.describe("eval", {"task": "single_label", "class_names": None, "arrays": {}})
    writer.begin_pass("eval", 0, {"epoch": 3, "step": 15})
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    writer.log("eval", {"example": np.arange(5), "step": np.full(5, 15), "logits": logits, "labels": np.zeros(5, int)})
    writer.close()
    words = page_of(open_run(run.path)).words
    assert "eval, recorded in eval mode, a probe of a dataset of its own" in words
    assert read_result(run.path, "eval", "data_map").attributes["probe"] == "dataset"
    assert "eval eval 0 3 0.400" in words  # accuracy of two in five
    assert "Training was resumed from step 15." in words


def test_odd_runs_have_a_report_that_says_what_it_lacks(tmp_path):
    def reasons(name, **options):
        return " ".join(missing_of(page_of(recorded(tmp_path / f"{name}.zarr", **options))))

    assert "no map in the store" in reasons("small", n_examples=3)
    assert "needs at least two classes" in reasons("one", labels=np.zeros(40, np.int64))
    several = reasons("several", task="multi_label", hidden=False)
    assert "holds no hidden states, which this analysis needs" in several
    assert "has no classes but several labels or numbers for each example" in several
    blind = reasons("blind", logits=False, epochs=(1,))
    assert "holds no logits, which this analysis needs" in blind
    assert "hidden states of a single pass; change needs two" in blind


def test_a_run_without_anything_has_a_report(tmp_path):
    create_run(tmp_path / "run.zarr", {"model": {"class": "Tiny"}}).close()
    assert missing_of(page_of(open_run(tmp_path / "run.zarr")))[0].startswith("nothing was recorded yet")


def test_a_damaged_run_has_a_report_of_what_can_be_read(tmp_path):
    run = recorded(tmp_path / "run.zarr")
    shard = next((run.path / "train" / "logits" / "c" / "1").rglob("0/0"))
    os.truncate(shard, 100)
    page = page_of(open_run(run.path))
    assert str(shard) in missing_of(page)[0]
    assert "tells the classes apart best" in page.words


def test_rows_that_are_not_there_are_counted(tmp_path):
    def spoil(rows):
        for name, values in rows.items():
            rows[name] = values[:, :30] if name == "hidden_states" else values[:30]

    words = page_of(recorded(tmp_path / "run.zarr", spoil=spoil)).words
    assert "train, pass 0: 10 of 40 examples were never seen." in words


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    create_run(tmp_path / "run.zarr", {}).close()
    run = open_run(tmp_path / "run.zarr")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_report(run, tmp_path / "no" / "report.html")
    size = write_report(run, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size == size


def test_curve_leaves_a_gap_where_nothing_is_known():
    assert Sparkline([0.0, 1.0, float("nan"), 0.5]).paths == ["2.0,22.0 34.0,2.0", "98.0,12.0 98.0,12.0"]


def test_tables_tell_numbers_from_words():
    table = Table([{"n": "-1,234.5", "share": "\u2013", "word": "a1", "curve": Sparkline([1.0]), "text": "x" * 40}])
    assert [table.look(column) for column in table.columns] == ["number", "number", "short", "curve", "long"]
    page = Page(rendered("t", "a", [Chapter("c", [Section("s", [table, Text("t")])])]))
    assert page.open == []
