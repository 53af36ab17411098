"""The archived run of format version 1 opens and holds what tests/data/make_format_1.py wrote into it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from t3vis.store.reader import open_run
from t3vis.store.verify import verify
from t3vis.store.writer import create_run

from .recordings import rows_of

ARCHIVE = Path(__file__).parents[1] / "data" / "format-1.zarr.tar.xz"

LOSS = [[0, 1, 2, 3, 4], [110, 101, 112, 103, 114]]  # epoch 1: examples 1 and 3 by attempt 0, the others by attempt 1


@pytest.fixture
def run(tmp_path):
    shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
    return open_run(tmp_path / "run.zarr")


def check_arrays(train):
    loss = np.array(LOSS, np.float32)
    np.testing.assert_array_equal(train.loss, loss)
    np.testing.assert_array_equal(train.logits, np.stack([loss, -loss], axis=-1))
    hidden = [np.stack([loss + layer, loss / 2], axis=-1) for layer in (0, 6)]
    np.testing.assert_array_equal(train.hidden_states, np.stack(hidden, axis=1).astype(np.float16))
    assert train.step[:].tolist() == [[1, 1, 0, 2, 0], [4, 3, 4, 3, 5]]
    assert train.visits[:].tolist() == [[1, 1, 1, 1, 2], [1, 1, 1, 1, 1]]


def test_every_value_is_what_was_written(run):
    train = run.train
    check_arrays(train)
    assert run.attributes["t3vis"]["version"] == 1
    assert run.attributes["model"]["class"] == "TinyForSequenceClassification"
    assert [(record.epoch, record.step, record.last_step, record.sealed) for record in train.passes] == [
        (0, 0, 2, True),
        (1, 3, 5, False),
    ]
    assert train.labels.tolist() == [1, 0, 0, -1, 1]
    assert train.length.tolist() == [1, 1, 2, 0, 3]
    assert train.text["text"][:] == ["good", "bad", "naïve", "", "so-so"]
    assert [ids.tolist() for ids in train.token_ids[:]] == [[3], [4], [5, 6], [], [7, 8, 7]]
    assert train.class_names == ["neg", "pos"]
    assert train.layers == [0, 6]
    assert train.attributes["task"] == "single_label"
    assert run.tokens([1, 0]) == ["good", "[PAD]"]


def test_zarr_reads_the_sealed_epoch(run):
    group = zarr.open_group(run.path, mode="r")
    np.testing.assert_array_equal(group["train/loss"][0], np.float32(LOSS[0]))
    assert group["train/commits/p0000"].attrs["n_repeated"] == 1


def test_a_later_writer_goes_on_with_it(run):
    writer = create_run(run.path, {}, start_step=6, resume=True)
    writer.seal("train", 1)
    writer.begin_pass("train", 2, {"epoch": 2, "step": 6})
    writer.log("train", rows_of([3], 6, n_classes=2, hidden=2))
    writer.close()
    train = run.train
    assert [record.sealed for record in train.passes] == [True, True, False]
    np.testing.assert_array_equal(train.loss[:2], np.array(LOSS, np.float32))


# What came to the format later: ragged arrays, head gradients, checksums, lineage, dropped hidden states


@pytest.fixture
def run_of_tokens(tmp_path):
    shutil.unpack_archive(ARCHIVE.with_name("format-1-tokens.zarr.tar.xz"), tmp_path, filter="data")
    return open_run(tmp_path / "run.zarr")


def check_tokens(train):
    seen = [{0, 1, 2, 3, 4}, {0, 1, 2, 3, 5}, {5}]
    value = np.array([[100 * i + j if j in seen[i] else np.nan for j in range(6)] for i in range(3)], np.float32)
    np.testing.assert_array_equal(train.loss[:3], value)
    states = np.stack([value, -value], axis=-1)[:, None].repeat(2, axis=1).astype(np.float16)
    states[0] = np.nan
    np.testing.assert_array_equal(train.hidden_states[:3], states)
    gradients = np.stack([value, value + 1, value + 2], axis=-1)[:, None].repeat(2, axis=1)
    np.testing.assert_array_equal(train.array("head_gradients")[:3], gradients)
    for name in ("token_logprob", "token_prediction"):
        for index in range(3):
            found = [row.tolist() for row in train.ragged(name)[index]]
            assert found == [[100 * index + 10 * j + i for i in range(j)] if j in seen[index] else [] for j in range(6)]


def test_every_token_is_what_was_written(run_of_tokens):
    train = run_of_tokens.train
    check_tokens(train)
    assert [record.attributes.get("dropped") for record in train.passes] == [["hidden_states"], None, None]
    assert verify(run_of_tokens.path) == []


def test_zarr_reads_the_values_of_an_example(run_of_tokens):
    group = zarr.open_group(run_of_tokens.path, mode="r")["train/token_logprob"]
    begin, end = group["offsets"][1, 3], group["offsets"][1, 4]
    np.testing.assert_array_equal(group["values"][1, begin:end], [130, 131, 132])
    assert group["offsets"].metadata.dimension_names == ("epoch", "offset")


def test_a_later_writer_goes_on_with_tokens(run_of_tokens):
    writer = create_run(run_of_tokens.path, {}, start_step=3, resume=True)
    writer.seal("train", 2)
    writer.begin_pass("train", 3, {"epoch": 3, "step": 3})
    writer.log("train", rows_of([3], 3, hidden=2))
    writer.close()
    train = run_of_tokens.train
    assert [record.sealed for record in train.passes] == [True, True, True, False]
    np.testing.assert_array_equal(np.isnan(train.hidden_states[:3]).all((1, 2, 3)), [True, True, False])
    assert train.ragged("token_logprob")[2, 5].tolist() == [250, 251, 252, 253, 254]
