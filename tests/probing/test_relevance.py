"""The rules of relevance propagation: conserved through whole models, and those of the papers on single layers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP

from t3vis.errors import ProbingError
from t3vis.probing.gradients import attnlrp, cp_lrp, input_x_gradient
from t3vis.probing.model import probed
from t3vis.probing.relevance import Propagation, is_activation, propagation
from tests.callbacks.attention_models import ARCHITECTURES, attention_model
from tests.probing.examples import asked, tiny_examples, without_constants

TEXT = [kind for kind in ARCHITECTURES if kind != "vit"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
@settings(deadline=None, max_examples=8, derandomize=True)
@given(seed=st.integers(0, 1000), n_layers=st.integers(1, 3), n_examples=st.integers(1, 3))
def test_without_constants_the_tokens_add_up_to_the_logit(kind, seed, n_layers, n_examples):
    name = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    model = without_constants(kind, seed=seed, **{name: n_layers}).double()
    with probed(model):
        answer = cp_lrp(asked(model, tiny_examples(n_examples, seed=seed)))
    torch.testing.assert_close(answer.values.sum(-1), answer.numbers, rtol=1e-5, atol=1e-9)
    assert float(answer.rest.abs().max()) < 1e-9


@pytest.mark.parametrize("kind", TEXT)
def test_tokens_and_constants_add_up_in_every_architecture(kind):
    model = attention_model(kind).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
    with probed(model):
        answer = cp_lrp(asked(model, tiny_examples(3)))
    left_over = answer.values.sum(-1) + answer.rest - answer.numbers
    assert float((left_over.abs() / answer.values.abs().sum(-1)).max()) < 1e-6  # some norms compute in float32
    assert float(answer.values.abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", [cp_lrp, attnlrp])
def test_the_attention_implementation_changes_nothing(kind, method):
    found = []
    for implementation in ("sdpa", "eager"):
        model = attention_model(kind, attn_implementation=implementation).double()
        with probed(model):
            found.append(method(asked(model, tiny_examples(3))))
    torch.testing.assert_close(found[0].values, found[1].values)


def test_what_constants_take_under_plain_gradients_is_their_gradient():
    model = attention_model("bert").double()
    with probed(model):
        answer = input_x_gradient(asked(model, tiny_examples(1)))
    constants = [p for name, p in model.named_parameters() if name.endswith("bias")]
    example = tiny_examples(1)[0]
    embedded = {}
    for name in ("position_embeddings", "token_type_embeddings"):
        module = model.get_submodule(f"bert.embeddings.{name}")
        module.register_forward_hook(lambda _, __, out, name=name: embedded.setdefault(name, out))
    model.eval()
    logit = model(input_ids=example.inputs["input_ids"][None]).logits[0, 2]
    tensors = [*constants, *embedded.values()]
    gradients = torch.autograd.grad(logit, tensors)
    expected = sum((x * g).sum() for x, g in zip(tensors, gradients, strict=True))
    torch.testing.assert_close(answer.rest[0, 2], expected.detach())


# AttnLRP, rule by rule: relevance R of the output in, relevance of each input out


def relevance(function, inputs, out, rules="attnlrp"):
    """What every input is given of the relevance ``out`` of the function's output."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    with Propagation(rules, 1) as running:
        y = function(*inputs)
    gradients = torch.autograd.grad(y, inputs, out / y.detach(), allow_unused=True)
    running.taken_by_constants()
    return [torch.zeros_like(x) if g is None else (x * g).detach() for x, g in zip(inputs, gradients, strict=True)]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_layers_follow_the_epsilon_rule():
    x, weight, out = drawn(1, 4), drawn(3, 4, seed=1), drawn(1, 3, seed=2)
    (found,) = relevance(lambda x: F.linear(x, weight), [x], out)
    z = x @ weight.T
    expected = torch.stack([sum(weight[j, i] * x[0, i] / z[0, j] * out[0, j] for j in range(3)) for i in range(4)])
    torch.testing.assert_close(found[0], expected)


def test_softmax_is_expanded_to_first_order():
    """Proposition 3.1: R_i = x_i (R_i - s_i sum_j R_j)."""
    x, out = drawn(1, 5), drawn(1, 5, seed=1)
    (found,) = relevance(lambda x: F.softmax(x, -1), [x], out)
    torch.testing.assert_close(found, x * (out - x.softmax(-1) * out.sum()))


def test_a_product_of_matrices_gives_each_half():
    """Proposition 3.3: R(A_ji) = sum_p A_ji V_ip R_jp / (2 O_jp), and likewise for V."""
    a, v, out = drawn(1, 2, 3), drawn(1, 3, 4, seed=1), drawn(1, 2, 4, seed=2)
    found_a, found_v = relevance(torch.matmul, [a, v], out)
    share = out[0] / (2 * (a @ v)[0])
    torch.testing.assert_close(found_a[0], a[0] * torch.einsum("jp,ip->ji", share, v[0]))
    torch.testing.assert_close(found_v[0], v[0] * torch.einsum("jp,ji->ip", share, a[0]))
    torch.testing.assert_close(found_a.sum() + found_v.sum(), out.sum())


def test_fused_attention_is_softmax_and_products():
    q, k, v, out = (drawn(1, 1, 3, 4, seed=seed) for seed in range(4))

    def by_hand(q, k, v):
        return torch.matmul(F.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.5, -1), v)

    for rules in ("attnlrp", "cp_lrp"):
        fused = relevance(F.scaled_dot_product_attention, [q, k, v], out, rules)
        for one, other in zip(fused, relevance(by_hand, [q, k, v], out, rules), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("function", [F.gelu, F.silu, torch.tanh, torch.relu, lambda x: x.tanh()])
def test_activations_hand_everything_on(function):
    """Section 3.3.1, the identity rule of element-wise functions of one input."""
    x, out = drawn(1, 5).abs() + 0.1, drawn(1, 5, seed=1)
    (found,) = relevance(function, [x], out)
    torch.testing.assert_close(found, out)


def test_norms_hand_everything_on():
    """Proposition 3.4: the factor that normalises is a constant; the mean of a layer norm is subtracted linearly."""
    x, weight, out = drawn(1, 6), drawn(6, seed=1), drawn(1, 6, seed=2)
    (found,) = relevance(lambda x: F.rms_norm(x, (6,), weight, 1e-6), [x], out)
    torch.testing.assert_close(found, out)
    (written_out,) = relevance(lambda x: weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))), [x], out)
    torch.testing.assert_close(written_out, out)
    (found,) = relevance(lambda x: F.layer_norm(x, (6,), weight), [x], out)
    share = out / (x - x.mean())
    torch.testing.assert_close(found, x * (share - share.mean()))


def test_a_gated_layer_gives_the_gate_half_or_nothing():
    x = drawn(1, 2, 8)
    config = GemmaConfig(hidden_size=8, intermediate_size=6, hidden_activation="gelu_pytorch_tanh")
    torch.manual_seed(0)
    layer = GemmaMLP(config).double().requires_grad_(False)
    out = drawn(1, 2, 8, seed=2)
    halves = {}
    for rules in ("attnlrp", "cp_lrp"):
        leaf = x.clone().requires_grad_()
        with propagation(layer, rules, 1):
            y = layer(leaf)
        (gradient,) = torch.autograd.grad(y, leaf, out / y.detach())
        halves[rules] = leaf.detach() * gradient
        torch.testing.assert_close(halves[rules].sum(), out.sum())
    gate = layer.act_fn(layer.gate_proj(x))
    share = (out / y.detach()) @ layer.down_proj.weight * gate
    torch.testing.assert_close(halves["cp_lrp"], x * (share @ layer.up_proj.weight))


def test_what_has_no_rule_is_named():
    with pytest.raises(ProbingError, match=r"no rule of attnlrp for erf\b"):
        relevance(lambda x: torch.erf(x), [drawn(1, 3)], drawn(1, 3))
    with pytest.raises(ProbingError, match=r"no rule of cp_lrp for exp\b"):
        relevance(lambda x: x.exp(), [drawn(1, 3)], drawn(1, 3), "cp_lrp")


def test_what_has_no_rule_but_gets_no_relevance_is_no_matter():
    x, y, out = drawn(1, 3), drawn(1, 3, seed=1), drawn(1, 3, seed=2)
    found, unused = relevance(lambda x, y: x * F.softmax(torch.erf(y), -1), [x, y], out, "cp_lrp")
    torch.testing.assert_close(found, out)
    assert not unused.any()


def test_activations_are_known_by_what_they_are():
    assert is_activation(nn.GELU())
    assert not is_activation(nn.Sigmoid())
    assert not is_activation(nn.Linear(2, 2))


@pytest.mark.parametrize("rules", ["cp_lrp", "attnlrp", "gradient"])
def test_the_values_of_the_forward_pass_stay_the_same(rules):
    for kind in ("bert", "llama"):
        model = attention_model(kind)
        with probed(model):
            question = asked(model, tiny_examples(3))
            with propagation(model, rules, 3):
                ruled = question.numbers(question.embeddings.clone().requires_grad_())
            torch.testing.assert_close(ruled, question.numbers())
            assert not any(module._forward_hooks for module in model.modules())
