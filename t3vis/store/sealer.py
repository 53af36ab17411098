"""The sealing subprocess as its parent sees it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from t3vis.store import shares
from t3vis.store.commits import locked

logger = logging.getLogger(__name__)


class Sealer:
    """Runs ``python -m t3vis.store.seal`` in the background, one at a time.

    Parameters
    ----------
    run
        The run.
    own
        Name of this process's directory among the segments.
    share, n_shares
        Which process this is, and among how many the work is divided; the first one commits.
    """

    def __init__(self, run: Path, own: str = "", *, share: int = 0, n_shares: int = 1) -> None:
        self._run = run
        self._arguments = ["--share", f"{share}/{n_shares}", "--own", own]
        self._share = share
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether passes are being sealed now."""
        return self._process is not None and self._process.poll() is None

    def start(self, passes: list[str]) -> None:
        """Begin to seal ``split:pass`` after ``split:pass``, after whatever is being sealed now."""
        self.wait()
        if passes:
            with ExitStack() as stack:
                if not self._share:
                    self._spawn(passes, [stack.enter_context(locked(self._run, wait_for_helpers=False))])
                    return
                joined = {name: shares.join(self._run / name) for name in {_split_of(key) for key in passes}}
                held = [descriptor for descriptor in joined.values() if descriptor is not None]
                for descriptor in held:
                    stack.callback(os.close, descriptor)  # the subprocess has its own
                helped = [key for key in passes if joined[_split_of(key)] is not None]
                if helped:
                    self._spawn(helped, held)

    def _spawn(self, passes: list[str], held: list[int]) -> None:
        """Start the subprocess; it holds the locks that these descriptors stand for, also if this process dies."""
        package_root = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        with ExitStack() as on_failure:
            output = on_failure.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(  # noqa: S603  our own module
                [sys.executable, "-m", "t3vis.store.seal", str(self._run), *self._arguments, *passes],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=held,
                process_group=0,  # Ctrl-C in the trainer must not reach it; a session of its own would make nice void
            )
            on_failure.pop_all()
        self._output = output

    def wait(self) -> None:
        """Until nothing is being sealed; a failure is reported, the segments stay readable then."""
        if self._process is None or self._output is None:
            return
        code = self._process.wait()
        with self._output as output:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()
        self._process = self._output = None
        if code:
            logger.warning(
                "sealing %s ended with code %d; the run stays readable from its segments. %s", self._run, code, said
            )


def _split_of(key: str) -> str:
    return key.rpartition(":")[0]
