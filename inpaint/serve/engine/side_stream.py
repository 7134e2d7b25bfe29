"""Work beside the denoising: on a GPU on a stream of its own, on a CPU in turn with the ticks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

StreamEvent = torch.cuda.Event | torch.cpu.Event
"""When some work is done: `query()` it, or `synchronize()`; on a CPU it always is."""


class SideStream:
    """Runs work beside the main stream, after all that the main stream was given before."""

    def __init__(self, device: torch.device) -> None:
        self._torch: Any = torch.get_device_module(device)
        self._main, self._side = self._torch.current_stream(device), self._torch.Stream(device)

    @contextmanager
    def work(self) -> Iterator[StreamEvent]:
        """The event that is given out is recorded when the block ends."""
        done = self._torch.Event()
        self._side.wait_stream(self._main)
        with self._torch.stream(self._side):
            yield done
            done.record(self._side)

    def hand_over(self, tensors: Iterable[Tensor]) -> None:
        """Made on the side, used on the main stream from now on: their memory is not reused before that is done."""
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(self._main)

    def borrow(self, tensor: Tensor) -> Tensor:
        """Made on the main stream, used on the side."""
        if tensor.is_cuda:
            tensor.record_stream(self._side)
        return tensor

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy on the CPU, there when the event of this work is past."""
        if not tensor.is_cuda:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def free(self) -> None:
        """Give back the device's memory that is cached for nobody."""
        if self._torch is torch.cuda:
            self._torch.empty_cache()

    def mark(self) -> StreamEvent:
        """When the main stream has done all that it was given."""
        event: StreamEvent = self._torch.Event()
        event.record(self._main)
        return event
