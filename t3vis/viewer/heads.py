"""What is known of the attention heads without a model: from gradients recorded in training, and from results kept."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t3vis.analysis.attention_patterns import MEANINGS as PATTERN_MEANINGS
from t3vis.analysis.attention_patterns import PATTERNS, HeadPatterns, head_names
from t3vis.analysis.head_importance import HeadImportance, head_importance
from t3vis.analyze_attention import MAX_EXAMPLES, known_attention
from t3vis.analyze_heads import MEANINGS, HeadScores, known_heads, recorded_heads
from t3vis.store.passes import Pass
from t3vis.store.reader import Run, Split

TITLES = {
    "gate": "importance",
    "removal": "loss without (estimate)",
    "loss_change": "loss without",
    "divergence": "KL without",
    "score_change": "score without",
}
"""What is shown of a head's scores, under which name."""
N_FOR_PATTERNS = 200
"""Examples from which it is told what each head attends to, where nobody has done so yet."""
N_STRONGEST = 3
"""Patterns that are told of each head."""

_computing = Lock()
"""What is computed is kept in the run: once, also if two pages ask for it at a time."""


def importance(run: Run, split: Split, record: Pass, ids: list[int]) -> dict[str, Any]:
    """Scores of every head in one pass, in JSON: over all examples, or over those asked for.

    Those of few examples are there only where gradients were recorded in training; of one example they have a sign:
    below 0, closing the head would raise its loss.
    """
    measures = []
    if "head_gradients" in split.arrays:
        mode = split.attributes["mode"]
        if ids:
            gradients = split.head_gradients[record.index, :, ids]  # NumPy's rule: (example, layer, head)
            found = _of_examples(np.asarray(gradients, np.float64).swapaxes(0, 1))
            measures.append(_described("recorded", "importance", MEANINGS["gate"], mode, found))
        else:
            with _computing:
                scores = recorded_heads(run, split)[record.index]
            measures.append(_described("recorded", "importance", MEANINGS["gate"], mode, scores.scores["gate"]))
    known = None if ids else known_heads(run, split, record.index)
    if known is not None:
        measures += [
            _described(name, f"{title} (checkpoint)", MEANINGS[name], "eval", known.scores[name])
            for name, title in TITLES.items()
            if name in known.scores
        ]
    return {"epoch": record.index, "attention": _attention(split, known), "measures": measures}


def _of_examples(gradients: NDArray[np.float64]) -> HeadImportance:
    """Of several examples the mean size, of one the gradient itself."""
    if gradients.shape[1] > 1:
        return head_importance(gradients)
    own = gradients[:, 0]
    return HeadImportance(own, own, own, 1)


def _attention(split: Split, known: HeadScores | None) -> list[str]:
    if known is not None:
        return known.attention
    found: list[str] = split.attributes["arrays"].get("head_gradients", {}).get("attention", [])
    return found


def _described(name: str, title: str, meaning: str, mode: str, found: HeadImportance) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "meaning": meaning,
        "mode": mode,
        "n_examples": found.n_examples,
        "value": finite(found.value),
        "low": finite(found.low),
        "high": finite(found.high),
    }


def patterns(run: Run, split: Split, record: Pass) -> dict[str, Any]:
    """What each head attends to, if that has been looked at: ``found`` is null if not."""
    known = known_attention(run, split, record.index, (MAX_EXAMPLES, N_FOR_PATTERNS))
    return {"epoch": record.index, "found": None if known is None else described_patterns(known)}


def described_patterns(found: HeadPatterns) -> dict[str, Any]:
    """What each head attends to over a dataset, in JSON: names, the strongest patterns, a map by position."""
    names = head_names(found)
    layers, heads = (range(n) for n in found.entropy.shape)
    return {
        "attention": list(found.attention),
        "n_examples": int(np.nanmax(found.n_examples)),
        "names": [[list(names.get((layer, head), ())) for head in heads] for layer in layers],
        "meanings": dict(PATTERN_MEANINGS),
        "strongest": [[_strongest(found, layer, head) for head in heads] for layer in layers],
        "entropy": finite(found.relative_entropy),
        "distance": finite(found.distance),
        "by_position": finite(found.by_position),
    }


def _strongest(found: HeadPatterns, layer: int, head: int) -> list[dict[str, Any]]:
    masses = found.mass[layer, head]
    order = np.argsort(-masses, kind="stable")[: min(N_STRONGEST, int(np.isfinite(masses).sum()))]
    return [{"pattern": PATTERNS[i], "mass": float(masses[i]), "chance": finite(found.chance[layer, i])} for i in order]


def finite(values: Any) -> Any:
    """Numbers as lists; what is not finite is null, which JSON knows."""
    known = np.array(values, dtype=object)
    known[~np.isfinite(values)] = None
    return known.tolist()
