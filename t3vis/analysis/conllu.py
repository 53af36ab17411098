"""Sentences with their parse, from the CoNLL-U files of Universal Dependencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from t3vis.errors import AnalysisError

N_COLUMNS = 10


@dataclass(frozen=True)
class Sentence:
    """Words, for each the number of its head (-1 of the root) and its relation; and what the comments say."""

    words: tuple[str, ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]
    comments: dict[str, str] = field(default_factory=dict)


def sentences(lines: Iterable[str]) -> Iterator[Sentence]:
    r"""The sentences of a CoNLL-U file, read as they are asked for.

    Ranges of words written as one (``3-4``) and empty nodes (``5.1``) are passed over; subtypes of relations
    (``nmod:poss``) are kept.

    Raises
    ------
    AnalysisError
        If a line has not ten columns, or a head is no number.

    References
    ----------
    https://universaldependencies.org/format.html

    Examples
    --------
    >>> rows = [("1", "it", "2", "nsubj"), ("2", "works", "0", "root")]
    >>> lines = ["\t".join([i, word, "_", "_", "_", "_", head, name, "_", "_"]) for i, word, head, name in rows]
    >>> next(sentences(["# sent_id = a", *lines, ""]))
    Sentence(words=('it', 'works'), heads=(1, -1), relations=('nsubj', 'root'), comments={'sent_id': 'a'})
    """
    rows: list[list[str]] = []
    comments: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.startswith("#"):
            name, _, value = text[1:].partition("=")
            comments[name.strip()] = value.strip()
        elif text:
            rows.append(_row(text, number))
        elif rows:
            yield _sentence(rows, comments)
            rows, comments = [], {}
    if rows:
        yield _sentence(rows, comments)


def _row(line: str, number: int) -> list[str]:
    columns = line.split("\t")
    if len(columns) != N_COLUMNS:
        raise AnalysisError(f"line {number} has {len(columns)} columns, not the ten of CoNLL-U: {line[:60]!r}.")
    if columns[0].isdigit() and not columns[6].isdigit():
        raise AnalysisError(f"line {number} has the head {columns[6]!r}, which is not the number of a word.")
    return columns


def _sentence(rows: list[list[str]], comments: dict[str, str]) -> Sentence:
    words = [row for row in rows if row[0].isdigit()]
    return Sentence(
        tuple(row[1] for row in words),
        tuple(int(row[6]) - 1 for row in words),
        tuple(row[7] for row in words),
        comments,
    )
