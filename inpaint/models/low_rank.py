"""Low-rank updates by row: linear layers to which every row of a batch brings its own LoRA, or none.

For painting many rows with many adapters, and for training many adapters in one forward: where gradients are enabled,
they reach what was installed.

The layers of a model share one `LoraLayout`: all A and transposed B matrices of an adapter side by side, so that an
adapter is one matrix R x W and choosing adapters for a batch is one gather. Shapes: U rows of a batch, of which the
first K have adapters; N tokens; R rank; I, O features in and out; W columns of a layout.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inpaint.models.layers import adaptable_layers, disk_name


@dataclass(eq=False)
class RowUpdate:
    """What one layer adds now. Not a module, for it is set many times per second."""

    down_KRI: Tensor | None = None
    """K x R x I, or R x I where all K rows share one adapter; None: nothing is added."""
    up_KRO: Tensor | None = None
    rows: int = 0
    """K."""


class RowLoraLinear(nn.Module):
    """A frozen linear layer plus the low-rank update of the first K rows; it holds the same weights as before."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.update = RowUpdate()

    def forward(self, x_UNI: Tensor) -> Tensor:
        """U x N x I -> U x N x O."""
        y_UNO = nn.functional.linear(x_UNI, self.weight, self.bias)
        down, up = self.update.down_KRI, self.update.up_KRO
        if down is None or up is None:
            return y_UNO
        rows = self.update.rows
        if torch.is_grad_enabled():
            # Out of place, so that autograd keeps what it needs and autocast may mix types.
            added_KNO = x_UNI[:rows] @ down.mT @ up
            return torch.cat([y_UNO[:rows] + added_KNO, y_UNO[rows:]])
        if down.ndim == 2:
            low = torch.mm(x_UNI[:rows].reshape(-1, self.in_features), down.T)
            y_UNO[:rows].view(-1, self.out_features).addmm_(low, up)
        else:
            y_UNO[:rows].baddbmm_(torch.bmm(x_UNI[:rows], down.mT), up)
        return y_UNO


class Place(NamedTuple):
    """Where a layer's matrices stand in the columns of a layout."""

    layer: RowLoraLinear
    down: slice
    """Of A."""
    up: slice
    """Of B, transposed."""


@dataclass(frozen=True, eq=False)
class LoraLayout:
    """The adapted layers of one model by their name on disk, without `.lora_A.weight`."""

    places: Mapping[str, Place]
    width: int
    """W."""

    def pack(self, tensors: Mapping[str, Tensor], *, rank: int, scale: float) -> Tensor:
        """An adapter's tensors of this model as R x W, on the CPU; layers that it does not have stay zero.

        Args:
            tensors: by name on disk, all of this model; they fit (`inpaint.models.adapter.check_adapter`).
            scale: multiplies B: alpha / rank.
        """
        packed_RW = torch.zeros(rank, self.width)
        for name, tensor in tensors.items():
            layer, _, half = name.partition(".lora_")
            place = self.places[layer]
            if half == "A.weight":
                packed_RW[:, place.down] = tensor.float()
            else:
                packed_RW[:, place.up] = tensor.float().T * scale
        return packed_RW

    def install(self, gathered: Tensor | None, rows: int) -> None:
        """Set what the layers add: K x R x W, or R x W for all of the first `rows`, or nothing."""
        for place in self.places.values():
            update = place.layer.update
            update.rows = rows
            if gathered is None:
                update.down_KRI = update.up_KRO = None
            else:
                update.down_KRI = gathered[..., place.down]
                update.up_KRO = gathered[..., place.up]


def adapt(model: nn.Module, prefix: str) -> LoraLayout:
    """Replaces, in place, the linear layers of a U-Net or CLIP text model that adapters may have updates for."""
    places, width = {}, 0
    for path, linear in adaptable_layers(model, prefix).items():
        parent, _, child = path.rpartition(".")
        layer = RowLoraLinear(linear)
        setattr(model.get_submodule(parent), child, layer)
        middle, end = width + layer.in_features, width + layer.in_features + layer.out_features
        places[disk_name(prefix, path)] = Place(layer, slice(width, middle), slice(middle, end))
        width = end
    return LoraLayout(places, width)


Uses = tuple[tuple[int, float], ...]
"""(slot, weight) of each adapter that a row is painted with."""


@dataclass(eq=False)
class LoraPool:
    """The packed adapters of one model: S slots x R x W. Slot 0 is no adapter: zeros."""

    layout: LoraLayout
    slots: int
    max_rank: int
    device: torch.device
    dtype: torch.dtype
    packed_SRW: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.slots + 1, self.max_rank, self.layout.width)
        self.packed_SRW = torch.zeros(shape, device=self.device, dtype=self.dtype)

    def gather(self, uses_U: list[Uses], ranks: Mapping[int, int], *, fixed: bool = False) -> tuple[Tensor | None, int]:
        """What `LoraLayout.install` takes, for rows of which those with adapters come first.

        Several adapters of a row stand one above the other along R, each weighed in its B.

        Args:
            ranks: of the adapter in each slot; rows are cut to the largest one used.
            fixed: give all rows a matrix of the largest rank, so that a compiled model sees one shape; a row may then
                use one adapter only without another compilation.
        """
        rows = len(uses_U) if fixed else sum(bool(uses) for uses in uses_U)
        if rows == 0:
            return None, 0
        chosen = uses_U[:rows]
        rank = self.max_rank if fixed else max(ranks[slot] for uses in chosen for slot, _ in uses)
        alike = not fixed and len(set(chosen)) == 1
        if alike:
            chosen = chosen[:1]
        most = max(1, *(len(uses) for uses in chosen)) if chosen else 1
        padded = [[*uses, *[(0, 0.0)] * (most - len(uses))] for uses in chosen]
        slots_KM = torch.tensor([[slot for slot, _ in row] for row in padded], device=self.device)
        gathered = self.packed_SRW[:, :rank][slots_KM.flatten()]
        weights = [weight for row in padded for _, weight in row]
        if any(weight != 1.0 for weight in weights):
            weights_K11 = torch.tensor(weights, device=self.device, dtype=self.dtype)[:, None, None]
            for place in self.layout.places.values():
                gathered[..., place.up] *= weights_K11
        gathered = gathered.reshape(len(chosen), most * rank, self.layout.width)
        return (gathered[0] if alike else gathered), rows
