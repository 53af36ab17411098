"""Heads: what their importance costs, and how far each score agrees with what removing a head truly does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fine_tuned import minilm_on_sst2, sst2, untrained_minilm
from language_models import held_out, on_shakespeare
from numpy.typing import NDArray
from rounds import Report, Scratch, Task, interleaved, wall_ratio

BATCH_SIZE = 32
EFFECTS = {"divergence": "KL", "loss_change": "loss"}
# Spearman that a prototype reached: with the KL divergence, with the change of the loss
SEEN: dict[str, dict[str, tuple[float | None, float | None]]] = {
    "MiniLM on SST-2": {"gate": (0.971, None), "removal": (None, 0.954)},
    "GPT-2 on Shakespeare": {"gate": (0.967, 0.940)},
    "Llama on Shakespeare": {"gate": (0.956, 0.900)},
}


def speed(data: Path, report: Report, *, quick: bool) -> None:
    """Gradients of all gates, and removal of every head, in passes over the same examples."""
    import torch

    from t3vis.probing.ablation import ablation
    from t3vis.probing.answers import answers
    from t3vis.probing.batches import batches
    from t3vis.probing.gating import gated
    from t3vis.probing.head_importance import found_heads, head_gradients
    from t3vis.probing.model import probed

    model, tokenizer = untrained_minilm()
    n_gradients, n_removed, n_rounds = (64, 16, 2) if quick else (128, 32, 4)
    examples = sentences(data, tokenizer, n_gradients)
    few = examples[:n_removed]
    heads = found_heads(model, examples)
    one_head = heads.without([(heads.n_layers // 2, 0)])

    def trained(_: Any) -> None:
        for batch in batches(model, examples, batch_size=BATCH_SIZE):
            model(**batch.inputs).loss.backward()
            model.zero_grad()

    def one_removed(_: Any) -> None:
        with probed(model), torch.inference_mode(), gated(heads, one_head):
            for batch in batches(model, few, batch_size=BATCH_SIZE):
                answers(model, batch.inputs)

    tasks = {
        "forward and backward pass": Task(trained),
        "gradients of all gates": Task(lambda _: head_gradients(heads, examples, batch_size=BATCH_SIZE)),
        "forward pass with one head removed": Task(one_removed),
        "all heads removed": Task(lambda _: ablation(heads, few, batch_size=BATCH_SIZE)),
    }
    with tempfile.TemporaryDirectory() as folder:
        timings = interleaved(tasks, n_rounds, Scratch(Path(folder)), 0)
    for name, found in timings.items():
        print(f"  {name:<40}{min(timing.wall for timing in found):8.2f} s")
    report.target(
        f"gradients of all {len(heads)} gates, in forward-backward passes",
        wall_ratio(timings, "gradients of all gates", "forward and backward pass"),
        at_most=1.15,
    )
    report.target(
        f"exact removal of all {len(heads)} heads, in forward passes per head",
        wall_ratio(timings, "all heads removed", "forward pass with one head removed") / len(heads),
        at_most=0.6,
    )


def agreement_table(data: Path, report: Report, *, quick: bool) -> None:
    """Spearman of each score with the true effect of removal on predictions (KL) and on the loss."""
    n_sentences, n_passages = (64, 96) if quick else (872, 1024)  # all of the development set
    minilm, tokenizer = minilm_on_sst2(data)
    models = {"MiniLM on SST-2": (minilm, sentences(data, tokenizer, n_sentences))}
    for kind, name in (("gpt2", "GPT-2 on Shakespeare"), ("llama", "Llama on Shakespeare")):
        models[name] = (on_shakespeare(data, kind), held_out(data, n_passages))
    print(f"\nSpearman with true removal (KL / loss change)\n{'':34}" + "".join(f"{name:>24}" for name in models))
    rows = {name: agreements(model, examples) for name, (model, examples) in models.items()}
    for score in next(iter(rows.values())):
        cells = [f"{rows[name][score]['divergence']:.3f} / {rows[name][score]['loss_change']:.3f}" for name in models]
        print(f"  {score:<32}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    for name, seen in SEEN.items():
        for score, of_effects in seen.items():
            for (effect, short), bound in zip(EFFECTS.items(), of_effects, strict=True):
                if bound is not None:
                    found_here = round(rows[name][score][effect], 3)  # as the figures that are to be reached
                    report.target(f"{name}: {score} with {short}", found_here, at_least=bound)
        for score, found in rows[name].items():
            for effect, short in EFFECTS.items():
                report.figures.setdefault(
                    f"{name}: {score} with {short}", {"value": round(found[effect], 4), "target": None, "ok": None}
                )


def agreements(model: Any, examples: Sequence[Any]) -> dict[str, dict[str, float]]:
    """For each score its correlation with each effect, all over the same examples."""
    from t3vis.analysis.head_importance import agreement
    from t3vis.probing.head_importance import importances
    from t3vis.probing.head_parameters import parameter_importance

    found = importances(model, examples, n_removed=len(examples), batch_size=BATCH_SIZE)
    parameters = parameter_importance(found.heads, examples, batch_size=BATCH_SIZE)
    scores = {name: found.scores[name].value for name in ("gate", "removal", "group")}
    scores["first order (minus the gradient)"] = -np.nanmean(found.gradients.gradients, axis=1)
    scores["gate by batch of 32"] = by_batch(found.gradients.gradients)
    scores["parameters of a head, as a group"] = parameters["parameter_group"].value
    scores["T3-Vis (squared by element)"] = parameters["parameter_elements"].value
    return {
        name: {effect: agreement(score, found.scores[effect].value) for effect in EFFECTS}
        for name, score in scores.items()
    }


def by_batch(gradients: NDArray[np.float32]) -> NDArray[np.float64]:
    """Size of the gradient of each batch, as Michel et al. (2019) take it."""
    order = np.random.default_rng(0).permutation(gradients.shape[1])
    groups = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    found: NDArray[np.float64] = np.mean([np.abs(gradients[:, group].mean(axis=1)) for group in groups], axis=0)
    return found


def sentences(data: Path, tokenizer: Any, n_examples: int) -> list[dict[str, Any]]:
    """Sentences of SST-2 that the model has not seen."""
    texts, labels = sst2(data, "dev")
    chosen = np.random.default_rng(0).permutation(len(texts))[:n_examples].tolist()
    ids = tokenizer([texts[i] for i in chosen], truncation=True, max_length=64)["input_ids"]
    return [{"input_ids": row, "labels": labels[i]} for row, i in zip(ids, chosen, strict=True)]
