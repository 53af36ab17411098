"""Tiny models, datasets and Trainers, and the oracle: what a fresh forward pass says of one example alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from t3vis import ConfigurationError, RecorderCallback, Run, open_run
from t3vis.store.reader import Split

N_CLASSES = 3
VOCABULARY = 60
PAD, EOS = 0, 2
Rows = list[dict[str, Any]]
LEARNING: dict[str, Any] = {"learning_rate": 1e-2}

_BERT_LIKE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT_LIKE,
    "roberta": _BERT_LIKE,
    "electra": {**_BERT_LIKE, "embedding_size": 16},
    "albert": {**_BERT_LIKE, "embedding_size": 8, "classifier_dropout_prob": 0.0},
    "deberta-v2": {**_BERT_LIKE, "pooler_hidden_size": 16, "pooler_dropout": 0.0, "type_vocab_size": 0},
    "distilbert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "gpt2": {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 40,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
    },
    "vit": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "bart": {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 40,
        "dropout": 0.0,
        "decoder_start_token_id": EOS,
    },
}
MODELS = tuple(kind for kind in _CONFIGS if kind != "vit")


def tiny_model(
    kind: str = "bert",
    *,
    auto: Any = AutoModelForSequenceClassification,
    seed: int = 0,
    num_labels: int = N_CLASSES,
    **config: Any,
) -> Any:
    """A model with random weights, larger than usual so that examples differ, and no dropout unless asked for."""
    torch.manual_seed(seed)
    settings = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 1}
    model = auto.from_config(
        AutoConfig.for_model(kind, **{**settings, **_CONFIGS[kind], "num_labels": num_labels, **config})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def tiny_rows(n_examples: int = 41, *, seed: int = 0, label: Callable[[Any], Any] | None = None) -> Rows:
    """Examples of 3 to 12 tokens, no two alike, the last token the end of the sequence."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n_examples):
        ids = [3 + i, *rng.integers(3, VOCABULARY, rng.integers(1, 11)).tolist(), EOS]
        rows.append(
            {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": int(rng.integers(N_CLASSES)) if label is None else label(rng),
                "text": f"example {i}: {' '.join(map(str, ids))}",
            }
        )
    return rows


class PlainDataset(TorchDataset[dict[str, Any]]):
    """A map-style torch dataset."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self.rows[index].items() if key != "text"}


class NumberedStream(TorchIterableDataset[dict[str, Any]]):
    """An iterable torch dataset whose rows say which they are."""

    def __init__(self, rows: Rows, order: Sequence[int], column: str = "number") -> None:
        self.rows, self.order, self.column = rows, order, column

    def __iter__(self) -> Any:
        for i in self.order:
            yield {**self.rows[i], self.column: i}


def as_dataset(rows: Rows) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def pad(rows: Rows, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Collate: pad to the longest example, on the right or on the left."""
    width = max(len(row["input_ids"]) for row in rows)
    batch: dict[str, torch.Tensor] = {}
    for key, fill in (("input_ids", PAD), ("attention_mask", 0)):
        columns = []
        for row in rows:
            values = torch.as_tensor(row[key])
            padding = torch.full((width - len(values),), fill)
            columns.append(torch.cat([padding, values] if left else [values, padding]))
        batch[key] = torch.stack(columns)
    if "labels" in rows[0]:
        batch["labels"] = torch.stack([torch.as_tensor(row["labels"]) for row in rows])
    return batch


def pad_left(rows: Rows) -> dict[str, torch.Tensor]:
    return pad(rows, left=True)


def tiny_arguments(output_dir: Path, kind: type[TrainingArguments] = TrainingArguments, **options: Any) -> Any:
    """Arguments with which nothing is learned, so that every epoch sees the same model."""
    settings: dict[str, Any] = {
        "learning_rate": 0.0,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1000,
    }
    return kind(str(output_dir), **{**settings, **options})


def tiny_trainer(
    output_dir: Path,
    recorder: Any,
    *,
    model: Any = None,
    train: Any = None,
    trainer_class: type[Trainer] = Trainer,
    eval_dataset: Any = None,
    callbacks: Sequence[Any] = (),
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A Trainer of a tiny model; ``options`` go to the Trainer, ``settings`` to its arguments.

    ``model=False`` leaves the model to ``options["model_init"]``.
    """
    return trainer_class(
        model=tiny_model() if model is None else (model or None),
        args=tiny_arguments(output_dir, **settings),
        train_dataset=as_dataset(tiny_rows()) if train is None else train,
        eval_dataset=eval_dataset,
        callbacks=[*([] if recorder is None else [recorder]), *callbacks],
        **{"data_collator": pad, **(options or {})},
    )


def recorded(tmp_path: Path, *, recorder: dict[str, Any] | None = None, **trainer: Any) -> Run:
    """Train with the recorder, and open what it recorded."""
    tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr", **(recorder or {})), **trainer).train()
    return open_run(tmp_path / "run.zarr")


def held_out(n_examples: int = 9, seed: int = 1) -> Any:
    return as_dataset(tiny_rows(n_examples, seed=seed))


def refusal(trainer: Trainer, use: Callable[[Trainer], Any] = Trainer.train) -> str:
    """The message of the ConfigurationError, raised before any weight has changed."""
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    with pytest.raises(ConfigurationError) as caught:
        use(trainer)
    assert trainer.state.global_step == 0
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_hooks for module in trainer.model.modules())
    return str(caught.value)


class Stops(TrainerCallback):
    """Raises once, at the end of a step."""

    def __init__(self, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise self.error


class OwnModel(nn.Module):
    """No model of transformers: it takes what it takes, and returns a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(60, 8), nn.Linear(8, N_CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        weights = attention_mask[..., None].float()
        logits = self.head((self.embed(input_ids) * weights).sum(1) / weights.sum(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


# The oracle


def alone(model: Any, row: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits (n_classes,) and hidden states (n_layers + 1, n_tokens, hidden) of one example by itself, unpadded."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        inputs = {key: torch.as_tensor(row[key])[None] for key in ("input_ids", "attention_mask")}
        outputs = model(**inputs, output_hidden_states=True, return_dict=True)
    model.train(was_training)
    states = outputs.get("hidden_states") or outputs["encoder_hidden_states"]
    return outputs["logits"][0].double().numpy(), torch.stack(states)[:, 0].double().numpy()


def loss_by_hand(logits: NDArray[np.float64], label: Any, task: str) -> float:
    """The textbook formulas, one example at a time."""
    if task == "single_label":
        return float(np.log(np.sum(np.exp(logits))) - logits[label])
    target = np.broadcast_to(np.asarray(label, float), logits.shape)
    if task == "multi_label":
        probs = 1 / (1 + np.exp(-logits))
        return float(np.mean(-target * np.log(probs) - (1 - target) * np.log(1 - probs)))
    return float(np.mean((logits - target) ** 2))


def pooled_by_hand(states: NDArray[np.float64], pooling: str) -> NDArray[np.float64]:
    if pooling == "mean":
        return states.mean(1)
    return states[:, 0] if pooling == "first" else states[:, -1]


def check_pass(
    split: Split,
    index: int,
    model: Any,
    rows: Rows,
    *,
    seen: Sequence[int] | None = None,
    layers: Sequence[int] | None = (0, 1, 2),
    pooling: str = "mean",
    task: str = "single_label",
    has_labels: bool = True,
    tolerance: float = 0.0,
) -> None:
    """Every row of a pass equals a fresh forward pass on that id's example alone; unseen rows are empty."""
    expected_seen = set(range(len(rows)) if seen is None else seen)
    logits, loss, visits = split.logits[index], split.loss[index] if has_labels else None, split.visits[index]
    hidden = split.hidden_states[index] if layers is not None else None
    labels, length = split.labels, split.length
    assert set(np.flatnonzero(visits)) == expected_seen
    assert set(np.flatnonzero(split.step[index] >= 0)) == expected_seen
    if layers is None:
        assert "hidden_states" not in split.arrays
    else:
        assert split.layers == list(layers)
    for i in range(len(visits)):
        if i not in expected_seen:
            assert np.isnan(logits[i]).all()
            assert hidden is None or np.isnan(hidden[:, i]).all()
            continue
        row = rows[i]
        own_logits, own_states = alone(model, row)
        np.testing.assert_allclose(
            logits[i], own_logits, rtol=1e-4 + tolerance, atol=1e-5 + tolerance, err_msg=f"logits of example {i}"
        )
        if loss is not None:
            by_hand = loss_by_hand(own_logits, row["labels"], task)
            np.testing.assert_allclose(
                loss[i], by_hand, rtol=1e-4 + tolerance, atol=1e-5 + tolerance, err_msg=f"loss of example {i}"
            )
            np.testing.assert_array_equal(np.ravel(labels[i]), np.ravel(np.float32(row["labels"])))
        assert length[i] == len(row["input_ids"])
        if hidden is not None and layers is not None:
            own = pooled_by_hand(own_states, pooling)[list(layers)]
            np.testing.assert_allclose(
                hidden[:, i], own, rtol=2e-3 + tolerance, atol=2e-3 + tolerance, err_msg=f"states of example {i}"
            )


def check_training(
    split: Split, model: Any, rows: Rows, *, n_epochs: int = 2, n_steps: int | None = None, **expected: Any
) -> None:
    """Each epoch covers every example once and holds what the oracle says; steps go up without a gap."""
    passes = split.passes
    assert [record.epoch for record in passes] == list(range(n_epochs))
    assert all(record.sealed for record in passes)
    n_seen = len(rows) if expected.get("seen") is None else len(expected["seen"])
    assert [(p.n_seen, p.n_repeated, p.n_never) for p in passes] == [(n_seen, 0, len(rows) - n_seen)] * n_epochs
    for epoch in range(n_epochs):
        check_pass(split, epoch, model, rows, **expected)
        if n_steps is not None:
            steps = split.step[epoch]
            assert set(steps[steps >= 0]) == set(range(epoch * n_steps, (epoch + 1) * n_steps))
