"""The analyses of whole runs on disk, ordinary ones and odd ones."""

from pathlib import Path

import numpy as np
import pytest
import zarr

from t3vis import open_run
from t3vis.analysis import nearest
from t3vis.analysis.data_map import data_map
from t3vis.analysis.drift import cka
from t3vis.analysis.generalised import multi_label_map, regression_map
from t3vis.analysis.generalised_quality import multi_label_suspects, regression_suspects
from t3vis.analysis.label_quality import suspected_errors
from t3vis.analyze import (
    analyzed_data_map,
    analyzed_difficulty,
    analyzed_drift,
    analyzed_outliers,
    analyzed_separability,
    analyzed_suspects,
)
from t3vis.analyze_projection import analyzed_projection
from t3vis.errors import AnalysisError
from t3vis.findings import class_rows, findings, suspect_rows
from t3vis.store.commits import thin
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.reader import Run
from t3vis.store.results import read_result
from t3vis.store.seal import seal_pass
from t3vis.store.writer import create_run

N_LAYERS, HIDDEN = 3, 6
RESULTS = ["data_map", "difficulty", "drift", "label_quality", "layer_drift", "outliers", "progress", "separability"]


def recorded(
    path: Path,
    *,
    n_examples: int = 40,
    epochs: tuple[int, ...] = (0, 1, 2),
    labels: np.ndarray | None = None,
    task: str = "single_label",
    kind: str = "train",
    n_outputs: int = 3,
    hidden: bool = True,
    logits: bool = True,
    texts: list[str] | None = None,
    class_names: list[str] | None = None,
    spoil=lambda rows: None,
) -> Run:
    """A run whose logits and hidden states follow the labels more from epoch to epoch."""
    rng = np.random.default_rng(0)
    if labels is None:
        labels = rng.integers(0, n_outputs, n_examples)
    has_class = task in ("single_label", "multiple_choice")
    targets = labels if has_class else rng.integers(0, 2, (n_examples, n_outputs)).astype(np.float32)
    writer = create_run(path, {"model": {"class": "Tiny"}})
    name = "train" if kind == "train" else "eval"
    writer.add_split(name, {"kind": kind, "mode": kind, "n_examples": n_examples, "fingerprint": "f"})
    arrays = {"hidden_states": {"layers": list(range(N_LAYERS))}} if hidden else {}
    writer.describe(name, {"task": task, "class_names": class_names, "arrays": arrays})
    if texts is not None:
        examples = ExamplesWriter(path / name / "examples", n_examples)
        examples.add(Columns(texts={"text": texts}))
        examples.close()
    drawn = rng.normal(size=(n_examples, HIDDEN))
    for epoch in epochs:
        writer.begin_pass(name, epoch, {"epoch": epoch, "step": 5 * epoch})
        pull = (epoch + 1) * np.eye(max(n_outputs, HIDDEN))[np.maximum(labels, 0)]
        rows = {
            "example": rng.permutation(n_examples),
            "step": np.full(n_examples, 5 * epoch),
            "logits": (rng.normal(size=(n_examples, n_outputs)) + pull[:, :n_outputs]).astype(np.float32),
            "loss": rng.random(n_examples).astype(np.float32),
        }
        if hidden:
            noise = rng.normal(size=(N_LAYERS, n_examples, HIDDEN)) / 3
            rows["hidden_states"] = (drawn + noise + pull[:, :HIDDEN]).astype(np.float16)
        if not logits:
            del rows["logits"]
        rows["labels" if has_class else "targets"] = targets
        order = rows["example"]
        for array in rows:
            if array not in ("example", "step"):
                rows[array] = rows[array][:, order] if array == "hidden_states" else rows[array][order]
        spoil(rows)
        writer.log(name, rows)
    writer.close()
    for epoch in epochs:
        seal_pass(path, name, epoch)
    return open_run(path)


def stamps(run: Run) -> dict[str, int]:
    folder = run.path / "analysis" / "train"
    return {name: (folder / name / "zarr.json").stat().st_mtime_ns for name in RESULTS}


def test_each_result_is_what_the_analysis_says_and_says_what_it_is_of(tmp_path):
    run = recorded(tmp_path / "run.zarr")
    findings(run, run.train)
    expected = data_map(run.train.logits[:], run.train.labels)
    for name, column in expected.as_columns().items():
        np.testing.assert_array_equal(read_result(run.path, "train", "data_map").columns[name], column)
    states = run.train.hidden_states[:]
    found = analyzed_drift(run, run.train)
    np.testing.assert_array_equal(found.cka, cka(list(states[0]), list(states[-1])))
    assert (found.passes, found.layers) == ((0, 2), [0, 1, 2])
    for name in RESULTS:
        attributes = read_result(run.path, "train", name).attributes
        assert (attributes["mode"], attributes["fingerprint"], len(attributes["passes"])) == ("train", "f", 3), name
        assert "parameters" in attributes
        assert "t3vis" in attributes


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_every_array_and_every_result_carries_its_mode(tmp_path, kind):
    run = recorded(tmp_path / "run.zarr", kind=kind, n_examples=12)
    split = run.splits[kind]
    findings(run, split)
    class_rows(run, split)
    analyzed_projection(run, split, pass_index=1)
    assert {split.array(name).attributes["mode"] for name in split.arrays} == {kind}
    groups = dict(zarr.open_group(run.path / "analysis" / kind, mode="r").groups())
    assert groups.keys() > {*RESULTS, "neighbours_p0000_l02", "tsne_p0000_l02_still", "tsne_p0001_l02"}
    for name, group in groups.items():
        assert group.attrs["mode"] == kind, name
        assert {array.attrs["mode"] for _, array in group.arrays()} == {kind}, name


def test_what_is_read_from_the_store_is_what_was_computed(tmp_path):
    run = recorded(tmp_path / "run.zarr")
    analyses = (analyzed_data_map, analyzed_suspects, analyzed_outliers)
    for analysis in analyses:
        first, second = (analysis(run, run.train).as_columns() for _ in range(2))
        assert list(first) == list(second)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    first, second = (analyzed_separability(run, run.train) for _ in range(2))
    assert (first.passes, first.layers) == (second.passes, second.layers) == ([0, 1, 2], [0, 1, 2])
    assert first.figures["probe_accuracy"].shape == (3, 3)
    for name, figures in first.figures.items():
        np.testing.assert_array_equal(figures, second.figures[name], err_msg=name)
    first, second = (analyzed_drift(run, run.train) for _ in range(2))
    for name in ("cka", "displacement", "neighbourhood_change"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    first, second = (analyzed_difficulty(run, run.train) for _ in range(2))
    assert first.keys() == second.keys()


def test_neighbours_among_some_are_said_to_be_so_and_are_another_result(tmp_path, monkeypatch):
    run = recorded(tmp_path / "run.zarr")
    assert not any("drawn at random" in line for line in findings(run, run.train))
    before = stamps(run)
    monkeypatch.setattr(nearest, "MAX_REFERENCES", 11)
    said = findings(run, run.train)
    assert "  neighbours in hidden space: looked for among 11 examples drawn at random" in said
    assert read_result(run.path, "train", "outliers").attributes["parameters"] == {"n_references": 11}
    after = stamps(run)
    assert {name for name in RESULTS if after[name] != before[name]} == {
        "label_quality",
        "outliers",
        "drift",
        "layer_drift",
    }


def test_only_what_is_stale_is_computed_again(tmp_path):
    run = recorded(tmp_path / "run.zarr")
    findings(run, run.train)
    before = stamps(run)
    findings(run, run.train)
    assert stamps(run) == before
    findings(run, run.train, burn_in=1)
    after = stamps(run)
    assert [name for name in RESULTS if after[name] != before[name]] == ["data_map"]
    writer = create_run(run.path, {}, start_step=15, resume=True)
    writer.begin_pass("train", 3, {"epoch": 3, "step": 15})
    row = {"example": np.array([4]), "step": np.array([15]), "logits": np.zeros((1, 3), np.float32)}
    writer.log("train", row)
    writer.close()
    findings(run, run.train)
    assert all(stamps(run)[name] != after[name] for name in RESULTS)


def test_what_other_code_has_computed_is_computed_again(tmp_path, monkeypatch):
    run = recorded(tmp_path / "run.zarr")
    analyzed_suspects(run, run.train)
    result = read_result(run.path, "train", "label_quality")
    monkeypatch.setattr("t3vis.analyze.code_version", lambda: "another")
    again = analyzed_suspects(run, run.train)
    assert read_result(run.path, "train", "label_quality").attributes["t3vis"] == "another"
    assert result.attributes["t3vis"] != "another"
    np.testing.assert_array_equal(again.score, result.columns["score"])


def test_what_is_in_progress_is_no_end_of_a_change(tmp_path):
    run = recorded(tmp_path / "run.zarr")
    before = analyzed_drift(run, run.train)
    writer = create_run(run.path, {}, start_step=15, resume=True)
    writer.begin_pass("train", 3, {"epoch": 3, "step": 15})
    states = np.ones((N_LAYERS, 1, HIDDEN), np.float16)
    writer.log("train", {"example": np.array([4]), "step": np.array([15]), "hidden_states": states})
    writer.close()
    after = analyzed_drift(run, run.train)
    assert after.passes == (0, 2)
    np.testing.assert_array_equal(after.cka, before.cka)
    assert analyzed_separability(run, run.train).passes == [0, 1, 2]
    assert np.isfinite(analyzed_outliers(run, run.train).knn_distance).all()


def test_states_that_are_no_longer_kept_are_not_asked_for(tmp_path):
    run = recorded(tmp_path / "run.zarr")
    thin(run.path / "train", 0)
    assert analyzed_drift(run, run.train).passes == (1, 2)
    assert analyzed_separability(run, run.train).passes == [1, 2]
    run = recorded(tmp_path / "short.zarr", epochs=(0, 1))
    thin(run.path / "train", 0)
    with pytest.raises(AnalysisError, match="hidden states of a single pass"):
        analyzed_drift(run, run.train)


def test_evaluations_are_kept_apart_from_training(tmp_path):
    run = recorded(tmp_path / "run.zarr", kind="eval")
    assert "(eval mode)" in findings(run, run.evals["eval"])[0]
    assert read_result(run.path, "eval", "outliers").attributes["mode"] == "eval"
    assert read_result(run.path, "train", "outliers") is None


def test_epochs_that_are_missing_count_for_nothing(tmp_path):
    run = recorded(tmp_path / "run.zarr", epochs=(0, 2))
    lines = findings(run, run.train)
    assert not [line for line in lines if "not computed" in line]
    assert set(analyzed_data_map(run, run.train).n_seen) == {2}
    assert analyzed_separability(run, run.train).passes == [0, 2]


def test_one_class_only(tmp_path):
    run = recorded(tmp_path / "run.zarr", labels=np.zeros(40, np.int64))
    lines = findings(run, run.train)
    assert not [line for line in lines if "not computed" in line]
    assert np.isnan(analyzed_separability(run, run.train).figures["probe_accuracy"]).all()
    assert len(class_rows(run, run.train)) == 1


def test_a_head_with_one_output_has_no_label_to_suspect(tmp_path):
    run = recorded(tmp_path / "run.zarr", labels=np.zeros(40, np.int64), n_outputs=1)
    assert [line for line in findings(run, run.train) if "not computed" in line] == [
        "  label quality: not computed; logits has 1 classes but this analysis needs at least 2."
    ]


def test_logits_and_states_that_are_nan_are_examples_not_seen(tmp_path):
    def spoil(rows):
        chosen = np.isin(rows["example"], [3, 8])
        rows["logits"][chosen] = np.nan
        rows["hidden_states"][:, chosen] = np.nan

    run = recorded(tmp_path / "run.zarr", spoil=spoil)
    assert not [line for line in findings(run, run.train) if "not computed" in line]
    suspects, far = analyzed_suspects(run, run.train), analyzed_outliers(run, run.train)
    assert np.flatnonzero(np.isnan(suspects.score)).tolist() == [3, 8]
    assert np.flatnonzero(np.isnan(far.knn_distance)).tolist() == [3, 8]
    assert np.flatnonzero(np.isnan(analyzed_drift(run, run.train).displacement)).tolist() == [3, 8]


def test_nothing_but_nan_ends_with_an_answer(tmp_path):
    def spoil(rows):
        rows["logits"][:], rows["hidden_states"][:] = np.nan, np.nan

    run = recorded(tmp_path / "run.zarr", spoil=spoil)
    assert "  never seen: 40; seen in some passes only: 0" in findings(run, run.train)
    assert np.isnan(analyzed_suspects(run, run.train).score).all()


def test_duplicates_lie_at_distance_zero_and_break_nothing(tmp_path):
    def spoil(rows):
        rows["hidden_states"][:] = 1

    run = recorded(tmp_path / "run.zarr", spoil=spoil)
    assert not [line for line in findings(run, run.train) if "not computed" in line]
    np.testing.assert_allclose(analyzed_outliers(run, run.train).knn_distance, 0, atol=1e-6)
    assert np.isnan(analyzed_drift(run, run.train).cka).all()


@pytest.mark.parametrize("n_examples", [1, 3])
def test_a_handful_of_examples(tmp_path, n_examples):
    run = recorded(tmp_path / "run.zarr", n_examples=n_examples)
    (line,) = [line for line in findings(run, run.train) if "not computed" in line]
    assert line.startswith(f"  map: not computed; {n_examples} examples of ")
    assert len(analyzed_suspects(run, run.train).ranking()) == n_examples


def test_without_hidden_states_the_rest_is_there(tmp_path):
    run = recorded(tmp_path / "run.zarr", hidden=False)
    lines = [line for line in findings(run, run.train) if "not computed" in line]
    assert [line.split(":")[0].strip() for line in lines] == ["layers", "outliers", "drift", "map"]
    assert all("holds no hidden states, " in line for line in lines)
    assert np.isnan(analyzed_suspects(run, run.train).neighbour_agreement).all()


def test_without_logits_the_rest_is_there(tmp_path):
    run = recorded(tmp_path / "run.zarr", logits=False)
    lines = findings(run, run.train)
    assert lines[0] == "train: 40 examples over 3 passes, without logits"
    missing = [line.split(":")[0].strip() for line in lines if "not computed" in line]
    assert missing == ["label quality", "difficulty"]


def test_nothing_recorded_yet_is_an_error(tmp_path):
    run = recorded(tmp_path / "run.zarr", epochs=())
    with pytest.raises(AnalysisError, match="nothing was recorded"):
        analyzed_data_map(run, run.train)


def test_a_single_pass_has_no_drift(tmp_path):
    run = recorded(tmp_path / "run.zarr", epochs=(0,))
    (line,) = [line for line in findings(run, run.train) if "not computed" in line]
    assert line.endswith("holds hidden states of a single pass; change needs two.")


@pytest.mark.parametrize(
    ("task", "map_of", "suspects_of"),
    [
        ("multi_label", multi_label_map, multi_label_suspects),
        ("regression", regression_map, regression_suspects),
    ],
)
def test_several_labels_and_numbers_have_answers_of_their_own(tmp_path, task, map_of, suspects_of):
    run = recorded(tmp_path / "run.zarr", task=task)
    logits, targets = run.train.logits[:], run.train.labels
    expected = map_of(logits, targets)
    np.testing.assert_array_equal(analyzed_data_map(run, run.train).confidence, expected.confidence)
    suspects = analyzed_suspects(run, run.train)
    alone = suspects_of(logits, targets)
    if task == "regression":
        np.testing.assert_array_equal(suspects.self_confidence, alone.self_confidence)
    assert np.isfinite(suspects.neighbour_agreement).all()
    assert np.isnan(alone.neighbour_agreement).all()
    assert not np.array_equal(suspects.score, alone.score)
    far = analyzed_outliers(run, run.train)
    assert np.isfinite(far.score).all()
    assert np.isfinite(far.mahalanobis).all()
    assert np.isnan(far.mahalanobis_own).all()
    lines = findings(run, run.train)
    assert [line.split(":")[0].strip() for line in lines if "not computed" in line] == ["difficulty", "layers"]
    what = "more suspicious than credible" if task == "regression" else "less credible than another"
    assert any(line.startswith(f"  labels {what}: {(suspects.score > 1 / 2).sum()} (") for line in lines)
    (first,) = suspect_rows(run, run.train, 1)
    assert first["suggested"] == ("" if task == "regression" else str(suspects.suggested_label[suspects.ranking()[0]]))
    with pytest.raises(AnalysisError, match="has no classes"):
        class_rows(run, run.train)


def test_choices_are_judged_by_the_model_alone(tmp_path):
    run = recorded(tmp_path / "run.zarr", task="multiple_choice")
    expected = suspected_errors(run.train.logits[:], run.train.labels)
    np.testing.assert_array_equal(analyzed_suspects(run, run.train).score, expected.score)
    np.testing.assert_allclose(analyzed_data_map(run, run.train).confidence, expected.self_confidence, atol=1e-6)
    assert np.isnan(analyzed_outliers(run, run.train).mahalanobis_own).all()


@pytest.mark.parametrize("task", ["question_answering", "token_classification", "causal_lm"])
def test_a_task_that_an_analysis_is_not_of_is_refused_by_name(tmp_path, task):
    run = recorded(tmp_path / "run.zarr", task=task)
    name = task.replace("_", " ")
    with pytest.raises(AnalysisError, match=f"is a {name} task; there is a data map of single_label"):
        analyzed_data_map(run, run.train)
    with pytest.raises(AnalysisError, match=f"is a {name} task; there is a label quality of single_label"):
        analyzed_suspects(run, run.train)
    assert np.isfinite(analyzed_outliers(run, run.train).score).all()


def test_wrong_labels_are_found_by_the_neighbours_too(tmp_path):
    truth = np.random.default_rng(5).integers(0, 3, 300)
    planted = np.arange(0, 300, 15)
    given = truth.copy()
    given[planted] = (truth[planted] + 1) % 3

    def spoil(rows):
        rows["labels"][:] = given[rows["example"]]

    run = recorded(tmp_path / "run.zarr", n_examples=300, labels=truth, spoil=spoil)
    suspects = analyzed_suspects(run, run.train)
    assert np.isin(suspects.ranking()[:20], planted).mean() > 0.8
    assert (suspects.suggested_label[planted] == truth[planted]).mean() > 0.8
    assert np.isfinite(suspects.neighbour_agreement).all()
