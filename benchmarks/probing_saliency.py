"""Speed of explanations, a section of ``bench_probing.py``: each beside a forward-backward pass over the same batch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from fine_tuned import untrained_minilm
from rounds import Report, Scratch, Task, interleaved, wall_ratio

from t3vis.probing.encoded import from_ids
from t3vis.probing.gradients import attnlrp, cp_lrp, input_x_gradient
from t3vis.probing.model import probed
from t3vis.probing.question import Question
from t3vis.probing.targets import class_target

BOUNDS = {"input x gradient": 1.1, "CP-LRP": 1.6}
METHODS = {"input x gradient": input_x_gradient, "CP-LRP": cp_lrp, "AttnLRP": attnlrp}
ONE_PASS, TRAINED = "forward-backward pass to the embeddings", "forward-backward pass of a training step"


def speed(_: Path, report: Report, *, quick: bool) -> None:
    """What each method costs per class, in forward-backward passes from one logit to the embeddings.

    Such a pass has no gradients of weights: it is the least that a gradient costs. That of a training step stands
    beside.
    """
    model, _ = untrained_minilm()
    n_examples, n_tokens, n_rounds = (8, 32, 5) if quick else (16, 48, 15)
    question = _question(model, n_examples, n_tokens)
    with probed(model):
        check(question)

    def explaining(name: str) -> Task:
        def run(_: Any) -> None:
            with probed(model):
                METHODS[name](question)

        return Task(run)

    def one_pass(_: Any) -> None:
        with probed(model):
            _product(question)

    def trained(_: Any) -> None:
        model(**question.inputs).logits[:, 0].sum().backward()
        model.zero_grad()

    tasks = {ONE_PASS: Task(one_pass), TRAINED: Task(trained)}
    tasks |= {name: explaining(name) for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        timings = interleaved(tasks, n_rounds, Scratch(Path(folder)), 0)
    for name, found in timings.items():
        beside = wall_ratio(timings, name, TRAINED)
        print(f"  {name:<44}{min(timing.wall for timing in found) * 1e3:8.0f} ms{beside:8.2f}x that of training")
        if name in METHODS:
            ratio = wall_ratio(timings, name, ONE_PASS)
            if name in BOUNDS:
                report.target(f"{name} per class, in forward-backward passes", ratio, at_most=BOUNDS[name])
            else:
                print(f"  {'':<44}{ratio:8.2f}x that to the embeddings")


def check(question: Question) -> None:
    """Stop unless the product is that of the plain pass, and CP-LRP conserves."""
    product, conserved = input_x_gradient(question), cp_lrp(question)
    torch.testing.assert_close(product.values[:, 0], _product(question), rtol=1e-3, atol=1e-5)
    if conserved.rest is None:
        raise SystemExit("CP-LRP does not say what constants take")
    torch.testing.assert_close(conserved.values.sum(-1) + conserved.rest, conserved.numbers, rtol=1e-3, atol=1e-3)


def _question(model: Any, n_examples: int, n_tokens: int) -> Question:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.config.vocab_size, (n_examples, n_tokens), generator=generator).tolist()
    examples = tuple(from_ids(row, [""] * n_tokens) for row in ids)
    return Question(model, examples, (class_target([0]),) * n_examples)


def _product(question: Question) -> torch.Tensor:
    x = question.embeddings.detach().requires_grad_()
    with torch.enable_grad():
        logits = question.outputs(x)["logits"]
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    return (gradient * x.detach()).sum(-1)
