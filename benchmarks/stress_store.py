"""Kill the trainer, the writer and the sealer again and again; nothing may be lost, nothing wrong be read.

``python benchmarks/stress_store.py [--quick] [--json FILE] [--kills N] [--seed N]``

Trainings of two processes are killed with SIGKILL at random moments and resumed each time from one of the checkpoints
that were saved: the trainer (both processes, which log and flush), the writer (one of them inside the writing of a
segment, the other one a little later), or the sealer (its subprocess). A reader that opened the run once reads it all
the time. Every value that is read tells by itself whether it is right.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.store.stress.killing import Stress

KINDS = ("trainer", "writer", "sealer")


def main() -> int:
    """Kill, resume, check, print, write the figures; 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 kills of each")
    parser.add_argument("--kills", type=int, default=25, help="kills of each (default: 25)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, default=0, help="decides who is killed, and about when")
    options = parser.parse_args()
    target = 4 if options.quick else options.kills
    begin, failure = time.monotonic(), None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        stress = Stress(Path(folder), options.seed, dict.fromkeys(KINDS, target))
        try:
            stress.run()
        except AssertionError as error:
            failure = str(error)
    report(stress, time.monotonic() - begin)
    figures = {
        f"stress_{kind}_kills": {
            "value": stress.killed[kind],
            "target": target,
            "ok": stress.killed[kind] >= target,
        }
        for kind in KINDS
    }
    figures["stress_failures"] = {"value": int(failure is not None), "target": 0, "ok": failure is None}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if failure is not None:
        print(f"\nFAILED\n{failure}")
    return int(failure is not None)


def report(stress: Stress, seconds: float) -> None:
    """Print what was done."""
    python = platform.python_version()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {python}, seed {stress.seed}; {seconds:.0f} s")
    done = {f"{kind} kills": stress.killed[kind] for kind in KINDS} | stress.counts
    for what, count in done.items():
        print(f"{what:<26} {count:>12,}")


if __name__ == "__main__":
    sys.exit(main())
