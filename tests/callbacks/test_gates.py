"""Scales by hand: what a loss was multiplied by is read off the gradient at the logits, or not at all."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t3vis.callbacks.gates import GateGradients, shortcomings
from t3vis.callbacks.scales import loss_scales, sequence_gradient, token_gradient
from t3vis.gates import Trace, attentions, gate_gradients, linear_layers, n_heads
from tests.callbacks.attention_models import attention_model

LOGITS = torch.tensor([[2.0, -1, 0.5], [0.1, 0.2, 0.3], [-3, 1, 4], [9, -9, 0]])
LABELS = torch.tensor([0, 2, 1, 0])


def arrived(reduced: Any) -> Tensor:
    """Gradient at the logits of a loss over the batch."""
    leaf = LOGITS.clone().requires_grad_()
    reduced(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(
    ("reduced", "expected"),
    [
        (lambda x: F.cross_entropy(x, LABELS), [0.25] * 4),
        (lambda x: F.cross_entropy(x, LABELS, reduction="sum"), [1.0] * 4),
        (lambda x: 65536 * F.cross_entropy(x, LABELS) / 3, [65536 / 12] * 4),
        (lambda x: F.cross_entropy(x, LABELS, weight=torch.tensor([1.0, 2, 5])), [1 / 9, 5 / 9, 2 / 9, 1 / 9]),
        (
            lambda x: (F.cross_entropy(x, LABELS, reduction="none") * torch.tensor([1.0, 0, 1, 1])).sum(),
            [1, None, 1, 1],
        ),
        (lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.3), [None] * 4),
        (lambda x: F.cross_entropy(x, LABELS) + x[0].square().sum(), [None, 0.25, 0.25, 0.25]),
    ],
    ids=["mean", "sum", "scaled", "class weights", "one left out", "label smoothing", "a penalty on one"],
)
def test_what_a_loss_was_multiplied_by(reduced: Any, expected: list[float | None]) -> None:
    scales = loss_scales(arrived(reduced), sequence_gradient("single_label", LOGITS, LABELS))
    torch.testing.assert_close(
        scales,
        torch.tensor([torch.nan if value is None else value for value in expected]),
        rtol=1e-4,
        atol=0,
        equal_nan=True,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_told_from_another_loss(dtype: torch.dtype) -> None:
    own = sequence_gradient("single_label", LOGITS, LABELS)
    scales = loss_scales((8 * arrived(lambda x: F.cross_entropy(x, LABELS))).to(dtype), own)
    torch.testing.assert_close(scales, torch.full((4,), 2.0), rtol=1e-2, atol=0)
    assert loss_scales(arrived(lambda x: x.square().mean()).to(dtype), own).isnan().all()


def test_weights_of_examples_that_are_learned_are_not_lost_among_others() -> None:
    """The gradient of the second is so small that the batch as a whole seems to have one scale."""
    logits, labels = torch.tensor([[0.0, 1, 2], [9, 0, -1], [1, 0, 0]]), torch.tensor([0, 0, 1])
    weights = torch.tensor([1.0, 5, 1])
    own = sequence_gradient("single_label", logits, labels)
    assert own[1].norm() < 1e-3 * own.norm()
    torch.testing.assert_close(loss_scales(weights[:, None] * own, own), weights)


def test_a_gradient_that_overflowed_is_not_known() -> None:
    own = sequence_gradient("single_label", LOGITS, LABELS)
    gradient = own / 4
    gradient[1] = torch.inf
    assert loss_scales(gradient, own).isnan().tolist() == [False, True, False, False]


def test_the_smoothed_loss_has_a_gradient_of_its_own() -> None:
    own = sequence_gradient("single_label", LOGITS, LABELS, 0.3)
    scales = loss_scales(arrived(lambda x: F.cross_entropy(x, LABELS, label_smoothing=0.3)), own)
    torch.testing.assert_close(scales, torch.full((4,), 0.25))


def test_no_label_no_gradient() -> None:
    own = sequence_gradient("single_label", LOGITS, torch.tensor([0, -100, 1, 0]))
    assert own.any(1).tolist() == [True, False, True, True]


def test_tokens_are_compared_at_some_that_have_a_label() -> None:
    """The mean over all labelled tokens of a batch multiplies an example by its share of them."""
    torch.manual_seed(0)
    logits, gold = torch.randn(3, 9, 5, requires_grad=True), torch.randint(5, (3, 9))
    gold[0, 2:], gold[1, ::2], gold[2] = -100, -100, -100
    F.cross_entropy(logits.flatten(0, 1), gold.flatten()).backward()
    own = token_gradient(logits, gold)
    assert own.at is not None
    assert own.at[:2].tolist() == [[0, 0, 1, 1], [1, 3, 5, 7]]
    assert own.gradient[2].eq(0).all()
    assert logits.grad is not None
    scales = loss_scales(own.rows_of(logits.grad), own.gradient)
    torch.testing.assert_close(scales[:2], torch.tensor([2 / 6, 4 / 6]))


def test_rows_of_an_example_stand_together() -> None:
    """Two choices of two tokens for each of two examples; heads of two values."""
    x, ones = torch.arange(32.0).reshape(4, 2, 4), torch.ones(4, 2, 4)
    expected = [[0 + 1 + 4 + 5 + 8 + 9 + 12 + 13, 2 + 3 + 6 + 7 + 10 + 11 + 14 + 15], [180, 196]]
    assert gate_gradients(x, ones, 2, 2).tolist() == expected


def test_what_is_not_known_is_said() -> None:
    values, loss = np.zeros((2, 3, 2), np.float32), np.float32([1, 2, np.nan])
    values[:, 2] = np.nan
    assert list(shortcomings(values, loss, [])) == []
    values[0] = np.nan
    assert [kind for kind, _ in shortcomings(values, loss, ["a"])] == ["unread"]
    values[:, 1] = np.nan
    ((kind, message),) = shortcomings(values, loss, [])
    assert kind == "scale"
    assert "NaN for 1 of 3 examples" in message


def test_a_graph_that_is_let_go_is_freed() -> None:
    """What is watched holds no tensor of the graph."""
    held = GateGradients((), 1, 1)
    x = torch.ones(1, 2, requires_grad=True) * 2
    held.watch_logits(x)
    node = x.grad_fn
    assert node is not None
    alive: list[int] = []
    node.metadata["freed"] = type("Freed", (), {"__del__": lambda self: alive.append(1)})()
    del x, node
    assert alive == [1]


class Grouped(nn.Module):
    """Named like an attention; says what is given."""

    def __init__(self, **said: Any) -> None:
        super().__init__()
        for name, value in said.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("said", "width", "expected"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, 32, 4),
        ({"head_dim": 8, "num_key_value_groups": 2}, 32, 4),
        ({"n_heads": 4, "key_value_proj_dim": 8}, 32, 4),
        ({"n_heads": 4, "key_value_proj_dim": 16}, 32, None),
        ({"num_heads": 3}, 32, None),
        ({"head_dim": 5}, 32, None),
    ],
)
def test_how_many_heads(said: dict[str, int], width: int, expected: int | None) -> None:
    assert n_heads(Grouped(**said), width) == expected


def test_hooks_of_a_trace_are_taken_off() -> None:
    model = attention_model("bert")
    trace = Trace(model)
    assert len(attentions(model)) == 2
    copied = copy.deepcopy(model)
    copied(torch.tensor([[5, 6]]))
    model(torch.tensor([[7, 8], [9, 10]]))
    found, inputs = trace.found(2)
    trace.remove()
    assert [x.shape for x in inputs] == [(2, 2, 16)] * 2
    assert [model.get_submodule(p.name) is p.module for p in found.projections] == [True] * 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(list(linear_layers(model))) == 14
