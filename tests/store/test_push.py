import shutil
import warnings

import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.errors import StoreError
from t3vis.store import schema
from t3vis.store.checksums import checksum
from t3vis.store.push import Pushed, push
from t3vis.store.reader import open_run
from t3vis.store.results import read_result, write_result
from t3vis.store.seal import remove_sealed_segments, seal_pass
from t3vis.store.verify import verify
from t3vis.store.writer import create_run

from .recordings import new_run, rows_of, two_epochs
from .test_storage import check, full_run

URL = "memory://bucket/run.zarr"


class Interruption(BaseException):
    """Stands for the end of the process."""


class Hook:
    """Does something before the n-th change to what is in memory."""

    def __init__(self, monkeypatch, number, action):
        self.happened, self._left, self._action = False, number, action
        for name in ("pipe_file", "rm_file"):
            original = getattr(fsspec.implementations.memory.MemoryFileSystem, name)

            def changed(store, *arguments, original=original):
                self._count()
                return original(store, *arguments)

            monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, name, changed)

    def _count(self):
        self._left -= 1
        if self._left == -1:
            self.happened = True
            self._action()


def empty_memory():
    fsspec.filesystem("memory").store.clear()


def contents():
    """All files in memory."""
    store = fsspec.filesystem("memory")
    return {name: store.cat_file(name) for name in store.find("/")}


def sealed_loss(url):
    """Loss of each pass of a copy; none where there is no copy yet."""
    try:
        train = open_run(url).train
    except StoreError:
        return {}
    return {record.index: train.loss[record.index] for record in train.passes}


def resume_and_seal_again(path):
    writer = create_run(path, {}, start_step=3, resume=True)
    writer.begin_pass("train", 1, {"epoch": 1, "step": 2})
    writer.log("train", rows_of([5, 9, 0, 4, 3], 3, seed=1))
    writer.flush()
    seal_pass(path, "train", 1)  # here, since a subprocess takes longer to start than all of this
    writer.close()


# What a copy is


def test_plain_zarr_opens_a_copy_without_a_warning(tmp_path):
    expected = full_run(tmp_path / "run")
    push(tmp_path / "run", f"file://{tmp_path}/copies/run.zarr")
    copy = tmp_path / "copies/run.zarr"
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for use_consolidated in (True, False):
            group = zarr.open_group(copy, mode="r", use_consolidated=use_consolidated)
            group.tree()
            names[use_consolidated] = set(dict(group.members(max_depth=None)))
            for name in expected.names():
                np.testing.assert_array_equal(group["train"][name][...], expected.array(name), strict=True)
    assert names[True] == names[False]
    assert {"train/commits/p0001", "train/examples/text/a_b/values", "analysis/train/data_map", "pushed"} <= names[True]
    original = set(dict(zarr.open_group(tmp_path / "run", mode="r").members(max_depth=None)))
    assert names[True] == {name for name in original if "segments" not in name} | {"pushed"}
    check(open_run(copy), tmp_path / "run", expected)


def test_metadata_of_a_copy_is_that_of_the_run(tmp_path):
    full_run(tmp_path / "run")
    push(tmp_path / "run", str(tmp_path / "copy"))
    for node in (tmp_path / "copy").rglob("*/zarr.json"):
        if node.parent.name == "pushed":
            continue
        found = schema.read_metadata(node.parent)
        assert found == schema.read_metadata(tmp_path / "run" / node.parent.relative_to(tmp_path / "copy"))
        split = node.parents[2]
        if node.parents[1].name == "commits":
            index = found["attributes"]["pass"]
            shards = [shard for name in schema.STORED_ARRAYS for shard in split.glob(f"{name}/c/{index}/**/*")]
            files = [shard for shard in shards if shard.is_file()]
            checksums = found["attributes"]["checksums"]
            assert checksums == {file.relative_to(split).as_posix(): checksum(file) for file in files}
    assert verify(tmp_path / "copy") == []
    for shard in (tmp_path / "copy").rglob("c/**/*"):
        if shard.is_file():
            assert shard.read_bytes() == (tmp_path / "run" / shard.relative_to(tmp_path / "copy")).read_bytes()


def test_only_sealed_passes_of_a_run_in_training_are_copied(tmp_path, memory):
    _, expected = two_epochs(tmp_path)
    seal_pass(tmp_path, "train", 0)
    push(tmp_path, URL)
    assert sealed_loss(URL).keys() == {0}
    np.testing.assert_array_equal(sealed_loss(URL)[0], expected.array("loss")[0])
    assert not [name for name in fsspec.filesystem("memory").find("/bucket") if "segments" in name]
    seal_pass(tmp_path, "train", 1)
    push(tmp_path, URL)
    expected.check(open_run(URL).train)


# What is copied again


def test_what_the_copy_has_is_skipped(tmp_path, memory):
    full_run(tmp_path)
    calls = []
    first = push(tmp_path, URL, progress=lambda done, whole: calls.append((done, whole)))
    files = [file for file in tmp_path.rglob("c/**/*") if file.is_file() and "segments" not in file.parts]
    n_files, n_bytes = len(files), sum(file.stat().st_size for file in files)
    assert first == Pushed(n_files, n_bytes, 0, 0)
    assert calls == sorted(calls)
    assert (len(calls), calls[-1]) == (n_files, (n_bytes, n_bytes))
    assert push(tmp_path, URL) == Pushed(0, 0, n_files, n_bytes)
    for file in files:
        file.touch()
    assert push(tmp_path, URL) == Pushed(0, 0, n_files, n_bytes)


@pytest.mark.parametrize("loss", ["deleted", "cut short"])
def test_what_the_copy_has_lost_is_copied_again(tmp_path, memory, loss):
    expected = full_run(tmp_path)
    push(tmp_path, URL)
    name, store = "/bucket/run.zarr/train/logits/c/1/0/0", fsspec.filesystem("memory")
    content = store.cat_file(name)
    store.rm_file(name) if loss == "deleted" else store.pipe_file(name, content[:-1])
    pushed = push(tmp_path, URL)
    assert (pushed.n_copied, pushed.bytes_copied) == (1, len(content))
    check(open_run(URL), tmp_path, expected)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run, and what it holds."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return path, full_run(path)


@given(number=st.integers(0, 60))
@settings(max_examples=25)
def test_an_interrupted_push_shows_whole_passes_and_goes_on_where_it_was(template, number):
    path, expected = template
    empty_memory()

    def interrupt():
        raise Interruption

    with pytest.MonkeyPatch.context() as patch:
        hook = Hook(patch, number, interrupt)
        try:
            push(path, URL)
        except Interruption:
            assert hook.happened
    for index, loss in sealed_loss(URL).items():
        np.testing.assert_array_equal(loss, expected.array("loss")[index])
    with_some = push(path, URL)
    assert with_some.n_copied + with_some.n_skipped == push(path, URL).n_skipped
    check(open_run(URL), path, expected)


def test_of_an_interrupted_push_no_more_than_a_batch_is_sent_again(tmp_path, memory, monkeypatch):
    two_epochs(tmp_path, seal=True)
    monkeypatch.setattr("t3vis.store.push._BATCH_BYTES", 1)

    def interrupt():
        raise Interruption

    with monkeypatch.context() as patch:
        Hook(patch, 20, interrupt)
        with pytest.raises(Interruption):
            push(tmp_path, URL)
    assert sealed_loss(URL) == {}
    record = schema.read_metadata(open_run(URL).path / "pushed")["attributes"]["files"]
    shards = [name for name in fsspec.filesystem("memory").find("/bucket/run.zarr") if "/c/" in name]
    assert len(record) > 2
    assert len(shards) - len(record) <= 1
    assert push(tmp_path, URL).n_skipped == len(record)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two rows, so that ten are in several."""
    for name in ("MIN_CHUNK_ROWS", "CHUNK_BYTES", "SHARD_BYTES"):
        monkeypatch.setattr(f"t3vis.store.layout.{name}", 2)


@pytest.mark.parametrize("key", [("logits", 1), ("hidden_states", 1), ("logits", (1, [0, 5, 9]))])
def test_a_pass_that_was_sealed_again_is_never_seen_in_parts(tmp_path, memory, small_shards, monkeypatch, key):
    """At each change to the copy a reader looks at it."""
    name, part = key
    old = tmp_path / "old"
    two_epochs(old, seal=True)
    new = shutil.copytree(old, tmp_path / "new")
    resume_and_seal_again(new)
    before, after = (open_run(path).train.array(name)[part] for path in (old, new))
    assert not np.array_equal(before, after, equal_nan=True)
    assert len(list((old / "train/logits/c/1").iterdir())) == 5
    seen = []
    number, happened = 0, True
    while happened:
        empty_memory()
        push(old, URL)
        reader = open_run(URL).train.array(name)
        if number % 2:
            assert np.array_equal(reader[part], before, equal_nan=True)

        def look(reader=reader, number=number):
            """A pass is the old one, the new one, or not there: fill value for who knew it."""
            train = open_run(URL).train
            seen.append(len(train.passes) == 2)
            found = [reader[part], train.array(name)[part]] if seen[-1] else [reader[part]]
            for values in found:
                is_either = [np.array_equal(values, whole, equal_nan=True) for whole in (before, after)]
                assert any(is_either) or np.isnan(values).all(), number
            assert not seen[-1] or not np.isnan(found[-1]).all()

        with monkeypatch.context() as patch:
            hook = Hook(patch, number, look)
            push(new, URL)
        happened, number = hook.happened, number + 1
        np.testing.assert_array_equal(open_run(URL).train.array(name)[part], after)
    assert True in seen
    assert False in seen


def test_a_pass_that_is_taken_back_while_it_is_copied_is_not_in_the_copy(tmp_path, memory, monkeypatch):
    template = tmp_path / "template"
    _, expected = two_epochs(template, seal=True)
    number, happened, outcomes = 0, True, set()
    while happened:
        empty_memory()
        path = shutil.copytree(template, tmp_path / f"{number}")
        with monkeypatch.context() as patch:
            hook = Hook(patch, number, lambda path=path: create_run(path, {}, start_step=3, resume=True).close())
            push(path, URL)
        happened, number = hook.happened, number + 4
        losses = sealed_loss(URL)
        outcomes.add(1 in losses)
        for index, loss in losses.items():
            np.testing.assert_array_equal(loss, expected.array("loss")[index])
        push(path, URL)
        assert sealed_loss(URL).keys() == {0} | ({1} if not hook.happened else set())
    assert outcomes == {True, False}


def test_a_pass_that_is_sealed_again_while_it_is_copied_is_not_copied_in_parts(tmp_path, memory, monkeypatch):
    monkeypatch.setattr("t3vis.store.push._N_THREADS", 1)
    old = tmp_path / "old"
    _, expected = two_epochs(old, seal=True)
    new = shutil.copytree(old, tmp_path / "new")
    resume_and_seal_again(new)
    wanted = [[open_run(path).train.array(name)[1] for name in expected.names()] for path in (old, new)]
    number, happened = 0, True
    while happened:
        empty_memory()
        path = shutil.copytree(old, tmp_path / f"{number}")
        with monkeypatch.context() as patch:
            hook = Hook(patch, number, lambda path=path: resume_and_seal_again(path))
            push(path, URL)
        happened, number = hook.happened, number + 2
        for _ in range(2):
            train = open_run(URL).train
            if len(train.passes) == 2:
                found = [train.array(name)[1] for name in expected.names()]
                assert any(
                    all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, whole, strict=True))
                    for whole in wanted
                ), number
            push(path, URL)
        assert len(open_run(URL).train.passes) == 2


def test_a_pass_that_was_deleted_to_save_room_stays_in_the_copy(tmp_path, memory):
    _, expected = two_epochs(tmp_path, seal=True)
    push(tmp_path, URL)
    shutil.rmtree(tmp_path / "train/commits/p0000")
    for name in expected.names():
        shutil.rmtree(tmp_path / "train" / name / "c" / "0")
    push(tmp_path, URL)
    expected.check(open_run(URL).train)


def test_a_result_that_was_replaced_is_replaced_in_the_copy(tmp_path, memory):
    full_run(tmp_path)
    push(tmp_path, URL)
    columns = {"b": np.ones(10)}
    write_result(tmp_path, "train", "data_map", columns, meanings={"b": "ones"}, attributes={"burn_in": 1})
    push(tmp_path, URL)
    found = read_result(open_run(URL).path, "train", "data_map")
    assert found.attributes == {"burn_in": 1}
    assert found.columns.keys() == {"b"}


# What is refused


def test_another_run_is_not_overwritten(tmp_path, memory):
    full_run(tmp_path / "one")
    push(tmp_path / "one", URL)
    create_run(tmp_path / "two", {"model": {"class": "Other"}}).close()
    before = contents()
    with pytest.raises(StoreError, match=f"{URL} holds another run"):
        push(tmp_path / "two", URL)
    assert contents() == before


def test_a_place_with_other_things_in_it_is_refused(tmp_path):
    new_run(tmp_path / "run").close()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("")
    with pytest.raises(StoreError, match="home is not empty"):
        push(tmp_path / "run", str(tmp_path / "home"))
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def test_a_run_is_not_copied_onto_itself(tmp_path):
    new_run(tmp_path / "run").close()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for place in ("run", "link"):
        with pytest.raises(StoreError, match="is the run itself"):
            push(tmp_path / "run", f"file://{tmp_path}/{place}")


def test_what_is_no_run_is_refused(tmp_path, memory):
    with pytest.raises(StoreError, match="expected a t3vis run"):
        push(tmp_path, URL)
    assert fsspec.filesystem("memory").find("/") == []


def test_a_damaged_shard_is_not_copied(tmp_path, memory):
    two_epochs(tmp_path, seal=True)
    shard = tmp_path / "train/loss/c/1/0"
    commit = schema.read_metadata(tmp_path / "train/commits/p0001")
    commit["attributes"]["checksums"] = {"loss/c/1/0": 0}
    schema.write_metadata(tmp_path / "train/commits/p0001", commit)
    with pytest.raises(StoreError, match=f"{shard} does not have the checksum"):
        push(tmp_path, URL)
    assert sealed_loss(URL).keys() == {0}


def test_a_pass_of_which_a_shard_is_lost_is_not_copied(tmp_path, memory):
    two_epochs(tmp_path, seal=True)
    commit = schema.read_metadata(tmp_path / "train/commits/p0001")
    commit["attributes"]["checksums"] = {"loss/c/1/0": checksum(tmp_path / "train/loss/c/1/0")}
    schema.write_metadata(tmp_path / "train/commits/p0001", commit)
    (tmp_path / "train/loss/c/1/0").unlink()
    with pytest.raises(StoreError, match="loss/c/1/0 is lost"):
        push(tmp_path, URL)
    assert sealed_loss(URL).keys() == {0}


def test_segments_that_remain_of_a_sealed_pass_are_not_copied(tmp_path, memory):
    _, expected = two_epochs(tmp_path, seal=True)
    push(tmp_path, URL)
    n_before = len(fsspec.filesystem("memory").find("/bucket"))
    remove_sealed_segments(tmp_path, "train")
    push(tmp_path, URL)
    assert len(fsspec.filesystem("memory").find("/bucket")) == n_before
    expected.check(open_run(URL).train)
