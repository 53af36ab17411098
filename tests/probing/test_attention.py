"""Attention weights are those of the eager attention, of each example alone, whatever the model runs with."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSeq2SeqLM

from t3vis.errors import ProbingError
from t3vis.probing.attention import NAME, AttentionReader, attention_weights
from tests.callbacks.tiny import pad, pad_left, tiny_model, tiny_rows

ROWS = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in tiny_rows(5)]


def unpadded(model, row, **more):
    """Attentions of one example as the model returns them when it is eager."""
    model.set_attn_implementation("eager")
    inputs = {name: torch.tensor([values]) for name, values in row.items()}
    with torch.no_grad():
        return model.eval()(**inputs, **more, output_attentions=True, return_dict=True)


def same(found, expected):
    assert len(found) == len(expected)
    for layer, weights in zip(found, expected, strict=True):
        np.testing.assert_allclose(layer, weights[0].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "albert", "gpt2", "llama"])
def test_weights_of_a_padded_batch_are_those_of_each_example_alone(kind, implementation):
    model = tiny_model(kind)
    model.set_attn_implementation(implementation)
    found = attention_weights(model, pad(ROWS))
    assert model.config._attn_implementation == implementation
    assert [layer.layer for layer in found] == [0, 1]
    for number, row in enumerate(ROWS):
        same([layer.weights[number] for layer in found], unpadded(model, row).attentions)


def test_a_model_that_does_not_ask_transformers_for_its_attention():
    model = tiny_model("deberta-v2")
    found = attention_weights(model, pad(ROWS))
    for number, row in enumerate(ROWS):
        same([layer.weights[number] for layer in found], unpadded(model, row).attentions)


def test_padding_on_the_left():
    model = tiny_model("llama")
    right, left = (attention_weights(model, batch) for batch in (pad(ROWS), pad_left(ROWS)))
    for one, other in zip(right, left, strict=True):
        for weights, others in zip(one.weights, other.weights, strict=True):
            np.testing.assert_allclose(weights, others, rtol=1e-4, atol=1e-6)


def made(kind, auto, **config):
    """A model of a kind that has no tiny one yet, with weights large enough for examples to differ."""
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(kind, vocab_size=60, pad_token_id=0, eos_token_id=2, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def test_a_sliding_window_is_kept():
    """Its mask comes with the attention implementation: without a mask function of its own there would be none."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    window = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
    model = made("gemma2", AutoModelForCausalLM, bos_token_id=1, **sizes, **heads, **window)
    seen = []
    with AttentionReader(model) as reader:
        reader.read(pad(ROWS), seen.append)
    window, full = (call.visible[0] for call in seen)
    offsets = torch.arange(full.shape[1]) - torch.arange(full.shape[0])[:, None]
    real = pad(ROWS)["attention_mask"][0].bool()
    pairs = real[:, None] & real & (offsets <= 0)
    assert torch.equal(full, pairs)
    assert torch.equal(window, pairs & (offsets > -3))
    found = attention_weights(model, pad(ROWS))
    for number, row in enumerate(ROWS):
        same([layer.weights[number] for layer in found], unpadded(model, row).attentions)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_encoder_decoder_and_cross_attention(kind):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "num_decoder_layers": 1}
    if kind == "t5":
        model = made("t5", AutoModelForSeq2SeqLM, decoder_start_token_id=0, **sizes)
    else:
        model = tiny_model("bart", auto=AutoModelForSeq2SeqLM)
    targets = [[7, 8, 9, 2], [7, 2], [5, 6, 2], [4, 2], [11, 12, 13, 14, 2]]
    batch = pad(ROWS)
    batch["labels"] = torch.full((5, 5), -100)
    for row, target in zip(batch["labels"], targets, strict=True):
        row[: len(target)] = torch.tensor(target)
    found = attention_weights(model, batch)
    assert [layer.attention for layer in found] == ["encoder", "encoder", "decoder", "cross"]
    for number, (row, target) in enumerate(zip(ROWS, targets, strict=True)):
        alone = unpadded(model, row, labels=torch.tensor([target]))
        expected = [*alone.encoder_attentions, *alone.decoder_attentions, *alone.cross_attentions]
        same([layer.weights[number] for layer in found], expected)


def test_images():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(
        AutoConfig.for_model("vit", image_size=8, patch_size=4, **sizes)
    )
    images = torch.randn(3, 3, 8, 8)
    found = attention_weights(model, {"pixel_values": images})
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.eval()(pixel_values=images, output_attentions=True).attentions
    for layer, weights in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.stack(layer.weights), weights.numpy(), rtol=1e-4, atol=1e-6)


def test_the_chosen_layers_and_heads():
    model = tiny_model("bert")
    every = attention_weights(model, pad(ROWS))
    (found,) = attention_weights(model, pad(ROWS), layers=[1], heads=[1])
    assert (found.layer, found.heads) == (1, (1,))
    for weights, of_all in zip(found.weights, every[1].weights, strict=True):
        np.testing.assert_array_equal(weights, of_all[[1]])
    with pytest.raises(ProbingError, match="no attention layer 2"):
        attention_weights(model, pad(ROWS), layers=[2])
    with pytest.raises(ProbingError, match="no head 5"):
        attention_weights(model, pad(ROWS), heads=[5])


def test_the_model_is_left_as_it_was():
    model = tiny_model("bert", attn_implementation="sdpa").train()
    model.bert.pooler.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    attention_weights(model, pad(ROWS))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation == "sdpa" != NAME


def test_it_is_left_as_it_was_when_the_pass_fails():
    model = tiny_model("bert", attn_implementation="sdpa").train()
    with pytest.raises(ProbingError, match="no head 9"):
        attention_weights(model, pad(ROWS), heads=[9])
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class WithoutAttentions(torch.nn.Module):
    """A model that returns an empty tuple of attentions, as fast implementations do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids, attention_mask=None, return_dict=True, output_attentions=False):
        outputs = self.inner(input_ids, attention_mask=attention_mask, return_dict=True)
        return {"logits": outputs.logits, "attentions": ()}


def test_no_attentions_are_an_error():
    model = WithoutAttentions(tiny_model("deberta-v2"))
    with pytest.raises(ProbingError, match="no attention weights"):
        attention_weights(model, pad(ROWS))
