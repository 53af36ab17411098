"""Coloured tokens, as text for a terminal and as a page."""

import re
from html.parser import HTMLParser

import numpy as np

from t3vis.coloured_tokens import Row, ansi, page

TOKENS = ("[CLS]", "<b>", "good", "\x1b[2Jbad", "[SEP]")
ROW = Row("says & means", ("<i>",), TOKENS, ("", " ", "  ", " ", " "), np.array([0.0, 0.5, 2.0, -1.0, 0.1]))


class Page(HTMLParser):
    """The tags of a page, and the text and style of each span."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.spans, self.text, self.is_span = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "span":
            self.spans.append((dict(attrs), ""))
        self.is_span = tag == "span"

    def handle_endtag(self, tag):
        self.is_span = False

    def handle_data(self, data):
        self.text += data
        if self.is_span:
            self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)


def colour(style):
    return tuple(map(int, re.search(r"rgb\((\d+),(\d+),(\d+)\)", style).groups()))


def test_the_page_shows_every_token_as_it_reads():
    shown = Page(page("<script>alert(1)</script>", [ROW, ROW]))
    assert [text for _, text in shown.spans] == [*TOKENS, *TOKENS]
    assert not {"script", "b", "i", "img", "link"} & set(shown.tags)
    assert "".join(gap + token for gap, token in zip(ROW.gaps, ROW.tokens, strict=True)) in shown.text
    assert [attributes["title"] for attributes, _ in shown.spans[:5]] == [f"{value:+.4f}" for value in ROW.values]


def test_colours_say_sign_and_size():
    colours = [colour(attributes["style"]) for attributes, _ in Page(page("", [ROW])).spans]
    assert colours[0] == (255, 255, 255)
    assert colours[2] == (19, 74, 138)
    red, green, blue = colours[3]
    assert red > blue > 0
    assert red > green
    assert sum(colours[1]) > sum(colours[2])  # paler


def test_dark_colours_carry_white_letters():
    inks = [attributes["style"].split("color:")[-1] for attributes, _ in Page(page("", [ROW])).spans]
    assert inks == ["#000", "#000", "#fff", "#000", "#000"]


def test_the_terminal_gets_colours_and_no_commands_of_the_text():
    shown = ansi(ROW)
    codes = re.findall(r"\x1b\[(.*?)m", shown)
    assert len(codes) == 2 * len(TOKENS)
    assert codes[4] == "48;2;19;74;138;38;2;255;255;255"
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "\x1b" not in plain
    assert plain == "[CLS] <b>  good \ufffd[2Jbad [SEP]"


def test_nothing_is_white():
    row = Row("", (), ("a", "b"), ("", " "), np.zeros(2))
    assert ansi(row).count("48;2;255;255;255") == 2
