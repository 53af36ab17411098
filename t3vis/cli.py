"""The command ``t3vis``: arguments in, one call, text out."""

from __future__ import annotations

import argparse
import csv
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import t3vis
from t3vis.analysis.selection import dropped, select
from t3vis.analyze import analyzed_data_map, analyzed_drift, analyzed_separability, analyzed_suspects, split_of
from t3vis.errors import AnalysisError, ConfigurationError, StoreError, T3VisError
from t3vis.findings import RANKINGS, STRATEGIES, class_rows, findings, label_text, ranked_rows
from t3vis.store.compact import compact
from t3vis.store.integrity import Progress
from t3vis.store.push import push
from t3vis.store.reader import Split, open_run
from t3vis.store.repair import repair
from t3vis.store.verify import verify

COLORS = ("label", "neighbour_recall", "trustworthiness", "continuity", "neighbour_overlap")
SUSPECT_COLUMNS = ("rank", "example", "score", "label", "suggested", "confidence", "variability", "correctness", "text")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 1 with a message on standard error if it could not be done."""
    options = parser().parse_args(arguments)
    try:
        options.command(options)
    except T3VisError as error:
        print(f"t3vis: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        sys.stderr.close()
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line and its help."""
    root = argparse.ArgumentParser(
        prog="t3vis",
        description="Record what a Transformer does with every example while it is fine-tuned, and look at it.",
    )
    root.add_argument("--version", action="version", version=f"t3vis {t3vis.__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(
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

    info = _command(commands, "info", _info, "what a run holds, and what is missing", "t3vis info runs/demo.zarr")
    info.add_argument("run", metavar="RUN", help="path or URL of the run")

    analyze = _command(
        commands,
        "analyze",
        _analyze,
        "compute data map, label quality, layers, outliers and drift, and keep them in the run",
        "t3vis analyze runs/demo.zarr --burn-in 1",
    )
    _run_and_split(analyze)
    analyze.add_argument("--burn-in", type=int, default=0, metavar="K", help="leave the first K epochs out")
    analyze.add_argument("--burn-out", type=int, metavar="K", help="leave out what follows the first K epochs")

    suspects = _command(
        commands,
        "suspects",
        _suspects,
        "examples whose label is probably wrong, most suspicious first",
        "t3vis suspects runs/demo.zarr --top 10 --csv suspects.csv",
    )
    _run_and_split(suspects)
    suspects.add_argument("--top", type=int, default=20, metavar="N", help="how many (%(default)s)")
    suspects.add_argument("--csv", type=Path, metavar="FILE", help="write them, with their whole texts, to FILE")

    rank = _command(
        commands,
        "rank",
        _rank,
        "examples by how far out they lie, how much they moved, when they were learned, ...",
        "t3vis rank runs/demo.zarr --by outlier --top 10",
    )
    _run_and_split(rank)
    rank.add_argument("--by", choices=list(RANKINGS), default="outlier", help="what comes first (%(default)s)")
    rank.add_argument("--top", type=int, default=20, metavar="N", help="how many (%(default)s)")

    classes = _command(
        commands,
        "classes",
        _classes,
        "training dynamics of each class, the hardest first",
        "t3vis classes runs/demo.zarr",
    )
    _run_and_split(classes)

    select_ = _command(
        commands,
        "select",
        _select,
        "write the ids of a share of the examples, to train on or to leave out",
        "t3vis select runs/demo.zarr --strategy ambiguous --fraction 0.33 --output ambiguous.txt",
    )
    _run_and_split(select_)
    select_.add_argument("--strategy", choices=STRATEGIES, default="ambiguous", help="what comes first (%(default)s)")
    select_.add_argument("--fraction", type=float, default=0.33, metavar="SHARE", help="how many (%(default)s)")
    select_.add_argument("--balanced", action="store_true", help="take that share of each class")
    select_.add_argument("--drop", action="store_true", help="write the ids of all other examples instead")
    select_.add_argument("--seed", type=int, default=0, help="of the random strategy, and among equal examples")
    select_.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the ids go")

    plot = _command(
        commands,
        "plot",
        _plot,
        "draw the data map, or the layers, or the classes",
        "t3vis plot runs/demo.zarr --output data_map.png",
    )
    _run_and_split(plot)
    plot.add_argument(
        "--what", choices=["data-map", "layers", "drift", "classes"], default="data-map", help="what (%(default)s)"
    )
    plot.add_argument("--output", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: beside the run)")
    plot.add_argument("--suspects", type=int, default=0, metavar="N", help="ring the N most suspicious examples")

    project = _command(
        commands,
        "project",
        _project,
        "map the hidden states of one layer in one epoch, and say how far to trust the map",
        "t3vis project runs/demo.zarr --epoch 0 --layer 2",
    )
    _run_and_split(project)
    project.add_argument("--epoch", type=int, default=-1, metavar="E", help="epoch, or number of the evaluation (last)")
    project.add_argument("--layer", type=int, metavar="L", help="which hidden states, 0 of the embeddings (last)")
    project.add_argument("--method", choices=["tsne", "pca", "umap"], default="tsne", help="(%(default)s)")
    project.add_argument("--color", choices=COLORS, default="label", help="what colours the examples (%(default)s)")
    project.add_argument("--seed", type=int, default=0, help="of all that is left to chance (%(default)s)")
    project.add_argument("--output", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: beside the run)")

    verify_ = _command(
        commands,
        "verify",
        _verify,
        "check that a run is whole, and name what is damaged; the exit status is 1 if anything is",
        "t3vis verify runs/demo.zarr",
    )
    verify_.add_argument("run", type=Path, metavar="RUN", help="path of the run")

    repair_ = _command(
        commands,
        "repair",
        _repair,
        "seal what a trainer that died has completed, and remove what it left unfinished",
        "t3vis repair runs/demo.zarr",
    )
    repair_.add_argument("run", type=Path, metavar="RUN", help="path of the run; nothing may be writing it")
    repair_.add_argument(
        "--incomplete",
        action="store_true",
        help="seal also epochs that were recorded in part, when training is not going to be resumed",
    )

    compact_ = _command(
        commands,
        "compact",
        _compact,
        "write a run anew with another codec, or without some of its layers and epochs",
        "t3vis compact runs/demo.zarr runs/demo-compact.zarr --compression bitround --keep-epochs 1",
    )
    compact_.add_argument("run", type=Path, metavar="RUN", help="path of the run; it stays as it is")
    compact_.add_argument("out", type=Path, metavar="OUT", help="where the new run goes; nothing may be there")
    compact_.add_argument(
        "--compression",
        choices=["keep", "none", "lz4", "bitround"],
        default="keep",
        help="codec of the new run; bitround also rounds hidden states to 7 mantissa bits (%(default)s)",
    )
    layers = compact_.add_mutually_exclusive_group()
    layers.add_argument("--keep-layers", type=int, nargs="*", metavar="L", help="hidden states to keep, by number")
    layers.add_argument(
        "--drop-layers", type=int, nargs="+", default=(), metavar="L", help="hidden states to leave out"
    )
    compact_.add_argument("--keep-epochs", type=int, nargs="+", metavar="E", help="epochs to keep, by number")

    push_ = _command(
        commands,
        "push",
        _push,
        "copy what is sealed of a run to a URL or directory; repeated, it copies what is new",
        "t3vis push runs/demo.zarr copies/demo.zarr",
    )
    push_.add_argument("run", type=Path, metavar="RUN", help="path of the run; it may still be training")
    push_.add_argument(
        "url", metavar="URL", help="such as s3://bucket/demo.zarr, anything that fsspec can write to, or a directory"
    )
    return root


def _command(commands: Any, name: str, call: Any, what: str, example: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(command=call)
    return made


def _run_and_split(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="path or URL of the run")
    command.add_argument("--split", default="train", help="train, or the name of an evaluation set (%(default)s)")


def _demo(options: argparse.Namespace) -> None:
    from t3vis.callbacks.recorder import RecorderCallback  # these need torch, which the other commands do not
    from t3vis.demo.corpus import docstring_corpus, read_dataset
    from t3vis.demo.train import train_demo
    from t3vis.plots import plot_data_map, write_figure

    path: Path = options.output
    recorder = RecorderCallback(path, overwrite=options.overwrite)
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


def _info(options: argparse.Namespace) -> None:
    run = open_run(options.run)
    attributes = run.attributes
    print(run.summary())
    arguments = attributes.get("training_arguments", {})
    shown = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "seed")
    print("trained with " + ", ".join(f"{name}={arguments[name]}" for name in shown if name in arguments))
    print("versions: " + ", ".join(f"{name} {version}" for name, version in attributes.get("versions", {}).items()))


def _analyze(options: argparse.Namespace) -> None:
    run = open_run(options.run)
    split = split_of(run, options.split)
    for line in findings(run, split, burn_in=options.burn_in, burn_out=options.burn_out):
        print(line)
    if isinstance(run.path, Path):
        print(f"written to {run.path / 'analysis' / split.name}")


def _rank(options: argparse.Namespace) -> None:
    run = open_run(options.run)
    _check_top(options.top)
    rows = ranked_rows(run, split_of(run, options.split), options.by, options.top)
    print(table(rows, shutil.get_terminal_size((120, 24)).columns))


def _classes(options: argparse.Namespace) -> None:
    run = open_run(options.run)
    print(table(class_rows(run, split_of(run, options.split)), shutil.get_terminal_size((120, 24)).columns))


def _select(options: argparse.Namespace) -> None:
    run = open_run(options.run)
    split = split_of(run, options.split)
    mapped = analyzed_data_map(run, split)
    labels = split.labels if options.balanced else None
    ids = select(mapped, options.strategy, fraction=options.fraction, labels=labels, seed=options.seed)
    if options.drop:
        ids = dropped(mapped.n_examples, ids)
    with _opened(options.output) as file:
        file.write("".join(f"{example}\n" for example in ids.tolist()))
    print(f"{len(ids):,} of {mapped.n_examples:,} example ids written to {options.output}, one in a line")


def _check_top(top: int) -> None:
    if top < 1:
        raise ConfigurationError(f"--top {top}: expected a number of examples, at least 1.")


def _suspects(options: argparse.Namespace) -> None:
    run = open_run(options.run)
    split = split_of(run, options.split)
    _check_top(options.top)
    rows = suspect_rows(run, split, options.top)
    if options.csv is not None:
        with _opened(options.csv) as file:
            writer = csv.DictWriter(file, SUSPECT_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        print(f"{len(rows)} suspects written to {options.csv}")
    print(table(rows, shutil.get_terminal_size((120, 24)).columns))


def suspect_rows(run: t3vis.Run, split: Split, n_rows: int) -> list[dict[str, str]]:
    """The most suspicious examples of a split, one dictionary of texts each, in the order of suspicion."""
    suspects, mapped = analyzed_suspects(run, split), analyzed_data_map(run, split)
    ranking = suspects.ranking()
    ranking = ranking[~np.isnan(suspects.score[ranking])][:n_rows]
    labels, texts = split.labels, list(split.text.values())

    return [
        {
            "rank": str(rank + 1),
            "example": str(example),
            "score": f"{suspects.score[example]:.3f}",
            "label": label_text(split, labels[example]),
            "suggested": label_text(split, suggested) if (suggested := suspects.suggested_label[example]) >= 0 else "",
            "confidence": f"{mapped.confidence[example]:.3f}",
            "variability": f"{mapped.variability[example]:.3f}",
            "correctness": f"{mapped.correctness[example]:.2f}",
            "text": " | ".join(column[int(example)] for column in texts),
        }
        for rank, example in enumerate(ranking.tolist())
    ]


def table(rows: Sequence[dict[str, str]], width: int) -> str:
    """Rows as text of at most ``width`` columns; the last column is cut to what is left, at least 20."""
    if not rows:
        return "none"
    columns = list(rows[0])
    clean = [[" ".join(row[column].split()) for column in columns] for row in rows]
    widths = [max(len(column), *(len(cells[i]) for cells in clean)) for i, column in enumerate(columns)]
    rest = max(width - sum(widths[:-1]) - 2 * (len(columns) - 1), 20)
    lines = []
    for cells in [columns, *clean]:
        last = cells[-1] if len(cells[-1]) <= rest else cells[-1][: rest - 1] + "…"
        padded = [cell.ljust(size) for cell, size in zip(cells[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*padded, last]).rstrip())
    return "\n".join(lines)


def _plot(options: argparse.Namespace) -> None:
    from t3vis.plots import write_figure  # matplotlib is an extra

    run = open_run(options.run)
    split = split_of(run, options.split)
    figure = _figure(run, split, options)
    beside = run.path.parent if isinstance(run.path, Path) else Path()
    output = options.output or beside / f"{Path(options.run).stem}-{split.name}-{options.what}.png"
    write_figure(figure, output)
    print(f"{options.what.replace('-', ' ')} written to {output}")


def _figure(run: t3vis.Run, split: Split, options: argparse.Namespace) -> Any:
    from t3vis.plots import plot_data_map
    from t3vis.plots_layers import plot_cka, plot_classes, plot_layers

    title = f"{Path(options.run).stem}: {split.name}"
    if options.what == "layers":
        found = analyzed_separability(run, split)
        return plot_layers(found.figures["probe_accuracy"], passes=found.passes, layers=found.layers, title=title)
    if options.what == "drift":
        drift = analyzed_drift(run, split)
        return plot_cka(drift.cka, passes=drift.passes, layers=drift.layers, title=title)
    mapped = analyzed_data_map(run, split)
    if options.what == "classes":
        labels = split.labels
        if labels.ndim != 1:
            raise AnalysisError(f"{split.path} has no classes but several labels or numbers for each example.")
        return plot_classes(mapped.confidence, labels, class_names=split.class_names, title=title)
    highlight = None
    if options.suspects > 0:
        highlight = analyzed_suspects(run, split).ranking()[: options.suspects]
    return plot_data_map(
        mapped, title=title, highlight=highlight, highlight_label=f"{options.suspects} most suspicious labels"
    )


def _project(options: argparse.Namespace) -> None:
    from t3vis.analyze_projection import analyzed_projection  # openTSNE and scikit-learn take a second to load
    from t3vis.plot_projection import plot_projection, quality_lines
    from t3vis.plots import write_figure

    run = open_run(options.run)
    split = split_of(run, options.split)
    with _cancelled_by_interrupt() as cancel:
        found = analyzed_projection(
            run,
            split,
            pass_index=options.epoch,
            layer=options.layer,
            method=options.method,
            seed=options.seed,
            cancel=cancel,
        )
    if options.color != "label" and options.color not in found.columns:
        raise ConfigurationError(f"--color {options.color}: this map was not started from another, there is none.")
    lines = quality_lines(found.quality, found.attributes, found.n_seen)
    name = f"{Path(options.run).stem}-{split.name}-{found.name.replace('_', '-')}"
    labels = split.labels
    figure = plot_projection(
        found.coordinates,
        labels=labels if labels.ndim == 1 else None,
        class_names=split.class_names,
        values=None if options.color == "label" else found.columns[options.color],
        values_name=options.color.replace("_", " "),
        notes=lines,
        title=name,
    )
    beside = run.path.parent if isinstance(run.path, Path) else Path()
    output = options.output or beside / f"{name}.png"
    write_figure(figure, output)
    print("\n".join([f"{name}: {found.n_seen:,} examples ({split.attributes['mode']} mode)", *lines]))
    print(f"map written to {output}")


@contextmanager
def _cancelled_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; what is being computed then stops by itself, and the second time at once."""
    asked: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _verify(options: argparse.Namespace) -> None:
    with _bar("verify", "B") as progress:
        problems = verify(options.run, progress=progress)
    for problem in problems:
        print(problem)
    if problems:
        raise StoreError(
            f"{options.run} is damaged: {len(problems)} problem{'s' if len(problems) > 1 else ''}, named above; "
            "all else can be read as before."
        )
    print(f"{options.run} is whole")


def _repair(options: argparse.Namespace) -> None:
    with _bar("seal", " passes") as progress:
        done = repair(options.run, incomplete=options.incomplete, progress=progress)
    for key in done.sealed:
        print(f"sealed {key}")
    for path in done.removed:
        print(f"removed {path}")
    for key in done.incomplete:
        print(f"{key} was recorded in part: resume training, or seal it with --incomplete")
    if done.failed:
        raise StoreError("; ".join(f"{key} could not be sealed: {why}" for key, why in done.failed.items()))
    if not (done.sealed or done.removed or done.incomplete):
        print(f"{options.run}: nothing to repair")


def _compact(options: argparse.Namespace) -> None:
    with _bar("compact", "B") as progress:
        compact(
            options.run,
            options.out,
            compression=None if options.compression == "none" else options.compression,
            keep_layers=options.keep_layers,
            drop_layers=options.drop_layers,
            keep_epochs=options.keep_epochs,
            progress=progress,
        )
    before, after = _size_of(options.run), _size_of(options.out)
    print(f"{options.out}: {after:,} bytes, {after / before:.0%} of the {before:,} of {options.run}")


def _push(options: argparse.Namespace) -> None:
    with _bar("push", "B") as progress:
        done = push(options.run, options.url, progress=progress)
    print(
        f"{options.url}: {done.n_copied:,} shards ({done.bytes_copied:,} bytes) copied, "
        f"{done.n_skipped:,} were there already"
    )


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Progress]:
    """A bar that appears when the work takes more than a second."""
    with tqdm(desc=what, unit=unit, unit_scale=unit == "B", delay=1, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def _size_of(run: Path) -> int:
    return sum(file.stat().st_size for file in run.rglob("*") if file.is_file())


def _opened(path: Path) -> Any:
    try:
        return path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error}; choose another path.") from error


if __name__ == "__main__":
    sys.exit(main())
