"""The command line, run as a user runs it: on a run that a real Trainer has recorded."""

import argparse
import contextlib
import csv
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from t3vis import open_run
from t3vis.analyze import MEANINGS
from t3vis.cli import main, parser
from t3vis.commands import analyses
from t3vis.commands.demo import planted_errors_found
from t3vis.commands.output import table
from t3vis.findings import RANKED_BY, RANKINGS
from t3vis.store.results import read_result
from t3vis.store.writer import create_run

RUN = Path("runs/demo.zarr")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has been run, on few examples."""
    folder = tmp_path_factory.mktemp("cli")
    with contextlib.chdir(folder):
        assert main(["demo", "--examples", "240", "--epochs", "2", "--output", str(RUN)]) == 0
    return folder


@pytest.fixture
def in_demo_folder(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(demo_folder)
    return demo_folder


def commands() -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices)


def example_of(command: argparse.ArgumentParser) -> list[str]:
    found = re.fullmatch(r"example: t3vis (.+)", command.epilog or "")
    assert found, f"{command.prog} has no example in its help"
    return shlex.split(found[1])


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "info",
        "analyze",
        "suspects",
        "rank",
        "classes",
        "select",
        "plot",
        "report",
        "project",
        "attention",
        "verify",
        "repair",
        "compact",
        "push",
        "export",
    ],
)
def test_example_in_help_runs(name: str, in_demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = example_of(commands()[name])
    assert arguments[0] == name
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip()


def test_every_command_is_tested() -> None:
    above = (
        "analyze attention classes compact demo export info plot project push rank repair report select suspects verify"
    )
    elsewhere = "explain heads"  # they need a checkpoint: test_explain.py, test_heads_command.py
    elsewhere += " merge"  # it needs parts: callbacks/test_processes.py
    elsewhere += " serve view"  # they serve until they are interrupted: viewer/test_view_command.py
    assert sorted(commands()) == sorted(f"{above} {elsewhere}".split())


def test_demo_says_where_to_look_and_how_many_errors_it_found(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--examples", "120", "--epochs", "1", "--output", "runs/tiny.zarr"]) == 0
    printed = capsys.readouterr().out
    for path in re.findall(r"^the (?:run|data map|model)\s+(\S+)$", printed, re.MULTILINE):
        assert Path(path).exists()
    assert len(re.findall(r"^the (?:run|data map|model) ", printed, re.MULTILINE)) == 3
    run = open_run("runs/tiny.zarr")
    assert run.train.n_examples == 108
    assert "of 5 planted wrong labels" in printed  # 5 % of 108, rounded
    assert run.epochs[0].n_never == 0
    assert run.missing_rows == 0


def test_demo_refuses_to_overwrite_unless_asked(in_demo_folder: Path, capsys) -> None:
    before = open_run(RUN).attributes["t3vis"]["created"]
    assert main(["demo", "--examples", "60", "--epochs", "1", "--output", str(RUN)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert open_run(RUN).attributes["t3vis"]["created"] == before


def test_demo_on_a_file_of_ones_own(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"{word} {i} of many words", "label": word} for i in range(40) for word in ("good", "bad")]
    with Path("mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    assert main(["demo", "--dataset", "mine.csv", "--epochs", "1", "--output", "mine.zarr", "--wrong-labels", "0"]) == 0
    assert "planted wrong labels," not in capsys.readouterr().out
    run = open_run("mine.zarr")
    assert run.train.class_names == ["bad", "good"]
    assert {run.train.text["text"][i] for i in range(72)} < {row["text"] for row in rows}


def test_planted_errors_found_counts_the_top_twentieth() -> None:
    ranking = np.arange(100)[::-1]  # 99 is the most suspicious; the top 5 % are 99, 98, 97, 96, 95
    said = planted_errors_found(ranking, np.array([0, 50, 95, 96]), 100)
    assert "of 4 planted wrong labels, 2 stand among the top 5 % of suspects (5)" in said
    assert "precision 0.400 against a base rate of 0.040, 10.0 times as many" in said


def test_info_names_model_settings_and_coverage(in_demo_folder: Path, capsys) -> None:
    assert main(["info", str(RUN)]) == 0
    printed = capsys.readouterr().out
    for part in (
        "BertForSequenceClassification",
        "train: 216 examples",
        "epoch 1: step 7, 216 seen",
        "learning_rate",
        "transformers 5.",
        "eval: 24 examples",
    ):
        assert part in printed


def test_suspects_are_the_ranking_of_the_analysis(in_demo_folder: Path, capsys) -> None:
    assert main(["suspects", str(RUN), "--top", "7", "--csv", "seven.csv"]) == 0
    printed = capsys.readouterr().out
    with Path("seven.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == list("1234567")
    split = open_run(RUN).train
    result = read_result(RUN, "train", "label_quality")
    assert result is not None
    scores = result.columns["score"]
    assert [float(row["score"]) for row in rows] == pytest.approx(np.sort(scores)[::-1][:7], abs=6e-4)
    for row in rows:
        example = split.example(int(row["example"]))
        assert row["text"].startswith(example.text["text"])
        assert row["label"] == example.label_name
        assert row["suggested"] != row["label"]
        assert row["example"] in printed


def test_analyze_computes_again_only_when_something_changed(in_demo_folder: Path) -> None:
    marker = RUN / "analysis" / "train" / "data_map" / "zarr.json"

    def analyzed(*options: str) -> int:
        assert main(["analyze", str(RUN), *options]) == 0
        return marker.stat().st_mtime_ns

    first = analyzed()
    assert analyzed() == first
    assert analyzed("--burn-in", "1") > first
    assert read_result(RUN, "train", "data_map").attributes["parameters"] == {"burn_in": 1, "burn_out": None}


def test_analysis_is_plain_zarr(in_demo_folder: Path) -> None:
    import zarr

    assert main(["analyze", str(RUN)]) == 0
    group = zarr.open_group(RUN, mode="r")["analysis/train/data_map"]
    assert group["confidence"].shape == (216,)
    assert group["confidence"].metadata.dimension_names == ("example",)
    assert group["confidence"].attrs["description"]
    result = read_result(RUN, "train", "data_map")
    np.testing.assert_array_equal(group["never_learned"][:], result.columns["never_learned"])


def test_analyze_an_evaluation_set(in_demo_folder: Path, capsys) -> None:
    assert main(["analyze", str(RUN), "--split", "eval"]) == 0
    assert "24 examples over 2 passes (eval mode)" in capsys.readouterr().out


def test_analyze_says_what_it_found_of_every_kind(in_demo_folder: Path, capsys) -> None:
    assert main(["analyze", str(RUN)]) == 0
    printed = capsys.readouterr().out
    for part in (
        "train: 216 examples over 2 passes (train mode)",
        "accuracy, pass by pass: 0.",
        "labels less credible than another: ",
        "predictions that changed more than once: ",
        "accuracy of a linear probe, by pass and layer:",
        "outliers with a score above 0.95: ",
        "similarity of each layer in pass 1 to itself in pass 0 (linear CKA):",
        " of 216 examples: trustworthiness 0.",
    ):
        assert part in printed
    assert "not computed" not in printed


def test_every_ranking_can_be_asked_for() -> None:
    assert list(RANKINGS) == list(analyses.RANKINGS)


@pytest.mark.parametrize("by", list(RANKINGS))
def test_rank_prints_the_first_of_each_ranking(by: str, in_demo_folder: Path, capsys) -> None:
    assert main(["rank", str(RUN), "--by", by, "--top", "5"]) == 0
    *lines, blank, meaning = capsys.readouterr().out.splitlines()
    assert blank == ""
    assert meaning == f"{by}: {MEANINGS[RANKED_BY[by]]} (train mode)"
    assert lines[0].split() == ["rank", "example", by, "label", "text"]
    run = open_run(RUN)
    values = np.asarray(RANKINGS[by](run, run.train), dtype=float)
    shown = [int(line.split()[1]) for line in lines[1:]]
    assert values[shown].tolist() == np.sort(values)[::-1][:5].tolist()
    assert lines[1].split()[3] in run.train.class_names[run.train.labels[shown[0]]]


def test_classes_are_listed_from_the_hardest(in_demo_folder: Path, capsys) -> None:
    assert main(["classes", str(RUN)]) == 0
    heading, *lines, _, meaning = capsys.readouterr().out.splitlines()
    assert meaning.startswith("means over the examples of each class (train mode)")
    assert heading.split() == [
        "confidence", "variability", "correctness", "forgotten", "suspicion", "examples", "class",
    ]  # fmt: skip
    run = open_run(RUN)
    assert {line.split()[-1] for line in lines} == {name.split()[-1] for name in run.train.class_names}
    assert sum(int(line.split()[5]) for line in lines) == 216
    confidences = [float(line.split()[0]) for line in lines]
    assert confidences == sorted(confidences)


def test_select_and_its_complement_make_up_all_examples(in_demo_folder: Path, capsys) -> None:
    options = ["select", str(RUN), "--strategy", "hard", "--fraction", "0.25", "--balanced", "--output"]
    assert main([*options, "hard.txt"]) == 0
    assert re.search(
        r"\d+ of 216 example ids written to hard.txt, one in a line \(25%, hard\)", capsys.readouterr().out
    )
    assert main([*options, "rest.txt", "--drop"]) == 0
    hard, rest = ([int(line) for line in Path(name).read_text().split()] for name in ("hard.txt", "rest.txt"))
    assert sorted([*hard, *rest]) == list(range(216))
    labels = open_run(RUN).train.labels
    expected = np.rint(0.25 * np.bincount(labels))
    assert np.bincount(labels[hard], minlength=len(expected)).tolist() == expected.tolist()


def test_plot_writes_beside_the_run(in_demo_folder: Path, capsys) -> None:
    assert main(["plot", str(RUN), "--suspects", "3"]) == 0
    written = Path("runs/demo-train-data-map.png")
    assert str(written) in capsys.readouterr().out
    assert written.read_bytes().startswith(b"\x89PNG")


def test_report_is_written_beside_the_run(in_demo_folder: Path, capsys) -> None:
    assert main(["report", str(RUN)]) == 0
    written = Path("runs/demo-report.html")
    size = written.stat().st_size / 1e6
    assert capsys.readouterr().out == f"report written to {written} ({size:.1f} MB); open it in a browser\n"
    assert f"<title>{RUN.name}: t3vis report</title>" in written.read_text()
    assert main(["report", str(RUN), "--output", "no/such/report.html"]) == 1
    assert "no/such/report.html cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["layers", "drift", "classes"])
def test_plot_draws_layers_and_classes_too(what: str, in_demo_folder: Path, capsys) -> None:
    assert main(["plot", str(RUN), "--what", what]) == 0
    written = Path(f"runs/demo-train-{what}.png")
    assert str(written) in capsys.readouterr().out
    assert written.read_bytes().startswith(b"\x89PNG")


def test_project_says_on_the_figure_and_in_text_how_far_to_trust_it(in_demo_folder: Path, capsys) -> None:
    assert main(["project", str(RUN), "--output", "last.svg", "--color", "neighbour_overlap"]) == 0
    said = capsys.readouterr().out
    drawn = Path("last.svg").read_text()
    for part in (
        "demo-train-tsne-p0001-l03",
        *re.findall(r"trustworthiness \d\.\d{3}|neighbour recall \d\.\d{3}", said),
        *re.findall(r"moved by \d\.\d\d radii since .*where nothing changes\)", said),
        "neighbour overlap",
    ):
        assert f"<!-- {part}" in drawn or part in drawn
    assert "216 examples (train mode)" in said
    assert read_result(RUN, "train", "tsne_p0001_l03").columns["x"].shape == (216,)


def test_project_interrupted_goes_on_from_there(in_demo_folder: Path, monkeypatch, capsys) -> None:
    def interrupt(*_: object, **__: object) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return False

    with monkeypatch.context() as patched:
        patched.setattr("t3vis.analyze_maps.tqdm.set_postfix_str", interrupt)
        before = signal.getsignal(signal.SIGINT)
        assert main(["project", str(RUN), "--epoch", "0", "--seed", "7"]) == 1
        assert signal.getsignal(signal.SIGINT) is before
    assert "was stopped after 9 of 600 iterations; the same call goes on from there" in capsys.readouterr().err
    assert main(["project", str(RUN), "--epoch", "0", "--seed", "7"]) == 0
    assert read_result(RUN, "train", "tsne_p0000_l02_stopped") is None


def test_verify_names_what_is_damaged_and_ends_with_status_1(in_demo_folder: Path, capsys) -> None:
    shutil.copytree(RUN, "damaged.zarr")
    shard = next(Path("damaged.zarr/train/logits/c/1").rglob("0/0"))
    os.truncate(shard, 100)
    assert main(["verify", "damaged.zarr"]) == 1
    said = capsys.readouterr()
    assert "train/logits, pass 1, rows 0 to 215: it does not end in an index" in said.out
    assert str(shard) in said.out
    assert said.err == "t3vis: damaged.zarr is damaged: 1 problem, named above; all else can be read as before.\n"
    assert main(["verify", str(RUN)]) == 0
    assert capsys.readouterr().out == f"{RUN} is whole\n"


def test_repair_says_what_it_did_and_what_it_left(in_demo_folder: Path, capsys) -> None:
    shutil.copytree(RUN, "died.zarr")
    writer = create_run(Path("died.zarr"), {}, start_step=14, resume=True)
    writer.begin_pass("train", 2, {"epoch": 2, "step": 14})
    rows = {"example": np.array([3]), "step": np.array([14]), "loss": np.array([0.5], np.float32)}
    writer.log("train", rows)
    writer.flush()
    del writer
    leftover = Path("died.zarr/train/loss/zarr.json.1.partial")
    leftover.touch()
    assert main(["repair", "died.zarr"]) == 0
    said = capsys.readouterr().out
    assert said == f"removed {leftover}\ntrain:2 was recorded in part: resume training, or seal it with --incomplete\n"
    assert main(["repair", "died.zarr", "--incomplete"]) == 0
    assert "sealed train:2\n" in capsys.readouterr().out
    assert open_run("died.zarr").epochs[2].sealed
    assert main(["repair", "died.zarr"]) == 0
    assert capsys.readouterr().out == "died.zarr: nothing to repair\n"


def test_compact_says_what_was_gained(in_demo_folder: Path, capsys) -> None:
    assert main(["compact", str(RUN), "thin.zarr", "--compression", "lz4", "--keep-layers", "2", "0"]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"thin\.zarr: [\d,]+ bytes, \d+% of the [\d,]+ of {RUN}\n", said)
    run = open_run("thin.zarr")
    assert run.train.layers == [0, 2]
    np.testing.assert_array_equal(run.train.hidden_states[:, 1], open_run(RUN).train.hidden_states[:, 2])


def test_push_copies_what_is_new(in_demo_folder: Path, capsys) -> None:
    assert main(["push", str(RUN), "copy.zarr"]) == 0
    n_shards, n_bytes = re.fullmatch(
        r"copy\.zarr: (\d+) shards \(([\d,]+) bytes\) copied, 0 were there already\n", capsys.readouterr().out
    ).groups()
    assert int(n_shards) > 10
    assert int(n_bytes.replace(",", "")) > 10_000
    np.testing.assert_array_equal(open_run("copy.zarr").train.logits, open_run(RUN).train.logits)
    assert main(["push", str(RUN), "copy.zarr"]) == 0
    assert capsys.readouterr().out == f"copy.zarr: 0 shards (0 bytes) copied, {n_shards} were there already\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push", "nowhere.zarr", "copy.zarr"], "expected a t3vis run at nowhere.zarr, found nothing"),
        (["verify", "nowhere.zarr"], "expected a t3vis run at nowhere.zarr, found nothing"),
        (["repair", "nowhere.zarr"], "expected a t3vis run at nowhere.zarr, found nothing"),
        (["compact", str(RUN), str(RUN)], "already exists"),
        (["compact", str(RUN), "new.zarr", "--keep-epochs", "7"], "holds no epoch 7; it holds [0, 1]"),
        (["compact", str(RUN), "new.zarr", "--drop-layers", "99"], "holds no hidden state 99"),
        (["info", "nowhere.zarr"], "expected a t3vis run at nowhere.zarr, found nothing"),
        (["analyze", str(RUN), "--split", "dev"], "holds no split 'dev'; it holds: train, eval"),
        (["analyze", str(RUN), "--burn-in", "9"], "burn_in=9"),
        (["suspects", str(RUN), "--top", "0"], "--top 0"),
        (["rank", str(RUN), "--top", "-1"], "--top -1"),
        (["select", str(RUN), "--fraction", "2", "--output", "ids.txt"], "fraction is 2"),
        (["select", str(RUN), "--output", "no/such/ids.txt"], "cannot be written"),
        (["suspects", str(RUN), "--csv", "no/such/folder.csv"], "cannot be written"),
        (["plot", str(RUN), "--output", "map.bmp"], ".bmp"),
        (["plot", str(RUN), "--output", "no/such/map.png"], "No such file or directory: 'no/such/map.png'"),
        (["push", str(RUN), "/proc/no/such"], "No such file or directory"),
        (
            ["project", str(RUN), "--layer", "9"],
            "holds no hidden states of layer 9 in pass 1; it holds layers [0, 1, 2, 3]",
        ),
        (["project", str(RUN), "--method", "pca", "--color", "neighbour_overlap"], "was not started from another"),
        (["demo", "--dataset", "missing.csv", "--output", "new.zarr"], "missing.csv"),
    ],
)
def test_errors_are_one_line_and_status_1(arguments, message, in_demo_folder: Path, capsys) -> None:
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("t3vis: ")
    assert message in said
    assert "Traceback" not in said


def test_what_is_not_installed_is_said_in_one_line(in_demo_folder: Path, monkeypatch, capsys) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "t3vis.plots", raising=False)
    assert main(["plot", str(RUN)]) == 1
    assert (
        capsys.readouterr().err == 't3vis: t3vis.plots needs matplotlib; install it with: pip install "t3vis[plots]"\n'
    )


def test_an_interrupt_ends_with_a_line_and_its_own_status(in_demo_folder: Path, monkeypatch, capsys) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("t3vis.findings.findings", interrupted)
    assert main(["analyze", str(RUN)]) == 130
    assert capsys.readouterr().err == "t3vis: interrupted\n"


def test_table_cuts_the_last_column_only() -> None:
    rows = [{"a": "1", "text": "x" * 50}, {"a": "22", "text": "short\nlines"}]
    assert table(rows, 30).splitlines() == ["a   text", "1   " + "x" * 25 + "…", "22  short lines"]
    assert table([], 30) == "none"
