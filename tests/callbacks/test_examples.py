"""What is read of a dataset, column by column."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from t3vis.callbacks.examples import class_names, is_readable, label_column, read_columns, text_columns, write_examples
from t3vis.callbacks.splits import split_name
from t3vis.errors import ConfigurationError
from t3vis.store.examples import RaggedColumn
from tests.callbacks.tiny import PlainDataset, as_dataset, tiny_rows


def fingerprint(dataset: Any, **options: Any) -> str:
    return write_examples(None, dataset, **{"label_names": ["labels"], "text": "auto", "processor": None, **options})


def columns(dataset: datasets.Dataset, texts: Any = ()) -> Any:
    (batch,) = read_columns(dataset, ["labels"], texts, None)
    return batch


def test_classes_lengths_and_token_ids() -> None:
    rows = {"input_ids": [[5, 6, 0], [7], []], "attention_mask": [[1, 1, 0], [1], []], "labels": [2, -100, None]}
    batch = columns(datasets.Dataset.from_dict(rows))
    assert batch.labels.tolist() == [2, -1, -1]
    assert batch.targets is None
    assert batch.length.tolist() == [2, 1, 0]  # tokens that are not padding
    assert batch.token_ids.tolist() == [5, 6, 0, 7]
    assert batch.n_token_ids.tolist() == [3, 1, 0]


def test_a_selection_is_read_in_its_own_order() -> None:
    dataset = as_dataset(tiny_rows()).select([5, 3, 4])
    batch = columns(dataset, ["text"])
    assert batch.labels.tolist() == [tiny_rows()[i]["labels"] for i in (5, 3, 4)]
    assert batch.texts == {"text": [tiny_rows()[i]["text"] for i in (5, 3, 4)]}
    assert batch.token_ids.tolist() == [token for i in (5, 3, 4) for token in tiny_rows()[i]["input_ids"]]


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        ([0.5, 1.5], [[0.5], [1.5]]),
        ([[0.0, 1.0], [1.0, 1.0]], [[0, 1], [1, 1]]),
        ([[0, 1], [1, 1]], [[0, 1], [1, 1]]),
        (["a", "b"], None),
        ([[1], [1, 0]], None),
        ([[0.5], [0.5, 1.0]], None),
        ([[-100, 1], [0, 1]], None),
        ([["B", "O"], ["O", "O"]], None),
        ([[[0, 1]], [[1, 1]]], None),
        ([[True, False]], [[1, 0]]),
    ],
    ids=["one", "values", "whole", "words", "ragged", "ragged values", "of tokens", "tags", "nested", "bool"],
)
def test_values(labels: Any, targets: Any) -> None:
    batch = columns(datasets.Dataset.from_dict({"labels": labels}))
    assert batch.labels is None
    if targets is None:
        assert batch.targets is None
    else:
        np.testing.assert_array_equal(batch.targets, np.float32(targets))
    assert batch.length is None


@pytest.mark.parametrize("last", [[0, 1, 1], [0, 2]], ids=["ragged", "of tokens"])
def test_labels_of_tokens_are_known_by_all_of_them(last: list[int]) -> None:
    """The first batches look as if there were two values for each example."""
    dataset = datasets.Dataset.from_dict({"labels": [[0, 1]] * 4000 + [last]})
    assert [batch.targets for batch in read_columns(dataset, ["labels"], [], None)] == [None] * 3


def test_many_examples_are_read_in_batches() -> None:
    dataset = datasets.Dataset.from_dict({"labels": list(range(4321))})
    batches = list(read_columns(dataset, [], [], None))
    assert len(batches) == 3
    labels = np.concatenate([batch.labels for batch in batches if batch.labels is not None])
    np.testing.assert_array_equal(labels, np.arange(4321))


def test_the_fingerprint_is_that_of_the_content() -> None:
    rows = tiny_rows()
    assert fingerprint(as_dataset(rows)) == fingerprint(as_dataset(rows).map(lambda row: row))
    assert fingerprint(as_dataset(rows)) == fingerprint(as_dataset(rows[::-1]).select(range(40, -1, -1)))
    assert fingerprint(as_dataset(rows)) == fingerprint(as_dataset(rows).with_format("torch"))
    changed = [{**rows[0], "labels": (rows[0]["labels"] + 1) % 3}, *rows[1:]]
    others = [changed, rows[:-1], rows[::-1], [{**rows[0], "text": "another"}, *rows[1:]]]
    assert len({fingerprint(as_dataset(other)) for other in [rows, *others]}) == 5
    assert fingerprint(PlainDataset(rows)) == fingerprint(PlainDataset(changed))  # it has no content to read
    assert fingerprint(PlainDataset(rows)) != fingerprint(PlainDataset(rows[1:]))
    assert fingerprint(PlainDataset(rows)) != fingerprint(rows)


def test_the_fingerprint_is_the_same_whether_it_is_written_or_not(tmp_path: Path) -> None:
    dataset = as_dataset(tiny_rows())
    options: dict[str, Any] = {"label_names": ["labels"], "text": "auto", "processor": None}
    assert write_examples(tmp_path, dataset, **options) == fingerprint(dataset)
    assert RaggedColumn(tmp_path / "examples" / "text" / "text", text=True)[:] == [row["text"] for row in tiny_rows()]


class Words:
    """A tokenizer, as far as it is asked: token 5 is the word five."""

    def batch_decode(self, ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(f"t{i}" for i in row) for row in ids]


def test_decoded_text_where_there_is_no_other(tmp_path: Path) -> None:
    options: dict[str, Any] = {"label_names": [], "text": "auto", "processor": Words()}
    with_text = datasets.Dataset.from_dict({"input_ids": [[5, 6], [7]], "title": ["a", None]})
    write_examples(tmp_path / "raw", with_text, **options)
    assert [path.name for path in (tmp_path / "raw" / "examples" / "text").iterdir() if path.is_dir()] == ["title"]
    assert RaggedColumn(tmp_path / "raw" / "examples" / "text" / "title", text=True)[:] == ["a", ""]
    write_examples(tmp_path / "decoded", with_text.remove_columns("title"), **options)
    assert RaggedColumn(tmp_path / "decoded" / "examples" / "text" / "decoded", text=True)[:] == ["t5 t6", "t7"]
    write_examples(tmp_path / "none", with_text.remove_columns("title"), **{**options, "text": None})
    assert not (tmp_path / "none" / "examples" / "text").exists()


def test_which_column_holds_the_labels() -> None:
    dataset = datasets.Dataset.from_dict({"label": [1], "gold": [2]})
    assert label_column(dataset, ["labels"]) == "label"
    assert label_column(dataset, ["gold"]) == "gold"
    assert label_column(dataset.remove_columns("label"), ["labels"]) is None
    assert label_column(tiny_rows(), ["labels"]) is None


def test_which_columns_are_text() -> None:
    dataset = datasets.Dataset.from_dict({"a": ["x"], "b": [1], "c": [["x"]]})
    assert text_columns(dataset, "auto") == ["a"]
    assert text_columns(dataset, ["a"]) == ["a"]
    assert text_columns(dataset, None) == []
    assert text_columns(tiny_rows(), "auto") == []
    with pytest.raises(ConfigurationError, match=r"\['b', 'd'\], but the dataset has the text columns \['a'\]"):
        text_columns(dataset, ["a", "b", "d"])
    with pytest.raises(ConfigurationError, match="is a list without any"):
        text_columns(tiny_rows(), ["text"])
    assert is_readable(dataset)
    assert not is_readable(tiny_rows())


def test_class_names() -> None:
    plain = SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})
    named = SimpleNamespace(id2label={1: "good", 0: "bad"})
    dataset = datasets.Dataset.from_dict(
        {"labels": [0]}, features=datasets.Features({"labels": datasets.ClassLabel(names=["no", "yes"])})
    )
    assert class_names(dataset, ["labels"], named) == ["bad", "good"]
    assert class_names(dataset, ["labels"], plain) == ["no", "yes"]
    assert class_names(tiny_rows(), ["labels"], plain) is None
    assert class_names(tiny_rows(), ["labels"], None) is None


@pytest.mark.parametrize(
    ("prefix", "name"), [("eval", "eval"), ("eval_a b/c", "eval_a_b_c"), ("attempts", "eval_attempts"), ("..", "eval")]
)
def test_names_of_splits(prefix: str, name: str) -> None:
    assert split_name(prefix) == name
