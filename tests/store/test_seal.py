import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr

from t3vis.errors import StoreError
from t3vis.store import schema, segments
from t3vis.store.checksums import checksum
from t3vis.store.commits import committed_passes, thin
from t3vis.store.reader import open_run
from t3vis.store.seal import main, remove_sealed_segments, seal_pass
from t3vis.store.verify import verify
from t3vis.store.writer import create_run

from .operations import killed_before_each
from .recordings import Expected, new_run, rows_of, two_epochs


def test_sealing_moves_rows_into_the_order_of_the_examples(tmp_path):
    _, expected = two_epochs(tmp_path, seal=True)
    remove_sealed_segments(tmp_path, "train")
    assert segments.passes_with_remains(tmp_path / "train") == []
    expected.check(open_run(tmp_path).train)
    group = zarr.open_group(tmp_path / "train", mode="r")
    for name in expected.names():
        np.testing.assert_array_equal(group[name][...], expected.array(name), err_msg=name)


def test_what_is_larger_than_memory_is_sealed_some_shards_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("t3vis.store.layout.MAX_CHUNK_ROWS", 2)
    monkeypatch.setattr("t3vis.store.layout.MIN_CHUNK_ROWS", 2)
    monkeypatch.setattr("t3vis.store.layout.SHARD_BYTES", 1)
    monkeypatch.setattr("t3vis.store.pass_arrays.GATHERED_BYTES", 4 * 2 * 4 * 2)  # two shards of hidden states
    gathered = []
    gather = segments.Merge.gather

    def counted(merge, name, *arguments, **options):
        found = gather(merge, name, *arguments, **options)
        gathered.append((name, len(found)))
        return found

    monkeypatch.setattr(segments.Merge, "gather", counted)
    _, expected = two_epochs(tmp_path, seal=True)
    assert {n_rows for name, n_rows in gathered if name == "hidden_states"} == {8, 2}
    remove_sealed_segments(tmp_path, "train")
    expected.check(open_run(tmp_path).train)
    assert verify(tmp_path) == []


def test_the_manifest_says_what_was_covered(tmp_path):
    two_epochs(tmp_path)
    manifest = seal_pass(tmp_path, "train", 1)
    shards = [file for file in tmp_path.glob("train/**/c/1/**/*") if file.is_file()]
    assert manifest.pop("checksums") == {
        file.relative_to(tmp_path / "train").as_posix(): checksum(file) for file in shards
    }
    assert manifest == {
        "pass": 1,
        "epoch": 1,
        "step": 2,
        "n_examples": 10,
        "n_seen": 9,
        "n_repeated": 1,
        "n_never": 1,
        "first_step": 2,
        "last_step": 3,
        "lineage": [[0, 2, 4]],
    }
    assert committed_passes(tmp_path / "train") == [1]


def test_a_committed_pass_is_left_as_it_is(tmp_path):
    writer, expected = two_epochs(tmp_path, seal=True)
    manifest = schema.read_metadata(tmp_path / "train/commits/p0000")["attributes"]
    writer.begin_pass("train", 2, {})
    shutil.rmtree(tmp_path / "train/segments")
    assert seal_pass(tmp_path, "train", 0) == manifest
    expected.check(open_run(tmp_path).train)


def test_passes_may_be_sealed_in_any_order(tmp_path):
    _, expected = two_epochs(tmp_path)
    for index in (1, 0):
        seal_pass(tmp_path, "train", index)
        expected.check(open_run(tmp_path).train)


def test_the_command_keeps_the_segments_of_the_pass_it_sealed_last(tmp_path):
    _, expected = two_epochs(tmp_path)
    niceness = os.nice(0)
    subprocess.run(
        [sys.executable, "-W", "error", "-m", "t3vis.store.seal", tmp_path, "train:0", "train:1"], check=True
    )
    assert os.nice(0) == niceness
    assert committed_passes(tmp_path / "train") == [0, 1]
    assert segments.unsealed_passes(tmp_path / "train") == [1]
    expected.check(open_run(tmp_path).train)


def test_the_command_runs_at_the_lowest_priority(tmp_path):
    two_epochs(tmp_path)
    code = "import os, runpy; runpy.run_module('t3vis.store.seal', run_name='__main__'); print(os.nice(0) == 19)"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path, "train:0"], check=True, capture_output=True, text=True
    )
    assert ended.stdout == "True\n"


def test_chunks_keep_their_size_when_the_default_changes(tmp_path, monkeypatch):
    _, expected = two_epochs(tmp_path)
    seal_pass(tmp_path, "train", 0)
    monkeypatch.setattr("t3vis.store.layout.MIN_CHUNK_ROWS", 2)
    monkeypatch.setattr("t3vis.store.layout.MAX_CHUNK_ROWS", 4)
    seal_pass(tmp_path, "train", 1)
    expected.check(open_run(tmp_path).train)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "train/loss", mode="r")[...], expected.array("loss"))


def test_a_split_of_unknown_size_grows(tmp_path):
    writer, expected = new_run(tmp_path, None), Expected(None)
    for index, ids in enumerate(([2, 0], [1, 7, 0], [3])):
        writer.begin_pass("train", index, {})
        expected.log(writer, index, rows_of(ids, index))
        writer.flush()
        expected.check(open_run(tmp_path).train)
        if index < 2:
            seal_pass(tmp_path, "train", index)
            expected.check(open_run(tmp_path).train)
    assert [record.n_examples for record in open_run(tmp_path).train.passes] == [3, 8, 4]


def test_an_epoch_of_which_nothing_could_be_recorded_is_sealed_as_such(tmp_path):
    two_epochs(tmp_path)
    seal_pass(tmp_path, "train", 2)
    train = open_run(tmp_path).train
    assert (train.passes[2].n_never, train.passes[2].last_step) == (10, -1)
    assert np.isnan(train.logits[2]).all()
    assert train.logits.shape[0] == 3


def test_killed_at_any_moment_nothing_is_lost_and_the_next_sealer_ends_the_work(tmp_path):
    template = tmp_path / "template"
    writer, expected = new_run(template), Expected(10)
    for step, ids in enumerate(([3, 1, 4], [1, 5, 9])):
        expected.log(writer, 0, rows_of(ids, step, n_layers=1))
        writer.flush()

    def copy(number):
        return shutil.copytree(template, tmp_path / f"{number}")

    def act(path):
        main([str(path), "train:0"])
        remove_sealed_segments(path, "train")

    for path in killed_before_each(copy, act):
        expected.check(open_run(path).train)
        act(path)
        assert committed_passes(path / "train") == [0]
        assert segments.passes_with_remains(path / "train") == []
        expected.check(open_run(path).train)


def test_what_a_dead_sealer_left_of_another_array_is_not_read(tmp_path):
    """Shards of an array that the pass does not have any more would otherwise come back to life with the commit."""
    writer = new_run(tmp_path)
    for index, n_layers in ((0, 2), (1, 0)):
        writer.begin_pass("train", index, {})
        writer.log("train", rows_of(range(10), index, n_layers=n_layers))
        writer.flush()
    seal_pass(tmp_path, "train", 0)
    shutil.copytree(tmp_path / "train/hidden_states/c/0", tmp_path / "train/hidden_states/c/1")
    seal_pass(tmp_path, "train", 1)
    assert np.isnan(open_run(tmp_path).train.hidden_states[1]).all()


@pytest.mark.parametrize("name", ["torch", "zarr", "numcodecs"])
def test_the_sealer_does_not_import(name):
    code = f"import sys, t3vis.store.seal; sys.exit({name!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pass_whose_segments_were_deleted_is_not_taken_for_one_that_saw_nothing(tmp_path):
    _, expected = two_epochs(tmp_path)
    shutil.move(tmp_path / "train/segments", tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match="train has no segments any more"):
        main([str(tmp_path), "train:1"])
    assert committed_passes(tmp_path / "train") == []
    shutil.move(tmp_path / "elsewhere", tmp_path / "train/segments")
    main([str(tmp_path), "train:1"])
    expected.check(open_run(tmp_path).train)


def test_a_damaged_pass_does_not_keep_the_others_from_being_sealed(tmp_path):
    two_epochs(tmp_path)
    (damaged, *_) = tmp_path.glob("train/segments/*/p0000_s000000/loss/c/0")
    damaged.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"p0000_s000000/loss"):
        main([str(tmp_path), "train:0", "train:1"])
    assert committed_passes(tmp_path / "train") == [1]


def test_a_pass_is_added_with_the_codec_that_its_arrays_have(tmp_path):
    """Whatever the root says by then, one array is never of two codecs."""
    _, expected = two_epochs(tmp_path)
    seal_pass(tmp_path, "train", 0)
    root = schema.read_metadata(tmp_path)
    root["attributes"]["storage"]["compression"] = "lz4"
    schema.write_metadata(tmp_path, root)
    seal_pass(tmp_path, "train", 1)
    expected.check(open_run(tmp_path).train)
    assert verify(tmp_path) == []


def test_an_array_of_an_unknown_codec_gets_no_pass(tmp_path):
    two_epochs(tmp_path)
    seal_pass(tmp_path, "train", 0)
    metadata = schema.read_metadata(tmp_path / "train/logits")
    metadata["codecs"][0]["configuration"]["codecs"].append({"name": "zstd", "configuration": {"level": 1}})
    schema.write_metadata(tmp_path / "train/logits", metadata)
    with pytest.raises(StoreError, match=r"logits is encoded with .*zstd"):
        seal_pass(tmp_path, "train", 1)
    assert committed_passes(tmp_path / "train") == [0]


def test_hidden_states_of_a_pass_are_dropped_whenever_that_is_interrupted(tmp_path):
    template = tmp_path / "template"
    _, expected = two_epochs(template, seal=True)
    remove_sealed_segments(template, "train")
    states = expected.array("hidden_states")
    without = states.copy()
    without[0] = np.nan

    def copy(number):
        return shutil.copytree(template, tmp_path / str(number))

    def act(path):
        thin(path / "train", 0)

    for path in killed_before_each(copy, act):
        train = open_run(path).train
        said = train.passes[0].attributes.get("dropped") == ["hidden_states"]
        np.testing.assert_array_equal(train.hidden_states[:], without if said else states)
        np.testing.assert_array_equal(train.logits[:], expected.array("logits"))
        assert verify(path) == []
        act(path)
        np.testing.assert_array_equal(open_run(path).train.hidden_states[:], without)
        assert verify(path) == []
        assert not (path / "train/hidden_states/c/0").exists()


def test_an_epoch_without_hidden_states_can_be_opened_again(tmp_path):
    writer, expected = two_epochs(tmp_path, seal=True)
    remove_sealed_segments(tmp_path, "train")
    thin(tmp_path / "train", 1)
    writer.close()
    resumed = create_run(tmp_path, {}, start_step=3, resume=True)
    expected.take_back(3, {1})
    resumed.begin_pass("train", 1, {"epoch": 1, "step": 3})
    expected.log(resumed, 1, rows_of([6, 7], 3, seed=1))
    resumed.flush()
    seal_pass(tmp_path, "train", 1)
    train = open_run(tmp_path).train
    np.testing.assert_array_equal(train.logits[:], expected.array("logits"))
    states = expected.array("hidden_states")
    states[1, :, train.step[1] < 3] = np.nan
    np.testing.assert_array_equal(train.hidden_states[:], states)
    assert verify(tmp_path) == []


def test_a_directory_of_segments_whose_process_died_at_once_becomes_a_group(tmp_path):
    two_epochs(tmp_path)
    folder = tmp_path / "train/segments/a0007_r0000"
    folder.mkdir()
    remove_sealed_segments(tmp_path, "train")
    assert schema.read_metadata(folder)["node_type"] == "group"
