"""The page as a whole: it shows the run, and what goes wrong in it is not missed."""

import pytest
from playwright.sync_api import Browser, expect

from tests.viewer.browser import opened, watched
from tests.viewer.conftest import Served


def test_the_run_is_shown(page, served):
    opened(page, served)
    expect(page.get_by_role("heading", name="topics.zarr")).to_be_visible()
    for view in ("Projection View", "Data Table", "Attention Head View", "Instance Investigation View"):
        expect(page.get_by_role("region", name=view)).to_be_visible()


WRONG = {
    "console.error('broken')": "console: broken",
    "setTimeout(() => { throw new Error('lost'); })": "exception: lost",
    "fetch('http://elsewhere.example/').catch(() => 0)": "violates the following Content Security Policy",
}


def run_scripts(browser: Browser, served: Served) -> None:
    with watched(browser) as page:
        opened(page, served)
        for script in WRONG:
            page.evaluate(script)
        page.evaluate("() => new Promise((done) => setTimeout(done))")  # timers of the scripts come first


def test_what_goes_wrong_in_the_page_fails_its_test(served, browser):
    with pytest.raises(AssertionError) as failure:
        run_scripts(browser, served)
    for message in WRONG.values():
        assert message in str(failure.value)
