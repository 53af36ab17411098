"""What crosses from the device to the host: without anybody waiting, and read a step later.

There need be no GPU: torch's fake tensors have no values, and refuse whatever the host would have to know one for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from t3vis import Recorder, RecorderCallback, open_run
from t3vis.callbacks import capture, host_copies, session
from t3vis.callbacks.batches import Batch, batch_of
from t3vis.callbacks.capture import Captured, captured
from t3vis.callbacks.gates import GateGradients
from t3vis.callbacks.host_copies import HostCopies
from t3vis.callbacks.scales import own_loss
from t3vis.gates import Projection
from tests.callbacks.tiny import as_dataset, check_training, pad, tiny_model, tiny_rows, tiny_trainer

N, T, HIDDEN, N_CLASSES = 4, 5, 8, 3


def test_copies_are_what_the_tensors_were() -> None:
    wide = torch.arange(12.0).reshape(3, 4).requires_grad_()
    tensors = {"whole": wide, "turned": wide.T, "ids": torch.tensor([3, 1])}
    copies = HostCopies(tensors)
    with torch.no_grad():
        wide.zero_()
        tensors["ids"].zero_()
    arrays = copies.arrays()
    np.testing.assert_array_equal(arrays["whole"], np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(arrays["turned"], arrays["whole"].T)
    assert all(array.flags.c_contiguous for array in arrays.values())
    assert arrays["ids"].tolist() == [3, 1]
    assert arrays["ids"].dtype == np.int64


def test_copies_are_on_the_host_whatever_device_is_the_default() -> None:
    ids = torch.tensor([3, 1])
    with torch.device("meta"):
        copies = HostCopies({"ids": ids})
    assert copies.arrays()["ids"].tolist() == [3, 1]


# As on a GPU


class Crossings(TorchDispatchMode):
    """Notes each operation between the fake GPU and the host, and whether the host would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []
        self.n_pinned = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        if "cuda" in devices and len(devices) > 1:
            waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
            self.found.append((func.overloadpacket.__name__, waits))
        self.n_pinned += bool(kwargs.get("pin_memory"))
        return out


def test_copies_from_a_gpu_go_to_pinned_memory_and_one_event_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[torch.device, int]] = []
    with FakeTensorMode(), Crossings() as crossings:
        monkeypatch.setattr(host_copies, "_event", lambda device: begun.append((device, len(crossings.found))))
        HostCopies({name: torch.zeros(4, 3, device="cuda") for name in ("logits", "loss")})
    assert crossings.found == [("copy_", False)] * 2
    assert crossings.n_pinned == 2
    assert begun == [(torch.device("cuda", 0), 2)]


@pytest.fixture
def no_values() -> Iterator[None]:
    """Tensors have shapes only, as a host that does not wait for its device knows them."""
    with FakeTensorMode():
        yield


def zeros(*shape: int, whole: bool = False) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64 if whole else torch.float32)


def taken_blindly(batch: Batch, outputs: Mapping[str, Any], pooling: Any = "mean") -> Captured:
    states = {"hidden_states": tuple(zeros(batch.n_rows, T, HIDDEN) for _ in range(3))}
    return captured(batch, {**outputs, **states}, hidden_states="all", pooling=pooling, problem_type=None)


CLASSES, VALUES, CHOICES = (N,), (N, N_CLASSES), (N, N_CLASSES, T)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ({"labels": (CLASSES, True)}, "single_label"),
        ({"labels": (VALUES, False)}, "multi_label"),
        (
            {"labels": (CLASSES, True), "input_ids": (CHOICES, True), "attention_mask": (CHOICES, True)},
            "multiple_choice",
        ),
        ({"start_positions": (CLASSES, True), "end_positions": (CLASSES, True)}, "question_answering"),
    ],
    ids=["single label", "multi label", "multiple choice", "question answering"],
)
@pytest.mark.usefixtures("no_values")
def test_nobody_waits_for_the_rows_of_examples(kind: Any, task: str, pooling: str) -> None:
    given = {"input_ids": ((N, T), True), "attention_mask": ((N, T), True), **kind}
    inputs = {name: zeros(*shape, whole=whole) for name, (shape, whole) in given.items()}
    batch = batch_of(zeros(N, whole=True), inputs, None, ["labels"], training=True)
    of_tokens = {"start_logits": zeros(N, T), "end_logits": zeros(N, T)}
    taken = taken_blindly(batch, of_tokens if task == "question_answering" else {"logits": zeros(*VALUES)}, pooling)
    assert taken.task == task


@pytest.mark.usefixtures("no_values")
def test_nobody_waits_for_head_gradients() -> None:
    batch = Batch(zeros(N, whole=True), zeros(N, whole=True), None, None, training=True)
    logits, inputs = zeros(*VALUES).requires_grad_() * 1, zeros(N, T, HIDDEN).requires_grad_()
    own = own_loss("single_label", batch, {"logits": logits})
    assert own is not None
    linear = torch.nn.Linear(HIDDEN, HIDDEN)
    gradients = GateGradients((Projection("o", linear, "self", 2, linear),), N, N)
    gradients.own = own
    gradients.watch(0, inputs)
    gradients.watch_logits(logits)
    (logits.sum() + inputs.sum()).backward()
    HostCopies({"head_gradients": gradients.per_example(own)})
    assert gradients.error is None
    assert not gradients.unread


@pytest.mark.usefixtures("no_values")
def test_how_many_tokens_have_a_label_is_waited_for() -> None:
    batch = Batch(zeros(N, whole=True), zeros(N, T, whole=True), None, None, training=True)
    with pytest.raises(DynamicOutputShapeException, match="nonzero"):
        taken_blindly(batch, {"logits": zeros(N, T, N_CLASSES)})


# In a training


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """When which copies were begun, and first and last read."""
    found: list[tuple[str, int]] = []

    class Watched(HostCopies):
        def __init__(self, tensors: Mapping[str, Tensor]) -> None:
            super().__init__(tensors)
            self.number = sum(what == "begun" for what, _ in found)
            found.append(("begun", self.number))

        def arrays(self) -> dict[str, NDArray[Any]]:
            found.append(("read", self.number))
            return super().arrays()

    monkeypatch.setattr(capture, "HostCopies", Watched)
    monkeypatch.setattr(session, "HostCopies", Watched)
    return found


def test_rows_are_read_when_the_next_ones_are_on_their_way(order: list[tuple[str, int]], tmp_path: Path) -> None:
    model = tiny_model()
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr"), model=model, num_train_epochs=1)
    trainer.train()
    n = trainer.state.global_step
    later = [each for number in range(2, n) for each in (("begun", number), ("read", number - 1))]
    assert order == [("begun", 0), ("read", 0), ("read", 0), ("begun", 1), *later, ("read", n - 1)]
    check_training(open_run(tmp_path / "run.zarr").train, model, tiny_rows(), n_epochs=1, n_steps=n)


def test_head_gradients_are_read_after_the_next_step(order: list[tuple[str, int]], tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path / "out", RecorderCallback(tmp_path / "run.zarr", heads=True), num_train_epochs=1)
    trainer.train()
    for step in range(1, trainer.state.global_step - 1):
        rows, heads = 2 * step, 2 * step + 1
        for number in (rows, heads):
            assert order.index(("read", number)) > order.index(("begun", heads + 1))
    assert not np.isnan(open_run(tmp_path / "run.zarr").train.head_gradients[0]).any()


def test_a_save_point_leaves_nothing_behind(tmp_path: Path) -> None:
    model, rows = tiny_model().train(), tiny_rows()
    with Recorder(tmp_path / "run.zarr", model, dataset=as_dataset(rows)) as recorder, recorder.epoch(0):
        for start in (0, 4, 8):
            batch = pad(rows[start : start + 4])
            with recorder.step(range(start, start + 4), labels=batch["labels"]):
                model(**batch)
        recorder.save_point()
        visits = open_run(tmp_path / "run.zarr").train.visits[0]
    assert np.flatnonzero(visits).tolist() == list(range(12))
