"""The command that says which attention heads matter, and what pruning them does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t3vis.commands.arguments import Commands, add_command, add_run_and_split, opened_split
from t3vis.commands.output import beside, stem, table, terminal_width
from t3vis.errors import ConfigurationError

if TYPE_CHECKING:
    from t3vis.analyze_heads import HeadScores
    from t3vis.store.reader import Run, Split


def add(commands: Commands) -> None:
    """Declare ``heads``."""
    heads = add_command(
        commands,
        "heads",
        _heads,
        "which attention heads matter, by their gradients and by truly removing them; what pruning does",
        "t3vis heads runs/demo.zarr --epoch 1 --prune 0.1 1.3",
    )
    add_run_and_split(heads)
    which = heads.add_mutually_exclusive_group()
    which.add_argument("--epoch", type=int, metavar="E", help="whose checkpoint to take (the last that has one)")
    which.add_argument("--model", type=Path, metavar="FOLDER", help="take this model instead")
    which.add_argument("--recorded", action="store_true", help="the gradients recorded in training; without a model")
    heads.add_argument("--examples", type=int, default=1000, metavar="N", help="take N at most (%(default)s)")
    heads.add_argument("--removed", type=int, default=256, metavar="N", help="truly remove heads on N (%(default)s)")
    heads.add_argument("--per-example", action="store_true", help="keep the gradients of each example in the run, too")
    heads.add_argument("--top", type=int, default=20, metavar="N", help="heads to list (%(default)s)")
    heads.add_argument("--prune", type=_head, nargs="+", metavar="L.H", help="say what removing these heads does")
    heads.add_argument("--curve", type=int, metavar="N", help="draw what is left without the first N heads instead")
    heads.add_argument("--output", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: beside the run)")


def _head(text: str) -> tuple[int, int]:
    try:
        layer, head = map(int, text.split("."))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no head; write layer and head, such as 3.7") from None
    return layer, head


def _heads(options: argparse.Namespace) -> None:
    run, split = opened_split(options)
    if options.recorded and (options.prune or options.curve or options.per_example):
        raise ConfigurationError("--prune, --curve and --per-example need a model; leave out --recorded.")
    if options.prune:
        print("\n".join(_pruned(split, options)))
    elif options.curve:
        _draw_curve(run, split, options)
    elif options.recorded:
        from t3vis.analyze_heads import recorded_heads

        by_pass = recorded_heads(run, split)
        _show(run, split, by_pass[max(by_pass)], options)
        print(trend_table(by_pass))
    else:
        from t3vis.analyze_heads import analyzed_heads

        found = analyzed_heads(
            run,
            split,
            pass_index=options.epoch,
            model=options.model,
            max_examples=options.examples,
            n_removed=options.removed,
            keep_examples=options.per_example,
        )
        _show(run, split, found, options)


def _show(run: Run, split: Split, found: HeadScores, options: argparse.Namespace) -> None:
    """Print a table, and draw the matrices."""
    from t3vis.plots import write_figure
    from t3vis.plots_heads import plot_heads

    lines = agreement_lines(found)
    print(f"{split.name}: {found.scores['gate'].n_examples:,} examples, {found.source}")
    print(table(head_rows(found, options.top), terminal_width()))
    print("\n".join(lines))
    which = ("gate", "loss_change") if "loss_change" in found.scores else ("gate", "removal")
    title = f"{stem(run)}: {split.name}, {found.source}"
    figure = plot_heads(found.scores, which=which, attention=found.attention, title=title, notes=lines)
    output = options.output or beside(run, f"{stem(run)}-{split.name}-heads.png")
    write_figure(figure, output)
    print(f"heads written to {output}")


def head_rows(found: HeadScores, n_rows: int) -> list[dict[str, str]]:
    """The heads that matter most, one dictionary of texts each."""
    gate = found.scores["gate"]
    shown = {
        "removal": "loss without (est.)",
        "loss_change": "loss without",
        "divergence": "KL without",
        "score_change": "score without",
    }
    normalised = gate.normalised
    rows = []
    for layer, head in gate.ranking()[:n_rows]:
        row = {
            "head": f"{layer}.{head}",
            "attention": found.attention[layer],
            "importance": f"{gate.value[layer, head]:.4g}",
            "95 %": f"{gate.low[layer, head]:.3g} to {gate.high[layer, head]:.3g}",
            "relative": f"{normalised[layer, head]:.2f}",
        }
        for name, column in shown.items():
            if name in found.scores:
                score = found.scores[name]
                half = (score.high[layer, head] - score.low[layer, head]) / 2
                row[column] = f"{score.value[layer, head]:+.4f} ±{half:.4f}"
        rows.append(row)
    return rows


def agreement_lines(found: HeadScores) -> list[str]:
    """How far the estimates are to be trusted."""
    if not found.agreements:
        return ["no head was removed: what is said here of the loss without a head is an estimate, and can be wrong."]
    n_removed = found.scores["loss_change"].n_examples
    gate, removal = found.agreements["gate"], found.agreements["removal"]
    with_truth = (
        f"importance with KL {gate['divergence']:.2f}, with the loss {gate['loss_change']:.2f}; "
        f"estimated loss with the loss {removal['loss_change']:.2f}"
    )
    lines = [f"rank correlation with truly removing each head ({n_removed:,} examples): {with_truth}"]
    if not removal["loss_change"] >= 0.8:
        lines.append("the estimate of the loss without a head fails on this model: go by the true removal.")
    return lines


def trend_table(by_pass: dict[int, HeadScores]) -> str:
    """Which heads mattered most in each pass."""
    rows = [
        {
            "pass": str(index),
            "most important": " ".join(f"{layer}.{head}" for layer, head in found.scores["gate"].ranking()[:8]),
        }
        for index, found in sorted(by_pass.items())
    ]
    return table(rows, terminal_width())


def _pruned(split: Split, options: argparse.Namespace) -> list[str]:
    import numpy as np

    from t3vis.analysis.head_importance import mean_importance
    from t3vis.probing.pruning import effect

    heads, rows, source = _loaded(split, options)
    found = effect(heads, rows, options.prune)
    removed = " ".join(f"{layer}.{head}" for layer, head in options.prune)
    lines = [f"{split.name}: {len(rows):,} examples, {source}, without the heads {removed}"]
    for name, whole, without in (
        ("loss", found.loss, found.loss_without),
        ("score", found.score, found.score_without),
    ):
        change = mean_importance((without - whole)[None, :, None])
        lines.append(
            f"  {name:<6} {np.nanmean(whole):.4f} -> {np.nanmean(without):.4f}   "
            f"{change.value.item():+.4f} ({change.low.item():+.4f} to {change.high.item():+.4f})"
        )
    lines.append(f"  KL of the predictions {np.nanmean(found.divergence):.4f} nats")
    worse = int((found.score_without < found.score).sum())
    better = int((found.score_without > found.score).sum())
    return [*lines, f"  examples answered worse {worse:,}, better {better:,}"]


def _draw_curve(run: Run, split: Split, options: argparse.Namespace) -> None:
    from t3vis.analysis.head_importance import head_importance
    from t3vis.plots import write_figure
    from t3vis.plots_heads import plot_pruning
    from t3vis.probing.head_importance import head_gradients
    from t3vis.probing.pruning import greedy_order, pruning_curve

    heads, rows, source = _loaded(split, options)
    gradients = head_gradients(heads, rows).gradients
    n_pruned = min(options.curve, len(heads))
    orders = {
        "greedy, by the true loss": greedy_order(heads, rows[: options.removed], n_pruned=n_pruned),
        "least important first": head_importance(gradients, n_resamples=0).ranking()[::-1][:n_pruned],
        "most important first": head_importance(gradients, n_resamples=0).ranking()[:n_pruned],
    }
    curves = {name: pruning_curve(heads, rows, order) for name, order in orders.items()}
    for name, curve in curves.items():
        print(f"{name}: {' '.join(f'{layer}.{head}' for layer, head in curve.order)}")
        print(
            f"  score {curve.score[0]:.4f} -> {curve.score[-1]:.4f}, loss {curve.loss[0]:.4f} -> {curve.loss[-1]:.4f}"
        )
    output = options.output or beside(run, f"{stem(run)}-{split.name}-pruning.png")
    write_figure(plot_pruning(curves, title=f"{stem(run)}: {split.name}, {source}"), output)
    print(f"pruning curves written to {output}")


def _loaded(split: Split, options: argparse.Namespace) -> tuple[Any, list[dict[str, Any]], str]:
    """The heads of the model that was asked for, examples, and what to call it."""
    from t3vis.analyze_heads import labelled_examples
    from t3vis.checkpointed import pass_with_checkpoint
    from t3vis.probing.head_importance import found_heads
    from t3vis.probing.model import load_model

    if options.model is not None:
        folder, source = options.model, options.model.name
    else:
        chosen, checkpoint = pass_with_checkpoint(split, options.epoch)
        folder, source = checkpoint.path, f"checkpoint of epoch {chosen.epoch:g}"
    _, rows = labelled_examples(split, options.examples)
    return found_heads(load_model(folder), rows), rows, source
