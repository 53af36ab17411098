"""A run written anew holds what was asked for, bit for bit, and is a whole run."""

import os
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.errors import ConfigurationError, StoreError
from t3vis.store import schema
from t3vis.store.codecs import bitrounded
from t3vis.store.compact import compact
from t3vis.store.reader import open_run
from t3vis.store.results import read_result, write_result
from t3vis.store.seal import seal_pass
from t3vis.store.verify import verify

from .operations import WRITING, before_operation
from .recordings import new_run, rows_of
from .test_verify import change, flip, small_chunks, whole_run, with_checksums, without_checksums


def sealed_run(path):
    """A run with everything of which all passes are sealed, with results of all passes and of the first only."""
    whole_run(path)
    for name in ("train", "eval"):
        seal_pass(path, name, 2)
    for name, passes in (("all", [0, 1, 2]), ("first", [0])):
        attributes = {"passes": [[index, 0, 10, 0] for index in passes]}
        write_result(path, "train", name, {"a": np.arange(10)}, meanings={"a": "a"}, attributes=attributes)
    change(path / "train/zarr.json", lambda group: group["attributes"].update(arrays=layers_of([0, 6])))
    with_checksums(path)
    with_checksums(path, "eval")
    return path


def layers_of(layers):
    return {"hidden_states": {"layers": layers, "pooling": "mean"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        return sealed_run(tmp_path_factory.mktemp("compact") / "run")


@pytest.fixture
def run(source, tmp_path):
    return shutil.copytree(source, tmp_path / "run")


def codec_names(array):
    metadata = schema.read_metadata(array)
    return [codec["name"] for codec in metadata["codecs"][0]["configuration"]["codecs"]]


@given(
    compression=st.sampled_from([None, "lz4", "bitround", "keep"]),
    layers=st.one_of(st.none(), st.sets(st.sampled_from([0, 6]))),
    drop=st.booleans(),
    epochs=st.one_of(st.none(), st.sets(st.integers(0, 2), min_size=1)),
)
@settings(max_examples=40, deadline=None)
def test_a_compacted_run_holds_what_was_asked_for(source, tmp_path_factory, compression, layers, drop, epochs):
    out = tmp_path_factory.mktemp("out") / "run"
    options = {} if layers is None else {"drop_layers": {0, 6} - layers} if drop else {"keep_layers": layers}
    compact(source, out, compression=compression, keep_epochs=epochs, **options)
    assert verify(out) == []
    before, after = open_run(source).train, open_run(out).train
    kept = sorted({0, 1, 2} if epochs is None else epochs)
    assert [record.index for record in after.passes] == kept
    assert [(record.n_seen, record.step) for record in after.passes] == [
        (record.n_seen, record.step) for record in before.passes if record.index in kept
    ]
    assert after.layers == [layer for layer in [0, 6] if layers is None or layer in layers]
    plain = zarr.open_group(out, mode="r")["train"]
    for name in before.arrays:
        if name == "hidden_states" and layers == set():
            assert name not in after.arrays
            continue
        rows = before.array(name)[kept]
        if name == "hidden_states":
            rows = rows[:, [i for i, layer in enumerate([0, 6]) if layers is None or layer in layers]]
            rows = bitrounded(rows) if compression == "bitround" else rows
        np.testing.assert_array_equal(after.array(name)[kept], rows, err_msg=name)
        np.testing.assert_array_equal(plain[name][:][kept], rows, err_msg=name)
        assert len(after.array(name)) == kept[-1] + 1
        dropped = [index for index in range(kept[-1]) if index not in kept]
        assert (after.array("step")[dropped] == -1).all()
        assert codec_names(out / "train" / name) == ["bytes"] + (
            ["blosc"] if compression in ("lz4", "bitround") else []
        )
    assert sorted(read for read in ("all", "first") if read_result(out, "train", read)) == [
        name for name, needed in (("all", {0, 1, 2}), ("first", {0})) if needed <= set(kept)
    ]


def test_all_else_is_kept(source, tmp_path):
    out = tmp_path / "out"
    compact(source, out, compression="lz4", keep_epochs=[1])
    before, after = open_run(source), open_run(out)
    assert after.train.text["a sentence"][:] == before.train.text["a sentence"][:]
    assert after.train.labels.tolist() == before.train.labels.tolist()
    assert [part.tolist() for part in after.train.token_ids[:]] == [part.tolist() for part in before.train.token_ids[:]]
    assert after.tokens([1, 2]) == ["ge", "##lb"]
    evaluation = after.evals["eval"]
    np.testing.assert_array_equal(evaluation.logits, before.evals["eval"].logits)
    assert [record.n_examples for record in evaluation.passes] == [1, 2, 3]
    assert {key: after.attributes[key] for key in ("t3vis", "storage")} == {
        "t3vis": before.attributes["t3vis"],
        "storage": {**before.attributes["storage"], "compression": "lz4"},
    }
    (made,) = after.attributes["compacted"]
    assert (made["from"], made["compression"], made["passes"]) == (
        str(source),
        "lz4",
        {"train": [1], "eval": [0, 1, 2]},
    )
    assert after.train.attributes["fingerprint"] == before.train.attributes["fingerprint"]


def test_every_shard_of_a_compacted_run_has_a_checksum(run, tmp_path):
    without_checksums(run)
    compact(run, tmp_path / "out")
    file = tmp_path / "out/train/logits/c/1/0/0"
    flip(file, 0)
    assert [problem.file for problem in verify(tmp_path / "out")] == [file]


def test_compression_makes_files_smaller_and_can_be_taken_back(tmp_path):
    writer = new_run(tmp_path / "run", 3000)
    rows = rows_of(range(3000), 0, hidden=32)
    rows["hidden_states"] = np.sort(rows["hidden_states"], axis=1)
    writer.log("train", rows)
    writer.flush()
    seal_pass(tmp_path / "run", "train", 0)
    sizes = {}
    for source, compression in (("run", "lz4"), ("run", "bitround"), ("lz4", None), ("bitround", "keep")):
        out = tmp_path / str(compression)
        compact(tmp_path / source, out, compression=compression)
        sizes[compression] = sum(file.stat().st_size for file in (out / "train/hidden_states").rglob("0"))
        expected = rows["hidden_states"]
        expected = bitrounded(expected) if "bitround" in (source, compression) else expected
        np.testing.assert_array_equal(open_run(out).train.hidden_states[0], expected)
    assert sizes["bitround"] < sizes["lz4"] < sizes[None]
    assert sizes["keep"] == sizes["bitround"]


def test_progress_ends_with_all_there_was(source, tmp_path):
    heard = []
    compact(source, tmp_path / "out", progress=lambda *now: heard.append(now))
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1] > 0


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_epochs": [0, 7]}, r"holds no epoch 7; it holds \[0, 1, 2\]"),
        ({"keep_layers": [5]}, r"holds no hidden state 5; it holds \[0, 6\]"),
        ({"drop_layers": [1]}, "holds no hidden state 1"),
        ({"compression": "gzip"}, "compression='gzip': expected"),
    ],
)
def test_what_is_not_there_is_refused(source, tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        compact(source, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_already_is_not_touched(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigurationError, match="already exists"):
        compact(run, out)
    assert list(out.iterdir()) == []


def test_a_pass_that_is_not_sealed_is_refused_unless_it_is_left_out(tmp_path):
    whole_run(tmp_path / "run")
    with pytest.raises(StoreError, match=r"passes \[2\] of .* are not sealed.*t3vis repair"):
        compact(tmp_path / "run", tmp_path / "out")
    seal_pass(tmp_path / "run", "eval", 2)
    compact(tmp_path / "run", tmp_path / "out", keep_epochs=[0, 1])
    assert verify(tmp_path / "out") == []


def test_a_damaged_shard_is_refused_and_can_be_left_out(run, tmp_path):
    file = run / "train/hidden_states/c/1/1/0/0"
    flip(file, 0)
    for compression in ("keep", None, "lz4"):
        with pytest.raises(StoreError, match=f"hidden_states, pass 1, layer 1, rows 0 to 7: .*{file}"):
            compact(run, tmp_path / "out", compression=compression)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    compact(run, tmp_path / "no-layer", drop_layers=[6])
    compact(run, tmp_path / "no-epoch", keep_epochs=[0, 2])
    assert verify(tmp_path / "no-layer") == verify(tmp_path / "no-epoch") == []


def test_a_disk_that_refuses_leaves_nothing_behind(run, tmp_path):
    def refuse():
        raise OSError(28, "No space left on device")

    for number in (3, 30, 150):
        with (
            before_operation(number, tmp_path / f"out.{os.getpid()}", refuse, WRITING) as watch,
            pytest.raises(ConfigurationError, match=r"cannot be written: .*No space left"),
        ):
            compact(run, tmp_path / "out", compression="lz4")
        assert watch.happened
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
