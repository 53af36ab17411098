import re

import numpy as np
import pytest
import zarr

from t3vis.errors import StoreError
from t3vis.store.reader import open_run
from t3vis.store.sealed import open_sealed

from .recordings import two_epochs


def test_leading_indices_choose_pass_and_layer(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    array = open_sealed(tmp_path / "run" / "train" / "hidden_states", 2)
    assert array.dims == ("epoch", "layer", "example", "hidden")
    assert array.shape == (2, 2, 10, 4)
    expected = zarr.open_array(array.path, mode="r")[...]
    for index in range(2):
        for layer in range(2):
            np.testing.assert_array_equal(array.read_all((index, layer)), expected[index, layer])
            np.testing.assert_array_equal(array.read((index, layer), range(3, 8)), expected[index, layer, 3:8])


def test_a_pass_that_was_never_written_is_fill(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    assert (open_sealed(tmp_path / "run" / "train" / "step", 1).read_all((7,)) == -1).all()


def test_an_absent_array_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_sealed(tmp_path / "nothing", 0)


@pytest.mark.parametrize("codec", [None, "gzip"])
def test_arrays_in_another_layout_are_refused_by_name(tmp_path, codec):
    compressor = None if codec is None else zarr.codecs.GzipCodec()
    shards = None if codec is None else (4,)
    zarr.create_array(
        tmp_path / "a",
        shape=(8,),
        dtype="i4",
        chunks=(2,),
        shards=shards,
        compressors=compressor,
        dimension_names=("x",),
    )
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "a"))):
        open_sealed(tmp_path / "a", 0)


def test_a_damaged_shard_is_named_by_whoever_reads_the_run(tmp_path):
    two_epochs(tmp_path / "run", seal=True)
    shard = tmp_path / "run/train/logits/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    run = open_run(tmp_path / "run")
    assert np.isfinite(run.train.logits[0]).all()
    with pytest.raises(StoreError, match=re.escape(str(shard))):
        run.train.logits[1]
