"""Models to probe, a batch for each, and what a pass over single examples says of their heads."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from t3vis.probing.answers import Answers, answers
from t3vis.probing.batches import Batch, batches
from t3vis.probing.gating import Heads, gated
from t3vis.probing.head_importance import found_heads
from t3vis.probing.model import probed
from tests.callbacks.attention_models import ARCHITECTURES, attention_model, images
from tests.callbacks.tiny import PAD, VOCABULARY, Rows, tiny_rows

N_EXAMPLES = 6


def examples_of(kind: str, n_examples: int = N_EXAMPLES) -> Rows:
    return images(n_examples) if kind == "vit" else tiny_rows(n_examples)


def with_biases(model: Any) -> Any:
    """The model with biases that matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


@cache
def heads_of_kind(kind: str) -> Heads:
    """One model of each kind for all tests, which leave it as it was."""
    return found_heads(with_biases(attention_model(kind)), examples_of(kind))


def batch_of(heads: Heads, rows: Rows) -> Batch:
    return next(batches(heads.model, rows))


def answers_with(heads: Heads, gates: Tensor, batch: Batch) -> Answers:
    with probed(heads.model), torch.no_grad(), gated(heads, gates):
        return answers(heads.model, batch.inputs)


def language_model(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    return with_weights(
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **tokens, **ARCHITECTURES[kind].config))
    )


def with_weights(model: nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model
