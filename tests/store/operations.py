"""Something happens, or the process dies, just before the n-th operation on files below a directory."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READING = frozenset({"open", "os.scandir", "os.listdir"})
WRITING = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"})


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ordinary errors sees it, nothing is tidied up."""


class _Watch:
    def __init__(self, below: Path, events: frozenset[str], number: int, action: Callable[[], None]) -> None:
        self.below, self.events, self.number, self.action = str(below), events, number, action
        self.happened = False


_watch: _Watch | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    global _watch
    if _watch is None or event not in _watch.events:
        return
    by_descriptor = event in ("os.remove", "os.rmdir") and not str(args[0]).startswith("/")  # from rmtree
    if not (by_descriptor or str(args[0]).startswith(_watch.below)):
        return
    _watch.number -= 1
    if _watch.number < 0:
        watch, _watch = _watch, None
        watch.happened = True
        watch.action()


sys.addaudithook(_hook)


@contextmanager
def before_operation(number: int, below: Path, action: Callable[[], None], events: frozenset[str]) -> Iterator[_Watch]:
    """``happened`` of what is yielded says whether there were as many operations."""
    global _watch
    watch = _watch = _Watch(below, events, number, action)
    try:
        yield watch
    finally:
        _watch = None


def killed_before_each(below_of: Callable[[int], Path], act: Callable[[Path], Any]) -> Iterator[Path]:
    """Let ``act`` die before its first operation on files, its second, ...; yields the directory left behind.

    ``below_of`` makes a fresh directory for each death.
    """
    for number in range(10_000):
        path = below_of(number)
        try:
            with before_operation(number, path, _die, WRITING) as watch:
                act(path)
        except Killed:
            pass
        yield path
        if not watch.happened:
            assert number > 2, "there was next to nothing to interrupt"
            return


def _die() -> None:
    raise Killed


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Writing more than that to one file fails with EFBIG, as a full disk does with ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
