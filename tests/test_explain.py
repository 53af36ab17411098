"""``t3vis explain``, on a run that a real Trainer has recorded and the models that it has saved."""

from pathlib import Path

import datasets
import pytest
from transformers import DataCollatorWithPadding

from t3vis import RecorderCallback
from t3vis.cli import main
from t3vis.plots_tokens import MAX_TOKENS
from tests.callbacks.tiny import LEARNING, tiny_model, tiny_trainer
from tests.probing.examples import WORDS, word_tokenizer

TEXTS = [f"it was a {word} film <b>" for word in WORDS[:6]] * 2
NAMES = {0: "negative", 1: "positive", 2: "<neither>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run, the model before (``raw``) and after (``tuned``) it."""
    made = tmp_path_factory.mktemp("explain")
    tokenizer = word_tokenizer()
    model = tiny_model("bert", id2label=NAMES, label2id={name: i for i, name in NAMES.items()})
    model.save_pretrained(made / "raw")
    tokenizer.save_pretrained(made / "raw")
    train = datasets.Dataset.from_dict({"text": TEXTS, "labels": [i % 3 for i in range(len(TEXTS))]})
    columns = tokenizer(TEXTS)
    for name in ("input_ids", "attention_mask"):
        train = train.add_column(name, columns[name])
    trainer = tiny_trainer(
        made / "out",
        RecorderCallback(made / "run.zarr"),
        model=model,
        train=train,
        options={"processing_class": tokenizer, "data_collator": DataCollatorWithPadding(tokenizer)},
        num_train_epochs=2,
        save_strategy="epoch",
        **LEARNING,
    )
    trainer.train()
    trainer.save_model(made / "tuned")
    return made


def explain(folder: Path, *arguments: str) -> int:
    return main(["explain", str(folder / "run.zarr"), "--model", str(folder / "tuned"), *arguments])


def test_an_example_of_the_run(folder, capsys):
    assert explain(folder, "--example", "3") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("example 3 of train\ntuned says ")
    assert "method cp_lrp; the tokens add up to" in printed
    assert "conservation error" in printed
    assert "\x1b" not in printed  # not a terminal
    lines = printed.splitlines()
    table = [line.split() for line in lines[lines.index(next(x for x in lines if x.startswith("position"))) + 1 :]]
    assert [cells[-1] for cells in table] == ["[CLS]", *TEXTS[3].split(), "[SEP]"]
    assert table[1][1] == "0-2"
    number = float(lines[1].rsplit(" ", 1)[1])
    shown = sum(float(cells[-2]) for cells in table)
    rest = float(lines[2].split("positions take ")[1].split()[0])
    assert shown + rest == pytest.approx(number, abs=5e-3)


def test_a_terminal_gets_colours(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert explain(folder, "--example", "0", "--method", "attnlrp") == 0
    printed = capsys.readouterr().out
    assert printed.count("\x1b[48;2;") == 8
    assert "position" not in printed.splitlines()[-1]


def test_two_models_beside_each_other_as_page_and_figure(folder, capsys, tmp_path):
    page, figure = tmp_path / "page.html", tmp_path / "figure.png"
    chosen = ("--class", "<neither>", "--method", "integrated_gradients")
    written = ("--html", str(page), "--plot", str(figure))
    assert explain(folder, "--example", "1", "--against", str(folder / "raw"), *chosen, *written) == 0
    printed = capsys.readouterr().out
    assert "tuned says <neither> with " in printed
    assert "raw says <neither> with " in printed
    assert "completeness error" in printed
    assert "the baseline take" in printed
    html = page.read_text(encoding="utf-8")
    assert html.count("&lt;neither&gt;") == 2
    assert html.count("&lt;b&gt;") == 2
    assert "<b>" not in html
    assert figure.stat().st_size > 5000
    assert len(TEXTS[1].split()) < MAX_TOKENS


def test_a_text_of_ones_own_needs_no_run(folder, capsys):
    assert main(["explain", str(folder / "tuned"), "--text", "not a very good plot", "--class", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("a text of your own\ntuned says positive with ")
    assert "plot" in printed


def test_epochs_are_explained_by_their_checkpoints(folder, capsys):
    run = str(folder / "run.zarr")
    assert main(["explain", run, "--example", "3"]) == 0
    last = capsys.readouterr().out
    assert last.splitlines()[1].startswith("epoch 1 says ")
    assert explain(folder, "--example", "3") == 0
    assert capsys.readouterr().out.replace("tuned", "epoch 1", 1).split("\n")[1] == last.split("\n")[1]
    assert main(["explain", run, "--example", "3", "--epoch", "0", "--against", "1", "--class", "negative"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("epoch 0 says negative")
    assert lines[3].startswith("epoch 1 says negative")
    assert lines[1].split()[-1] != lines[3].split()[-1]
    assert main(["explain", run, "--example", "3", "--epoch", "7"]) == 1
    assert "no checkpoint of pass 7 that is still there; passes with one: 0, 1." in capsys.readouterr().err


def test_methods_are_ranked(folder, capsys):
    assert explain(folder, "--rank-methods", "4") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["method", "comprehensiveness", "sufficiency"]
    assert len(printed) == 1 + 9
    assert any(line.startswith("random") for line in printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--example", "99"), "example 99 of train, which has 12."),
        (("--example", "0", "--method", "magic"), "there is no method 'magic'; choose one of cp_lrp"),
        (("--example", "0", "--class", "funny"), "the model has the classes negative, positive, <neither>"),
        (("--example", "0", "--split", "test"), "holds no split 'test'"),
        (("--rank-methods", "0"), "expected a number of examples, at least 1"),
    ],
)
def test_what_cannot_be_done_is_said(folder, capsys, arguments, message):
    assert explain(folder, *arguments) == 1
    assert message in capsys.readouterr().err


def test_without_a_model_there_is_nothing_to_explain(folder, capsys):
    assert main(["explain", str(folder / "tuned"), "--example", "0"]) == 1
    assert "is a model, which has no examples; pass --text" in capsys.readouterr().err
    assert main(["explain", str(folder / "run.zarr"), "--example", "0", "--model", str(folder)]) == 1
    assert "is no checkpoint of a model" in capsys.readouterr().err


def test_recorded_tokens_stand_for_a_text_that_would_be_read_otherwise(folder, capsys, tmp_path):
    """A model that was saved without its tokenizer explains the tokens that were recorded."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / "tuned" / file).read_bytes())
    assert main(["explain", str(folder / "run.zarr"), "--model", str(tmp_path), "--example", "3"]) == 0
    printed = capsys.readouterr().out
    assert "film" in printed
    assert main(["explain", str(folder / "run.zarr"), "--model", str(tmp_path), "--text", "a film"]) == 1
    assert "has no tokenizer" in capsys.readouterr().err
