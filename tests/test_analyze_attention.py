"""Attention of a run's own model on its own examples: computed from its checkpoint, kept, drawn, printed."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from t3vis import open_run
from t3vis.analysis.attention_patterns import PATTERNS
from t3vis.analyze_attention import TABLES, analyzed_attention
from t3vis.checkpointed import pass_with_checkpoint
from t3vis.cli import main
from t3vis.errors import ProbingError
from t3vis.probing.attention_patterns import attention_patterns, vocabulary_of
from t3vis.probing.model import load_model
from t3vis.store.results import read_result
from tests.callbacks.tiny import VOCABULARY, as_dataset, recorded, tiny_rows

SEP = 2


def word_tokenizer():
    """Tokens named after their ids, but for the special ones and a full stop."""
    names = ["[PAD]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(3, VOCABULARY - 1)), "."]
    made = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[PAD]"))
    made.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", SEP)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", sep_token="[SEP]", model_max_length=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One epoch, and a checkpoint at its end."""
    options = {"processing_class": word_tokenizer()}
    train = as_dataset([{**row, "label": row["labels"]} for row in tiny_rows(20)])
    folder = tmp_path_factory.mktemp("attention")
    return recorded(folder, train=train, options=options, num_train_epochs=1, save_strategy="epoch")


@pytest.fixture(scope="module")
def found(run):
    return analyzed_attention(run, run.train)


def test_the_heads_of_the_checkpoint_on_the_examples_of_the_run(run, found):
    folder = pass_with_checkpoint(run.train)[1].path
    rows = [{"input_ids": run.train.token_ids[i].tolist()} for i in range(20)]
    expected = attention_patterns(load_model(folder), rows, vocabulary_of(word_tokenizer()))
    for name, values in vars(expected).items():
        if name != "attention":
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-5, atol=1e-7, err_msg=name)
    assert found.attention == ("self", "self")
    assert not np.isnan(found.of("sep")).any()


def test_it_is_kept_in_the_store(run, found, monkeypatch):
    result = read_result(run.path, "train", "attention_patterns_p0000")
    np.testing.assert_array_equal(result.columns["mass"], found.mass)
    assert result.attributes["patterns"] == list(PATTERNS)
    assert result.attributes["n_examples"] == 20
    assert result.attributes["mode"] == "eval"
    monkeypatch.setattr("t3vis.probing.model.load_model", None)  # what is kept needs no model
    kept = analyzed_attention(open_run(run.path), run.train)
    assert kept.attention == found.attention
    for table in TABLES.values():
        for name in table[1]:
            np.testing.assert_array_equal(getattr(kept, name), getattr(found, name))
    with pytest.raises(TypeError):
        analyzed_attention(run, run.train, max_examples=5)  # but other examples do


def test_a_pass_that_is_not_there(run):
    with pytest.raises(ProbingError, match=r"no checkpoint of pass 7 that is still there; passes with one: 0\."):
        analyzed_attention(run, run.train, pass_index=7)


def test_a_run_without_checkpoints(tmp_path):
    run = recorded(tmp_path, train=as_dataset(tiny_rows(4)), num_train_epochs=1)
    with pytest.raises(ProbingError, match="no checkpoint"):
        analyzed_attention(run, run.train)


def test_a_checkpoint_without_a_tokenizer(tmp_path):
    run = recorded(tmp_path, train=as_dataset(tiny_rows(4)), num_train_epochs=1, save_strategy="epoch")
    with pytest.raises(ProbingError, match="no tokenizer"):
        analyzed_attention(run, run.train)


def test_the_command_prints_and_draws(run, found, capsys, tmp_path):
    assert main(["attention", str(run.path), "--output", str(tmp_path / "heads.png")]) == 0
    printed = capsys.readouterr().out
    layer, head = np.unravel_index(found.of("sep").argmax(), found.of("sep").shape)
    row = next(line.split() for line in printed.splitlines() if line.startswith("sep "))
    assert row[:3] == ["sep", f"L{layer}H{head}", f"{found.of('sep').max():.3f}"]
    assert (tmp_path / "heads.png").stat().st_size > 5000


def test_the_command_draws_one_example(run, capsys, tmp_path):
    output = tmp_path / "example.png"
    assert main(["attention", str(run.path), "--example", "3", "--head", "1.0", "--output", str(output)]) == 0
    assert output.stat().st_size > 5000
    assert "example 3, layer 1, head 0" in capsys.readouterr().out
    assert main(["attention", str(run.path), "--example", "99"]) == 1
    assert "no example 99" in capsys.readouterr().err


def test_the_command_reads_texts_and_parses_of_ones_own(run, capsys, tmp_path):
    folder = str(pass_with_checkpoint(run.train)[1].path)
    texts, parse, output = tmp_path / "a.txt", tmp_path / "a.conllu", str(tmp_path / "heads.svg")
    texts.write_text("w5\nw6\n\nw7\n")
    arcs = ["1\tw5\t_\t_\t_\t_\t2\tdet\t_\t_", "2\tw6\t_\t_\t_\t_\t0\troot\t_\t_", ""]
    parse.write_text("\n".join(arcs * 60))
    assert main(["attention", "--model", folder, "--texts", str(texts), "--output", output]) == 0
    assert "delimiter" in capsys.readouterr().out
    assert main(["attention", "--model", folder, "--conllu", str(parse), "--output", output]) == 0
    assert "det " in capsys.readouterr().out


def test_the_command_without_anything_to_read(capsys, tmp_path):
    assert main(["attention", "--model", str(tmp_path)]) == 1
    assert "name a RUN" in capsys.readouterr().err
