"""What ``t3vis export`` writes, loaded by the tools themselves, or read as their documentation says they do.

TensorBoard's projector and cleanlab's Datalab load it here; Embedding Atlas, Spotlight, LIT and FiftyOne are too large
to be installed for it: docs/exports.md says with which versions their own readers have loaded it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import cleanlab
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client

from t3vis import AnalysisError, ConfigurationError
from t3vis.analyze_projection import kept_projection
from t3vis.commands.export import TOOLS
from t3vis.exports import files, table
from t3vis.exports.export import EXPORTERS, export
from t3vis.store.results import read_result
from tests.callbacks.tiny import recorded
from tests.exports.seen_in_part import seen_in_part
from tests.viewer.asked import NAMES


def exported(run, to: str, path: Path, **options) -> str:
    return export(run, run.train, to, path, **options)


def test_the_command_knows_all_of_them():
    assert tuple(EXPORTERS) == TOOLS


@pytest.mark.parametrize("to", ["parquet", "csv", "jsonl"])
def test_files_hold_the_table(run, to, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROWS", 10)
    path = tmp_path / f"out.{to}"
    exported(run, to, path, columns=["text", "label", "loss", "never_learned", "flips", "first_learned"])
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}[to](path)
    expected = pl.from_arrow(run.table(columns=read.columns))
    assert read.with_columns(pl.col("loss").cast(pl.Float32)).equals(expected.cast(read.schema | {"loss": pl.Float32}))
    assert read["text"].to_list() == run.train.text["text"][:]


def test_lists_go_where_they_can(run, tmp_path):
    exported(run, "jsonl", tmp_path / "out.jsonl", columns=["logits"])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["logits"] for row in rows], run.train.logits[-1], rtol=1e-6)
    with pytest.raises(AnalysisError, match="logits has several values for each example, which csv does not take"):
        exported(run, "csv", tmp_path / "out.csv", columns=["logits"])
    assert not (tmp_path / "out.csv").exists()


def test_missing_and_not_finite_values_are_null(tmp_path):
    exported(seen_in_part(tmp_path), "jsonl", tmp_path / "out.jsonl", columns=["loss", "logits"])
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[6]) == {
        "example": 6, "loss": None, "logits": None,
    }  # fmt: skip
    assert files._plain([1.0, float("nan"), float("-inf")]) == [1.0, None, None]


def test_embedding_atlas_is_given_coordinates_and_neighbours(run, tmp_path):
    path = tmp_path / "out.parquet"
    command = exported(run, "embedding-atlas", path)
    assert command == (f"embedding-atlas {path} --text text --x x --y y --disable-projection --neighbors neighbors")
    found = pq.read_table(path)
    np.testing.assert_array_equal(np.stack([found["x"], found["y"]], 1), kept_projection(run, run.train).coordinates)
    graph = read_result(run.path, "train", "neighbours_p0001_l02").columns
    rows = found["neighbors"].to_pylist()
    assert [row["ids"] for row in rows] == graph["indices"][:, :15].tolist()  # row numbers, which ids are
    np.testing.assert_allclose([row["distances"] for row in rows], graph["distances"][:, :15])
    np.testing.assert_array_equal(np.stack(found["hidden_states"].to_pylist()), run.train.hidden_states[-1, -1])


def test_spotlight_is_told_what_the_columns_are(run, tmp_path):
    path = tmp_path / "out.parquet"
    command = exported(run, "spotlight", path)
    found = pd.read_parquet(path)
    kinds = dict(option.split()[0].split("=") for option in command.split(" --dtype ")[1:])
    assert kinds["hidden_states"] == "Embedding"
    assert set(kinds) <= set(found.columns)
    assert set(found["label"]) == set(NAMES)
    np.testing.assert_array_equal(np.stack(found["hidden_states"]), run.train.hidden_states[-1, -1])


def test_lit_is_given_examples_their_types_and_what_was_recorded(run, tmp_path):
    assert exported(run, "lit", tmp_path / "lit") == f"python {tmp_path}/lit/show.py"
    spec = json.loads((tmp_path / "lit" / "examples.lit.jsonl.spec").read_text())
    rows = [json.loads(line) for line in (tmp_path / "lit" / "examples.lit.jsonl").read_text().splitlines()]
    assert {name: spec[name]["__name__"] for name in ("text", "label", "loss", "never_learned")} == {
        "text": "TextSegment", "label": "CategoryLabel", "loss": "Scalar", "never_learned": "BooleanLitType",
    }  # fmt: skip
    assert spec["label"]["vocab"] == list(NAMES)
    assert [row["_id"] for row in rows] == [str(i) for i in range(48)]
    assert all(set(row) - {"_id"} <= set(spec) for row in rows)
    logits = run.train.logits[:].astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "lit" / "pred_probs.npy"), probs.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "lit" / "features.npy"), run.train.hidden_states[-1, -1])
    compile((tmp_path / "lit" / "show.py").read_text(), "show.py", "exec")


def test_the_projector_of_tensorboard_serves_it(run, tmp_path):
    folder = tmp_path / "projector"
    assert exported(run, "projector", folder) == f"tensorboard --logdir {folder}"
    context = TBContext(logdir=str(folder), multiplexer=EventMultiplexer({".": str(folder)}))
    apps = ProjectorPlugin(context).get_plugin_apps()

    def asked(path: str):
        answer = Client(apps[path.partition("?")[0]]).get(path)
        assert answer.status_code == 200, answer.data
        return answer

    (name,) = asked("/runs").json
    (info,) = asked(f"/info?run={name}").json["embeddings"]
    assert info["tensorShape"] == [48, 16]
    query = f"run={name}&name={info['tensorName'].replace(' ', '%20')}"
    vectors = np.frombuffer(asked(f"/tensor?{query}").data, np.float32).reshape(48, 16)
    np.testing.assert_allclose(vectors, run.train.hidden_states[-1, -1].astype(np.float32), rtol=1e-4)
    header, *rows = [line.split("\t") for line in asked(f"/metadata?{query}").data.decode().splitlines()]
    assert [row[header.index("text")] for row in rows] == run.train.text["text"][:]
    assert {len(row) for row in rows} == {len(header)}


def test_fiftyone_is_given_a_dataset_in_its_format(run, tmp_path):
    folder = tmp_path / "fiftyone"
    exported(run, "fiftyone", folder)
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert len({sample["filepath"] for sample in samples}) == 48
    labels = [NAMES[label] for label in run.train.labels]
    assert [sample["label"] for sample in samples] == [{"_cls": "Classification", "label": name} for name in labels]
    assert [sample["text"] for sample in samples] == run.train.text["text"][:]
    assert json.loads((folder / "metadata.json").read_text())["name"] == "fiftyone"
    np.testing.assert_array_equal(np.load(folder / "points.npy"), kept_projection(run, run.train).coordinates)
    compile((folder / "show.py").read_text(), "show.py", "exec")


def test_datalab_finds_issues_in_it(run, tmp_path, capsys):
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cleanlab's own dependencies
        exec(exported(run, "datalab", tmp_path / "datalab"), names)
    lab = names["lab"]
    assert isinstance(lab, cleanlab.Datalab)
    issues = lab.get_issues("label")
    assert issues["given_label"].tolist() == [NAMES[label] for label in run.train.labels]
    logits = run.train.logits[:].astype(np.float64)
    probs = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(0)
    assert issues["predicted_label"].tolist() == [NAMES[best] for best in probs.argmax(-1)]
    assert "outlier" in lab.get_issue_summary()["issue_type"].tolist()  # which is of the features


def test_datalab_takes_no_example_that_was_never_seen(run, tmp_path):
    with pytest.raises(AnalysisError, match=r"example 0 of .* has no label, and Datalab takes no such example"):
        exported(seen_in_part(tmp_path), "datalab", tmp_path / "datalab")
    assert not (tmp_path / "datalab").exists()


def test_what_is_there_is_not_overwritten(run, tmp_path):
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        exported(run, "csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"


def test_an_export_that_is_not_known_or_lacks_what_it_shows(tmp_path):
    run = recorded(tmp_path, recorder={"hidden_states": None}, num_train_epochs=1)
    with pytest.raises(ConfigurationError, match="no export to 'excel'; there is one to parquet, csv"):
        exported(run, "excel", tmp_path / "out.xlsx")
    with pytest.raises(AnalysisError, match="holds no hidden_states, which projector needs; it holds: logits, loss"):
        exported(run, "projector", tmp_path / "projector")
    assert exported(run, "embedding-atlas", tmp_path / "out.parquet").endswith("--text text")
