"""Copies of device tensors on the host; on a GPU they are made behind its back, so that nobody waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class HostCopies:
    """Copies of some tensors, begun here and read later.

    On a GPU (CUDA, ROCm) they go to pinned memory in the order of the current stream: the device makes them once it has
    computed the tensors, and may overwrite these afterwards, while the host goes on. Any other accelerator is waited
    for here. The copies share no memory with the tensors, on the CPU either: what is done to a tensor later does not
    change them.
    """

    @torch.no_grad()
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._copies = {name: _copy(tensor) for name, tensor in tensors.items()}
        self._events = [_event(device) for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The copies under the names of the tensors, once they have arrived."""
        for event in self._events:
            event.synchronize()
        return {name: copy.numpy() for name, copy in self._copies.items()}


def _copy(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, rows one after another; of a tensor on a GPU it is under way."""
    # Pinned memory comes from torch's cache, which reuses it only after the stream has passed what was copied to it.
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=tensor.is_cuda)


def _event(device: torch.device) -> torch.cuda.Event:
    """Passes when the device has done all that it was told to in the current stream so far."""
    event: torch.cuda.Event = torch.cuda.current_stream(device).record_event()
    return event
