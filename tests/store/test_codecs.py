"""Compression: what is stored, what comes back, and what other readers make of it."""

import numpy as np
import pytest
import zarr

from t3vis import ConfigurationError, open_run
from t3vis.store.codecs import bitrounded, rounded
from t3vis.store.options import StorageOptions
from t3vis.store.writer import create_run
from tests.store.recordings import rows_of, split_attributes

EVERY_FLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_bitrounding_is_to_the_nearest_and_half_to_even():
    finite = EVERY_FLOAT16[np.isfinite(EVERY_FLOAT16)].astype(np.float64)
    _, exponent = np.frexp(finite)
    spacing = np.ldexp(1.0, np.maximum(exponent - 1, -14) - 7)
    nearest = np.rint(finite / spacing) * spacing
    nearest = np.clip(nearest, -65280.0, 65280.0)  # the largest that 7 bits can say; beyond it would be infinite
    np.testing.assert_array_equal(bitrounded(finite.astype(np.float16)).astype(np.float64), nearest)


def test_bitrounding_twice_is_bitrounding_once_and_specials_stay():
    once = bitrounded(EVERY_FLOAT16)
    np.testing.assert_array_equal(bitrounded(once).view(np.uint16), once.view(np.uint16))
    special = ~np.isfinite(EVERY_FLOAT16)
    np.testing.assert_array_equal(once[special].view(np.uint16), EVERY_FLOAT16[special].view(np.uint16))
    assert np.isfinite(once[~special]).all()


def test_only_hidden_states_are_rounded():
    values = np.array([1.0009765625], np.float16)
    assert rounded("bitround", "hidden_states", values)[0] == 1
    assert rounded("bitround", "logits", values) is values
    assert rounded("lz4", "hidden_states", values) is values
    assert rounded(None, "hidden_states", values) is values


@pytest.mark.parametrize("compression", [None, "lz4", "bitround"])
def test_a_compressed_run_reads_the_same_here_and_with_zarr(tmp_path, compression):
    path = tmp_path / "run.zarr"
    writer = create_run(path, {}, options=StorageOptions(compression))
    writer.add_split("train", split_attributes(3000))
    order = np.random.default_rng(0).permutation(3000)
    rows = rows_of(order, 0, n_layers=2, hidden=5)
    writer.begin_pass("train", 0, {"epoch": 0})
    writer.log("train", rows)
    writer.flush()
    expected = np.empty((2, 3000, 5), np.float16)
    expected[:, order] = rounded(compression, "hidden_states", rows["hidden_states"])
    run = open_run(path)
    np.testing.assert_array_equal(run.train.hidden_states[0], expected)  # rounded before it is sealed, too
    writer.seal("train", 0)
    writer.close()
    assert run.train.passes[0].sealed
    np.testing.assert_array_equal(run.train.hidden_states[0], expected)
    np.testing.assert_array_equal(run.train.hidden_states[0, 1, [2999, 5, 5]], expected[1, [2999, 5, 5]])
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["train/hidden_states"][0], expected)
    np.testing.assert_array_equal(group["train/logits"][0][order], rows["logits"])


def test_a_run_goes_on_as_it_was_begun(tmp_path):
    create_run(tmp_path / "run", {}, options=StorageOptions("lz4", "fsync"))
    writer = create_run(tmp_path / "run", {}, start_step=1, resume=True, options=StorageOptions())
    assert StorageOptions.of(writer.path) == StorageOptions("lz4", "fsync")


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(ConfigurationError, match="compression='zip': expected None, 'lz4' or 'bitround'"):
        StorageOptions("zip")
    with pytest.raises(ConfigurationError, match="durability='disk': expected 'process' or 'fsync'"):
        StorageOptions(durability="disk")
