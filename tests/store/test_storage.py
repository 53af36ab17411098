import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import PurePosixPath

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.push import push
from t3vis.store.reader import open_run
from t3vis.store.results import read_result, write_result
from t3vis.store.seal import seal_pass
from t3vis.store.storage import RemoteCopy, RemotePath, file_system_of, locate
from t3vis.store.writer import create_run

from .recordings import new_run, rows_of, split_attributes, two_epochs
from .web import served


def upload(run):
    """Copy a directory as it is, without t3vis."""
    for file in run.rglob("*"):
        if file.is_file():
            fsspec.filesystem("memory").pipe_file(f"/bucket/run.zarr/{file.relative_to(run)}", file.read_bytes())


def full_run(path):
    """A run with everything in it: two splits, examples, texts, tokens, a result, an attempt that resumed."""
    writer, expected = two_epochs(path, seal=True)
    examples = ExamplesWriter(path / "train/examples", 10)
    texts = [f"text {i}" for i in range(10)]
    examples.add(Columns(labels=np.arange(10) % 3, length=np.arange(10, dtype=np.int32), texts={"a b": texts}))
    examples.close()
    tokenizer = ExamplesWriter(path / "tokenizer", 2)
    tokenizer.add(Columns(texts={"token": ["[PAD]", "ge"]}))
    tokenizer.close()
    columns = {"confidence": np.arange(10.0)}
    write_result(path, "train", "data_map", columns, meanings={"confidence": "mean"}, attributes={"burn_in": 0})
    writer.add_split("eval", split_attributes(3, "eval"))
    writer.begin_pass("eval", 0, {"epoch": 0.5, "step": 2})
    writer.log("eval", rows_of([0, 1, 2], 2))
    writer.close()
    seal_pass(path, "eval", 0)
    return expected


def check(run, path, expected):
    """The run is the one at ``path``, in all that can be asked of it."""
    whole = open_run(path)
    assert run.attributes == whole.attributes
    assert list(run.splits) == ["train", "eval"]
    assert run.summary().replace(str(run.path), "") == whole.summary().replace(str(path), "")
    expected.check(run.train)
    np.testing.assert_array_equal(run.evals["eval"].logits, whole.evals["eval"].logits)
    assert [replace(record, attributes={}) for record in run.train.passes] == [
        replace(record, attributes={}) for record in whole.train.passes
    ]
    assert run.train.labels.tolist() == whole.train.labels.tolist()
    assert run.train.text["a b"][:] == whole.train.text["a b"][:]
    assert repr(run.train.example(7)) == repr(whole.train.example(7))
    assert run.tokens([1, 0]) == ["ge", "[PAD]"]
    assert read_result(run.path, "train", "data_map").columns["confidence"].tolist() == list(range(10))
    for key in (0, (1, 1), (1, 1, 3), (0, 0, [5, 2, 5]), (slice(None), 1, 4), (1, slice(None), slice(2, 5), 0)):
        np.testing.assert_array_equal(run.train.hidden_states[key], whole.train.hidden_states[:][key], strict=True)


def test_a_pushed_run_is_read_from_memory_as_from_its_directory(tmp_path, memory):
    expected = full_run(tmp_path / "run")
    push(tmp_path / "run", memory)
    check(open_run(memory), tmp_path / "run", expected)
    check(open_run(memory + "/"), tmp_path / "run", expected)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_pushed_run_is_read_from_a_web_server(tmp_path, ranges):
    expected = full_run(tmp_path / "run")
    push(tmp_path / "run", str(tmp_path / "copy/run.zarr"))
    with served(tmp_path / "copy", ranges=ranges) as server:
        check(open_run(f"{server.url}/run.zarr"), tmp_path / "run", expected)


@pytest.mark.parametrize("name", ["run", "a run"])
def test_a_file_url_is_its_directory(tmp_path, name):
    expected = full_run(tmp_path / name)
    assert locate(f"file://{tmp_path}/{name}") == tmp_path / name
    check(open_run(f"file://{tmp_path}/{name}"), tmp_path / name, expected)


def test_a_run_that_was_copied_by_other_means_is_read_where_files_can_be_listed(tmp_path, memory):
    expected = full_run(tmp_path / "run")
    upload(tmp_path / "run")
    check(open_run(memory), tmp_path / "run", expected)


def test_of_a_run_in_training_only_sealed_passes_are_read_remotely(tmp_path, memory):
    _, expected = two_epochs(tmp_path / "run")
    upload(tmp_path / "run")
    assert open_run(memory).train.passes == ()
    assert expected.n_passes == 2


def test_only_what_is_asked_for_is_fetched(tmp_path):
    """Of 1,000 rows of 2,000 bytes in each of two layers."""
    writer = new_run(tmp_path / "run", 1000)
    rows = rows_of(range(1000), 0, hidden=1000)
    writer.log("train", rows)
    writer.seal("train", 0)
    writer.close()
    push(tmp_path / "run", str(tmp_path / "copy"))
    with served(tmp_path / "copy") as server:
        hidden = open_run(server.url).train.hidden_states
        shape = hidden.shape
        assert (shape, {path for path, _ in server.requests}) == ((1, 2, 1000, 1000), {"/zarr.json"})
        commit = len((tmp_path / "copy/train/commits/p0000/zarr.json").read_bytes())
        n_chunks = 1000 // 512 + 1
        index = 16 * n_chunks + 4
        for number, (key, n_rows) in enumerate(
            [((0, 1, 700), 1), ((0, 1, slice(100, 104)), 4), ((0, 1, [999, 700]), 2)]
        ):
            server.requests.clear()
            np.testing.assert_array_equal(hidden[key], rows["hidden_states"][key[1:]])
            assert {path for path, _ in server.requests} == {
                "/train/hidden_states/c/0/1/0/0",
                "/train/commits/p0000/zarr.json",
            }
            n_bytes = sum(size for path, size in server.requests if "hidden_states" in path)
            assert n_bytes == 2000 * n_rows + (index if number == 0 else 0)
            assert server.n_bytes() == n_bytes + commit
        server.requests.clear()
        np.testing.assert_array_equal(hidden[0, 1], rows["hidden_states"][1])
        assert server.n_bytes() == 2_000_000 + commit
        assert len(server.requests) == 2


def test_a_copy_that_was_pushed_again_is_not_read_in_parts(tmp_path, memory):
    writer, _ = two_epochs(tmp_path / "run", seal=True)
    push(tmp_path / "run", memory)
    logits = open_run(memory).train.logits
    before = logits[1]
    writer = create_run(tmp_path / "run", {}, start_step=3, resume=True)
    writer.begin_pass("train", 1, {"epoch": 1, "step": 2})
    writer.log("train", rows_of([5, 9, 0, 4, 3], 3, seed=1))
    writer.seal("train", 1)
    writer.close()
    push(tmp_path / "run", memory)
    after = logits[1]
    assert not np.array_equal(before, after, equal_nan=True)
    np.testing.assert_array_equal(after, open_run(tmp_path / "run").train.logits[1])


def test_a_damaged_copy_is_an_error_that_names_url_array_epoch_and_rows(tmp_path, memory):
    two_epochs(tmp_path / "run", seal=True)
    push(tmp_path / "run", memory)
    store = fsspec.filesystem("memory")
    name = "/bucket/run.zarr/train/logits/c/1/0/0"
    store.pipe_file(name, store.cat_file(name)[:-1])
    train = open_run(memory).train
    assert np.isfinite(train.logits[0]).all()
    with pytest.raises(StoreError, match=f"memory:/{name}.*logits, epoch 1, examples 0 to 9"):
        train.logits[1]


# What cannot be opened


def test_an_empty_place_is_refused_by_its_url(memory):
    with pytest.raises(StoreError, match=f"expected a t3vis run at {memory}, found nothing"):
        open_run(memory)


def test_a_web_server_without_a_pushed_copy_is_refused(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    with served(tmp_path) as server:
        with pytest.raises(StoreError, match=r"cannot be listed.*t3vis push"):
            open_run(f"{server.url}/run")
        with pytest.raises(StoreError, match="found nothing"):
            open_run(f"{server.url}/none")
        with pytest.raises(StoreError, match="cannot be written to"):
            push(tmp_path / "run", f"{server.url}/copy")


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(StoreError, match=r"s4://bucket/run.zarr cannot be opened: Protocol not known: s4"):
        open_run("s4://bucket/run.zarr")


def test_the_package_that_a_protocol_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StoreError, match=r"s3://bucket/run.zarr cannot be opened: Install s3fs"):
        open_run("s3://bucket/run.zarr")


def test_a_run_elsewhere_is_read_only_and_results_are_not_kept_there(tmp_path, memory):
    full_run(tmp_path / "run")
    push(tmp_path / "run", memory)
    run = open_run(memory)
    with pytest.raises(StoreError, match=re.escape(f"{memory}/analysis") + ".*read only"):
        schema.write_metadata(run.path / "analysis", schema.group_metadata())
    write_result(run.path, "eval", "x", {"a": np.zeros(3)}, meanings={"a": "b"}, attributes={})
    assert not (run.path / "analysis/eval/x").exists()


# Paths


def test_a_remote_path_answers_as_the_path_of_the_directory_does(tmp_path, memory):
    full_run(tmp_path / "run.zarr")
    shutil.rmtree(tmp_path / "run.zarr/train/segments", ignore_errors=True)
    shutil.rmtree(tmp_path / "run.zarr/eval/segments", ignore_errors=True)
    upload(tmp_path / "run.zarr")
    root, remote = tmp_path / "run.zarr", locate(memory)
    for file in [root, *sorted(root.rglob("*"))]:
        names = file.relative_to(root).parts
        node = remote.joinpath(*names) if names else remote
        assert (node.name, node.exists(), node.is_file()) == (file.name, True, file.is_file())
        assert str(node) == "/".join([memory, *names])
        if names:
            assert str(node.parent) == "/".join([memory, *names[:-1]])
        if file.name == "zarr.json":
            assert node.read_bytes() == file.read_bytes()
        for pattern in ("zarr.json", "*/zarr.json", "commits/p*/zarr.json", "c/*/*", "*.json"):
            found = {str(path) for path in node.glob(pattern)}
            below = [path.relative_to(root).as_posix() for path in file.glob(pattern) if path.is_file()]
            assert found == {f"{memory}/{path}" for path in below}, (file, pattern)
    files = sorted(file for file in root.rglob("*") if file.is_file())
    nodes = [remote.joinpath(*file.relative_to(root).parts) for file in files]
    assert list(map(str, sorted(set(nodes)))) == list(map(str, nodes))
    assert not (remote / "none").exists()
    with pytest.raises(FileNotFoundError, match="none"):
        (remote / "none").read_bytes()


@given(content=st.binary(min_size=1, max_size=300), data=st.data())
def test_ranges_of_a_remote_file_are_its_bytes(content, data):
    store = fsspec.filesystem("memory")
    store.pipe_file("/ranges/zarr.json", b"{}")
    store.pipe_file("/ranges/a", content)
    copy = RemoteCopy("memory://ranges", *file_system_of("memory://ranges"))
    start = st.integers(0, len(content))
    spans = data.draw(st.lists(start.flatmap(lambda s: st.tuples(st.just(s), st.integers(0, len(content) - s)))))
    found = copy.fetch_ranges("a", spans)
    assert found == [content[offset : offset + length] for offset, length in spans]
    with pytest.raises(StoreError, match="memory://ranges/a ends before"):
        copy.fetch_ranges("a", [(len(content), 1)])


def test_local_paths_are_not_taken_for_urls(tmp_path, monkeypatch):
    two_epochs(tmp_path / "a:b", seal=True)
    monkeypatch.chdir(tmp_path)
    assert open_run("a:b").train.n_examples == 10
    assert open_run(os.fspath(tmp_path / "a:b")).path == tmp_path / "a:b"
    assert not isinstance(locate(PurePosixPath("a:b")), RemotePath)
