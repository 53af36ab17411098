import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from t3vis.errors import StoreError
from t3vis.store import schema

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of docs/format.md."""
    section = FORMAT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_the_specification_lists_the_arrays_of_the_schema():
    said = table("Arrays of a pass")
    expected = [
        [
            spec.name,
            f"({', '.join(('pass', *spec.leading, 'example', *spec.trailing, *['token'] * spec.is_ragged))})",
            np.dtype(spec.dtype).name,
            "NaN" if np.isnan(spec.fill) else str(spec.fill),
            spec.meaning,
        ]
        for spec in schema.PASS_ARRAYS.values()
    ]
    assert said == expected


def test_the_specification_names_the_version_and_every_dimension():
    text = FORMAT.read_text()
    assert f"version {schema.FORMAT_VERSION}" in text.splitlines()[0]
    assert f'"{schema.FORMAT}"' in text
    for kind, dim in schema.PASS_DIM.items():
        assert re.search(rf"`{dim}` where (its kind|it) is\s`{kind}`", text), kind


@given(
    dtype=st.sampled_from(["<f2", "<f4", "<f8", "<i4", "<i8", "|u1", "|b1"]),
    fill=st.one_of(st.just(float("nan")), st.integers(0, 100)),
    zstd=st.booleans(),
)
def test_zarr_reads_array_metadata_as_it_was_meant(tmp_path_factory, dtype, fill, zstd):
    if np.dtype(dtype).kind != "f":
        fill = bool(fill == 1) if dtype == "|b1" else 0 if fill != fill else fill
    path = tmp_path_factory.mktemp("schema")
    codecs = ({"name": "zstd", "configuration": {"level": 1, "checksum": False}},) if zstd else ()
    metadata = schema.array_metadata(
        shape=(2, 7, 3),
        shard_shape=(1, 4, 3),
        chunk_shape=(1, 2, 3),
        dtype=dtype,
        fill=fill,
        dims=("epoch", "example", "class"),
        attributes={"description": "d"},
        codecs=codecs,
    )
    schema.write_metadata(path / "a", metadata)
    array = zarr.open_array(path / "a", mode="r")
    assert (array.shape, array.shards, array.chunks) == ((2, 7, 3), (1, 4, 3), (1, 2, 3))
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array.fill_value, fill)
    assert array.metadata.dimension_names == ("epoch", "example", "class")
    assert array.attrs["description"] == "d"


def test_metadata_replaces_metadata_and_leaves_nothing_beside_it(tmp_path):
    schema.write_metadata(tmp_path / "g", schema.group_metadata({"a": 1}))
    schema.write_metadata(tmp_path / "g", schema.group_metadata({"a": "ü"}))
    assert schema.read_metadata(tmp_path / "g")["attributes"] == {"a": "ü"}
    assert [path.name for path in (tmp_path / "g").iterdir()] == ["zarr.json"]


def test_a_failed_write_keeps_the_error_and_says_where(tmp_path):
    (tmp_path / "g" / "zarr.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as caught:
        schema.write_metadata(tmp_path / "g", schema.group_metadata())
    assert str(tmp_path / "g" / "zarr.json") in caught.value.__notes__[0]
    assert [path.name for path in (tmp_path / "g").iterdir()] == ["zarr.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_metadata_that_is_no_json_object_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "zarr.json").write_bytes(content)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "zarr.json"))):
        schema.read_metadata(tmp_path)


def write_root(path: Path, **t3vis: object) -> None:
    schema.write_metadata(path, schema.group_metadata({"t3vis": t3vis}))


def test_a_newer_version_is_refused_by_name(tmp_path):
    write_root(tmp_path, format=schema.FORMAT, version=schema.FORMAT_VERSION + 1)
    with pytest.raises(StoreError, match=f"version {schema.FORMAT_VERSION + 1}.*up to {schema.FORMAT_VERSION}"):
        schema.run_attributes(tmp_path)


def test_another_zarr_group_is_no_run(tmp_path):
    (tmp_path / "zarr.json").write_text(json.dumps(schema.group_metadata({"made_by": "somebody"})))
    with pytest.raises(StoreError, match="not a t3vis run"):
        schema.run_attributes(tmp_path)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(StoreError, match="found nothing"):
        schema.run_attributes(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"found no zarr\.json"):
        schema.run_attributes(tmp_path / "file")


@given(index=st.integers(0, 10**6))
def test_names_of_passes_can_be_told_apart_and_read_back(index):
    assert int(schema.pass_name(index)[1:]) == index
    assert schema.pass_name(index) != schema.pass_name(index + 1)
