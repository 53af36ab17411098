"""Datasets with what was found out, and what is left of them to train on."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from t3vis import AnalysisError
from t3vis.analysis.selection import dropped, select, suspect_ids
from t3vis.analyze import analyzed_data_map, analyzed_suspects
from tests.callbacks.tiny import PlainDataset, recorded, tiny_rows
from tests.viewer.asked import NAMES, texts_and_labels


@pytest.fixture
def dataset() -> datasets.Dataset:
    """What the run was trained on, before it was tokenized."""
    texts, labels = texts_and_labels()
    return datasets.Dataset.from_dict({"text": texts, "labels": labels, "source": [f"s{i}" for i in range(len(texts))]})


def test_annotate_adds_columns_to_the_rows_they_belong_to(run, dataset):
    found = run.annotate(dataset)
    assert found.column_names[:3] == ["text", "labels", "source"]
    assert found["source"][:] == dataset["source"][:]
    mapped, suspects = analyzed_data_map(run, run.train), analyzed_suspects(run, run.train)
    np.testing.assert_array_equal(found["confidence"][:], mapped.confidence)
    np.testing.assert_array_equal(found["suspicion"][:], suspects.score)
    assert found["suggested_label"][:] == [NAMES[label] for label in suspects.suggested_label]
    assert set(run.annotate(dataset, columns=["loss"], epoch=0).column_names) == {*dataset.column_names, "loss"}


def test_annotate_of_a_dataset_that_was_selected_from(run, dataset):
    larger = datasets.concatenate_datasets([dataset.select([0, 1]), dataset])
    again = larger.select(range(2, len(larger)))  # with an indirection of its own
    np.testing.assert_array_equal(run.annotate(again)["confidence"][:], analyzed_data_map(run, run.train).confidence)


def test_select_and_drop_suspects_give_the_rows_of_the_analyses(run, dataset):
    ids = select(analyzed_data_map(run, run.train), "ambiguous", fraction=0.25, labels=run.train.labels)
    found = run.select("ambiguous", dataset, fraction=0.25, balanced=True)
    assert found["source"][:] == [f"s{i}" for i in ids]
    suspects = analyzed_suspects(run, run.train)
    for fraction in (None, 0.1):
        left = dropped(48, suspect_ids(suspects, fraction=fraction))
        assert run.drop_suspects(dataset, fraction=fraction)["source"][:] == [f"s{i}" for i in left]
    assert len(run.drop_suspects(dataset, fraction=0.1)) == 43


def test_without_a_dataset_texts_and_labels_come_from_the_store(run, dataset):
    found, expected = run.select("easy", fraction=0.5), run.select("easy", dataset, fraction=0.5)
    assert found.column_names == ["text", "label"]
    assert found["text"][:] == expected["text"][:]
    assert found["label"][:] == expected["labels"][:]
    assert found.features["label"].names == list(NAMES)


def test_another_dataset_is_refused(run, dataset):
    with pytest.raises(AnalysisError, match=r"has 47 rows but .*train has 48 examples; .* before any filter"):
        run.annotate(dataset.select(range(47)))
    changed = dataset.map(lambda row, i: {"text": "other" if i == 30 else row["text"]}, with_indices=True)
    for use in (run.annotate, run.drop_suspects, lambda other: run.select("hard", other)):
        with pytest.raises(AnalysisError, match=r"row 30 of the dataset has another 'text' than example 30"):
            use(changed)
    with pytest.raises(AnalysisError, match=r"is a list; expected a datasets\.Dataset"):
        run.annotate([{"text": "a"}])


def test_without_texts_token_ids_and_labels_are_compared(run, dataset):
    untold = dataset.remove_columns("text")
    assert len(run.drop_suspects(untold, fraction=0.5)) == 24
    relabelled = untold.map(lambda row, i: {"labels": (row["labels"] + (i == 9)) % 3}, with_indices=True)
    with pytest.raises(AnalysisError, match="row 9 of the dataset has another 'labels'"):
        run.drop_suspects(relabelled)
    ids = [run.train.token_ids[i].tolist() for i in range(48)]
    with_ids = relabelled.add_column("input_ids", ids)  # labels may be corrected where the tokens tell what it is
    assert len(run.drop_suspects(with_ids, fraction=0.5)) == 24
    ids[4] = [1]
    with pytest.raises(AnalysisError, match="row 4 of the dataset has another 'input_ids'"):
        run.drop_suspects(relabelled.add_column("input_ids", ids))


def test_a_dataset_that_has_nothing_in_common_is_warned_of(run, dataset):
    with pytest.warns(UserWarning, match="only known from its number of rows"):
        run.annotate(dataset.select_columns(["source"]))


def test_a_column_that_is_there_is_not_replaced(run, dataset):
    with pytest.raises(AnalysisError, match="has a column 'confidence' already"):
        run.annotate(run.annotate(dataset))


def test_a_run_without_texts_needs_its_dataset(tmp_path):
    run = recorded(tmp_path, train=PlainDataset(tiny_rows(6)), num_train_epochs=1)
    with pytest.raises(AnalysisError, match="holds no texts and labels; pass the dataset"):
        run.select("easy")
