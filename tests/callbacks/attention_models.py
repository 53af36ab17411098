"""Tiny models of many architectures, their output projections, and the oracle: the gradients of these weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from t3vis import RecorderCallback, Run, open_run
from t3vis.store.reader import Split
from tests.callbacks.tiny import EOS, N_CLASSES, PAD, VOCABULARY, Rows, tiny_trainer

_BASE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BERT = {**_BASE, **_NO_DROPOUT}
_GROUPED = {**_BASE, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Architecture:
    """``projections`` are the layers in order, as ``attention kind: module``; ``{i}`` stands for 0 and 1."""

    config: dict[str, Any]
    projections: tuple[str, ...]
    n_heads: int = 4


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture(_BERT, ("self: bert.encoder.layer.{i}.attention.output.dense",)),
    "roberta": Architecture(_BERT, ("self: roberta.encoder.layer.{i}.attention.output.dense",)),
    "distilbert": Architecture(
        {
            "dim": 16,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 32,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
        ("self: distilbert.transformer.layer.{i}.attention.out_lin",),
    ),
    "albert": Architecture(
        {**_BERT, "embedding_size": 8, "classifier_dropout_prob": 0.0},
        ("self: albert.encoder.albert_layer_groups.0.albert_layers.0.attention.dense",) * 2,
    ),
    "electra": Architecture(
        {**_BERT, "embedding_size": 16}, ("self: electra.encoder.layer.{i}.attention.output.dense",)
    ),
    "deberta-v2": Architecture(
        {
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "pooler_hidden_size": 16,
            "pooler_dropout": 0.0,
            "type_vocab_size": 0,
        },
        ("self: deberta.encoder.layer.{i}.attention.output.dense",),
    ),
    "modernbert": Architecture(
        {**_BASE, "classifier_pooling": "mean", "cls_token_id": 1, "sep_token_id": EOS},
        ("self: model.layers.{i}.attn.Wo",),
    ),
    "mpnet": Architecture(_BERT, ("self: mpnet.encoder.layer.{i}.attention.attn.o",)),
    "gpt2": Architecture(
        {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 40,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        ("self: transformer.h.{i}.attn.c_proj",),
    ),
    "gpt_neox": Architecture(_BASE, ("self: gpt_neox.layers.{i}.attention.dense",)),
    "llama": Architecture(_GROUPED, ("self: model.layers.{i}.self_attn.o_proj",)),
    "mistral": Architecture({**_GROUPED, "head_dim": 4}, ("self: model.layers.{i}.self_attn.o_proj",)),
    "qwen3": Architecture({**_GROUPED, "head_dim": 8}, ("self: model.layers.{i}.self_attn.o_proj",)),
    "gemma": Architecture({**_GROUPED, "head_dim": 8}, ("self: model.layers.{i}.self_attn.o_proj",)),
    "phi3": Architecture(_GROUPED, ("self: model.layers.{i}.self_attn.o_proj",)),
    "falcon": Architecture({**_BASE, "ffn_hidden_size": 32}, ("self: transformer.h.{i}.self_attention.dense",)),
    "t5": Architecture(
        {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "decoder_start_token_id": PAD,
        },
        (
            "encoder: transformer.encoder.block.{i}.layer.0.SelfAttention.o",
            "decoder: transformer.decoder.block.{i}.layer.0.SelfAttention.o",
            "cross: transformer.decoder.block.{i}.layer.1.EncDecAttention.o",
        ),
    ),
    "bart": Architecture(
        {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 40,
            "dropout": 0.0,
            "decoder_start_token_id": EOS,
        },
        (
            "encoder: model.encoder.layers.{i}.self_attn.out_proj",
            "decoder: model.decoder.layers.{i}.self_attn.out_proj",
            "cross: model.decoder.layers.{i}.encoder_attn.out_proj",
        ),
    ),
    "vit": Architecture({**_BERT, "image_size": 8, "patch_size": 4}, ("self: vit.layers.{i}.attention.o_proj",)),
}


def layers_of(kind: str) -> list[tuple[str, str]]:
    """Attention kind and module of each layer, in order."""
    found = []
    for line in ARCHITECTURES[kind].projections:
        attention, module = line.split(": ")
        found += [(attention, module.format(i=i)) for i in range(2 if "{i}" in module else 1)]
    return found


def attention_model(kind: str, *, seed: int = 0, **config: Any) -> Any:
    """A model with random weights, larger than usual so that heads differ, and no dropout."""
    torch.manual_seed(seed)
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 1}
    settings = {**({} if kind == "vit" else tokens), **ARCHITECTURES[kind].config, "num_labels": N_CLASSES, **config}
    auto = AutoModelForImageClassification if kind == "vit" else AutoModelForSequenceClassification
    model = auto.from_config(AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def images(n_examples: int) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(3, 8, 8, generator=generator).tolist(), "labels": i % N_CLASSES}
        for i in range(n_examples)
    ]


def stacked(rows: Rows) -> dict[str, torch.Tensor]:
    """Collate images."""
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in ("pixel_values", "labels")}


def recorded(directory: Path, *, recorder: dict[str, Any] | None = None, **trainer: Any) -> Run:
    """Train with the recorder, and open what it recorded."""
    callback = RecorderCallback(directory / "run.zarr", heads=True, **(recorder or {}))
    tiny_trainer(directory / "out", callback, **trainer).train()
    return open_run(directory / "run.zarr")


def said_once(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return sum(text in message for message in caplog.messages) == 1


# The oracle


def per_head(module: Any, n_heads: int) -> NDArray[np.float64]:
    """Sum of W * dL/dW over the columns of an output projection that read each head."""
    products = (module.weight * module.weight.grad).detach().double()
    columns = products.sum(1) if isinstance(module, Conv1D) else products.sum(0)
    return columns.reshape(n_heads, -1).sum(1).numpy()


def by_weights(model: Any, row: dict[str, Any], modules: list[str], n_heads: list[int]) -> list[NDArray[np.float64]]:
    """What each module's weights say of one example by itself: its own loss, unpadded, no recorder."""
    inputs = {k: torch.as_tensor(row[k])[None] for k in ("input_ids", "attention_mask", "pixel_values") if k in row}
    model.train()
    model.zero_grad()
    model(**inputs, labels=torch.as_tensor([row["labels"]])).loss.backward()
    found = [per_head(model.get_submodule(name), n) for name, n in zip(modules, n_heads, strict=True)]
    model.zero_grad()
    return found


def check_heads(split: Split, model: Any, rows: Rows, *, rtol: float = 1e-4, unknown: Sequence[str] = ()) -> None:
    """Every gate gradient is what the weights say, in every epoch; a module of several layers holds their sum."""
    said = split.attributes["arrays"]["head_gradients"]
    modules, n_heads = said["modules"], said["n_heads"]
    values = split.head_gradients[:]
    assert values.shape == (len(split.passes), len(modules), len(rows), max(n_heads))
    for i, row in enumerate(rows):
        for name, expected in zip(modules, by_weights(model, row, modules, n_heads), strict=True):
            layers = [layer for layer, module in enumerate(modules) if module == name]
            found = values[:, layers, i]
            assert np.isnan(found[..., len(expected) :]).all()
            if name in unknown:
                assert np.isnan(found).all()
                continue
            scale = np.abs(expected).max()
            assert scale > 1e-7, f"{name} does not matter to example {i}"
            for epoch in found[..., : len(expected)].sum(1):
                np.testing.assert_allclose(epoch, expected, rtol=rtol, atol=rtol * scale, err_msg=f"{name}, {i}")
