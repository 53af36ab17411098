"""Gate gradients of every attention head, against the gradients of the weights of one example at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from t3vis import RecorderCallback, open_run
from t3vis.store.reader import Split
from tests.callbacks.attention_models import ARCHITECTURES, attention_model, images, layers_of, stacked
from tests.callbacks.tiny import Rows, as_dataset, pad, tiny_rows, tiny_trainer

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


def check_heads(split: Split, model: Any, rows: Rows, *, epochs: tuple[int, ...] = (0, 1), rtol: float = 1e-4) -> None:
    """Every gate gradient is what the weights say; a module of several layers holds their sum."""
    said = split.attributes["arrays"]["head_gradients"]
    modules, n_heads = said["modules"], said["n_heads"]
    for epoch in epochs:
        values = split.head_gradients[epoch]
        assert values.shape == (len(modules), len(rows), max(n_heads))
        for i, row in enumerate(rows):
            for name, expected in zip(modules, by_weights(model, row, modules, n_heads), strict=True):
                layers = [layer for layer, module in enumerate(modules) if module == name]
                found = values[layers, i, : len(expected)].sum(0)
                assert np.isnan(values[layers, i, len(expected) :]).all()
                scale = np.abs(expected).max()
                assert scale > 1e-7, f"{name} does not matter to example {i}"
                np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale, err_msg=f"{name}, {i}")


# Architectures


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures(kind: str, tmp_path: Path) -> None:
    model, rows = attention_model(kind), images(9) if kind == "vit" else tiny_rows(9)
    recorder = RecorderCallback(tmp_path / "run.zarr", heads=True)
    collator = stacked if kind == "vit" else pad
    tiny_trainer(
        tmp_path / "out", recorder, model=model, train=as_dataset(rows), options={"data_collator": collator}
    ).train()
    train = open_run(tmp_path / "run.zarr").train
    said = train.attributes["arrays"]["head_gradients"]
    assert list(zip(said["attention"], said["modules"], strict=True)) == layers_of(kind)
    assert train.head_gradients.dims == ("epoch", "layer", "example", "head")
    check_heads(train, model, rows)
