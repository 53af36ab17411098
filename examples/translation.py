"""A translation model: which pairs of sentences it finds hard, and at which word.

    python examples/translation.py --data path/to/multi30k --out runs/translation.zarr

The folder holds ``train.en.gz``, ``train.de.gz``, ``val.en.gz`` and ``val.de.gz``, a sentence in each line. A small
BART is trained from nothing on the first pairs, with a tokenizer of its own.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from t3vis import RecorderCallback, open_run
from t3vis.store.reader import Split
from t3vis.token_table import token_table

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "multi30k"
MAX_TOKENS = 64
PAD, BEGIN, END = "<pad>", "<s>", "</s>"

Pairs = list[tuple[str, str]]


def pairs(folder: Path, name: str, limit: int) -> Pairs:
    """The first English sentences with their German translations."""
    sides = []
    for language in ("en", "de"):
        with gzip.open(folder / f"{name}.{language}.gz", "rt", encoding="utf-8") as file:
            sides.append(file.read().splitlines()[:limit])
    return list(zip(*sides, strict=True))


def trained_tokenizer(corpus: Pairs) -> PreTrainedTokenizerBase:
    """A tokenizer of 4,000 pieces for both languages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=[PAD, BEGIN, END], show_progress=False)
    tokenizer.train_from_iterator((sentence for pair in corpus for sentence in pair), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END
    )


def encoded(corpus: Pairs, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The examples: an English sentence each, and as its labels the German one."""
    english, german = (list(side) for side in zip(*corpus, strict=True))
    inputs, labels = (
        tokenizer(side, truncation=True, max_length=MAX_TOKENS)["input_ids"] for side in (english, german)
    )
    return Dataset.from_dict({"input_ids": inputs, "labels": labels, "english": english, "german": german})


def train(data: Path, out: Path, n_pairs: int, n_epochs: int) -> PreTrainedTokenizerBase:
    """Train with the recorder, which sees the evaluations too."""
    set_seed(0)
    corpus = pairs(data, "train", n_pairs)
    tokenizer = trained_tokenizer(corpus)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config)
    arguments = Seq2SeqTrainingArguments(
        str(out.with_suffix(".checkpoints")),
        num_train_epochs=n_epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        learning_rate=2e-3,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Seq2SeqTrainer(
        model,
        arguments,
        train_dataset=encoded(corpus, tokenizer),
        eval_dataset=encoded(pairs(data, "val", n_pairs), tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        callbacks=[RecorderCallback(out, overwrite=True)],
    ).train()
    return tokenizer


def hardest(split: Split, tokenizer: PreTrainedTokenizerBase, n_shown: int) -> list[str]:
    """The pairs with the highest loss in the last pass, and the piece of each that was believed least."""
    loss, table, lines = split.loss[-1], token_table(split), []
    for example in np.argsort(-loss)[:n_shown]:
        rows = np.arange(table.offsets[example], table.offsets[example + 1])
        worst = rows[table.data_map.confidence[rows].argmin()]
        gold, found = tokenizer.batch_decode([[table.label[worst]], [table.prediction[worst]]])
        lines += [
            f"{loss[example]:.2f}  {split.text['english'][example]}",
            f"      {split.text['german'][example]}  [{gold.strip()}: {found.strip()}?]",
        ]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print what the store says of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = DEFAULT_DATA if DEFAULT_DATA.exists() else None
    parser.add_argument("--data", type=Path, default=here, required=here is None, help="the folder of pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/translation.zarr"), help="where to record")
    parser.add_argument("--pairs", type=int, default=3000, help="how many to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--show", type=int, default=8, help="how many pairs")
    asked = parser.parse_args(arguments)
    tokenizer = train(asked.data, asked.out, asked.pairs, asked.epochs)
    run = open_run(asked.out)
    for name, split in run.splits.items():
        print(f"{name}: mean loss {', '.join(f'{value:.2f}' for value in np.nanmean(split.loss[:], axis=1))}")
        print(
            f"fraction of pieces right {', '.join(f'{v:.2f}' for v in np.nanmean(split.array('token_accuracy')[:], 1))}"
        )
        print("the hardest pairs, with their mean loss in nats, and the piece that was believed least:")
        print(*hardest(split, tokenizer, asked.show), sep="\n")
    states = run.train.array("decoder_hidden_states")
    print(f"hidden states of the encoder {run.train.hidden_states.shape}, of the decoder {states.shape}")


if __name__ == "__main__":
    main()
