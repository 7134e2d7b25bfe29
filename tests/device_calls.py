"""What a GPU would be asked to do, counted without one: torch's meta device has shapes and no numbers.

It refuses by itself what would be wrong on a GPU, or make the host wait for it: two devices in one operation, and every
number that is read back (`item`, `tolist`, `cpu`, the truth of a tensor, `nonzero`). Not seen: what torch and the
libraries do on CUDA alone, and autocast, which meta does not have. Attention is one kernel, as there.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import inpaint

_HOUSE = str(Path(inpaint.__file__).parent)
_OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
"""torch makes meta tensors of Python's numbers without an operation; to a GPU they would be copied."""
_NO_KERNEL = ("_unsafe_view", "detach", "lift_fresh")


@dataclass
class DeviceCalls:
    """What the device was asked to do."""

    kernels: Counter[str] = field(default_factory=Counter)
    """Operations by name; those that only look at a tensor's memory otherwise are left out."""
    views: int = 0
    """These, which cost the host's time alone."""
    copies: list[str] = field(default_factory=list)
    """From the host: what was called, and where."""
    waits: list[str] = field(default_factory=list)
    """Those of them for which the host waits, until the device has done all that it was given before."""

    def copied(self, what: str, *, waits: bool) -> None:
        """Notes a copy."""
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(_HOUSE)]
        named = [frame for frame in frames if frame.name != "on_device"][-1:]
        place = "".join(f"{Path(frame.filename).name} {frame.name}: {frame.line}" for frame in named) or "the test"
        self.copies.append(f"{what} in {place}")
        if waits:
            self.waits.append(self.copies[-1])


@contextmanager
def counted() -> Iterator[DeviceCalls]:
    """Counts what the meta device is asked to do meanwhile."""
    calls = DeviceCalls()
    with patch.object(torch, "autocast", lambda *_, **__: nullcontext()), _Functions(calls), _Operations(calls):
        yield calls


class _Operations(TorchDispatchMode):
    def __init__(self, calls: DeviceCalls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(leaf.is_meta for leaf in (*given, *tree_leaves(result)) if isinstance(leaf, Tensor)):
            return result
        name = func.name().removeprefix("aten::")
        # A number alone goes along with the kernel's arguments.
        if any(not leaf.is_meta and leaf.ndim for leaf in given):
            non_blocking = (kwargs or {}).get("non_blocking", False) or (name == "copy_" and args[2:] == (True,))
            self._calls.copied(name, waits=not non_blocking)
        elif func.is_view or name in _NO_KERNEL:
            self._calls.views += 1
        else:
            self._calls.kernels[name] += 1
        return result


class _Functions(TorchFunctionMode):
    def __init__(self, calls: DeviceCalls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].is_meta:
            return _attention(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _OF_NUMBERS and result.is_meta:
            self._calls.copied(func.__name__, waits=True)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | np.ndarray) for part in index):
                self._calls.copied(func.__name__, waits=True)
        return result


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return kernel(query, key, value, attn_mask, trains, dropout_p, is_causal, scale=scale)[0]
