"""Arrival order becomes example order: segments are merged into the sealed arrays and the pass is committed.

Runs as a subprocess of the trainer (of each of its processes), at low priority, because a thread would slow the
training step: ``python -m t3vis.store.seal RUN SPLIT:PASS...``. It imports neither torch nor
zarr and holds about one layer in memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from t3vis.errors import StoreError
from t3vis.store import schema, segments, shares
from t3vis.store.commits import commit_of, committed_passes, lineage_of, lineage_within, thin
from t3vis.store.durable import sync_tree
from t3vis.store.options import StorageOptions
from t3vis.store.pass_arrays import PassArrays


def seal_pass(run: Path, split_name: str, index: int, *, n_shares: int = 1) -> dict[str, Any]:
    """Merge the segments of one pass into the sealed arrays and commit it.

    Parameters
    ----------
    n_shares
        Processes among which the work is divided; this one is the first, see ``seal_share`` for the others. What they
        do not do is done here.

    Returns
    -------
    The manifest, which is also the attributes of the commit group: coverage, steps, and what the writer said of the
    pass. A pass that is committed already is left as it is.

    Raises
    ------
    StoreError
        If what was recorded is damaged, or has been deleted.
    """
    split = run / split_name
    commit = split / "commits" / schema.pass_name(index)
    if schema.node_exists(commit):
        return commit_of(split, index)
    merged = _merged(run, split, index)
    arrays = PassArrays(run, split, index, merged)
    pieces, key = arrays.pieces(), shares.key_of(merged)
    written = arrays.write(pieces[::n_shares])
    open_shares = set(range(1, n_shares))
    while open_shares:
        with shares.without_helpers(split, wait=False) as alone:
            for share, done in shares.notes(split, index, key).items():
                if share in open_shares:
                    written.add(done)
                    open_shares.remove(share)
            while alone and open_shares:
                written.add(arrays.write(pieces[open_shares.pop() :: n_shares]))
        if open_shares:
            shares.pause()
    arrays.cover(written)
    manifest = {
        "pass": index,
        **merged.of_pass(),
        **merged.coverage(),
        "checksums": dict(sorted(written.checksums.items())),
    }
    if schema.read_metadata(split)["attributes"]["kind"] == "train":
        windows = lineage_within(segments.lineage(run), manifest)
        manifest["lineage"] = [[window.attempt, window.start, window.stop] for window in windows]
    schema.write_metadata(commit, schema.group_metadata(manifest))
    if StorageOptions.of(run).durability == "fsync":
        sync_tree(commit, run)
    shares.remove_notes(split, index)
    return manifest


def seal_share(run: Path, split_name: str, index: int, *, share: int, n_shares: int, own: str) -> None:
    """Write one share of the sealed arrays of a pass, for the first process to commit.

    Parameters
    ----------
    share
        Which one, from 1 on.
    own
        Name of this process's directory among the segments.
    """
    split = run / split_name
    if schema.node_exists(split / "commits" / schema.pass_name(index)):
        return
    merged = _merged(run, split, index)
    arrays = PassArrays(run, split, index, merged)
    written = arrays.write(arrays.pieces()[share::n_shares])
    shares.write_note(split, index, own, share, shares.key_of(merged), written)


def _merged(run: Path, split: Path, index: int) -> segments.Merge:
    attributes = schema.read_metadata(split)["attributes"]
    found = segments.list_segments(split, index)
    if not (found or schema.node_exists(split / "segments")):
        raise StoreError(f"{split} has no segments any more; it was deleted, or is a copy: there is nothing to seal.")
    return segments.merge(found, segments.limits(run), attributes["n_examples"], attributes["kind"])


def remove_sealed_segments(run: Path, split_name: str, *, before: int | None = None) -> None:
    """Delete segments that committed passes have no more need of; ``before`` spares that pass and later ones."""
    split, lineage = run / split_name, segments.lineage(run)
    for folder in split.glob("segments/a*_r*"):
        if not schema.node_exists(folder):  # its process died before it could say what it is
            schema.write_metadata(folder, schema.group_metadata())
    for index in segments.passes_with_remains(split):
        committed = schema.node_exists(split / "commits" / schema.pass_name(index))
        if committed and (before is None or index < before):
            segments.remove_sealed(split, index, lineage_of(commit_of(split, index), lineage))


def thin_passes(run: Path, split_name: str, index: int) -> None:
    """Drop the hidden states of passes up to ``index``, but for the last ones that are to be kept."""
    keep = StorageOptions.of(run).keep_epochs
    if keep is not None:
        split = run / split_name
        for old in [committed for committed in committed_passes(split) if committed <= index][:-keep]:
            thin(split, old)


def main(arguments: list[str]) -> None:
    """Seal passes and remove the segments of those sealed before them, or write a share of them."""
    parser = argparse.ArgumentParser(prog="python -m t3vis.store.seal")
    parser.add_argument("run", type=Path)
    parser.add_argument("passes", nargs="+", metavar="SPLIT:PASS")
    parser.add_argument("--share", default="0/1", metavar="K/N", help="which of how many processes this is")
    parser.add_argument("--own", default="", help="name of this process's directory among the segments")
    options = parser.parse_args(arguments)
    share, n_shares = map(int, options.share.split("/"))
    failed = []
    for key in options.passes:
        split_name, _, index = key.rpartition(":")
        try:
            if share:
                seal_share(options.run, split_name, int(index), share=share, n_shares=n_shares, own=options.own)
            else:
                seal_pass(options.run, split_name, int(index), n_shares=n_shares)
                thin_passes(options.run, split_name, int(index))
                remove_sealed_segments(options.run, split_name, before=int(index))
        except StoreError as error:
            failed.append(str(error))  # the others are sealed nevertheless
    if failed:
        sys.exit("; ".join(failed))


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(19)
    main(sys.argv[1:])
