"""Low-rank updates by row: linear layers to which every row of a batch brings its own LoRA, or none.

For painting many rows with many adapters, and for training many adapters in one forward: where gradients are enabled,
they reach the pool. There all A and transposed B matrices of an adapter stand side by side, so that an adapter is one
matrix R x W and choosing adapters for a batch is one gather.

Shapes: U rows of a batch, of which the first K have adapters; N tokens; S slots; R rank; I, O features in and out; W
features in and out of all layers.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inpaint.device import on_device
from inpaint.models.layers import adaptable_layers, features

Uses = tuple[tuple[int, float], ...]
"""(slot, weight) of each adapter that a row is painted with."""


class Packed(NamedTuple):
    """An adapter's tensors of one model."""

    matrix_RW: Tensor
    layers: frozenset[str]
    """Those that it has, by their name on disk; the columns of the others are zero."""


class Gathered(NamedTuple):
    """What the rows of a batch are painted with."""

    matrices: Tensor | None = None
    """K x R x W, or R x W where all K rows share one adapter; none where K is 0."""
    rows: int = 0
    """K."""
    layers: frozenset[str] = frozenset()
    """Those that any row's adapter has: the others need no update."""


class RowLoraLinear(nn.Module):
    """A frozen linear layer plus the low-rank update of the first K rows; it holds the same weights as before."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.in_features, self.out_features = features(layer)
        self.update: tuple[Tensor, Tensor, int] | None = None
        """Transposed A (K x I x R, or I x R where all share it), transposed B (K x R x O, or R x O), and K."""

    def forward(self, x_UNI: Tensor) -> Tensor:
        """U x N x I -> U x N x O."""
        return self._updated(x_UNI, nn.functional.linear(x_UNI, self.weight, self.bias))

    def _updated(self, x_UNI: Tensor, y_UNO: Tensor) -> Tensor:
        """In place, unless there are gradients."""
        if self.update is None:
            return y_UNO
        down, up, rows = self.update
        # Mostly all rows have adapters, and each slice is some microseconds of the host.
        x_KNI, y_KNO = (x_UNI, y_UNO) if rows == len(x_UNI) else (x_UNI[:rows], y_UNO[:rows])
        if torch.is_grad_enabled():
            # Out of place, so that autograd keeps what it needs and autocast may mix types.
            return torch.cat([y_KNO + x_KNI @ down @ up, y_UNO[rows:]])
        if down.ndim == 3:
            y_KNO.baddbmm_(torch.bmm(x_KNI, down), up)
        elif y_UNO.is_contiguous():
            low = torch.mm(x_KNI.reshape(-1, self.in_features), down)
            y_KNO.view(-1, self.out_features).addmm_(low, up)
        else:
            y_KNO.baddbmm_(x_KNI @ down, up.expand(rows, -1, -1))
        return y_UNO


class RowLoraPointwise(RowLoraLinear):
    """The same of a convolution of 1 x 1: N are its pixels."""

    def forward(self, x_UIhw: Tensor) -> Tensor:
        """U x I x h x w -> U x O x h x w."""
        y_UOhw = nn.functional.conv2d(x_UIhw, self.weight, self.bias)
        if self.update is None:
            return y_UOhw
        x_UNI, y_UNO = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (x_UIhw, y_UOhw))
        return self._updated(x_UNI, y_UNO).unflatten(1, x_UIhw.shape[2:]).permute(0, 3, 1, 2)


class LoraPool:
    """The packed adapters of one model, S x R x W, and its layers that can add them. Slot 0 is no adapter: zeros."""

    def __init__(self, model: nn.Module, prefix: str, *, slots: int, max_rank: int) -> None:
        """Replaces, in place, the layers that a LoRA can change of one of `inpaint.models.layers.adapted_models`."""
        self.layers: dict[str, RowLoraLinear | RowLoraPointwise] = {}
        """By their name on disk, in the columns' order."""
        for name, (path, layer) in adaptable_layers(model, prefix).items():
            self.layers[name] = RowLoraLinear(layer) if isinstance(layer, nn.Linear) else RowLoraPointwise(layer)
            model.set_submodule(path, self.layers[name])
        self._widths = [width for layer in self.layers.values() for width in (layer.in_features, layer.out_features)]
        is_up = torch.tensor([False, True] * len(self.layers)).repeat_interleave(torch.tensor(self._widths))
        self.packed_SRW = next(model.parameters()).new_zeros(slots + 1, max_rank, len(is_up), requires_grad=False)
        self._is_up_W = is_up.to(self.packed_SRW.device)
        self._ranks = [0] * (slots + 1)
        self._layers: list[frozenset[str]] = [frozenset()] * (slots + 1)

    def split(self, packed: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each layer's name, and its A and transposed B in matrices ... x R x W."""
        parts = packed.split(self._widths, dim=-1)
        return zip(self.layers, parts[::2], parts[1::2], strict=True)

    def pack(self, tensors: Mapping[str, Tensor], *, rank: int, scale: float) -> Packed:
        """An adapter's tensors of this model, on the CPU.

        Args:
            tensors: by name on disk; they fit (`inpaint.models.adapter.check_adapter`).
            scale: multiplies B: alpha / rank.
        """
        packed_RW = torch.zeros(rank, sum(self._widths))
        layers = frozenset(name for name in self.layers if f"{name}.lora_A.weight" in tensors)
        for name, down_RI, up_RO in self.split(packed_RW):
            if name in layers:
                down_RI.copy_(tensors[f"{name}.lora_A.weight"].flatten(1))
                up_RO.copy_(tensors[f"{name}.lora_B.weight"].flatten(1).float().T * scale)
        return Packed(packed_RW, layers)

    @torch.no_grad()
    def put(self, slot: int, packed: Packed) -> None:
        """Copies a packed adapter of any rank up to the pool's into a slot."""
        rank = len(packed.matrix_RW)
        self.packed_SRW[slot, :rank].copy_(packed.matrix_RW, non_blocking=True)
        self.packed_SRW[slot, rank:].zero_()
        self._ranks[slot], self._layers[slot] = rank, packed.layers

    def gather(self, uses_U: list[Uses], *, fixed: bool = False) -> Gathered:
        """What `install` takes, for rows of which those with adapters come first.

        It is cut to the largest rank used. Several adapters of a row stand one above the other along R, each weighed in
        its B.

        Args:
            fixed: give all rows a matrix of the largest rank, in all layers, so that a compiled model sees one shape; a
                row may then use one adapter only without another compilation.
        """
        rows = len(uses_U) if fixed else sum(bool(uses) for uses in uses_U)
        chosen = uses_U[:rows]
        used = (self._layers[slot] for uses in chosen for slot, _ in uses)
        layers = frozenset(self.layers) if fixed else frozenset[str]().union(*used)
        if not rows or not layers:
            return Gathered()
        rank = self.packed_SRW.shape[1] if fixed else max(self._ranks[slot] for uses in chosen for slot, _ in uses)
        shared = not fixed and len(set(chosen)) == 1
        if shared:
            chosen = chosen[:1]
        most = max(1, *(len(uses) for uses in chosen))
        padded = [use for uses in chosen for use in (*uses, *[(0, 0.0)] * (most - len(uses)))]
        device = self.packed_SRW.device
        gathered = self.packed_SRW[:, :rank][on_device([slot for slot, _ in padded], device)]
        if any(weight != 1.0 for _, weight in padded):
            weights = torch.tensor([weight for _, weight in padded], dtype=gathered.dtype)
            weights_11 = on_device(weights, device)[:, None, None]
            gathered = torch.where(self._is_up_W, gathered * weights_11, gathered)
        gathered = gathered.reshape(len(chosen), most * rank, -1)
        return Gathered(gathered[0] if shared else gathered, rows, layers)

    def install(self, gathered: Gathered) -> None:
        """Let the layers add this to the first K rows, from now on."""
        for layer in self.layers.values():
            layer.update = None
        if gathered.matrices is not None:
            for name, down, up in self.split(gathered.matrices):
                if name in gathered.layers:
                    self.layers[name].update = down.mT, up, gathered.rows
