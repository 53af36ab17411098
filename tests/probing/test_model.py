from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from t3vis.errors import ProbingError
from t3vis.probing.model import forward, load_model, probed
from tests.callbacks.attention_models import attention_model
from tests.callbacks.tiny import OwnModel, pad, tiny_model, tiny_rows


def state_of(model: Any) -> list[Any]:
    modules = list(model.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_pre_hooks_with_kwargs")
    return [
        [module.training for module in modules],
        [(p.requires_grad, p.grad is None or p.grad.tolist(), p.tolist()) for p in model.parameters()],
        [[list(getattr(module, name)) for name in hooks] for module in modules],
        [sorted(vars(module)) for module in modules],
        model.config._attn_implementation,
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_a_model_is_left_as_it_was(error: type[Exception] | None) -> None:
    model = tiny_model("bert", hidden_dropout_prob=0.5)
    model.train()
    model.bert.encoder.eval()
    model.classifier.weight.requires_grad_(False)
    model.bert.embeddings.word_embeddings.weight.grad = torch.ones(60, 16)
    model.classifier.register_forward_hook(lambda *_: None)
    inputs = pad(tiny_rows(4))
    before = state_of(model)

    def probe() -> None:
        with probed(model) as found:
            assert not any(module.training for module in found.modules())
            assert not any(p.requires_grad or p.grad is not None for p in found.parameters())
            found.set_attn_implementation("eager")
            found(**inputs, output_attentions=True, output_hidden_states=True)
            found.classifier.register_forward_pre_hook(lambda *_: None)
            found.classifier.weight.requires_grad_(True)
            found(**inputs).loss.backward()
            torch.rand(3)
            if error is not None:
                raise error

    if error is None:
        probe()
    else:
        with pytest.raises(error):
            probe()
    assert state_of(model) == before
    with probed(model), probed(model):
        pass
    assert state_of(model) == before


def test_a_probe_does_not_notice_dropout() -> None:
    model, inputs = tiny_model("bert", hidden_dropout_prob=0.5).train(), pad(tiny_rows(4))
    with probed(model), torch.no_grad():
        assert torch.equal(forward(model, inputs).logits, forward(model, inputs).logits)


def test_a_model_of_ones_own() -> None:
    model, inputs = OwnModel(), pad(tiny_rows(4))
    with probed(model), torch.no_grad():
        assert forward(model, inputs)["logits"].shape == (4, 3)


def test_no_cache_is_filled() -> None:
    model = attention_model("llama")
    with probed(model), torch.no_grad():
        assert forward(model, {"input_ids": torch.tensor([[5, 6, 7]])}).past_key_values is None


def test_a_checkpoint_is_loaded_as_what_it_was_saved(tmp_path: Path) -> None:
    model = tiny_model("bert").eval()
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state(), random.getstate()
    loaded = load_model(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    inputs = pad(tiny_rows(4))
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ProbingError, match=r"is no checkpoint of a model: .*config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["OwnModel"]}')
    with pytest.raises(ProbingError, match="class OwnModel, which transformers does not have"):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ProbingError, match="holds an adapter only"):
        load_model(tmp_path)


def test_hooks_that_were_there_still_work() -> None:
    model, seen = nn.Linear(2, 2), []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    with probed(model):
        model(torch.ones(1, 2))
    model(torch.ones(1, 2))
    handle.remove()
    copy.deepcopy(model)(torch.ones(1, 2))
    model(torch.ones(1, 2))
    assert seen == [1, 1]
