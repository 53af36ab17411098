"""The commands that check, mend, shrink, merge and copy a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from t3vis.commands.arguments import Commands, add_command
from t3vis.commands.output import progress_bar, size_of
from t3vis.errors import StoreError
from t3vis.store.compact import compact
from t3vis.store.merge import merge_parts
from t3vis.store.push import push
from t3vis.store.repair import repair
from t3vis.store.verify import verify


def add(commands: Commands) -> None:
    """Declare ``verify``, ``repair``, ``compact``, ``merge`` and ``push``."""
    verify_ = add_command(
        commands,
        "verify",
        _verify,
        "check that a run is whole, and name what is damaged; the exit status is 1 if anything is",
        "t3vis verify runs/demo.zarr",
    )
    verify_.add_argument("run", type=Path, metavar="RUN", help="path of the run")

    repair_ = add_command(
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

    compact_ = add_command(
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

    merge_ = add_command(
        commands,
        "merge",
        _merge,
        "make one run of the parts that the machines of a training without a common disk recorded",
        "t3vis merge node0/demo.zarr s3://bucket/node1.zarr --into runs/demo.zarr",
    )
    merge_.add_argument(
        "parts", nargs="+", metavar="PART", help="path of a run that was recorded with shared=False, or URL of a copy"
    )
    merge_.add_argument("--into", type=Path, required=True, metavar="RUN", help="where the run goes; nothing is there")

    push_ = add_command(
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


def _verify(options: argparse.Namespace) -> None:
    with progress_bar("verify", "B") as progress:
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
    with progress_bar("seal", " passes") as progress:
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
    with progress_bar("compact", "B") as progress:
        compact(
            options.run,
            options.out,
            compression=None if options.compression == "none" else options.compression,
            keep_layers=options.keep_layers,
            drop_layers=options.drop_layers,
            keep_epochs=options.keep_epochs,
            progress=progress,
        )
    before, after = size_of(options.run), size_of(options.out)
    print(f"{options.out}: {after:,} bytes, {after / before:.0%} of the {before:,} of {options.run}")


def _merge(options: argparse.Namespace) -> None:
    with progress_bar("merge", " passes") as progress:
        merged = merge_parts(options.parts, options.into, progress=progress)
    counts = [f"{len(passes)} of {name}" for name, passes in merged.items()]
    counts[:1] = [f"{len(passes)} passes of {name}" for name, passes in list(merged.items())[:1]]
    print(f"{options.into}: {', '.join(counts) or 'no passes'}, of {len(options.parts)} parts")


def _push(options: argparse.Namespace) -> None:
    with progress_bar("push", "B") as progress:
        done = push(options.run, options.url, progress=progress)
    print(
        f"{options.url}: {done.n_copied:,} shards ({done.bytes_copied:,} bytes) copied, "
        f"{done.n_skipped:,} were there already"
    )
