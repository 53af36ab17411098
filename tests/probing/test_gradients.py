"""Explanations from gradients: against captum, against what they must add up to, and where the answer is known."""

import captum.attr
import numpy as np
import pytest
import torch

from t3vis.probing.gradients import (
    clenshaw_curtis,
    gradient_norm,
    input_x_gradient,
    integrated_gradients,
    smoothgrad,
)
from t3vis.probing.model import probed
from tests.callbacks.tiny import tiny_model
from tests.probing.examples import asked, tiny_examples


def of_class(model, question, k):
    """What captum asks for: the logit of a class as a function of embeddings, one example at a time."""

    def call(embeddings):
        mask = question.inputs["attention_mask"].expand(len(embeddings), -1)
        return model(inputs_embeds=embeddings, attention_mask=mask).logits[:, k]

    return call


@pytest.fixture(scope="module", params=["bert", "electra"])
def probe(request):
    with probed(tiny_model(request.param).double()) as model:
        yield model, asked(model, tiny_examples(1))


def test_gradients_are_those_of_captum(probe):
    model, question = probe
    product, norm = input_x_gradient(question).values, gradient_norm(question).values
    for k in range(3):
        call, x = of_class(model, question, k), question.embeddings.clone().requires_grad_()
        expected = captum.attr.InputXGradient(call).attribute(x).sum(-1)
        torch.testing.assert_close(product[:, k], expected.detach())
        gradient = captum.attr.Saliency(call).attribute(x, abs=False)
        torch.testing.assert_close(norm[:, k], gradient.norm(dim=-1))


def test_integrated_gradients_are_those_of_captum(probe):
    model, question = probe
    found = integrated_gradients(question, tolerance=1e-6).values
    start = question.without(question.is_content, question.baseline("mask"))
    for k in range(3):
        way = captum.attr.IntegratedGradients(of_class(model, question, k))
        expected = way.attribute(question.embeddings, start, n_steps=200).sum(-1)
        torch.testing.assert_close(found[:, k], expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
@pytest.mark.parametrize("baseline", ["mask", "mean", "pad"])
def test_integrated_gradients_are_complete(kind, baseline):
    with probed(tiny_model(kind)) as model:
        question = asked(model, tiny_examples(4))
        answer = integrated_gradients(question, baseline=baseline)
        start = question.without(question.is_content, question.baseline(baseline))
        assert float(answer.error.max()) <= 0.01
        torch.testing.assert_close(
            answer.values.sum(-1), question.numbers() - question.numbers(start), rtol=0.011, atol=1e-5
        )
        torch.testing.assert_close(answer.rest, question.numbers(start))
    assert not answer.values[~question.is_content[:, None].expand_as(answer.values)].any()


def test_the_steps_adapt_to_the_example():
    with probed(tiny_model("bert", seed=3)) as model:
        question = asked(model, tiny_examples(6))
        rough, fine = integrated_gradients(question, tolerance=0.5), integrated_gradients(question, tolerance=1e-5)
        few = integrated_gradients(question, tolerance=1e-9, max_steps=17)
    assert int(rough.steps.max()) < int(fine.steps.max())
    assert len(set(fine.steps.tolist())) > 1
    assert set(few.steps.tolist()) == {17}
    assert float(few.error.max()) > 1e-9


@pytest.mark.parametrize("n_points", [3, 9, 17])
def test_the_quadrature_is_exact_for_polynomials_and_nested(n_points):
    places, weights = clenshaw_curtis(n_points)
    for power in range(n_points):
        np.testing.assert_allclose(weights @ places**power, 1 / (power + 1), rtol=1e-12)
    assert set(places.tolist()) <= set(clenshaw_curtis(2 * n_points - 1)[0].tolist())


def test_without_noise_the_smooth_gradient_is_the_gradient():
    with probed(tiny_model("gpt2")) as model:
        question = asked(model, tiny_examples(3))
        torch.testing.assert_close(smoothgrad(question, n_draws=2, noise=0.0).values, input_x_gradient(question).values)


def test_noise_is_the_mean_over_its_draws():
    with probed(tiny_model("bert").double()) as model:
        question = asked(model, tiny_examples(1))
        x = question.embeddings
        scale = 0.15 * (x.max() - x.min())
        streams = [np.random.default_rng((5, draw)) for draw in range(4)]
        draws = [torch.from_numpy(stream.standard_normal(x.shape[1:], dtype=np.float32)) for stream in streams]
        gradients = [question.gradients(x + scale * draw.to(x))[1] for draw in draws]
        expected = (sum(gradients) / 4 * x[:, None]).sum(-1)
        torch.testing.assert_close(smoothgrad(question, n_draws=4, seed=5).values, expected)
