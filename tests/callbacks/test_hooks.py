"""Which forward call of a step is the batch's own, what it is asked for, and what is left on the model: nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from t3vis.callbacks.batches import Batch
from t3vis.callbacks.hooks import Capture, accepts, backbone, called_module, is_asked, without_added
from tests.callbacks.tiny import tiny_model


def test_outputs_are_handed_on_as_they_would_have_been() -> None:
    logits = torch.zeros(1, 3)
    outputs = SequenceClassifierOutput(logits=logits, hidden_states=(torch.zeros(1, 2, 4),))  # type: ignore[arg-type]
    assert list(without_added(outputs, ["output_hidden_states"])) == ["logits"]
    assert isinstance(without_added(outputs, ["output_hidden_states"]), SequenceClassifierOutput)
    as_tuple = without_added(outputs, ["output_hidden_states", "return_dict"])
    assert isinstance(as_tuple, tuple)
    assert as_tuple[0] is logits
    assert len(as_tuple) == 1
    assert list(without_added({"logits": logits, "encoder_hidden_states": ()}, ["output_hidden_states"])) == ["logits"]
    assert without_added(outputs, []) is outputs


class Named(nn.Module):
    def forward(self, x: Tensor, output_hidden_states: bool = False) -> None: ...


class Anything(nn.Module):
    def forward(self, x: Tensor, **kwargs: Any) -> None: ...


def test_what_a_model_can_be_asked_for() -> None:
    bert = tiny_model()
    assert accepts(bert, "output_hidden_states")
    assert accepts(bert, "return_dict")
    assert accepts(Named(), "output_hidden_states")
    assert not accepts(Named(), "return_dict")
    assert not accepts(Anything(), "output_hidden_states")  # it might hand it on to what does not take it
    assert not is_asked(bert, "output_hidden_states", {})
    assert is_asked(bert, "output_hidden_states", {"output_hidden_states": True})
    assert is_asked(bert, "return_dict", {})
    assert not is_asked(bert, "return_dict", {"return_dict": False})
    assert not is_asked(tiny_model(return_dict=False), "return_dict", {})
    assert is_asked(tiny_model(output_hidden_states=True), "output_hidden_states", {})
    assert not is_asked(tiny_model(output_hidden_states=True), "output_hidden_states", {"output_hidden_states": False})


class Spy:
    """A capture on a tiny model, and the first logit of each call that was taken."""

    def __init__(self) -> None:
        self.model = tiny_model().eval()
        self.taken: list[float] = []
        self.capture = Capture(self.model, self.receive, hidden_states=True)

    def receive(self, batch: Batch, outputs: Any, gradients: None) -> None:
        assert len(outputs["hidden_states"]) == 3
        self.taken.append(outputs["logits"][0, 0].item())

    def step(self, *calls: tuple[Tensor, bool], main: Tensor | None, training: bool = True) -> tuple[bool, list[float]]:
        """Call the model with each of the inputs (and whether for a gradient); what each call itself returned."""
        self.taken = []
        self.capture.arm(Batch(torch.tensor([0]), None, None, main, training))
        returned = []
        for given, grad in calls:
            with torch.set_grad_enabled(grad):
                outputs = self.model(input_ids=given)
            assert list(outputs) == ["logits"]
            returned.append(outputs["logits"][0, 0].item())
        return self.capture.disarm(), returned


OWN, OTHER = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9]])


def test_which_call_of_a_step_counts() -> None:
    spy = Spy()
    done, values = spy.step((OTHER, True), (OWN, True), (OTHER, True), main=OWN)
    assert (done, spy.taken) == (True, [values[1]])  # that which got the batch's own input
    done, values = spy.step((OTHER, False), (OWN, False), main=OWN, training=False)
    assert (done, spy.taken) == (True, [values[1]])
    done, values = spy.step((OWN, False), (OTHER, True), (OWN.clone(), True), main=OWN)
    assert (done, spy.taken) == (True, [values[1]])  # none did: the first one for a gradient
    done, values = spy.step((OTHER, True), (OWN, True), main=None)
    assert (done, spy.taken) == (True, [values[0]])
    done, values = spy.step((OWN, False), main=OWN)
    assert (done, spy.taken) == (False, [])  # none for a gradient
    assert spy.model(OWN).logits.shape == (1, 3)  # between the steps
    assert spy.taken == []


def test_a_copy_of_the_model_has_calls_of_its_own() -> None:
    spy = Spy()
    twin = copy.deepcopy(spy.model)
    spy.capture.arm(Batch(torch.tensor([0]), None, None, OWN, training=False))
    assert "hidden_states" not in twin(input_ids=OWN)
    assert not spy.capture.disarm()
    assert spy.taken == []


def test_nothing_is_left_on_the_model() -> None:
    spy = Spy()
    for _ in range(2):
        spy.step((OWN, True), main=OWN)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in spy.model.modules())
        assert pickle.loads(pickle.dumps(spy.model))(OWN).logits.shape == (1, 3)


def test_hooks_that_somebody_else_asked_for_stay() -> None:
    spy = Spy()
    spy.model(OWN, output_hidden_states=True)  # transformers puts its hooks on the encoder, and leaves them there
    hooks = {id(module): dict(module._forward_hooks) for module in spy.model.modules()}
    assert any(hooks.values())
    spy.step((OWN, True), main=OWN)
    assert {id(module): dict(module._forward_hooks) for module in spy.model.modules()} == hooks
    assert len(spy.model(OWN, output_hidden_states=True).hidden_states) == 3


def test_a_call_that_goes_on_from_a_cache_is_a_generation() -> None:
    model, taken = tiny_model("gpt2").eval(), []
    capture = Capture(model, lambda batch, outputs, gradients: taken.append(outputs), hidden_states=False)
    cache = model(OWN, use_cache=True).past_key_values
    capture.arm(Batch(torch.tensor([0]), None, None, OWN, training=False))
    model(OTHER, past_key_values=cache)
    assert not capture.disarm()
    assert taken == []


def test_which_module_is_called_in_place_of_the_model() -> None:
    model = tiny_model()
    compiled = torch.compile(model, backend="eager")
    assert called_module(compiled, model) is compiled
    assert called_module(model, model) is model
    assert called_module(nn.Sequential(model), model) is model
    assert backbone(model) is model.bert
    assert backbone(model.bert) is None
    assert backbone(nn.Linear(1, 1)) is None
