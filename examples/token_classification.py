"""Parts of speech of a UD treebank: a data map of its words, and which annotations it doubts.

    python examples/token_classification.py --data path/to/treebank --out runs/ud.zarr

Any CoNLL-U files will do (https://universaldependencies.org). Without ``--model`` a small BERT is trained from nothing.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from t3vis import RecorderCallback, open_run
from t3vis.analysis.generalised import by_sentence
from t3vis.token_table import TokenTable, token_table

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "ewt"
MAX_TOKENS = 128
IGNORED = -100


class Word(NamedTuple):
    """A word, its part of speech, and whether the treebank says itself that it is misspelt or split in two."""

    form: str
    tag: str
    is_misspelt: bool


Sentence = list[Word]


class Doubt(NamedTuple):
    """A line of text, and how often the treebank gives the word the tag that was predicted."""

    text: str
    n_predicted: int


def sentences(path: Path) -> Iterator[Sentence]:
    """The words of each sentence; tokens of several words, and empty ones, are left out."""
    for file in sorted(path.glob("*.conllu")) if path.is_dir() else [path]:
        for block in file.read_text(encoding="utf-8").strip().split("\n\n"):
            fields = [line.split("\t") for line in block.splitlines() if not line.startswith("#")]
            yield [
                Word(field[1], field[3], "Typo=Yes" in field[5] or field[7] == "goeswith")
                for field in fields
                if field[0].isdigit()
            ]


def trained_tokenizer(corpus: Sequence[Sentence]) -> PreTrainedTokenizerBase:
    """A tokenizer of 4,000 pieces of the words of the treebank."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator((word.form for sentence in corpus for word in sentence), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )


def encoded(corpus: Sequence[Sentence], tags: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The examples: the first piece of each word has its tag, and ``words`` says which word each piece is of."""
    words = [[word.form for word in sentence] for sentence in corpus]
    pieces = tokenizer(words, is_split_into_words=True, truncation=True, max_length=MAX_TOKENS)
    rows = []
    for number, sentence in enumerate(corpus):
        of_piece = pieces.word_ids(number)
        is_first = [word is not None and word not in of_piece[:at] for at, word in enumerate(of_piece)]
        rows.append(
            {
                "input_ids": pieces["input_ids"][number],
                "attention_mask": pieces["attention_mask"][number],
                "labels": [
                    tags.index(sentence[word].tag) if first else IGNORED
                    for word, first in zip(of_piece, is_first, strict=True)
                ],
                "words": [-1 if word is None else word for word in of_piece],
                "text": " ".join(words[number]),
            }
        )
    return Dataset.from_list(rows)


def small_bert(tokenizer: PreTrainedTokenizerBase, names: dict[int, str]) -> PreTrainedModel:
    """A BERT of two layers with random weights."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_TOKENS,
        id2label=names,
    )
    return BertForTokenClassification(config)


def train(data: Path, out: Path, model_name: str | None, n_epochs: int) -> tuple[list[Sentence], list[str], Dataset]:
    """Train with the recorder."""
    set_seed(0)
    corpus = list(sentences(data))
    tags = sorted({word.tag for sentence in corpus for word in sentence})
    names = dict(enumerate(tags))
    if model_name is None:
        tokenizer = trained_tokenizer(corpus)
        model = small_bert(tokenizer, names)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model_name)
        model = AutoModelForTokenClassification.from_pretrained(model_name, id2label=names, num_labels=len(names))
    dataset = encoded(corpus, tags, tokenizer)
    arguments = TrainingArguments(
        str(out.with_suffix(".checkpoints")),
        num_train_epochs=n_epochs,
        per_device_train_batch_size=16,
        learning_rate=1e-3 if model_name is None else 5e-5,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(
        model,
        arguments,
        train_dataset=dataset,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        callbacks=[RecorderCallback(out, overwrite=True)],
    ).train()
    return corpus, tags, dataset


def doubts(table: TokenTable, corpus: Sequence[Sentence], tags: Sequence[str], dataset: Dataset) -> Iterator[Doubt]:
    """The annotations of well-formed words that the model does not share, those with the lowest confidence first."""
    given = Counter((word.form.lower(), word.tag) for sentence in corpus for word in sentence)
    words = list(dataset["words"])
    for row in table.hardest(len(table.example)):
        example, predicted = int(table.example[row]), tags[table.prediction[row]]
        number = words[example][table.position[row]]
        word = corpus[example][number]
        if word.tag != predicted and not word.is_misspelt:
            n_given, n_predicted = (given[word.form.lower(), tag] for tag in (word.tag, predicted))
            around = " ".join(each.form for each in corpus[example][max(number - 4, 0) : number + 5])
            doubt = f"{word.form}: {word.tag} ({n_given}), or {predicted} ({n_predicted})?"
            yield Doubt(f"{table.data_map.confidence[row]:.4f}  {doubt}  {around}", n_predicted)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what the store says of the annotations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = DEFAULT_DATA if DEFAULT_DATA.exists() else None
    parser.add_argument("--data", type=Path, default=here, required=here is None, help="a CoNLL-U file, or a folder")
    parser.add_argument("--out", type=Path, default=Path("runs/ud.zarr"), help="where to record")
    parser.add_argument("--model", help="name or folder of a pretrained model")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--show", type=int, default=20, help="how many annotations")
    asked = parser.parse_args(arguments)
    corpus, tags, dataset = train(asked.data, asked.out, asked.model, asked.epochs)
    split = open_run(asked.out).train
    table = token_table(split)
    print(f"{len(table.example):,} words, {np.mean(table.prediction == table.label):.1%} right in the last epoch")
    found = list(doubts(table, corpus, tags, dataset))
    print("the annotations that were believed least; in brackets how often the treebank gives the word that tag:")
    print(*(doubt.text for doubt in found[: asked.show]), sep="\n")
    print("the same, of words that are given the predicted tag elsewhere:")
    print(*[doubt.text for doubt in found if doubt.n_predicted][: asked.show], sep="\n")
    worst = by_sentence(table.data_map.confidence, table.offsets)
    print("the sentences whose worst words were believed least:")
    print(*(f"{worst[i]:.4f}  {split.text['text'][i]}" for i in np.argsort(worst)[:5]), sep="\n")


if __name__ == "__main__":
    main()
