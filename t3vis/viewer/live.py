"""What of a run has changed while it is being trained, told to the page as it happens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio import to_thread

from t3vis.store.reader import Run

SECONDS = 1.0
"""Between two looks at the disk."""
HEARTBEATS = 15
"""After that many looks without a change a comment is sent, so that a page that is gone is noticed."""


def state(run: Run) -> dict[str, Any]:
    """Passes of every split, and how many examples each has seen."""
    return {
        "splits": {
            name: [
                {"pass": record.index, "epoch": record.epoch, "seen": record.n_seen, "sealed": record.sealed}
                for record in split.passes
            ]
            for name, split in run.splits.items()
        }
    }


async def events(run: Run) -> AsyncIterator[bytes]:
    """Server-sent events: the state at once, and again whenever it has changed."""
    last, silent = "", 0
    while True:
        now = json.dumps(await to_thread.run_sync(state, run))
        if now != last:
            last, silent = now, 0
            yield f"event: state\ndata: {now}\n\n".encode()
        else:
            silent += 1
            if silent % HEARTBEATS == 0:
                yield b": still here\n\n"
        await anyio.sleep(SECONDS)
