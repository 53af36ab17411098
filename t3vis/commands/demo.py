"""The command that shows what t3vis does on a model trained on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t3vis.commands.arguments import Commands, add_command
from t3vis.store.reader import open_run


def add(commands: Commands) -> None:
    """Declare ``demo``."""
    demo = add_command(
        commands,
        "demo",
        _demo,
        "fine-tune a small Transformer with the recorder on, and find the wrong labels that were planted",
        "t3vis demo --examples 300 --epochs 1 --output runs/small.zarr",
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo.zarr"), help="where the run goes (%(default)s)")
    demo.add_argument("--model", help="hub name or folder of a model; default: a small one, trained from scratch")
    demo.add_argument("--dataset", help="CSV, TSV, JSON or JSONL file, hub name or folder; default: docstrings")
    demo.add_argument("--examples", type=int, help="use that many examples at most")
    demo.add_argument("--epochs", type=int, help="epochs to train")
    demo.add_argument(
        "--wrong-labels", type=float, default=0.05, metavar="SHARE", help="share of labels to make wrong (%(default)s)"
    )
    demo.add_argument("--overwrite", action="store_true", help="delete the run that is at --output")
    demo.add_argument("--seed", type=int, default=0, help="seed of the model, the batches and the planted errors")


def _demo(options: argparse.Namespace) -> None:
    from t3vis.analyze import analyzed_data_map, analyzed_suspects
    from t3vis.callbacks.recorder import RecorderCallback  # these need torch, which the other commands do not
    from t3vis.demo.corpus import docstring_corpus, read_dataset
    from t3vis.demo.train import train_demo
    from t3vis.plots import plot_data_map, write_figure

    path: Path = options.output
    recorder = RecorderCallback(path, heads=True, overwrite=options.overwrite)
    print(
        "reading " + (f"{options.dataset} ..." if options.dataset else "the docstrings of the installed packages ...")
    )
    dataset = read_dataset(options.dataset) if options.dataset else docstring_corpus(seed=options.seed)
    if options.examples is not None:
        dataset = dataset.select(range(min(options.examples, len(dataset))))
    model_folder = path.with_name(f"{path.stem}-model")
    chosen = {"epochs": options.epochs} if options.epochs is not None else {}
    print(f"fine-tuning on {len(dataset):,} examples, {options.wrong_labels:.0%} of them with a wrong label ...")
    trained = train_demo(
        recorder,
        output_dir=model_folder,
        dataset=dataset,
        model=options.model,
        wrong_labels=options.wrong_labels,
        seed=options.seed,
        **chosen,
    )
    run = open_run(path)
    mapped, suspects = analyzed_data_map(run, run.train), analyzed_suspects(run, run.train)
    print(f"held-out accuracy {trained.eval_accuracy:.3f} over {len(trained.class_names)} classes")
    planted = trained.wrong_label_ids
    if len(planted):
        print(planted_errors_found(suspects.ranking(), planted, len(trained.train_dataset)))
    picture = path.with_name(f"{path.stem}-data-map.png")
    figure = plot_data_map(mapped, title=path.stem, highlight=planted, highlight_label="planted wrong labels")
    write_figure(figure, picture)
    print(f"""
the run            {path}
the data map       {picture}
the model          {model_folder}

look at it with    t3vis info {path}
                   t3vis suspects {path}
                   t3vis plot {path}
                   t3vis report {path}
                   t3vis view {path}
or in Python       from t3vis import open_run; run = open_run("{path}")""")


def planted_errors_found(ranking: NDArray[np.int64], planted: NDArray[np.int64], n_examples: int) -> str:
    """How many of the planted wrong labels stand among the top 5 % of the suspects, against the base rate."""
    n_top = max(round(0.05 * n_examples), 1)
    n_found = int(np.isin(ranking[:n_top], planted).sum())
    precision, base_rate = n_found / n_top, len(planted) / n_examples
    return (
        f"of {len(planted)} planted wrong labels, {n_found} stand among the top 5 % of suspects ({n_top}): "
        f"precision {precision:.3f} against a base rate of {base_rate:.3f}, {precision / base_rate:.1f} times as many"
    )
