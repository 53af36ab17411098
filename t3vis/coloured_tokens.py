"""A text whose tokens are coloured by a value each, for the terminal and for a browser.

Blue speaks for what is explained, red against it, the stronger the darker; white is nothing. The scale is that of the
largest value shown.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOR, AGAINST, WHITE = (19, 74, 138), (156, 17, 39), (255, 255, 255)
_LIGHT_TEXT_FROM = 0.55
"""Strength of a colour from which white is easier to read on it than black: contrast 4.5 on either."""

_STYLE = """
body { font: 16px/1.9 system-ui, sans-serif; color: #1d232b; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1rem; margin: 2rem 0 .3rem; } p { margin: .3rem 0; } .notes { color: #5c6672; font-size: .85rem; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; } .tokens span { border-radius: 3px; padding: .15em 0; }
""".strip()


@dataclass(frozen=True, eq=False)
class Row:
    """One coloured text.

    Parameters
    ----------
    heading
        What is explained.
    notes
        Lines of small print below it.
    tokens, gaps
        What each token reads, and what stands between it and the one before.
    values
        Shape (n_tokens,).
    """

    heading: str
    notes: Sequence[str]
    tokens: Sequence[str]
    gaps: Sequence[str]
    values: NDArray[np.float64]


def ansi(row: Row) -> str:
    r"""The tokens as text for a terminal that knows 24-bit colours.

    Examples
    --------
    >>> ansi(Row("", (), ["no"], [""], np.array([-1.0])))
    '\x1b[48;2;156;17;39;38;2;255;255;255mno\x1b[0m'
    """
    parts = []
    for token, gap, strength in zip(row.tokens, row.gaps, _strengths(row.values), strict=True):
        ink = (255, 255, 255) if abs(strength) >= _LIGHT_TEXT_FROM else (0, 0, 0)
        colours = ";".join(map(str, (48, 2, *_colour(strength), 38, 2, *ink)))
        parts.append(f"{printable(gap)}\x1b[{colours}m{printable(token)}\x1b[0m")
    return "".join(parts)


def page(title: str, rows: Sequence[Row]) -> str:
    """An HTML page of its own, with nothing to load; each token tells its value when pointed at."""
    sections = []
    for row in rows:
        spans = []
        for token, gap, value, strength in zip(row.tokens, row.gaps, row.values, _strengths(row.values), strict=True):
            red, green, blue = _colour(strength)
            ink = "#fff" if abs(strength) >= _LIGHT_TEXT_FROM else "#000"
            style = f"background:rgb({red},{green},{blue});color:{ink}"
            spans.append(f'{html.escape(gap)}<span style="{style}" title="{value:+.4f}">{html.escape(token)}</span>')
        notes = "".join(f'<p class="notes">{html.escape(note)}</p>' for note in row.notes)
        sections.append(f'<h2>{html.escape(row.heading)}</h2><p class="tokens">{"".join(spans)}</p>{notes}')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def printable(text: str) -> str:
    r"""The text without control characters, which would command the terminal.

    Examples
    --------
    >>> printable("a\x1b[2Jb") == "a\ufffd[2Jb"
    True
    """
    return "".join(c if c.isprintable() or c in "\n " else "\ufffd" for c in text)


def _strengths(values: NDArray[np.float64]) -> list[float]:
    largest = float(np.abs(values).max(initial=0.0))
    return (values / largest).tolist() if largest > 0 else [0.0] * len(values)


def _colour(strength: float) -> tuple[int, ...]:
    end = FOR if strength >= 0 else AGAINST
    return tuple(round(w + abs(strength) * (e - w)) for w, e in zip(WHITE, end, strict=True))
