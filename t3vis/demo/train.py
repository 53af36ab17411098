"""A small Transformer fine-tuned with the ordinary Trainer, on a dataset with a known share of wrong labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from t3vis.demo.corpus import plant_wrong_labels
from t3vis.errors import ConfigurationError

_EVAL_FRACTION = 0.1
_VOCABULARY = 8000
_RATE_FROM_SCRATCH = 1e-3
_RATE_PRETRAINED = 5e-5


@dataclass(frozen=True)
class TrainedDemo:
    """What a demo training has made: the data as it was trained on, and how well it was learned.

    Parameters
    ----------
    train_dataset
        With its wrong labels; the row index is the example id under which the callback saw each example.
    eval_dataset
        The held-out examples, their labels as they were given.
    eval_accuracy
        On `eval_dataset` after the last epoch, in [0, 1].
    wrong_label_ids
        Example ids in `train_dataset` whose labels were planted, sorted.
    class_names
        By label.
    """

    train_dataset: Dataset
    eval_dataset: Dataset
    eval_accuracy: float
    wrong_label_ids: NDArray[np.int64]
    class_names: tuple[str, ...]


def train_demo(
    callback: TrainerCallback,
    *,
    output_dir: str | Path,
    dataset: Dataset,
    model: str | None = None,
    wrong_labels: float = 0.05,
    epochs: int = 6,
    batch_size: int = 32,
    max_length: int = 64,
    seed: int = 0,
    keep_checkpoints: bool = True,
) -> TrainedDemo:
    """Fine-tune a text classifier with ``Trainer(callbacks=[callback])`` on labels of which some are wrong.

    A tenth of the examples is held out before any label is changed. Nothing is printed but one progress bar.

    Parameters
    ----------
    callback
        Any ``TrainerCallback``; the recorder, in earnest.
    output_dir
        Receives the model after the last epoch, with its tokenizer, and the weights of each epoch as a checkpoint.
    dataset
        Columns ``text``, ``label`` (a ``ClassLabel``) and optionally ``text_pair``, as `docstring_corpus` and
        `read_dataset` return.
    model
        Name or path of a pretrained model. By default a small BERT with random weights, and a tokenizer trained
        on the texts.
    wrong_labels
        Share of the training examples that get a wrong label, in [0, 1].
    epochs
        Passes over the training examples.
    batch_size
        Examples in a batch, in training and in evaluation.
    max_length
        Tokens at which a text is cut.
    seed
        Decides the split, the wrong labels, the weights and the order of the batches.
    keep_checkpoints
        Whether the weights of each epoch are saved.

    Raises
    ------
    ConfigurationError
        If the dataset has not these columns, or too few examples to hold some out.
    """
    classes = _checked_classes(dataset)
    train, evaluation = _split(dataset, seed)
    train, wrong_label_ids = plant_wrong_labels(train, fraction=wrong_labels, seed=seed)
    accuracy = fine_tune(
        train,
        evaluation,
        callbacks=[callback],
        output_dir=output_dir,
        model=model,
        epochs=epochs,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        keep_checkpoints=keep_checkpoints,
    )
    return TrainedDemo(train, evaluation, accuracy, wrong_label_ids, tuple(classes.names))


def fine_tune(
    train: Dataset,
    evaluation: Dataset,
    *,
    output_dir: str | Path,
    callbacks: Sequence[TrainerCallback] = (),
    model: str | None = None,
    epochs: int = 6,
    batch_size: int = 32,
    max_length: int = 64,
    seed: int = 0,
    keep_checkpoints: bool = True,
) -> float:
    """Train the demo's classifier on one dataset, and measure it on another; nothing is printed but one progress bar.

    Parameters
    ----------
    train, evaluation
        Columns ``text``, ``label`` (a ``ClassLabel``) and optionally ``text_pair``; other columns are passed by.
    output_dir, model, epochs, batch_size, max_length, seed, keep_checkpoints
        As those of `train_demo`.
    callbacks
        Given to the Trainer.

    Returns
    -------
    Accuracy on `evaluation` after the last epoch, in [0, 1].
    """
    names = _checked_classes(train).names
    if model is None:
        tokenizer: PreTrainedTokenizerBase = _word_piece_tokenizer(_texts(train), max_length)
        network = _small_bert(tokenizer, names, max_length, seed)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network = _pretrained(model, names, seed)
    trainer = Trainer(
        model=network,
        args=TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            learning_rate=_RATE_FROM_SCRATCH if model is None else _RATE_PRETRAINED,
            warmup_steps=0.1,  # a share of all steps
            train_sampling_strategy="group_by_length",  # less padding
            eval_strategy="epoch",
            save_strategy="epoch" if keep_checkpoints else "no",
            save_only_model=True,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=seed,
        ),
        train_dataset=_tokenized(train, tokenizer, max_length),
        eval_dataset=_tokenized(evaluation, tokenizer, max_length),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_accuracy,
        callbacks=[*callbacks, _ProgressBar()],
    )
    trainer.remove_callback(PrinterCallback)
    with _without_progress_bars():
        trainer.train()
        trainer.save_model()
    accuracies = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    return float(accuracies[-1])


def _checked_classes(dataset: Dataset) -> ClassLabel:
    classes = dataset.features.get("label")
    if "text" not in dataset.features or not isinstance(classes, ClassLabel):
        raise ConfigurationError(
            "the dataset needs a column 'text' and a ClassLabel column 'label'; it has "
            f"{dict(dataset.features)}. read_dataset and docstring_corpus return such datasets."
        )
    if round(_EVAL_FRACTION * len(dataset)) == 0:
        raise ConfigurationError(f"{len(dataset)} examples are too few to hold some out; pass 10 or more.")
    return classes


def _split(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    order = np.random.default_rng(seed).permutation(len(dataset))
    n_held_out = round(_EVAL_FRACTION * len(dataset))
    # Not `Dataset.select`, which leaves an indirection that is flattened later, behind a progress bar.
    parts = (dataset[np.sort(ids)] for ids in (order[n_held_out:], order[:n_held_out]))
    train, held_out = (Dataset.from_dict(columns, features=dataset.features) for columns in parts)
    return train, held_out


def _texts(dataset: Dataset) -> list[str]:
    return [text for name in ("text", "text_pair") if name in dataset.features for text in dataset[name]]


def _word_piece_tokenizer(texts: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=_VOCABULARY, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", special.index("[SEP]")), ("[CLS]", special.index("[CLS]"))
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token.strip('[]').lower()}_token": token for token in special},
    )


def _small_bert(
    tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str], max_length: int, seed: int
) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.2,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        **_named_classes(class_names),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config)


def _pretrained(name: str, class_names: Sequence[str], seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(), _without_progress_bars():  # at random: the classifier on top is new
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            name, ignore_mismatched_sizes=True, **_named_classes(class_names)
        )
    return model


def _named_classes(class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: label for label, name in enumerate(class_names)},
    }


def _tokenized(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    # Not `Dataset.map`, which draws a progress bar and writes to the user's cache.
    pairs = dataset["text_pair"] if "text_pair" in dataset.features else None
    encoding = tokenizer(list(dataset["text"]), pairs and list(pairs), truncation=True, max_length=max_length)
    for name, values in encoding.items():
        dataset = dataset.add_column(name, values)
    return dataset


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    predicted = np.asarray(prediction.predictions).argmax(axis=-1)
    return {"accuracy": float((predicted == np.asarray(prediction.label_ids)).mean())}


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Silence the bars that transformers draws for each file of weights."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class _ProgressBar(TrainerCallback):
    """One bar for the whole training, in place of the Trainer's two bars and a printed line for each log."""

    def on_train_begin(self, *args: Any, **_: Any) -> None:
        self._bar = tqdm(total=_state(*args).max_steps, unit="step", dynamic_ncols=True)

    def on_step_end(self, *args: Any, **_: Any) -> None:
        self._bar.update(_state(*args).global_step - self._bar.n)

    def on_evaluate(self, *_: Any, **kwargs: Any) -> None:
        self._bar.set_postfix({"held-out accuracy": f"{kwargs['metrics']['eval_accuracy']:.3f}"})

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._bar.close()


def _state(_args: TrainingArguments, state: TrainerState, _control: TrainerControl) -> TrainerState:
    """Pick the state from what every event of a callback is given."""
    return state
