"""Tables hold what the store holds, whatever reads them."""

from __future__ import annotations

import datasets
import numpy as np
import polars as pl
import pytest

from t3vis import AnalysisError
from t3vis.analyze import analyzed_data_map, analyzed_suspects
from t3vis.analyze_projection import kept_projection
from t3vis.exports import table as tables
from t3vis.store import schema
from t3vis.store.results import remove_result
from tests.callbacks.tiny import as_dataset, recorded, tiny_model, tiny_rows
from tests.exports.seen_in_part import seen_in_part


def test_a_table_holds_what_was_recorded_and_found_out(run):
    train = run.train
    remove_result(run.path, "train", "label_quality")
    found = run.table().to_pandas()
    assert found["example"].tolist() == list(range(48))
    assert found["text"].tolist() == train.text["text"][:]
    assert found["label"].tolist() == [train.class_names[label] for label in train.labels]
    assert found["length"].tolist() == train.length.tolist()
    np.testing.assert_array_equal(found["loss"], train.loss[-1])
    np.testing.assert_array_equal(np.stack(found["logits"]), train.logits[-1])
    assert found["prediction"].tolist() == [train.class_names[best] for best in train.logits[-1].argmax(-1)]
    mapped = analyzed_data_map(run, train)
    for name in ("confidence", "variability", "correctness", "forgetting_events", "never_learned"):
        np.testing.assert_array_equal(found[name], getattr(mapped, name), err_msg=name)
    projected = kept_projection(run, train)
    np.testing.assert_array_equal(found[["x", "y"]], projected.coordinates)
    assert "hidden_states" not in found
    assert "suspicion" not in found  # a table computes nothing but the data map, unless it is asked for
    suspects = analyzed_suspects(run, train)
    np.testing.assert_array_equal(run.table()["suspicion"], suspects.score)
    group = run.path / "analysis" / "train" / "label_quality"
    kept = schema.read_metadata(group)
    schema.write_metadata(group, {**kept, "attributes": {**kept["attributes"], "t3vis": "another version"}})
    assert "suspicion" not in run.table().column_names


def test_columns_are_those_that_are_named_in_their_order(run):
    found = run.table(columns=["suspicion", "hidden_states", "hidden_states:0", "loss@0", "loss"], epoch=1)
    assert found.column_names == ["example", "suspicion", "hidden_states", "hidden_states:0", "loss@0", "loss"]
    np.testing.assert_array_equal(found["suspicion"], analyzed_suspects(run, run.train).score)
    np.testing.assert_array_equal(np.stack(found["hidden_states"].to_pylist()), run.train.hidden_states[1, -1])
    np.testing.assert_array_equal(np.stack(found["hidden_states:0"].to_pylist()), run.train.hidden_states[1, 0])
    np.testing.assert_array_equal(found["loss@0"], run.train.loss[0])
    np.testing.assert_array_equal(found["loss"], run.train.loss[1])


def test_the_epoch_is_that_of_what_was_recorded(run):
    np.testing.assert_array_equal(run.table(epoch=0, columns=["loss"])["loss"], run.train.loss[0])
    np.testing.assert_array_equal(run.table(epoch=-2, columns=["loss"])["loss"], run.train.loss[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["confidense"]}, r"no column 'confidense'; it holds: example, .*text, .*confidence"),
        ({"epoch": 2}, r"no pass 2; it holds: 0, 1"),
        ({"epoch": -3}, r"no pass -3; it holds: 0, 1"),
        ({"split": "test"}, r"no split 'test'; it holds: train"),
    ],
)
def test_what_is_not_there_is_named(run, options, message):
    with pytest.raises(AnalysisError, match=message):
        run.table(**options)


def test_batches_are_the_whole(run, monkeypatch):
    whole = run.table()
    monkeypatch.setattr(tables, "ROWS", 7)
    split = run.table()
    assert split.column("loss").num_chunks == 7
    assert split.equals(whole)


def test_what_is_not_known_is_null(tmp_path):
    run = seen_in_part(tmp_path)
    found = run.table(columns=["loss", "logits"])
    assert [i for i, loss in enumerate(found["loss"].to_pylist()) if loss is None] == [6]  # never seen in epoch 1
    assert [i for i, row in enumerate(found["logits"].to_pylist()) if row is None] == [6]


def test_several_labels_are_a_list(tmp_path):
    rows = tiny_rows(6, label=lambda rng: rng.integers(0, 2, 3).astype(float).tolist())
    model = tiny_model(problem_type="multi_label_classification")
    run = recorded(tmp_path, train=as_dataset(rows), model=model, num_train_epochs=1)
    assert run.table(columns=["label"])["label"].to_pylist() == [row["labels"] for row in rows]


def test_a_text_column_with_the_name_of_another_column(tmp_path):
    rows = [{**row, "loss": f"text {i}"} for i, row in enumerate(tiny_rows(5))]
    run = recorded(tmp_path, train=as_dataset(rows), num_train_epochs=1)
    found = run.table()
    assert found["loss_text"].to_pylist() == [row["loss"] for row in rows]
    np.testing.assert_array_equal(found["loss"], run.train.loss[0])


def test_polars_and_datasets_take_the_table(run):
    table = run.table(columns=["text", "label", "loss", "logits", "never_learned"])
    frame = pl.from_arrow(table)
    assert frame.filter(pl.col("example") == 17)["text"].to_list() == [run.train.text["text"][17]]
    np.testing.assert_array_equal(frame["loss"].to_numpy(), run.train.loss[-1])
    dataset = datasets.Dataset(table)
    assert dataset[17]["text"] == run.train.text["text"][17]
    assert dataset[17]["logits"] == pytest.approx(run.train.logits[-1, 17])
