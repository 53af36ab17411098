import copy
import gc
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from t3vis.errors import StoreError
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.reader import open_run
from t3vis.store.seal import seal_pass
from t3vis.store.sealed import HeldShards
from t3vis.store.storage import HeldFile
from t3vis.store.writer import create_run

from .recordings import new_run, rows_of, split_attributes, two_epochs


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Every array of a run with one sealed and one unsealed epoch, and what NumPy holds of it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    _, expected = two_epochs(path)
    seal_pass(path, "train", 0)
    train = open_run(path).train
    return [(train.array(name), expected.array(name)) for name in ("hidden_states", "logits", "loss", "step")]


# Indexing


@st.composite
def indices(draw, shape):
    """Anything that NumPy takes as an index of an array of this shape, and some that it refuses."""
    key = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        number = st.integers(-size, size - 1)
        wild = st.integers(-size - 2, size + 1)
        key.append(
            draw(
                st.one_of(
                    number,
                    st.builds(np.int64, number),
                    st.slices(size),
                    st.just(slice(None)),
                    st.lists(number, max_size=4),
                    hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=3), elements=number),
                    hnp.arrays(np.bool_, size),
                    st.lists(st.booleans(), min_size=size, max_size=size),
                    wild,
                    st.lists(wild, min_size=1, max_size=2),
                    hnp.arrays(np.bool_, size + 1),
                )
            )
        )
    for extra in draw(st.lists(st.sampled_from([None, Ellipsis]), max_size=2)):
        key.insert(draw(st.integers(0, len(key))), extra)
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


def outcome(array, key):
    try:
        return array[key]
    except IndexError:
        return IndexError


@given(data=st.data(), which=st.integers(0, 3))
@settings(max_examples=250)
def test_indexing_is_that_of_numpy(recorded, data, which):
    array, whole = recorded[which]
    key = data.draw(indices(whole.shape))
    expected, found = outcome(whole, copy.deepcopy(key)), outcome(array, key)
    if expected is IndexError:
        assert found is IndexError
    else:
        assert found is not IndexError
        np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize(
    "key",
    [
        np.arange(20).reshape(2, 10) % 3 == 0,
        (0, slice(None), [1, 2]),
        ([0, 1], [3, 4]),
        (np.array(1), 2),
        ([[0], [1]], [[2, 3]]),
        [],
        (slice(None), [], 0),
        (Ellipsis, None, 1),
        (slice(5, 9), 0),
    ],
)
def test_indexing_is_that_of_numpy_in_its_odder_corners(recorded, key):
    array, whole = recorded[1]
    np.testing.assert_array_equal(array[key], whole[key], strict=True)


@pytest.mark.parametrize(
    "key", [(0, 0, 0, 0), (Ellipsis, Ellipsis), 1.0, [0.0], "logits", np.ones((2, 9), bool), (0, 10), [[2]]]
)
def test_what_is_no_index_is_refused(recorded, key):
    array, whole = recorded[1]
    with pytest.raises(IndexError):
        whole[key]
    with pytest.raises(IndexError):
        array[key]


def test_an_array_describes_itself(recorded):
    array, whole = recorded[0]
    assert (array.shape, array.ndim, array.dtype, len(array)) == (whole.shape, 4, whole.dtype, 2)
    assert array.dims == ("epoch", "layer", "example", "hidden")
    assert "pooled" in array.attributes["description"]
    assert array.attributes["mode"] == "train"
    assert repr(array) == "<hidden_states (epoch: 2, layer: 2, example: 10, hidden: 4) float16>"
    np.testing.assert_array_equal(np.asarray(array), whole)
    assert np.asarray(array, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="always a copy"):
        np.array(array, copy=False)


# What a plain Zarr reader sees


@pytest.mark.parametrize("moment", ["recording", "closed"])
def test_zarr_walks_the_tree_without_a_warning_and_every_array_says_what_it_is(tmp_path, moment):
    writer, expected = two_epochs(tmp_path)
    write_examples(tmp_path)
    if moment == "closed":
        writer.seal("train", 0)
        writer.seal("train", 1)
        writer.close()
    else:
        seal_pass(tmp_path, "train", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path, mode="r")
        members = dict(group.members(max_depth=None))
        group.tree()
    arrays = {name: node for name, node in members.items() if isinstance(node, zarr.Array)}
    assert ("train/segments/a0000_r0000/p0001_s000002/example" in arrays) == (moment == "recording")
    assert {"train/logits", "train/examples/text/sentence/values", "train/examples/labels"} <= arrays.keys()
    for name, array in arrays.items():
        assert len(array.metadata.dimension_names) == array.ndim, name
        assert None not in array.metadata.dimension_names, name
        assert array.attrs["description"], name
    if moment == "closed":
        for name in expected.names():
            np.testing.assert_array_equal(group["train"][name][...], expected.array(name), strict=True)


# What is known of a split, and of an example


def write_examples(path):
    examples = ExamplesWriter(path / "train/examples", 10)
    examples.add(
        Columns(
            labels=np.arange(10) % 3 - 1,
            length=np.arange(10, dtype=np.int32),
            token_ids=np.arange(45, dtype=np.int32),
            n_token_ids=np.arange(10),
            texts={"sentence": [f"text {i}" for i in range(9)] + [None]},
        )
    )
    examples.close()
    tokenizer = ExamplesWriter(path / "tokenizer", 3)
    tokenizer.add(Columns(texts={"token": ["[PAD]", "ge", "##lb"]}))
    tokenizer.close()


def test_an_example_is_all_that_is_known_of_it(tmp_path):
    writer, expected = two_epochs(tmp_path)
    write_examples(tmp_path)
    writer.describe("train", {"class_names": ["low", "high"]})
    run = open_run(tmp_path)
    example = run.train.example(2)
    assert (example.text, example.label, example.label_name) == ({"sentence": "text 2"}, 1, "high")
    assert example.token_ids.tolist() == [1, 2]
    for name, array in example.arrays.items():
        whole = expected.array(name)
        np.testing.assert_array_equal(array, whole[:, :, 2] if name == "hidden_states" else whole[:, 2])
    assert example.loss.shape == (2,)
    assert example.logits.shape == (2, 3)
    assert example.hidden_states.shape == (2, 2, 4)
    text = repr(example)
    best = expected.array("logits")[:, 2].argmax(-1)
    assert "predicted: " + " ".join(["low", "high", "2"][i] for i in best) in text
    assert "sentence: text 2" in text
    assert run.train.example(0).label_name is None
    assert "predicted: - " in repr(run.train.example(6)) or " -" in repr(run.train.example(6))
    assert run.train.labels.tolist() == [-1, 0, 1] * 3 + [-1]
    assert [run.train.label(number) for number in range(10)] == [-1, 0, 1] * 3 + [-1]
    assert run.train.length.tolist() == list(range(10))
    assert run.train.token_ids[3].tolist() == [3, 4, 5]
    assert run.tokens([2, 0, 1]) == ["##lb", "[PAD]", "ge"]
    for wrong in (-1, 10):
        with pytest.raises(IndexError, match="has 10"):
            run.train.example(wrong)


@pytest.mark.parametrize("name", ["labels", "targets"])
def test_labels_and_lengths_that_the_batches_carried_are_those_first_seen(tmp_path, name):
    writer = new_run(tmp_path, 4)
    for index, (ids, values) in enumerate((([2, 0], [5, 6]), ([0, 1], [7, 8]))):
        writer.begin_pass("train", index, {})
        value = np.array(values) if name == "labels" else np.array(values, np.float32)[:, None]
        writer.log("train", {**rows_of(ids, index), name: value, "length": np.array(values, np.int32)})
        writer.flush()
        train = open_run(tmp_path).train
    unknown = -1 if name == "labels" else np.nan
    np.testing.assert_array_equal(train.labels.reshape(4), np.array([6, 8, 5, unknown]))
    np.testing.assert_array_equal([train.label(number) for number in range(4)], train.labels)
    assert train.length.tolist() == [6, 8, 5, -1]


def test_where_nothing_is_known_of_labels_they_are_unknown(tmp_path):
    two_epochs(tmp_path)
    train = open_run(tmp_path).train
    assert train.labels.tolist() == [-1] * 10
    assert train.length.tolist() == [-1] * 10
    assert (train.text, train.token_ids, train.class_names, train.layers) == ({}, None, None, [0, 1])


@pytest.mark.parametrize(("said", "expected"), [({}, [0, 1]), ({"layers": [0, 6]}, [0, 6]), ({"layers": []}, [])])
def test_layers_are_counted_where_nobody_said_which_they_are(tmp_path, said, expected):
    writer = create_run(tmp_path, {"model": {"class": "Tiny"}})
    writer.add_split("train", split_attributes(3, arrays={"hidden_states": said}))
    writer.begin_pass("train", 0, {"epoch": 0, "step": 0})
    assert open_run(tmp_path).train.layers == said.get("layers", [])
    writer.log("train", rows_of([0, 1, 2], 0))
    writer.flush()
    assert open_run(tmp_path).train.layers == expected
    writer.close()


def test_the_summary_says_what_is_there_and_what_is_missing(tmp_path):
    writer, _ = two_epochs(tmp_path)
    seal_pass(tmp_path, "train", 0)
    writer.add_split("eval", split_attributes(3, "eval"))
    writer.begin_pass("eval", 0, {"epoch": 0.5, "step": 2})
    writer.log("eval", rows_of([0, 1, 2], 2))
    writer.flush()
    writer.count_missing("train", 1234, OSError("the disk"))
    create_run(tmp_path, {}, start_step=4, resume=True)
    run = open_run(tmp_path)
    summary = run.summary()
    for line in (
        "Tiny, begun 20",
        "train: 10 examples, recorded in train mode",
        "<hidden_states (epoch: 2, layer: 2, example: 10, hidden: 4) float16>",
        "epoch 0: step 0, 10 seen\n",
        "epoch 1: step 2, 9 seen, 1 never, 1 more than once (in progress)",
        "evaluation at epoch 0.5: step 2, 3 seen (in progress)",
        "resumed from step 4",
        "1,234 rows could not be recorded: OSError: the disk",
    ):
        assert line in summary, line
    assert run._repr_html_() == "<pre>" + summary.replace("<", "&lt;").replace(">", "&gt;") + "</pre>"
    assert repr(run.train) == f"<train of {tmp_path.name}: 10 examples, 2 passes>"
    assert repr(run.evals) == "<evaluations: eval>"
    assert list(run.splits) == ["train", "eval"]
    assert run.evals["eval"].logits.dims == ("evaluation", "example", "class")
    with pytest.raises(KeyError, match="recorded are: eval"):
        run.evals["eval_b"]


def test_a_run_without_a_tokenizer_cannot_tell_tokens(tmp_path):
    new_run(tmp_path)
    with pytest.raises(StoreError, match="processing_class"):
        open_run(tmp_path).tokens([1])


def test_a_path_without_a_run_is_refused_when_it_is_opened(tmp_path):
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "x.zarr"))):
        open_run(tmp_path / "x.zarr")


# Open files


OPEN_FILES = Path("/proc/self/fd")


def n_open_files():
    return len(list(OPEN_FILES.iterdir()))


def read_everything(run):
    for name in run.train.arrays:
        run.train.array(name)[:]
        run.train.loss[0]


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="only Linux says what a process holds open")
def test_many_runs_that_are_open_hold_few_files(tmp_path):
    runs = []
    for number in range(HeldFile.LIMIT + 10):
        path = tmp_path / f"{number}.zarr"
        if number:
            shutil.copytree(tmp_path / "0.zarr", path)
        else:
            two_epochs(path)
            seal_pass(path, "train", 0)
            gc.collect()
            before = n_open_files()
        runs.append(open_run(path))
        read_everything(runs[-1])
    assert n_open_files() - before <= HeldFile.LIMIT + 2 * HeldShards.LIMIT
    expected = runs[0].train.loss[0]
    assert all(np.array_equal(run.train.loss[0], expected, equal_nan=True) for run in runs)


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="only Linux says what a process holds open")
def test_a_run_closes_its_files_when_it_is_dropped(tmp_path):
    two_epochs(tmp_path / "run.zarr")
    seal_pass(tmp_path / "run.zarr", "train", 0)
    gc.collect()
    gc.disable()
    try:
        before = n_open_files()
        run = open_run(tmp_path / "run.zarr")
        read_everything(run)
        assert n_open_files() > before
        del run
        assert n_open_files() == before
    finally:
        gc.enable()
