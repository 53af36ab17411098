import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from t3vis.store.results import read_result, write_result

from .operations import killed_before_each
from .recordings import new_run

MEANINGS = {"confidence": "mean probability", "never_learned": "mask", "events": "count"}


def columns(seed):
    rng = np.random.default_rng(seed)
    return {"confidence": rng.random(7), "never_learned": rng.random(7) > 0.5, "events": rng.integers(0, 9, 7)}


def test_columns_come_back_as_they_were_and_zarr_reads_them_too(tmp_path):
    new_run(tmp_path)
    said = {"burn_in": 1, "mode": "eval"}
    write_result(tmp_path, "train", "data_map", columns(0), meanings=MEANINGS, attributes=said)
    found = read_result(tmp_path, "train", "data_map")
    assert found.attributes == said
    assert found.columns.keys() == MEANINGS.keys()
    group = zarr.open_group(tmp_path / "analysis/train/data_map", mode="r")
    for name, values in columns(0).items():
        np.testing.assert_array_equal(found.columns[name], values, strict=True)
        np.testing.assert_array_equal(group[name][...], values, strict=True)
        assert dict(group[name].attrs) == {"description": MEANINGS[name], "mode": "eval"}


def test_a_table_comes_back_with_its_dimensions(tmp_path):
    new_run(tmp_path)
    table = np.random.default_rng(0).random((3, 5))
    dims = ("epoch", "layer")
    write_result(tmp_path, "train", "probes", {"accuracy": table}, meanings={"accuracy": "a"}, attributes={}, dims=dims)
    np.testing.assert_array_equal(read_result(tmp_path, "train", "probes").columns["accuracy"], table, strict=True)
    array = zarr.open_group(tmp_path / "analysis/train/probes", mode="r")["accuracy"]
    np.testing.assert_array_equal(array[...], table)
    assert array.metadata.dimension_names == dims


def test_what_was_not_computed_is_not_there(tmp_path):
    assert read_result(tmp_path, "train", "data_map") is None


def test_killed_at_any_moment_of_replacing_a_result_the_old_the_new_or_none_is_there(tmp_path):
    def start(number):
        path = tmp_path / f"{number}"
        new_run(path)
        write_result(path, "train", "data_map", columns(0), meanings=MEANINGS, attributes={"seed": 0})
        return path

    def act(path):
        write_result(path, "train", "data_map", columns(1), meanings=MEANINGS, attributes={"seed": 1})

    for path in killed_before_each(start, act):
        found = read_result(path, "train", "data_map")
        if found is not None:
            for name, values in columns(found.attributes["seed"]).items():
                np.testing.assert_array_equal(found.columns[name], values)
        act(path)
        assert read_result(path, "train", "data_map").attributes == {"seed": 1}


def written_and_read(run, seed):
    write_result(run, "train", "made", columns(seed), meanings=MEANINGS, attributes={"seed": seed})
    return read_result(run, "train", "made")


@pytest.mark.parametrize(
    "workers",
    [ThreadPoolExecutor, lambda n: ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"))],
    ids=["threads", "processes"],
)
def test_whoever_writes_and_reads_at_once_finds_it_whole(tmp_path, workers):
    new_run(tmp_path / "run.zarr")
    with workers(4) as pool:
        for found in pool.map(written_and_read, [tmp_path / "run.zarr"] * 60, range(60)):
            expected = columns(found.attributes["seed"])
            assert found.columns.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(found.columns[name], values)
