import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from t3vis.store import schema
from t3vis.store.examples import Columns, ExamplesWriter, static_array, text_columns, token_ids

texts = st.one_of(st.none(), st.text(max_size=6))


@st.composite
def datasets(draw):
    """Labels, targets, token ids, and two columns of texts, of a few examples."""
    n = draw(st.integers(1, 8))
    return {
        "labels": draw(st.lists(st.integers(-1, 5), min_size=n, max_size=n)),
        "targets": draw(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2), min_size=n, max_size=n)),
        "token_ids": draw(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=n, max_size=n)),
        "texts": {
            "text": draw(st.lists(texts, min_size=n, max_size=n)),
            "wéird name/2": draw(st.lists(texts, min_size=n, max_size=n)),
        },
    }


def columns_of(dataset, start, stop) -> Columns:
    ids = dataset["token_ids"][start:stop]
    return Columns(
        labels=np.array(dataset["labels"][start:stop], np.int64),
        targets=np.array(dataset["targets"][start:stop], np.float32).reshape(-1, 2),
        length=np.array([len(part) for part in ids], np.int32),
        token_ids=np.array([token for part in ids for token in part], np.int32),
        n_token_ids=np.array([len(part) for part in ids], np.int64),
        texts={name: column[start:stop] for name, column in dataset["texts"].items()},
    )


def write(split, dataset, batch: int) -> str:
    """Write a dataset in batches, or only fingerprint it where there is no split."""
    n = len(dataset["labels"])
    writer = ExamplesWriter(None if split is None else split / "examples", n)
    for start in range(0, n, batch):
        writer.add(columns_of(dataset, start, min(start + batch, n)))
    return writer.close()


@given(dataset=datasets(), batch=st.integers(1, 9))
@settings(max_examples=40)
def test_examples_come_back_as_they_were(tmp_path_factory, dataset, batch):
    split = tmp_path_factory.mktemp("split")
    write(split, dataset, batch)
    n = len(dataset["labels"])
    np.testing.assert_array_equal(static_array(split, "labels").read_all(), dataset["labels"])
    np.testing.assert_array_equal(static_array(split, "targets").read_all(), np.array(dataset["targets"], np.float32))
    ids = token_ids(split)
    assert [part.tolist() for part in ids[:]] == dataset["token_ids"]
    assert static_array(split, "length").read_all().tolist() == [len(part) for part in dataset["token_ids"]]
    columns = text_columns(split)
    assert list(columns) == list(dataset["texts"])
    for name, column in columns.items():
        expected = [text or "" for text in dataset["texts"][name]]
        assert column[:] == expected
        assert len(column) == n
        assert [column[i] for i in range(-n, n)] == expected * 2
        assert column[::-1] == expected[::-1]
        assert column[n:] == []
        assert column[[n - 1, 0]] == [expected[-1], expected[0]]
        assert column[np.arange(n) % 2 == 0] == expected[::2]
        with pytest.raises(IndexError):
            column[n]
    assert zarr.open_array(split / "examples/input_ids/offsets", mode="r")[-1] == sum(map(len, dataset["token_ids"]))


def without_none(dataset):
    return {**dataset, "texts": {name: [text or "" for text in column] for name, column in dataset["texts"].items()}}


@given(one=datasets(), other=datasets(), batches=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_fingerprints_are_equal_exactly_if_the_content_is(one, other, batches):
    assert write(None, one, batches[0]) == write(None, one, batches[1])
    same = without_none(one) == without_none(other)
    assert (write(None, one, batches[0]) == write(None, other, batches[1])) == same


def test_writing_and_fingerprinting_give_the_same_fingerprint(tmp_path):
    dataset = {"labels": [1, 0], "targets": [[0.5, 1]] * 2, "token_ids": [[1], []], "texts": {"text": ["ä", None]}}
    assert write(tmp_path, dataset, 1) == write(None, dataset, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"texts": {"text": ["ab", "c"]}},
        {"texts": {"text": ["a", "bc"]}, "labels": [0, 1]},
        {"texts": {}},
    ],
)
def test_what_changes_a_fingerprint(change):
    dataset = {"labels": [1, 0], "targets": [[0.5, 1]] * 2, "token_ids": [[1], []], "texts": {"text": ["a", "bc"]}}
    assert write(None, dataset, 1) != write(None, {**dataset, **change}, 1)


def test_the_name_of_a_column_is_part_of_the_fingerprint():
    dataset = {"labels": [1], "targets": [[0.5, 1]], "token_ids": [[1]]}
    prints = {write(None, {**dataset, "texts": {name: ["a"]}}, 1) for name in ("a text", "a_text")}
    assert len(prints) == 2


def test_columns_whose_names_differ_in_nothing_a_file_system_sees_do_not_mix(tmp_path):
    names = ["a b", "a_b", "A_b", "äöü", "", "zarr.json"]
    writer = ExamplesWriter(tmp_path / "examples", 1)
    writer.add(Columns(texts={name: [f"text of {name}"] for name in names}))
    writer.close()
    columns = text_columns(tmp_path)
    assert {name: column[0] for name, column in columns.items()} == {name: f"text of {name}" for name in names}
    nodes = [path.name.lower() for path in (tmp_path / "examples/text").iterdir() if path.is_dir()]
    assert len(set(nodes)) == len(names)


def test_arrays_of_several_shards_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("t3vis.store.layout.SHARD_BYTES", 64)
    monkeypatch.setattr("t3vis.store.layout.CHUNK_BYTES", 16)
    monkeypatch.setattr("t3vis.store.layout.MIN_CHUNK_ROWS", 2)
    dataset = {
        "labels": list(range(50)),
        "targets": [[i, -i] for i in range(50)],
        "token_ids": [list(range(i % 7)) for i in range(50)],
        "texts": {"text": ["ü" * (i % 5) for i in range(50)]},
    }
    write(tmp_path, dataset, 3)
    assert len(list((tmp_path / "examples/labels/c").iterdir())) > 2
    assert len(list((tmp_path / "examples/text/text/values/c").iterdir())) > 1
    assert static_array(tmp_path, "labels").read_all().tolist() == dataset["labels"]
    assert text_columns(tmp_path)["text"][:] == dataset["texts"]["text"]
    assert [ids.tolist() for ids in token_ids(tmp_path)[13:31]] == dataset["token_ids"][13:31]
    for node in (tmp_path / "examples").rglob("c"):
        zarr.open_array(node.parent, mode="r")[...]


def test_what_a_dataset_does_not_have_is_not_there(tmp_path):
    assert text_columns(tmp_path) == {}
    assert static_array(tmp_path, "labels") is None
    assert token_ids(tmp_path) is None
    ExamplesWriter(tmp_path / "examples", 0).close()
    assert text_columns(tmp_path) == {}
    assert schema.node_exists(tmp_path / "examples")


def test_text_that_is_no_unicode_is_kept_as_far_as_it_is(tmp_path):
    writer = ExamplesWriter(tmp_path / "examples", 1)
    writer.add(Columns(texts={"text": ["a\ud800b"]}))
    writer.close()
    assert text_columns(tmp_path)["text"][0] == "a?b"
