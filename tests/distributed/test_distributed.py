"""The analyses on a cluster of two worker processes, beside the same functions in memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from t3vis import distributed, open_run
from t3vis.analysis.data_map import data_map
from t3vis.analysis.head_importance import FORMS, PART_SIZE, head_importance
from t3vis.analysis.label_quality import suspected_errors
from t3vis.analysis.principal_axes import principal_axes
from t3vis.analyze import Layer, analyzed_outliers, analyzed_suspects
from t3vis.distributed import blocks
from t3vis.errors import AnalysisError, StoreError
from t3vis.store.push import push
from t3vis.store.reader import Run
from tests.store.recordings import new_run, rows_of
from tests.store.web import served
from tests.test_analyze import N_LAYERS, recorded

N_EXAMPLES = 600


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two processes that may take 1 GB each; one that takes more is ended and started again."""
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="1GB", dashboard_address=":0")
    with cluster, Client(cluster) as opened:
        yield opened


def odd_run(path: Path) -> Run:
    """Examples without a label, and one that was not seen."""

    def spoil(rows: dict[str, np.ndarray]) -> None:
        rows["logits"][7] = np.nan
        rows["hidden_states"][:, 7] = np.nan

    labels = np.random.default_rng(1).integers(-1, 3, N_EXAMPLES)
    return recorded(path, n_examples=N_EXAMPLES, labels=labels, spoil=spoil)


def check_same(found: Any, expected: Any, **tolerance: float) -> None:
    """All arrays of two results agree; to rounding, if nothing else is said."""
    assert type(found) is type(expected)
    for name, values in vars(expected).items():
        np.testing.assert_allclose(
            getattr(found, name), values, err_msg=name, **(tolerance or {"rtol": 1e-5, "atol": 1e-7})
        )


def test_arrays_are_chunked_as_the_shards_are(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run.zarr", n_examples=N_EXAMPLES)
    arrays = run.to_dask()["train"]
    assert list(arrays) == run.train.arrays
    for name, array in arrays.items():
        expected = run.train.array(name)
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(array.compute(scheduler="synchronous"), expected[:])
    files = [file for file in (run.path / "train/hidden_states/c").rglob("*") if file.is_file()]
    assert arrays["hidden_states"].npartitions == len(files) == 3 * N_LAYERS


def test_names_of_arrays_are_those_of_their_content(tmp_path: Path) -> None:
    def spoil(rows: dict[str, np.ndarray]) -> None:
        rows["loss"] += 1

    run = recorded(tmp_path / "run.zarr")
    before = run.train.to_dask("loss").name
    assert open_run(run.path).train.to_dask("loss").name == before != run.train.to_dask("step").name
    shutil.rmtree(run.path)
    assert recorded(run.path, spoil=spoil).train.to_dask("loss").name != before


def test_agreement_with_the_analyses_in_memory(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 6_000)  # 166 examples of logits, fewer of states
    monkeypatch.setattr(blocks, "NEIGHBOUR_BYTES", 1)
    workers = client.run(os.getpid)
    run = odd_run(tmp_path / "run.zarr")
    train, labels, arrays = run.train, run.train.labels, run.to_dask()["train"]
    logits, states = arrays["logits"], arrays["hidden_states"]

    found: Any = distributed.data_map(logits, labels, client=client, burn_in=1)
    check_same(found, data_map(train.logits, labels, burn_in=1), rtol=0)
    found = distributed.suspected_errors(logits, labels, client=client)
    check_same(found, suspected_errors(train.logits, labels), rtol=0)
    found = distributed.suspected_errors(logits, labels, client=client, states=states[:, [0, 1, N_LAYERS - 1]])
    check_same(found, analyzed_suspects(run, train))
    found = distributed.outliers(states[-1, -1], labels, arrays["loss"], client=client)
    check_same(found, analyzed_outliers(run, train))

    known = np.delete(np.arange(N_EXAMPLES), np.flatnonzero(np.isnan(train.hidden_states[-1, -1, :, 0])))
    kept = states[-1, -1][known]
    axes, expected = distributed.principal_axes(kept, client=client), principal_axes(Layer(train, -1, -1)[known])
    check_same(axes, expected, rtol=1e-9)
    places = distributed.coordinates(axes, kept, client=client)
    np.testing.assert_allclose(places, expected.coordinates(Layer(train, -1, -1)[known]), rtol=1e-6)
    assert client.run(os.getpid) == workers  # none had to be started again


def test_a_block_is_as_small_as_its_neighbours_need_it_to_be() -> None:
    states = da.zeros((1_000_000, 16), np.float16)
    sizes = [rows.stop - rows.start for rows in blocks.row_slices(states, axis=0, item_bytes=4, n_neighbours=100)]
    assert max(sizes) * (16 * 4 + 100 * blocks.NEIGHBOUR_BYTES) <= blocks.BLOCK_BYTES
    assert sum(sizes) == 1_000_000


@pytest.mark.parametrize("form", FORMS)
def test_heads_and_their_intervals(form: Any, client: Client) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(2, PART_SIZE + 5_000, 3)).astype(np.float32)
    gradients[1, :, 2] = np.nan  # a layer with fewer heads
    gradients[0, ::7] = np.nan  # examples that were not seen
    array = da.from_array(gradients, chunks=(1, 20_000, 3))
    found = distributed.head_importance(array, form, client=client, n_resamples=30)
    check_same(found, head_importance(gradients, form, n_resamples=30), rtol=1e-9)


def test_workers_read_a_run_at_a_url(client: Client, tmp_path: Path) -> None:
    local = odd_run(tmp_path / "run.zarr")
    push(local.path, str(tmp_path / "web" / "copy.zarr"))
    labels = local.train.labels
    with served(tmp_path / "web") as web:
        run = open_run(f"{web.url}/copy.zarr")
        arrays = run.to_dask()["train"]
        web.requests.clear()
        found = distributed.data_map(arrays["logits"], labels, client=client)
        asked = {path.split("/")[3] for path, size in web.requests if size and "/c/" in path}
    assert asked == {"logits"}  # and nothing else of the run
    check_same(found, data_map(local.train.logits, labels), rtol=0)


def test_the_example_in_the_documentation(client: Client, asked: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    example = next(block for block in found if "Client" in block)
    places = {"tcp://scheduler:8786": client.scheduler.address, "s3://bucket/mine.zarr": str(asked), "6, 12": "1, 2"}
    for said, here in places.items():
        assert said in example
        example = example.replace(said, here)
    names: dict[str, Any] = {}
    exec(compile(example, "scaling.md", "exec"), names)
    names["client"].close()
    run = open_run(asked)
    check_same(names["heads"], head_importance(run.train.head_gradients[-1]), rtol=1e-6)
    check_same(names["far"], analyzed_outliers(run, run.train))
    check_same(names["suspects"], analyzed_suspects(run, run.train))
    assert names["places"].shape == (run.train.n_examples, 2)


def test_what_is_refused(client: Client, tmp_path: Path) -> None:
    run = recorded(tmp_path / "run.zarr")
    labels, logits = run.train.labels, run.train.to_dask("logits")
    with pytest.raises(StoreError, match="holds no head_gradients"):
        run.train.to_dask("head_gradients")
    with pytest.raises(AnalysisError, match=r"logits is a RunArray but must be a Dask array; pass split.to_dask"):
        distributed.data_map(run.train.logits, labels, client=client)
    with pytest.raises(AnalysisError, match="labels has 39 examples but logits has 40"):
        distributed.data_map(logits, labels[1:], client=client)
    with pytest.raises(AnalysisError, match="client is a str but must be"):
        distributed.data_map(logits, labels, client="tcp://nowhere")  # type: ignore[arg-type]
    states = run.train.to_dask("hidden_states")
    with pytest.raises(AnalysisError, match=r"states has shape \(3, 40, 6\) but must be \(n_epochs, n_layers, 40"):
        distributed.suspected_errors(logits, labels, client=client, states=states[:, 0])
    with pytest.raises(AnalysisError, match=r"must be \(n_examples, hidden\)"):
        distributed.principal_axes(states[-1], client=client)
    with pytest.raises(AnalysisError, match=r"loss has shape \(3, 39\) but must be \(n_epochs, 40\)"):
        distributed.outliers(states[-1, -1], labels, run.train.to_dask("loss")[:, 1:], client=client)
    with pytest.raises(AnalysisError, match=r"40 of 40 examples have states that are not finite|not finite"):
        distributed.principal_axes(states[-1, -1] * np.nan, client=client)  # raised by a worker


def test_a_cluster_without_workers_is_not_waited_for(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run.zarr")
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        Client(cluster) as idle,
        pytest.raises(AnalysisError, match="has no worker; start some"),
    ):
        distributed.data_map(run.train.to_dask("logits"), run.train.labels, client=idle)


def test_passes_that_are_not_sealed_are_refused(tmp_path: Path) -> None:
    writer = new_run(tmp_path / "run.zarr")
    writer.log("train", rows_of(range(10), 0))
    writer.flush()
    with pytest.raises(StoreError, match=r"passes \[0\] of .* are not sealed.*t3vis repair"):
        open_run(tmp_path / "run.zarr").to_dask()
    writer.close()


def test_without_dask_the_extra_is_named(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run.zarr")
    code = f"""
import sys
sys.modules["dask"] = None
from t3vis import StoreError, open_run
try:
    open_run({str(run.path)!r}).to_dask()
except StoreError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "to_dask needs Dask; install it with: pip install 't3vis[dask]'.\n"
