"""Whatever the sizes, codec, number of processes and order of arrival: what was logged is what is read, everywhere."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.store.codecs import COMPRESSIONS, rounded
from t3vis.store.compact import compact
from t3vis.store.options import StorageOptions
from t3vis.store.reader import open_run
from t3vis.store.seal import remove_sealed_segments, seal_pass, seal_share
from t3vis.store.verify import verify
from t3vis.store.writer import create_run, join_run

from .recordings import Expected, rows_of, split_attributes


@st.composite
def recordings(draw):
    """A split whose size is about that of a chunk or a shard of the hidden states, and who sees what in each epoch."""
    chunk_rows, chunks_per_shard = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shard_rows = chunk_rows * chunks_per_shard
    around = {0, 1, *(size + more for size in (chunk_rows, shard_rows, 2 * shard_rows) for more in (-1, 0, 1))}
    n_examples = draw(st.sampled_from(sorted(around)))
    n_ranks = draw(st.integers(1, 3))
    epochs = []
    for _ in range(draw(st.integers(1, 2))):
        order = draw(st.permutations(range(n_examples)))
        order = order[: draw(st.integers(0, n_examples))] if draw(st.booleans()) else order
        order = [*order, *draw(st.lists(st.sampled_from(order), max_size=2))] if order else []
        edges = sorted(draw(st.sets(st.integers(1, max(len(order) - 1, 1)), max_size=4)))
        batches = [part.tolist() for part in np.split(np.array(order, np.int64), edges) if len(part)]
        epochs.append([(draw(st.integers(0, n_ranks - 1)), ids) for ids in batches])
    return {
        "chunk_rows": chunk_rows,
        "chunks_per_shard": chunks_per_shard,
        "n_examples": n_examples,
        "known": draw(st.booleans()),
        "n_ranks": n_ranks,
        "epochs": epochs,
        "compression": draw(st.sampled_from(COMPRESSIONS)),
        "sizes": {
            "n_classes": draw(st.integers(1, 3)),
            "n_layers": draw(st.integers(0, 3)),
            "hidden": draw(st.integers(1, 3)),
            "tokens": draw(st.booleans()),
        },
    }


@given(recording=recordings())
@settings(max_examples=40, deadline=None)
def test_what_was_logged_is_what_is_read(tmp_path_factory, recording):
    path, n_ranks = tmp_path_factory.mktemp("runs") / "run", recording["n_ranks"]
    n_examples = recording["n_examples"] if recording["known"] else None
    row_bytes = 2 * recording["sizes"]["hidden"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MIN_CHUNK_ROWS", "MAX_CHUNK_ROWS"):
            patch.setattr(f"t3vis.store.layout.{name}", recording["chunk_rows"])
        shard_bytes = recording["chunks_per_shard"] * recording["chunk_rows"] * row_bytes
        patch.setattr("t3vis.store.layout.SHARD_BYTES", shard_bytes)
        expected = record(path, recording, n_examples, n_ranks)
    if not any(recording["epochs"]):
        assert open_run(path).train.passes == ()
        return
    train = open_run(path).train
    expected.check(train)
    assert all(sealed.sealed for sealed in train.passes)
    group = zarr.open_group(path / "train", mode="r")
    for name in train.arrays:
        stored = group[name][...]
        extent = tuple(map(slice, stored.shape))  # where the size is not known, an array may have fewer examples
        np.testing.assert_array_equal(stored, train.array(name)[:][extent])
    assert verify(path) == []
    compact(path, path.with_name("compacted"), compression="lz4")
    expected.check(open_run(path.with_name("compacted")).train)


def record(path, recording, n_examples, n_ranks):
    """Log and seal everything; returns what must be there."""
    options = StorageOptions(compression=recording["compression"])
    writers = [create_run(path, {}, options=options, n_ranks=n_ranks)]
    writers[0].add_split("train", split_attributes(n_examples))
    writers += [join_run(path, rank=rank, n_ranks=n_ranks) for rank in range(1, n_ranks)]
    expected, step = Expected(n_examples), 0
    for index, batches in enumerate(recording["epochs"]):
        for writer in writers:
            writer.begin_pass("train", index, {"epoch": index, "step": step})
        for rank, ids in batches:
            rows = rows_of(ids, step, **recording["sizes"])
            kept = {name: rounded(recording["compression"], name, column) for name, column in rows.items()}
            expected.log(writers[rank], index, kept)
            step += 1
        for writer in writers:
            writer.flush()
        if batches:
            for share in range(1, n_ranks):
                seal_share(path, "train", index, share=share, n_shares=n_ranks, own=f"a0000_r{share:04d}")
            seal_pass(path, "train", index, n_shares=n_ranks)
    remove_sealed_segments(path, "train")
    return expected
