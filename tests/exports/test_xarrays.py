"""A run in xarray: opened by the recorder's own reader, and by xarray's from the files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from t3vis import open_run
from t3vis.store import schema
from t3vis.store.split import Split
from t3vis.store.verify import verify
from tests.exports.seen_in_part import described
from tests.store.recordings import two_epochs


def test_arrays_are_labelled_and_hold_what_was_recorded(run):
    train = run.to_xarray()["train"].ds
    assert train["hidden_states"].dims == ("epoch", "layer", "example", "hidden")
    assert train["head_gradients"].dims == ("epoch", "attention", "example", "head")
    assert train.sizes["layer"] == 3
    assert train.sizes["attention"] == 2
    for name in run.train.arrays:
        np.testing.assert_array_equal(train[name], run.train.array(name)[:], err_msg=name)
    np.testing.assert_array_equal(train["labels"], run.train.labels)
    by_name = train["logits"].sel({"class": "positive", "epoch": 1, "example": [5, 40, 5]})
    np.testing.assert_array_equal(by_name, run.train.logits[1][[5, 40, 5], 1])
    assert train["module"].values.tolist() == run.train.attributes["arrays"]["head_gradients"]["modules"]


def test_nothing_is_read_until_it_is_asked_for(run, monkeypatch):
    asked = []
    whole = Split.hidden_states.fget(run.train).__class__.__getitem__

    def counted(array, key):
        asked.append((array.name, key))
        return whole(array, key)

    monkeypatch.setattr(type(run.train.hidden_states), "__getitem__", counted)
    tree = run.to_xarray()
    some = tree["train"].ds["hidden_states"].isel(epoch=0, layer=-1).sel(example=slice(3, 9))
    assert not [name for name, _ in asked if name not in ("labels", "targets", "length")]
    assert some.shape == (7, 16)
    some.load()
    ((name, key),) = asked
    assert name == "hidden_states"
    assert key[2] == slice(3, 10, 1)


def test_texts_and_results_have_groups_of_their_own(run):
    tree = run.to_xarray()
    texts = tree["train/text"].ds["text"]
    assert texts.isel(example=[2, 1]).values.tolist() == [run.train.text["text"][i] for i in (2, 1)]
    assert texts.isel(example=7).item() == run.train.text["text"][7]
    assert tree["analysis/train/pca_p0001_l02"].ds["x"].dims == ("example",)
    assert tree.attrs["t3vis"] == run.attributes["t3vis"]


def test_tokens_are_rows_of_a_group_for_each_pass(tmp_path):
    writer, expected = two_epochs(tmp_path / "run.zarr", seal=True)
    described(writer)
    run = open_run(tmp_path / "run.zarr")
    for index in range(2):
        tokens = run.to_xarray()[f"train/tokens/p{index:04d}"].ds
        rows = expected.ragged("token_logprob", index)
        values = [value for row in rows for value in row]
        assert tokens["token_logprob"].values.tolist() == values
        of_example = [i for i, row in enumerate(rows) for _ in row]
        assert tokens["example_id"].values.tolist() == of_example
        some = tokens["token_logprob"].isel(token=[9, 2])
        assert some.values.tolist() == [values[9], values[2]]


def test_xarray_opens_a_sealed_run_as_it_lies_on_disk(run):
    with pytest.warns(RuntimeWarning, match="consolidated"):
        tree = xr.open_datatree(run.path, engine="zarr")
    again = xr.open_datatree(run.path, engine="zarr", consolidated=False)  # nor is anything to be warned of
    own = run.to_xarray()["train"].ds
    for found in (tree, again):
        for name in run.train.arrays:
            assert found["train"].ds[name].dims == own[name].dims
            np.testing.assert_array_equal(found["train"].ds[name], own[name], err_msg=name)
    np.testing.assert_array_equal(tree["train/examples"].ds["labels"], run.train.labels)


def test_a_run_whose_attentions_were_named_layers_is_whole_and_read(run, tmp_path):
    path = Path(shutil.copytree(run.path, tmp_path / "early.zarr"))
    for node in (path / "train" / "head_gradients", *path.glob("train/segments/*/*/head_gradients")):
        metadata = schema.read_metadata(node)
        metadata["dimension_names"] = ["layer" if dim == "attention" else dim for dim in metadata["dimension_names"]]
        schema.write_metadata(node, metadata)
    assert "attention" not in schema.read_metadata(path / "train" / "head_gradients")["dimension_names"]
    assert not verify(path)
    early = open_run(path).to_xarray()["train"].ds
    np.testing.assert_array_equal(early["head_gradients"], run.train.head_gradients[:])
