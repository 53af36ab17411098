"""A page of HTML that needs nothing else, no network, no script: what can be on it, and how it is written."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import jinja2

MAX_SHORT = 24
"""Up to so many characters a cell is kept in one line."""
MAX_TEXT = 600
"""Longer texts are cut; the page says how much is left out."""


@dataclass(frozen=True)
class Sparkline:
    """A small curve in a cell of a table: values in [0, 1] over the passes, NaN where there is none."""

    values: Sequence[float]

    @property
    def paths(self) -> list[str]:
        """The points of each piece between gaps, on a canvas of 100 by 24, as SVG takes them."""
        step = 96 / max(len(self.values) - 1, 1)
        pieces: list[list[str]] = [[]]
        for i, value in enumerate(self.values):
            if value != value:  # NaN
                pieces.append([])
            else:
                pieces[-1].append(f"{2 + i * step:.1f},{22 - 20 * value:.1f}")
        return [" ".join(piece * 2 if len(piece) == 1 else piece) for piece in pieces if piece]

    def __str__(self) -> str:
        return " ".join("-" if value != value else f"{value:.2f}" for value in self.values)


@dataclass(frozen=True)
class Noted:
    """A text in a cell of a table, and small print below it."""

    text: str
    note: str


Cell: TypeAlias = str | Sparkline | Noted


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Command:
    """A command line."""

    kind: ClassVar = "command"
    line: str


@dataclass(frozen=True)
class Missing:
    """Why something is not on the page."""

    kind: ClassVar = "missing"
    why: str


@dataclass(frozen=True)
class Tiles:
    """Figures to be seen at a glance, each with what it is."""

    kind: ClassVar = "tiles"
    tiles: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Names and values, many of them."""

    kind: ClassVar = "facts"
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells by the name of their column, all with the same columns."""

    kind: ClassVar = "table"
    rows: Sequence[dict[str, Cell]]
    caption: str = ""
    meanings: dict[str, str] = field(default_factory=dict)
    """What a column is, for those that do not say it themselves."""

    @property
    def columns(self) -> list[str]:
        """Their names."""
        return list(self.rows[0]) if self.rows else []

    def look(self, column: str) -> str:
        """``number``, ``short``, ``long`` or ``curve``, by what is in the column."""
        cells = [row[column] for row in self.rows]
        if any(isinstance(cell, Sparkline) for cell in cells):
            return "curve"
        if any(isinstance(cell, Noted) for cell in cells):
            return "long"
        texts = [str(cell) for cell in cells]
        if all(re.fullmatch(r"[-\u2013+\d.,]*%?|never", text) for text in texts):
            return "number"
        return "short" if max(map(len, texts)) <= MAX_SHORT else "long"


@dataclass(frozen=True)
class Picture:
    """A figure, as the address of an image that holds it whole."""

    kind: ClassVar = "picture"
    address: str
    alt: str


Block: TypeAlias = Text | Command | Missing | Tiles | Facts | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Chapter:
    """A part of the page, such as one split."""

    title: str
    sections: Sequence[Section]


def rendered(title: str, about: str, chapters: Sequence[Chapter]) -> str:
    """The page as HTML, in which everything that is given is escaped.

    Parameters
    ----------
    title
        Of the page.
    about
        A line below it.
    chapters
        What is on the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("t3vis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = _printable
    return environment.get_template("report.html").render(title=title, about=about, chapters=chapters)


def picture(svg: str, alt: str) -> Picture:
    """An SVG as it stands in the page."""
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", alt)


def cut(text: str) -> str:
    """A text of at most `MAX_TEXT` characters, which says how many are left out."""
    left_out = len(text) - MAX_TEXT
    return text if left_out <= 0 else f"{text[:MAX_TEXT]} … ({left_out:,} more characters)"


def _printable(text: str) -> str:
    """A text without the control characters that HTML has no way to write."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)
