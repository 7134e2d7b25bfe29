"""Work beside the denoising: on a GPU on a stream of its own, on a CPU in turn with the ticks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class StreamEvent:
    """When some work is done; on a CPU it is, once it was called."""

    event: torch.cuda.Event | None = None

    def is_past(self) -> bool:
        """Whether the work is done."""
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Blocks until it is."""
        if self.event is not None:
            self.event.synchronize()


class SideStream:
    """Runs work beside the main stream, after all that the main stream was given before."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._main = torch.cuda.current_stream(device) if device.type == "cuda" else None

    @contextmanager
    def work(self) -> Iterator[StreamEvent]:
        """The event that is given out is recorded when the block ends."""
        done = StreamEvent()
        if self._stream is None or self._main is None:
            yield done
            return
        self._stream.wait_stream(self._main)
        with torch.cuda.stream(self._stream):
            yield done
            done.event = self._stream.record_event()

    def hand_over(self, tensors: Iterable[Tensor | None]) -> None:
        """Made on the side, used on the main stream from now on: their memory is not reused before that is done."""
        for tensor in tensors:
            if self._main is not None and tensor is not None:
                tensor.record_stream(self._main)

    def borrow(self, tensor: Tensor) -> Tensor:
        """Made on the main stream, used on the side."""
        if self._stream is not None:
            tensor.record_stream(self._stream)
        return tensor

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy on the CPU, there when the event of this work is past."""
        if self._stream is None:
            return tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def mark(self) -> StreamEvent:
        """When the main stream has done all that it was given."""
        return StreamEvent(None if self._main is None else self._main.record_event())
