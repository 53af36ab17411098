"""How well wrong labels are found: t3vis from one recorded training, cleanlab from cross-validated ones.

``python benchmarks/bench_label_quality.py [--quick] [--tuning] [--json FILE] [--data ../shared/data]
[--model NAME_OR_FOLDER] [--case TEXT] [--keep FOLDER]``

Labels of BANKING77 and SST-2 are flipped, to any other class or to the class whose words are most like its own, and
MiniLM is fine-tuned on them with the recorder on. Every score that t3vis derives from that one training stands beside
what cleanlab makes of out-of-sample probabilities, which take as many more trainings as there are folds. The average
precision of each ranking is the area under its precision-recall curve; P@n is the share of wrong labels among the
first n, n being the number of flipped ones. Costs are in seconds of CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
from noisy_labels import (
    N_EPOCHS,
    N_FOLDS,
    Case,
    Kind,
    default_model,
    noisy_data,
    out_of_sample_probs,
    probs_of,
    recorded_run,
    timed,
)
from numpy.typing import NDArray

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RATES = (0.02, 0.05, 0.10, 0.20)

Scores = dict[str, NDArray[np.float64]]
"""Suspicion of each example by the name of the score: high is suspicious."""

DEFAULT, CLEANLAB = "default combination", "cleanlab, out of sample: "


@dataclass(frozen=True)
class Found:
    """What became of one case: average precision and precision at n by the name of the score, and what it took."""

    average_precision: dict[str, float]
    precision: dict[str, float]
    seconds: dict[str, float]
    accuracy: dict[str, float]
    """Of the predictions against the true labels: how good the models were that the scores come from."""


def main() -> None:
    """Train, score, print a table for each case and one of the means, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two cases of few examples and epochs")
    parser.add_argument("--tuning", action="store_true", help="the examples on which the default was chosen")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder of banking77 and sst2 (%(default)s)")
    parser.add_argument("--model", default=default_model(), help="hub name or folder of MiniLM")
    parser.add_argument("--case", default="", help="only the cases whose name holds this")
    parser.add_argument("--keep", type=Path, help="keep the trainings there, and do not repeat them")
    options = parser.parse_args()
    chosen = cases(is_quick=options.quick, is_tuning=options.tuning, text=options.case)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}; "
        f"{chosen[0].n_examples} examples, {N_FOLDS} folds"
    )
    with tempfile.TemporaryDirectory() as folder:
        found = [judged(case, options.data, options.model, options.keep or Path(folder)) for case in chosen]
    for case, of_case in zip(chosen, found, strict=True):
        report(case.name, [of_case])
    for dataset in N_EPOCHS:
        of_dataset = [each for case, each in zip(chosen, found, strict=True) if case.dataset == dataset]
        if of_dataset:
            report(f"mean of {dataset}", of_dataset)
    report("mean of all cases", found)
    if options.json:
        options.json.write_text(json.dumps(figures(found), indent=1))


def cases(*, is_quick: bool, is_tuning: bool, text: str) -> list[Case]:
    """The noisy data sets whose name holds a text."""
    n_examples, seed = 500 if is_quick else 1_000, int(is_tuning)
    every = [
        Case(dataset, kind, rate, n_examples, seed, is_tuning, is_quick)
        for dataset, kind, rate in product(N_EPOCHS, get_args(Kind), RATES)
        if not is_quick or (kind, rate) == ("uniform", 0.10)
    ]
    return [case for case in every if text in case.name]


def judged(case: Case, texts: Path, model: str, trainings: Path) -> Found:
    """Train once with the recorder and once for each fold, unless that was done and kept, and judge every score."""
    data = noisy_data(case, texts)
    folder = trainings / case.folder
    folder.mkdir(parents=True, exist_ok=True)
    run, recorded = recorded_run(case, data, model, folder)
    shutil.rmtree(run / "analysis", ignore_errors=True)  # what an earlier call, maybe of other code, found
    (scores, predicted), ours = timed(lambda: scores_of_run(run))
    probs, in_folds = out_of_sample_probs(case, data, model, folder)
    of_cleanlab, theirs = timed(lambda: scores_of_cleanlab(probs, data.labels))
    scores |= of_cleanlab
    return Found(
        {name: average_precision(score, data.flipped) for name, score in scores.items()},
        {name: precision_at_n(score, data.flipped) for name, score in scores.items()},
        {
            "the recorded training": recorded,
            "t3vis, all scores": ours,
            f"{N_FOLDS} more trainings": in_folds,
            "cleanlab, all scores": theirs,
        },
        {
            "recorded, last epoch": float((predicted == data.truth).mean()),
            "out of sample": float((probs.argmax(axis=1) == data.truth).mean()),
        },
    )


def scores_of_run(path: Path) -> tuple[Scores, NDArray[np.int64]]:
    """Every score that t3vis has, from one recorded training, and what the model predicted in its last epoch."""
    from t3vis import open_run
    from t3vis.analyze import analyzed_data_map, analyzed_suspects

    run = open_run(path)
    suspects, mapped = analyzed_suspects(run, run.train), analyzed_data_map(run, run.train)
    probs = probs_of(run.train.logits[-1])
    last = probs[np.arange(suspects.n_examples), run.train.labels]
    scores = {
        DEFAULT: suspects.score,
        "self-confidence, last epoch": 1 - last,
        "low confidence over epochs": 1 - suspects.self_confidence,
        "normalised margin": 1 - suspects.normalized_margin,
        "confidence-weighted entropy": 1 - suspects.confidence_weighted_entropy,
        "AUM": -suspects.aum,
        "neighbour disagreement": 1 - suspects.neighbour_agreement,
        "correctness": 1 - mapped.correctness,
        "forgetting events": np.where(mapped.never_learned, np.inf, mapped.forgetting_events),
        "variability": mapped.variability,
    }
    return scores, probs.argmax(axis=1)


def scores_of_cleanlab(probs: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Cleanlab's three scores, and confident learning: what it calls an error first, each part by self-confidence."""
    from cleanlab.rank import get_label_quality_scores

    from t3vis.analysis.label_quality import confident_learning

    methods = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
    quality = {method: get_label_quality_scores(labels, probs, method=method) for method in methods}
    is_error = confident_learning(probs, labels).is_error
    return {
        **{f"{CLEANLAB}{method.replace('_', ' ')}": 1 - quality[method] for method in methods},
        f"{CLEANLAB}confident learning": is_error + (1 - quality["self_confidence"]) / 2,
    }


def average_precision(score: NDArray[np.float64], flipped: NDArray[np.bool_]) -> float:
    from sklearn.metrics import average_precision_score

    finite = np.nan_to_num(score, posinf=1e9)
    return float(average_precision_score(flipped, finite))


def precision_at_n(score: NDArray[np.float64], flipped: NDArray[np.bool_]) -> float:
    """Share of flipped labels among the first n, expected where the n-th score is that of several examples."""
    n = int(flipped.sum())
    last = np.sort(score)[-n]
    above, equal = score > last, score == last
    return float(flipped[above].sum() + (n - above.sum()) * flipped[equal].mean()) / n


def report(title: str, found: list[Found]) -> None:
    """Print the means over some cases, the best score first."""
    means = {name: np.mean([each.average_precision[name] for each in found]) for name in found[0].average_precision}
    print(f"\n{title}\n  {'score':<52} average precision   P@n")
    for name in sorted(means, key=lambda name: -means[name]):
        precision = np.mean([each.precision[name] for each in found])
        print(f"  {name:<52} {means[name]:17.3f} {precision:5.3f}")
    spent = {name: np.mean([each.seconds[name] for each in found]) for name in found[0].seconds}
    print("  CPU seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items()))
    right = {name: np.mean([each.accuracy[name] for each in found]) for name in found[0].accuracy}
    print("  accuracy on true labels: " + ", ".join(f"{name} {share:.3f}" for name, share in right.items()))


def figures(found: list[Found]) -> dict[str, dict[str, Any]]:
    """Mean average precision of the default combination against the best single score and the best of cleanlab's."""
    means = {
        name: float(np.mean([each.average_precision[name] for each in found])) for name in found[0].average_precision
    }
    theirs = max(mean for name, mean in means.items() if name.startswith(CLEANLAB))
    single = max(mean for name, mean in means.items() if not name.startswith(CLEANLAB) and name != DEFAULT)
    cost = np.mean([each.seconds["t3vis, all scores"] / each.seconds[f"{N_FOLDS} more trainings"] for each in found])
    return {
        "label_quality_ap": {"value": round(means[DEFAULT], 4), "target": None, "ok": None},
        "label_quality_ap_over_best_single": {
            "value": round(means[DEFAULT] / single, 4), "target": 1.0, "ok": means[DEFAULT] >= single,
        },
        "label_quality_ap_over_cleanlab": {
            "value": round(means[DEFAULT] / theirs, 4), "target": 1.0, "ok": means[DEFAULT] >= theirs,
        },
        "label_quality_cost_over_cleanlab": {"value": round(float(cost), 4), "target": 1.0, "ok": bool(cost < 1)},
    }  # fmt: skip


if __name__ == "__main__":
    main()
