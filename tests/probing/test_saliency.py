"""Saliency of whole examples: by every method, for every kind of target, whatever the batch; nothing is left behind."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

from t3vis.errors import ProbingError
from t3vis.probing.encoded import encoded, from_ids
from t3vis.probing.gradients import integrated_gradients
from t3vis.probing.predicted import generated, predicted_target
from t3vis.probing.saliency import METHODS, explain, saliencies
from t3vis.probing.targets import class_target, generation_target, span_target, token_target
from tests.callbacks.attention_models import attention_model
from tests.callbacks.tiny import EOS, tiny_model
from tests.probing.examples import MASK, reader_of_one_token, tiny_examples, word_tokenizer

ALL = class_target(range(3))


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_batch_change_nothing(method):
    examples = tiny_examples(5)
    for kind in ("bert", "llama"):
        model = tiny_model(kind).double()
        together = saliencies(model, examples, [ALL] * 5, method=method, batch_size=5)
        for example, one in zip(examples, together, strict=True):
            (alone,) = saliencies(model, [example], [ALL], method=method)
            assert one.example is example
            assert one.values.shape == (3, len(example))
            np.testing.assert_allclose(one.values, alone.values, rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(one.numbers, alone.numbers, rtol=1e-6)
            np.testing.assert_allclose(one.error, alone.error, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(method):
    model = attention_model("llama", attn_implementation="sdpa")
    model.train()
    model.score.weight.requires_grad_(False)
    model.model.layers[0].eval()
    model.model.embed_tokens.weight.grad = torch.ones_like(model.model.embed_tokens.weight)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    asking = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.get_rng_state()

    saliencies(model, tiny_examples(2), [ALL] * 2, method=method)

    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asking
    assert torch.equal(torch.get_rng_state(), random)
    assert model.config._attn_implementation == "sdpa"
    assert float(model.model.embed_tokens.weight.grad.sum()) == model.model.embed_tokens.weight.numel()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_a_model_is_left_as_it_was_by_a_method_that_fails():
    model = tiny_model("bert").train()

    def failing(question):
        question.outputs()
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        saliencies(model, tiny_examples(1), [ALL], method=failing)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", ["cp_lrp", "attnlrp", "integrated_gradients", "occlusion"])
def test_the_token_that_the_class_reads_is_found(method):
    model = reader_of_one_token(9)
    (found,) = saliencies(model, [from_ids([4, 9, 5, 6, 9, 7], list("axbcxd"))], [class_target([1])], method=method)
    values, is_read = found.values[0], np.array([False, True, False, False, True, False])
    assert found.numbers[0] > 0.1
    if method in ("cp_lrp", "attnlrp"):
        # Attention takes half of what it hands on by AttnLRP, and hands nothing on, for its queries are 0.
        np.testing.assert_allclose(values.sum(), found.numbers[0] * (1 if method == "cp_lrp" else 0.5), rtol=1e-5)
        np.testing.assert_allclose(values[1], values[4], rtol=1e-5)
        assert not values[~is_read].any()
    else:
        assert values[is_read].min() > values[~is_read].max()  # the others do have a part in the norm


def test_attention_rollout_follows_the_attention():
    """With uniform attention, half of it past the layer, the read token has its residual and an equal share of all."""
    (found,) = saliencies(
        reader_of_one_token(9), [from_ids([4, 9, 5, 6], list("abcd"))], [class_target([1])], method="attention_rollout"
    )
    np.testing.assert_allclose(found.values[0], [0.125, 0.125, 0.125, 0.625], rtol=1e-5)


def test_occlusion_is_the_fall_without_the_token():
    model = tiny_model("bert").eval()
    example = tiny_examples(1)[0]
    found = saliencies(model, [example], [ALL], method="occlusion", tokenizer=word_tokenizer())[0]
    ids = example.inputs["input_ids"]
    for place in range(len(example) - 1):
        masked = ids.clone()
        masked[place] = MASK
        with torch.no_grad():
            fall = model(ids[None]).logits[0] - model(masked[None]).logits[0]
        np.testing.assert_allclose(found.values[:, place], fall.numpy(), atol=1e-5)
    assert not found.values[:, -1].any()  # the end of the text is no part of it


def test_decoders_read_their_last_token_where_it_is():
    """Llama finds the last token by its id, which replaced embeddings do not hide."""
    model = tiny_model("llama").eval()
    found = saliencies(model, tiny_examples(4), [ALL] * 4, batch_size=4)
    for example, each in zip(tiny_examples(4), found, strict=True):
        with torch.no_grad():
            expected = model(example.inputs["input_ids"][None]).logits[0]
        np.testing.assert_allclose(each.numbers, expected.numpy(), rtol=1e-4, atol=1e-6)


# Targets


def test_the_class_of_a_token():
    model = tiny_model("bert", auto=AutoModelForTokenClassification).eval()
    example = tiny_examples(1)[0]
    target = predicted_target(model, example, position=1)
    with torch.no_grad():
        logits = model(example.inputs["input_ids"][None]).logits[0, 1]
    assert target == token_target(1, [int(logits.argmax())], [f"LABEL_{i}" for i in range(3)])
    (found,) = saliencies(model, [example], [target])
    np.testing.assert_allclose(found.numbers, logits.max().item(), rtol=1e-5)
    assert found.error[0] < 1e-3
    with pytest.raises(ProbingError, match="say the position"):
        predicted_target(model, example)


def test_the_span_of_an_answer():
    model = tiny_model("bert", auto=AutoModelForQuestionAnswering, num_labels=2).eval()
    examples = tiny_examples(3)
    targets = [predicted_target(model, example) for example in examples]
    for example, target, found in zip(examples, targets, saliencies(model, examples, targets), strict=True):
        with torch.no_grad():
            outputs = model(example.inputs["input_ids"][None])
        start, end = target[0].index, target[1].index
        assert target == span_target(start, end)
        pairs = [(i, j) for i in range(len(example)) for j in range(i, len(example))]
        sums = [float(outputs.start_logits[0, i] + outputs.end_logits[0, j]) for i, j in pairs]
        assert (start, end) == pairs[int(np.argmax(sums))]
        expected = [float(outputs.start_logits[0, start]), float(outputs.end_logits[0, end])]
        np.testing.assert_allclose(found.numbers, expected, rtol=1e-4, atol=1e-6)
        assert found.error.max() < 1e-3


@pytest.mark.parametrize("method", ["cp_lrp", "attnlrp", "input_x_gradient", "integrated_gradients", "gradient_norm"])
def test_generated_tokens_rest_on_what_stands_before_them(method):
    model = tiny_model("gpt2", auto=AutoModelForCausalLM, eos_token_id=None)
    tokenizer, prompt = word_tokenizer(), from_ids([5, 6, 7], ["bad", "film", "a"])
    example, target = generated(model, tokenizer, prompt, n_tokens=3)
    assert len(example) == 6
    assert target == generation_target(
        example.inputs["input_ids"][3:].tolist(), first=3, names=list(example.tokens[3:])
    )
    (found,) = saliencies(model, [example], [target], method=method)
    assert found.values.shape == (3, 6)
    for row in range(3):
        assert not found.values[row, 3 + row :].any()  # a token is read before it is there
        assert np.abs(found.values[row, : 3 + row]).min() > 0
    assert predicted_target(model, prompt, tokenizer) == target[:1]


def test_the_output_of_an_encoder_and_decoder():
    model = tiny_model("bart", auto=AutoModelForSeq2SeqLM).eval()
    prompt = tiny_examples(1)[0]
    example, target = generated(model, word_tokenizer(), prompt, n_tokens=4)
    for method in ("cp_lrp", "integrated_gradients", "occlusion"):
        (found,) = saliencies(model, [example], [target], method=method)
        assert found.values.shape == (len(target), len(prompt))
    inputs = {name: value[None] for name, value in example.inputs.items()}
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    expected = [float(logits[i, number.index]) for i, number in enumerate(target)]
    np.testing.assert_allclose(found.numbers, expected, rtol=1e-4, atol=1e-6)


def test_the_word_behind_a_mask():
    model, tokenizer = tiny_model("bert", auto=AutoModelForMaskedLM).eval(), word_tokenizer()
    found = explain(model, tokenizer, "a [MASK] film")
    with torch.no_grad():
        logits = model(encoded(tokenizer, "a [MASK] film").inputs["input_ids"][None]).logits[0, 2]
    assert found.target[0].index == int(logits.argmax())
    np.testing.assert_allclose(found.numbers[0], float(logits.max()), rtol=1e-4)


# What a user adds, and what is refused


def test_a_method_of_ones_own():
    def length(question):
        return torch.arange(question.embeddings.shape[1]).expand(len(question.examples), question.n_numbers, -1)

    model = tiny_model("bert")
    found = saliencies(model, tiny_examples(3), [ALL] * 3, method=length)[1]
    assert found.method == "length"
    assert found.values.tolist() == [list(range(len(found.example)))] * 3
    assert np.isnan(found.error).all()
    with pytest.raises(ProbingError, match=r"the method <lambda> gave values of shape \(2,\); expected \(1, 3, \d+\)"):
        saliencies(model, tiny_examples(1), [ALL], method=lambda question: torch.zeros(2))


def test_what_cannot_be_explained_is_named():
    model, examples = tiny_model("bert"), tiny_examples(2)
    with pytest.raises(ProbingError, match="there is no method 'magic'; choose one of cp_lrp, attnlrp"):
        saliencies(model, examples, [ALL] * 2, method="magic")
    with pytest.raises(ProbingError, match="1 targets for 2 examples"):
        saliencies(model, examples, [ALL])
    with pytest.raises(ProbingError, match=r"logits has 3 columns, none at \[7\]"):
        saliencies(model, examples, [class_target([7])] * 2)
    with pytest.raises(ProbingError, match="none at 30, where"):
        saliencies(model, examples, [token_target(30, [0])] * 2)
    with pytest.raises(ProbingError, match="one dimension too few; name no token"):
        saliencies(model, examples, [token_target(0, [0])] * 2)
    with pytest.raises(ProbingError, match="no output start_logits; it has logits"):
        saliencies(model, examples, [span_target(0, 1)] * 2)
    tagger = tiny_model("bert", auto=AutoModelForTokenClassification)
    with pytest.raises(ProbingError, match="name the token whose logits are meant"):
        saliencies(tagger, examples, [ALL] * 2)
    with pytest.raises(ProbingError, match="there is no mask token; choose another baseline"):
        saliencies(model, examples, [ALL] * 2, method=lambda question: integrated_gradients(question, baseline="mask"))


def test_models_that_do_not_read_tokens_are_refused():
    with pytest.raises(ProbingError, match="ViTForImageClassification does not look up tokens"):
        saliencies(attention_model("vit"), tiny_examples(1), [ALL])


def test_attention_is_not_rolled_out_through_two_stacks():
    with pytest.raises(ProbingError, match="attention of BartForSequenceClassification has two stacks"):
        saliencies(tiny_model("bart"), [from_ids([5, 6, EOS], list("abc"))], [ALL], method="attention_rollout")


# What a token reads


def test_tokens_tell_their_characters():
    tokenizer = word_tokenizer()
    found = encoded(tokenizer, "good  film", "very bad")
    assert found.tokens == ("[CLS]", "good", "film", "[SEP]", "very", "bad", "[SEP]")
    for token, (start, end), segment in zip(found.tokens, found.offsets, found.segments, strict=True):
        if segment >= 0:
            assert found.texts[segment][start:end] == token
        else:
            assert (start, end) == (-1, -1)
    assert found.is_special[0]
    first = explain(tiny_model("bert"), tokenizer, "good  film", classes=[0, 2])
    assert [number.name for number in first.target] == ["LABEL_0", "LABEL_2"]
    assert "".join(gap + token for gap, token in zip(first.example.gaps(), first.example.tokens, strict=True)) == (
        "[CLS] good  film [SEP]"
    )
    assert first.top(1)[0][1] == first.values[0].max()
    np.testing.assert_allclose(first.rest_share * first.numbers + first.values.sum(1), first.numbers, rtol=1e-4)


def test_a_text_without_tokens_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ProbingError, match="has no tokens"):
        encoded(tokenizer, "")
