"""A language model of plays: how well each speech and each piece of a word was predicted, epoch by epoch.

    python examples/causal_lm.py --data path/to/input.txt --out runs/plays.zarr

Any text will do whose paragraphs are separated by empty lines, such as tiny Shakespeare. A small GPT-2 is trained from
nothing, with a tokenizer of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from t3vis import RecorderCallback, Run, open_run
from t3vis.token_table import TokenTable, token_table

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyshakespeare" / "input.txt"
MAX_TOKENS = 64
BEGIN, PAD = "<s>", "<pad>"


def trained_tokenizer(speeches: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer of 2,000 pieces, made of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=[PAD, BEGIN], show_progress=False)
    tokenizer.train_from_iterator(speeches, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN)  # type: ignore[no-untyped-call]


def encoded(speeches: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The examples: speeches, long ones in several parts, each after a token that begins it."""
    step = MAX_TOKENS - 1
    parts = [
        ids[start : start + step]
        for ids in tokenizer(list(speeches))["input_ids"]
        for start in range(0, len(ids), step)
    ]
    rows = [{"input_ids": [tokenizer.bos_token_id, *part], "text": tokenizer.decode(part)} for part in parts]
    return Dataset.from_list(rows)


def train(data: Path, out: Path, n_speeches: int, n_epochs: int) -> tuple[Dataset, PreTrainedTokenizerBase]:
    """Train with the recorder."""
    set_seed(0)
    speeches = [speech for speech in data.read_text(encoding="utf-8").split("\n\n") if speech.strip()][:n_speeches]
    tokenizer = trained_tokenizer(speeches)
    dataset = encoded(speeches, tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
    )
    arguments = TrainingArguments(
        str(out.with_suffix(".checkpoints")),
        num_train_epochs=n_epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(
        GPT2LMHeadModel(config),
        arguments,
        train_dataset=dataset,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
        callbacks=[RecorderCallback(out, overwrite=True)],
    ).train()
    return dataset, tokenizer


def perplexities(run: Run) -> NDArray[np.float64]:
    """Perplexity of the whole text in each epoch."""
    loss, n_tokens = run.train.loss[:], run.train.array("n_tokens")[:]
    sums = np.where(n_tokens > 0, loss * n_tokens, 0).sum(axis=1)
    return np.asarray(np.exp(sums / n_tokens.clip(min=0).sum(axis=1)), np.float64)


def in_context(
    table: TokenTable, rows: NDArray[np.integer], dataset: Dataset, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """What was to be predicted after what, and what was predicted instead."""
    lines = []
    for row in rows:
        before = dataset[int(table.example[row])]["input_ids"][1 : table.position[row]]
        text, gold, found = tokenizer.batch_decode([before, [table.label[row]], [table.prediction[row]]])
        lines.append(f"{table.data_map.confidence[row]:.6f}  ...{text[-40:]!r} -> {gold!r}, predicted {found!r}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what the store says of the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = DEFAULT_DATA if DEFAULT_DATA.exists() else None
    parser.add_argument("--data", type=Path, default=here, required=here is None, help="a text file")
    parser.add_argument("--out", type=Path, default=Path("runs/plays.zarr"), help="where to record")
    parser.add_argument("--speeches", type=int, default=2500, help="how many to train on, from the first on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--show", type=int, default=8, help="how many speeches, and pieces of words")
    asked = parser.parse_args(arguments)
    dataset, tokenizer = train(asked.data, asked.out, asked.speeches, asked.epochs)
    run = open_run(asked.out)
    table = token_table(run.train)
    print("perplexity in each epoch:", *(f"{value:.1f}" for value in perplexities(run)))
    loss, text = run.train.loss[-1], run.train.text["text"]
    order = np.argsort(loss)
    for name, ids in (("hardest", order[::-1]), ("easiest", order)):
        print(f"the {name} speeches, with their perplexity in the last epoch:")
        print(*(f"{np.exp(loss[i]):8.1f}  {text[i]!r}" for i in ids[: asked.show]), sep="\n")
    print("the pieces of words that were believed least, on average over the epochs:")
    print(*in_context(table, table.hardest(asked.show), dataset, tokenizer), sep="\n")
    wavering = np.argsort(-table.data_map.variability)[: asked.show]
    print("those that were learned, or unlearned, most:")
    print(*in_context(table, wavering, dataset, tokenizer), sep="\n")


if __name__ == "__main__":
    main()
