"""What the subcommands print and write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from t3vis.errors import ConfigurationError
from t3vis.store.integrity import Progress
from t3vis.store.reader import Run


def table(rows: Sequence[dict[str, str]], width: int) -> str:
    """Rows as text of at most ``width`` columns; the last column is cut to what is left, at least 20."""
    if not rows:
        return "none"
    columns = list(rows[0])
    clean = [[" ".join(row[column].split()) for column in columns] for row in rows]
    widths = [max(len(column), *(len(cells[i]) for cells in clean)) for i, column in enumerate(columns)]
    rest = max(width - sum(widths[:-1]) - 2 * (len(columns) - 1), 20)
    lines = []
    for cells in [columns, *clean]:
        last = cells[-1] if len(cells[-1]) <= rest else cells[-1][: rest - 1] + "…"
        padded = [cell.ljust(size) for cell, size in zip(cells[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*padded, last]).rstrip())
    return "\n".join(lines)


def terminal_width() -> int:
    """Columns of the terminal; 120 where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def beside(run: Run, name: str) -> Path:
    """A path next to a run on disk; in the current folder for a run at a URL."""
    return (run.path.parent if isinstance(run.path, Path) else Path()) / name


def stem(run: Run) -> str:
    """The name of a run without its folder and suffix."""
    return Path(str(run.path)).stem


def opened(path: Path) -> TextIO:
    """A text file to write to.

    Raises
    ------
    ConfigurationError
        If it cannot be written.
    """
    try:
        return path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}; choose another path.") from error


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Progress]:
    """A bar that appears when the work takes more than a second."""
    with tqdm(desc=what, unit=unit, unit_scale=unit == "B", delay=1, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def size_of(run: Path) -> int:
    """Bytes of all files of a run on disk."""
    return sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
