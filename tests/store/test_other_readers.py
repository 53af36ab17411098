"""Every array of a sealed run, with every codec, holds the same bits for whatever reads Zarr v3."""

import shutil
import subprocess
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from t3vis.store import schema
from t3vis.store.codecs import COMPRESSIONS, rounded
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.options import StorageOptions
from t3vis.store.ragged import Ragged
from t3vis.store.reader import open_run
from t3vis.store.results import write_result
from t3vis.store.seal import seal_pass
from t3vis.store.shard import shard_path
from t3vis.store.writer import create_run

from .recordings import Expected, rows_of, split_attributes
from .test_verify import small_chunks

N_EXAMPLES = 37  # of every array the last shard, and in it the last chunk, is partial
ZARRITA = Path(__file__).with_name("zarrita")


@pytest.fixture(scope="module", params=COMPRESSIONS, ids=str)
def store(request, tmp_path_factory):
    """A sealed run of three epochs, of which the second was never recorded, and what the split must hold."""
    path, expected = tmp_path_factory.mktemp("readers") / "run", Expected(N_EXAMPLES)
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        writer = create_run(path, {}, options=StorageOptions(request.param))
        write_examples(path)
        writer.add_split("train", split_attributes(N_EXAMPLES))
        writer.add_split("eval", split_attributes(None, "eval"))
        for index, examples in ((0, np.random.default_rng(0).permutation(N_EXAMPLES)), (2, np.arange(20))):
            writer.begin_pass("train", index, {"epoch": index, "step": index})
            expected.log(writer, index, rows_with_everything(examples, index, request.param))
        for index, examples in ((0, [3, 1]), (1, range(N_EXAMPLES))):
            writer.begin_pass("eval", index, {"epoch": index, "step": index})
            writer.log("eval", rows_of(examples, index))
        writer.flush()
        for key in (("train", 0), ("train", 2), ("eval", 0), ("eval", 1)):
            seal_pass(path, *key)
        writer.close()
    columns = {"score": np.arange(N_EXAMPLES) / 7, "known": np.arange(N_EXAMPLES) % 3 == 0}
    write_result(path, "train", "quality", columns, meanings=dict.fromkeys(columns, "a column"), attributes={})
    return path, expected


def rows_with_everything(examples, step, compression):
    """A batch with all arrays of a pass, its hidden states rounded already where that is how they are stored."""
    rows, n_rows = rows_of(examples, step), len(examples)
    states = rows["hidden_states"]
    own = {
        name: rounded(compression, name, values) for name, values in zip(schema.THINNED, (states, -states), strict=True)
    }
    own |= {
        "labels": np.arange(n_rows),
        "targets": np.linspace(-1, 1, 2 * n_rows, dtype=np.float32).reshape(n_rows, 2),
        "length": np.arange(n_rows, dtype=np.int32),
        "head_gradients": np.linspace(-1, 1, 6 * n_rows, dtype=np.float32).reshape(2, n_rows, 3),
        "n_tokens": np.arange(n_rows, dtype=np.int32) % 4,
        "token_accuracy": np.linspace(0, 1, n_rows, dtype=np.float32),
        "span_logprob": np.linspace(-2, 0, 2 * n_rows, dtype=np.float32).reshape(n_rows, 2),
        "span_prediction": np.arange(2 * n_rows, dtype=np.int32).reshape(n_rows, 2),
        "span_label": np.arange(2 * n_rows, dtype=np.int32).reshape(n_rows, 2)[::-1],
    }
    lengths = np.asarray(examples) % 4
    for name, spec in schema.PASS_ARRAYS.items():
        if spec.is_ragged:
            own[name] = Ragged.with_lengths(np.arange(lengths.sum()).astype(spec.dtype), lengths)
    return rows | own


def write_examples(path):
    examples = ExamplesWriter(path / "train/examples", N_EXAMPLES)
    texts = {"text": [f"naïve {i}" for i in range(N_EXAMPLES)]}
    n_token_ids = np.arange(N_EXAMPLES)
    token_ids = np.arange(n_token_ids.sum(), dtype=np.int32)
    examples.add(Columns(labels=n_token_ids % 3, token_ids=token_ids, n_token_ids=n_token_ids, texts=texts))
    examples.close()


def array_names(path):
    """Of every array below the run's root."""
    nodes = sorted(file.parent for file in path.rglob("zarr.json"))
    return [str(node.relative_to(path)) for node in nodes if schema.read_metadata(node)["node_type"] == "array"]


def by_zarr_python(path):
    return np.asarray(zarr.open_array(path, mode="r")[...])


def by_zarrs(path):
    pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    with zarr.config.set(pipeline):  # strict: it must not hand over to zarr-python what it cannot read
        array = zarr.open_array(path, mode="r")
        assert type(array.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
        return np.asarray(array[...])


def by_tensorstore(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return tensorstore.open(spec, read=True).result().read().result()


def test_the_store_is_sealed_and_has_what_is_hard_to_read(store):
    path, _ = store
    run, names = open_run(path), array_names(path)
    assert all(record.sealed for split in run.splits.values() for record in split.passes)
    assert not list(path.glob("*/segments/*/p*"))
    assert {f"train/{name}" for name in schema.STORED_ARRAYS} <= set(names)
    assert {"train/examples/text/text/values", "train/examples/input_ids/offsets"} <= set(names)
    for name in ("train/hidden_states", "train/loss", "eval/hidden_states"):
        metadata = schema.read_metadata(path / name)
        shard_rows = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        axis = metadata["dimension_names"].index("example")
        assert 1 < shard_rows[axis] < N_EXAMPLES
        assert N_EXAMPLES % shard_rows[axis]
    assert shard_path(path / "train/loss", (0,), 0, 0).exists()
    assert not shard_path(path / "train/loss", (1,), 0, 0).exists()  # of the epoch that was not recorded
    assert not shard_path(path / "eval/loss", (0,), 1, 0).exists()  # of examples beyond those that were seen


def test_zarr_python_reads_what_was_recorded(store):
    path, expected = store
    for name, spec in schema.PASS_ARRAYS.items():
        if spec.is_ragged:
            values, offsets = (by_zarr_python(path / "train" / part.name) for part in spec.parts)
            for index in (0, 2):
                rows = [values[index, begin:end].tolist() for begin, end in pairwise(offsets[index])]
                assert rows == expected.ragged(name, index), name
        else:
            found = by_zarr_python(path / "train" / name)
            np.testing.assert_array_equal(found, expected.array(name), err_msg=name)
    expected.check(open_run(path).train)


@pytest.mark.parametrize("read", [by_zarrs, by_tensorstore])
def test_other_readers_read_the_bits_that_zarr_python_reads(store, read):
    path, _ = store
    for name in array_names(path):
        found, expected = read(path / name), by_zarr_python(path / name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        assert found.tobytes() == expected.tobytes(), name


@pytest.fixture(scope="module")
def zarrita(request):
    """A folder with zarrita, installed once and kept among what pytest caches."""
    wanted = (ZARRITA / "package-lock.json").read_bytes()
    folder = request.config.cache.mkdir(f"zarrita-{zlib.crc32(wanted):08x}")
    for file in ZARRITA.iterdir():
        shutil.copy(file, folder)
    if not (folder / "node_modules/.package-lock.json").exists():  # npm writes it last
        npm = [shutil.which("npm"), "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(npm, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="node or npm is not installed")
def test_zarrita_with_a_float16_array_where_node_has_none_reads_the_bits_that_zarr_python_reads(
    store, zarrita, tmp_path
):
    path, _ = store
    names = array_names(path)
    command = [shutil.which("node"), "read.js", str(path), str(tmp_path), *names]
    done = subprocess.run(command, cwd=zarrita, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for number, name in enumerate(names):
        assert (tmp_path / f"{number}").read_bytes() == by_zarr_python(path / name).tobytes(), name
