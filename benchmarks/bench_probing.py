"""What probing a live model costs, and how far its answers can be trusted, as ratios measured side by side in one run.

``python benchmarks/bench_probing.py [--quick] [--json FILE] [--data FOLDER] [--only SECTION ...]``

Speed: medians of the ratios of interleaved rounds, over the same examples. The models are trained once (MiniLM on
SST-2, a GPT-2 and a Llama on tiny Shakespeare: some minutes) and kept in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import probing_attention
import probing_heads
import probing_saliency
from fine_tuned import DEFAULT_DATA
from rounds import Report, machine

SECTIONS = {
    "heads-speed": probing_heads.speed,
    "heads-agreement": probing_heads.agreement_table,
    "attention-speed": probing_attention.speed,
    "attention-memory": probing_attention.memory,
    "explanations-speed": probing_saliency.speed,
}


def main() -> None:
    """Measure, print, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer examples and rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with sst2, tinyshakespeare and ewt")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections to run")
    options = parser.parse_args()
    print(machine(Path.cwd(), ["torch", "transformers", "numpy"]))
    report = Report()
    for name in options.only:
        print(f"\n{name}")
        SECTIONS[name](options.data, report, quick=options.quick)
    report.summary()
    if options.json:
        options.json.write_text(json.dumps(report.figures, indent=1))


if __name__ == "__main__":
    main()
