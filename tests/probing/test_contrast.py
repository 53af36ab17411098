"""The same example in several states of a model."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from t3vis.errors import ProbingError
from t3vis.probing.contrast import contrast
from t3vis.probing.saliency import saliencies
from t3vis.probing.targets import class_target
from tests.callbacks.tiny import tiny_model
from tests.probing.examples import tiny_examples

TARGET = class_target([1], ["no", "yes"])


@contextmanager
def silenced(model):
    """The model without its first layer's attention."""
    module = model.bert.encoder.layer[0].attention.output.dense
    handle = module.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
    try:
        yield model
    finally:
        handle.remove()


def test_every_state_is_explained_by_itself():
    before, after = tiny_model("bert", seed=0), tiny_model("bert", seed=1)
    example = tiny_examples(1)[0]
    found = contrast({"before": before, "after": after, "pruned": silenced(after)}, example, TARGET)
    for state, model in enumerate((before, after)):
        (alone,) = saliencies(model, [example], [TARGET])
        np.testing.assert_array_equal(found.values[state], alone.values[0])
        assert found.numbers[state] == alone.numbers[0]
    assert not np.allclose(found.values[2], found.values[1])
    np.testing.assert_array_equal(found.change, found.values[2] - found.values[0])
    assert not after.bert.encoder.layer[0].attention.output.dense._forward_pre_hooks

    rows = found.rows()
    assert list(rows[0]) == ["token", "before", "after", "pruned", "change"]
    assert [row["token"] for row in rows] == [*example.tokens, "(biases and rest)", "= yes"]
    for column, state in zip(("before", "after", "pruned"), range(3), strict=True):
        shown = [float(row[column]) for row in rows]
        assert sum(shown[:-1]) == pytest.approx(shown[-1], abs=0.01)
        assert shown[-1] == pytest.approx(found.numbers[state], abs=6e-4)


def test_one_state_is_no_contrast():
    with pytest.raises(ProbingError, match="give two or more"):
        contrast({"only": tiny_model("bert")}, tiny_examples(1)[0], TARGET)
