"""What users do on the page, in the words of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, expect


def state_of(page: Page) -> dict[str, Any]:
    """The state that the address holds."""
    found: dict[str, Any] = json.loads(parse_qs(urlsplit(page.url).fragment).get("s", ["{}"])[0])
    return found


def saved(page: Page, view: str, kind: str) -> bytes:
    """What a user gets who saves a view."""
    page.get_by_role("button", name=f"save {view}", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("menuitem").filter(has=page.get_by_text(kind, exact=True)).click()
    return Path(download.value.path()).read_bytes()


def choose(page: Page, label: str, value: str) -> None:
    """One of a list."""
    page.get_by_label(label, exact=True).select_option(value)


def shown_map(page: Page, x: str, plot: int = 0) -> None:
    """Wait until a plot shows these places, all of them."""
    expect(page.locator(f'.plot[data-plot="{plot}"]')).to_have_attribute("data-x", x)
    painted(page)


def painted(page: Page) -> None:
    """Wait until all points are drawn."""
    page.wait_for_selector('.plot[data-painted][data-whole="true"]')


def add_column(page: Page, title: str) -> None:
    """One more column of the table."""
    page.get_by_role("button", name="columns", exact=True).click()
    page.get_by_label(title, exact=True).check()
    page.keyboard.press("Escape")


def sorted_down(page: Page, title: str) -> None:
    """Click a header until the highest values come first."""
    header = page.get_by_role("columnheader", name=title)
    header.click()
    header.click()
    expect(header).to_have_attribute("aria-sort", "descending")


def drag(page: Page, places: list[tuple[float, float]], *, plot: int = 0, shift: bool = False) -> None:
    """Draw over a plot, by places as shares of its width and height."""
    box = page.locator("canvas").nth(plot).bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    if shift:
        page.keyboard.down("Shift")
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
    page.mouse.up()
    if shift:
        page.keyboard.up("Shift")
