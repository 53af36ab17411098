"""A real Chromium for tests that click as a user would.

``browser`` is one Chromium per worker process; ``page`` a fresh page in it, of 1400 x 900 pixels, which fails its test
at the end if anything was written to the console as an error, an exception was thrown, or a request went to another
host. A test takes ``page`` and a server, and begins with ``opened``::

    def test_the_table_is_searched(page, served):
        opened(page, served, split="train", search="lock")
        expect(page.get_by_role("row")).to_have_count(3)

Further arguments of ``opened`` are the state of the view, as ``static/state.js`` names it. Both fixtures are found by
tests of this folder through ``conftest.py``. Where there is no Chromium the tests are skipped, and fail if the
environment variable ``T3VIS_BROWSER`` is ``required``. While ``browser`` lives, an event loop of Playwright's runs in
the thread of the tests: ``asyncio.run`` is for other threads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

if TYPE_CHECKING:
    from tests.viewer.conftest import Served

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
PATIENCE_MS = 60_000
"""For what a page waits for: the machine may be busy, and maps take a while."""
READY = '#app[aria-busy="false"]'


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of this process."""
    if not CHROMIUM.exists():
        reason = f"there is no {CHROMIUM}; install Chromium to run the tests of the page."
        if os.environ.get("T3VIS_BROWSER") == "required":
            pytest.fail(f"{reason} T3VIS_BROWSER=required says that they have to run.")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_MS)
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails its test at any error on the console, and at any request to another host."""
    with watched(browser) as made:
        yield made


@contextmanager
def watched(browser: Browser) -> Iterator[Page]:
    """A new page; at its end an assertion says what went wrong in it."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    made = context.new_page()
    made.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    made.on("console", lambda message: message.type == "error" and wrong.append(f"console: {message.text}"))
    made.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
    made.on("request", lambda request: _is_elsewhere(request.url) and wrong.append(f"asked elsewhere: {request.url}"))
    yield made
    context.close()
    assert not wrong, "\n".join(wrong)


def opened(page: Page, served: Served, **state: Any) -> Page:
    """Open the viewer with a state in its address, and wait until it shows the run."""
    page.goto(f"{served.entry}#s={quote(json.dumps(state))}")
    page.wait_for_selector(READY)
    return page


def _is_elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about", "file") and parts.hostname != "127.0.0.1"
