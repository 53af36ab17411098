"""The example scripts, each on a few sentences in the format of its data; what is wrong there must come out first."""

from __future__ import annotations

import gzip
import random
import re
import runpy
from pathlib import Path

import pytest

from t3vis import open_run

EXAMPLES = Path(__file__).parents[1] / "examples"
NOUNS, VERBS = ("dog", "cat", "bird", "horse", "child"), ("sees", "hears", "likes", "follows")
GERMAN = {"dog": "Hund", "cat": "Katze", "bird": "Vogel", "horse": "Pferd", "child": "Kind"} | {
    "sees": "sieht", "hears": "hört", "likes": "mag", "follows": "folgt",
}  # fmt: skip


def words(rng: random.Random) -> list[str]:
    """A sentence of five words."""
    return ["the", rng.choice(NOUNS), rng.choice(VERBS), "the", rng.choice(NOUNS)]


def said_by(name: str, capsys: pytest.CaptureFixture[str], data: Path, out: Path, *options: str) -> list[str]:
    """What a script prints, but for the lines of the Trainer and of the recorder."""
    main = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")["main"]
    capsys.readouterr()
    main(["--data", str(data), "--out", str(out), *options])
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]


def test_token_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, tags, blocks = random.Random(0), ["DET", "NOUN", "VERB", "DET", "NOUN"], []
    for number in range(150):
        sentence = words(rng)
        given = ["DET", "VERB", "VERB", "DET", "NOUN"] if number == 77 else tags
        fields = [f"{i}\t{w}\t{w}\t{t}" + "\t_" * 6 for i, (w, t) in enumerate(zip(sentence, given, strict=True), 1)]
        blocks.append("\n".join([f"# sent_id = {number}", f"1-2\t{sentence[0]}{sentence[1]}" + "\t_" * 8, *fields]))
    data = tmp_path / "small.conllu"
    data.write_text("\n\n".join(blocks) + "\n\n")
    lines = said_by("token_classification", capsys, data, tmp_path / "run.zarr", "--epochs", "6", "--show", "1")
    assert lines[0].startswith("750 words, 99.")
    assert re.match(r"0\.\d{4}  \w+: VERB \(1\), or NOUN \(\d+\)\?  the ", lines[2])
    assert lines[4] == lines[2]
    assert open_run(tmp_path / "run.zarr").train.attributes["task"] == "token_classification"


def test_causal_lm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    speeches = ["A:\n" + " ".join(words(rng)) + "." for _ in range(120)]
    speeches[50] = "A:\nlikes likes dog the the sees."
    data = tmp_path / "input.txt"
    data.write_text("\n\n".join(speeches))
    lines = said_by("causal_lm", capsys, data, tmp_path / "run.zarr", "--epochs", "8", "--show", "1")
    first, *_, last = map(float, lines[0].split(":")[1].split())
    assert last < 4 < first
    assert "likes likes dog" in lines[2]
    run = open_run(tmp_path / "run.zarr")
    assert run.train.attributes["task"] == "causal_lm"
    assert run.train.n_examples == 120


def test_translation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    for name, n_pairs in (("train", 160), ("val", 20)):
        english = [words(rng) for _ in range(n_pairs)]
        german = [" ".join(["das", *(GERMAN.get(word, "das") for word in sentence[1:])]) for sentence in english]
        if name == "train":
            german[80] = "folgt das hört das"
        for language, side in (("en", [" ".join(sentence) for sentence in english]), ("de", german)):
            with gzip.open(tmp_path / f"{name}.{language}.gz", "wt", encoding="utf-8") as file:
                file.write("\n".join(side) + "\n")
    options = ("--pairs", "160", "--epochs", "6", "--show", "1")
    lines = said_by("translation", capsys, tmp_path, tmp_path / "run.zarr", *options)
    assert [line.split(":")[0] for line in lines if ": mean loss " in line] == ["train", "eval"]
    assert "folgt das hört das" in lines[4]
    run = open_run(tmp_path / "run.zarr")
    assert [split.attributes["task"] for split in run.splits.values()] == ["seq2seq_lm"] * 2
    assert run.train.array("decoder_hidden_states").shape == (6, 3, 160, 128)
