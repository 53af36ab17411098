"""The viewer without a server: it shows the same, and asks nobody."""

import functools
import http.server
import json
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from t3vis import Run, open_run
from t3vis.analyze import analyzed_suspects
from t3vis.cli import main
from t3vis.errors import ConfigurationError
from t3vis.viewer import export
from tests.viewer.browser import READY


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def exported(recorded_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One HTML file, and beside it the folder with few examples to look at."""
    folder = tmp_path_factory.mktemp("exported")
    assert main(["view", str(recorded_run), "--export", str(folder / "one.html")]) == 0
    run = open_run(recorded_run)
    export.export_viewer(run, folder / "site", examples=[3, most_suspicious(run)])
    return folder


def most_suspicious(run: Run) -> int:
    return int(analyzed_suspects(run, run.train).ranking()[0])


def shows_the_run(page: Page, recorded_run: Path) -> None:
    """The page is used as with a server."""
    page.wait_for_selector(READY)
    run = open_run(recorded_run)
    train, first = run.train, most_suspicious(run)
    header = page.get_by_role("columnheader", name="suspicion")
    header.click()
    header.click()
    expect(page.get_by_role("gridcell").first).to_have_text(str(first))
    page.get_by_role("gridcell").first.click()
    instance = page.get_by_role("region", name="Instance Investigation View")
    expect(instance).to_contain_text(train.text["text"][first][:30])
    word = train.text["text"][first].split()[0]
    page.get_by_label("search texts").fill(word)
    n_found = sum(any(word.lower() in column[i].lower() for column in train.text.values()) for i in range(len(train)))
    expect(page.locator(".count")).to_contain_text(f"{n_found} of {len(train)}")
    page.get_by_role("tab", name="Layers").click()
    expect(page.locator("td.best").first).to_be_visible()


def test_one_file_opens_by_itself(exported, recorded_run, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((exported / "one.html").as_uri())
    shows_the_run(page, recorded_run)
    assert [url for url in asked if not url.startswith("data:")] == [(exported / "one.html").as_uri()]


def test_a_folder_is_served_by_any_static_host(exported, recorded_run, page):
    handler = functools.partial(Quiet, directory=exported)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page.goto(f"http://127.0.0.1:{server.server_port}/site/")
        shows_the_run(page, recorded_run)
        server.shutdown()
        thread.join()


def test_what_is_there_is_not_written_over(exported, recorded_run):
    with pytest.raises(ConfigurationError, match="is there already"):
        export.export_viewer(open_run(recorded_run), exported / "site")


def test_one_file_has_a_limit(recorded_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_IN_FILE", 100)
    with pytest.raises(ConfigurationError, match="export to a folder"):
        export.export_viewer(open_run(recorded_run), tmp_path / "one.html")


def test_the_examples_that_are_chosen_can_be_looked_at(exported, recorded_run):
    found = json.loads((exported / "site/data/splits/0/examples.json").read_text())
    assert list(found) == list(dict.fromkeys(["3", str(most_suspicious(open_run(recorded_run)))]))
    assert found["3"]["tokens"]
