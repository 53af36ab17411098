"""Whether a process is writing a run.

Every writer holds a shared ``flock`` on ``attempts/zarr.json``, a file that is written once and never replaced. The
kernel lets go of it however the process ends, so a lock that can be had for oneself alone means that no writer lives.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

from t3vis.errors import StoreError
from t3vis.store import segments


class WriterMark:
    """Says that this process writes a run, from ``hold`` to ``release`` or to its end.

    Processes that it forks, such as the workers of a data loader, do not inherit the mark.
    """

    def __init__(self, run: Path) -> None:
        self._file = _lock_file(run)
        self._descriptor: int | None = None
        _marks.add(self)

    def hold(self) -> None:
        """Set the mark, if it is not set; waits while the run is being repaired.

        Where the file system knows no locks nothing is marked.
        """
        if self._descriptor is not None:
            return
        descriptor = os.open(self._file, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._descriptor = descriptor
        _held.add(descriptor)
        self._forget = weakref.finalize(self, _take_back, descriptor)

    def is_of(self, file: Path) -> bool:
        """Whether it is a mark on this file."""
        return self._file.resolve() == file.resolve()

    def release(self) -> None:
        """Take the mark back."""
        if self._descriptor is not None:
            self._forget()
            self._descriptor = None


_held: set[int] = set()
_marks: WeakSet[WriterMark] = WeakSet()


def _take_back(descriptor: int) -> None:
    if descriptor in _held:  # it is not in a fork
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        _held.remove(descriptor)
        os.close(descriptor)


def _close_all() -> None:
    """In a fork: its copies of the descriptors would keep the locks although the writer is gone."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_all)


def has_other_writers(run: Path) -> bool:
    """Whether another process is writing a run, as far as that can be told; marks of this process are taken back.

    A writer of this process that is used again, such as that of a training that was interrupted, sets its mark again.
    """
    file = _lock_file(run)
    for mark in [mark for mark in _marks if mark.is_of(file)]:
        mark.release()
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system knows no locks
        return False
    finally:
        os.close(descriptor)
    return False


@contextmanager
def without_writers(run: Path) -> Iterator[None]:
    """Keep writers away from a run for a while; one that starts in the meantime waits.

    Raises
    ------
    StoreError
        If a process is writing the run, or if that cannot be told.
    """
    try:
        descriptor = os.open(_lock_file(run), os.O_RDWR)  # to lock for oneself on NFS it must be open for writing
    except FileNotFoundError:  # a run whose writer died before there was anything to write
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{run} is being written by another process; wait until it has ended.") from None
        except OSError as error:
            if any(attempt["finished"] is None for attempt in segments.attempts(run)):
                raise StoreError(
                    f"it cannot be told whether {run} is still being written: its file system knows no locks "
                    f"({error}), and its last attempt has not ended; copy the run to a local disk first."
                ) from error
        yield
    finally:
        os.close(descriptor)


def _lock_file(run: Path) -> Path:
    return run / "attempts" / "zarr.json"
