"""Several adapters in one base, for a forward and backward of all at once: rows come adapter by adapter.

The base carries the LoRA layers of one adapter, as PEFT injects them. Here the two matrices of each become those of all
adapters, so that whatever else such a layer does (its scale, its dropout, its types) is as it is for one alone.
Shapes: K adapters, B rows in all, N tokens, I and O features in and out; P numbers of one adapter's parameters.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from inpaint.errors import InpaintError
from inpaint.models.prompts import ExtendedEmbedding


class StackedLinear(nn.Module):
    """A linear layer without bias that has another weight for each adapter."""

    def __init__(self, rows: list[int]) -> None:
        """Args: rows: of each adapter; empty: all have equally many. Kept, and changed from outside."""
        super().__init__()
        self.weight: Tensor = torch.empty(0)
        """K x O x I."""
        self._rows = rows

    def forward(self, x_BNI: Tensor) -> Tensor:
        """B x ... x I -> B x ... x O."""
        count = len(self.weight)
        if self._rows:
            parts = zip(x_BNI.split(self._rows), self.weight, strict=True)
            return torch.cat([nn.functional.linear(x, weight_OI) for x, weight_OI in parts])
        y_KNO = torch.bmm(x_BNI.reshape(count, -1, x_BNI.shape[-1]), self.weight.mT)
        return y_KNO.view(*x_BNI.shape[:-1], -1)


class Stacked:
    """The trained parameters of a module, for several adapters side by side."""

    def __init__(self, module: nn.Module, groups: Sequence[Mapping[str, nn.Parameter]], adapters: int) -> None:
        """Replaces, in place, the layers of the module that hold the groups' parameters, each by its name on disk. Of
        new tokens each adapter has as many, in the adapters' order. Raises InpaintError for a layer of another kind."""
        self.text_rows: list[int] = []
        """What each adapter has of the rows that go through the text encoders; empty: equally many."""
        self._layers: dict[str, StackedLinear] = {}
        self._tables: dict[str, ExtendedEmbedding] = {}
        self._initial = {name: p.detach().clone() for group in groups for name, p in group.items()}
        self._adapters = adapters
        owners = {id(p): path for path, p in module.named_parameters()}
        for name, parameter in ((name, p) for group in groups for name, p in group.items()):
            path, _, kind = owners[id(parameter)].rpartition(".")
            self._replace(module, path, kind, name)
        self._shapes = [{name: self.initial(0)[name].shape for name in group} for group in groups]

    def _replace(self, module: nn.Module, path: str, kind: str, name: str) -> None:
        layer = module.get_submodule(path)
        if isinstance(layer, ExtendedEmbedding) and kind == "rows":
            del layer.rows
            layer.rows = self._initial[name]
            self._tables[name] = layer
        elif isinstance(layer, nn.Linear) and [own for own, _ in layer.named_parameters()] == ["weight"]:
            self._layers[name] = StackedLinear(self.text_rows if name.startswith("text_encoder") else [])
            module.set_submodule(path, self._layers[name])
        else:
            raise InpaintError(f"{name} is of a layer that several adapters cannot have side by side: train it alone")

    def initial(self, adapter: int) -> dict[str, Tensor]:
        """What an adapter begins with, by name."""
        return {
            name: value.tensor_split(self._adapters)[adapter] if name in self._tables else value
            for name, value in self._initial.items()
        }

    def named(self, vectors: Sequence[Tensor]) -> dict[str, Tensor]:
        """One adapter's parameters by name, as views of its vectors (P each), one per group."""
        found: dict[str, Tensor] = {}
        for shapes, vector_P in zip(self._shapes, vectors, strict=True):
            parts = vector_P.split([math.prod(shape) for shape in shapes.values()])
            found |= {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return found

    def vectors(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """The same the other way round, as copies."""
        return [torch.cat([named[name].flatten() for name in shapes]) for shapes in self._shapes]

    def install(self, adapters: Sequence[int], vectors: Sequence[Sequence[Tensor]]) -> None:
        """Let the module compute with these adapters, from now on; gradients reach their vectors.

        Args:
            adapters: their numbers, for their tokens' sake.
            vectors: of each of them, one per group.
        """
        for shapes, own in zip(self._shapes, zip(*vectors, strict=True), strict=True):
            sizes = [math.prod(shape) for shape in shapes.values()]
            for name, part_KP in zip(shapes, torch.stack(own).split(sizes, dim=1), strict=True):
                values = part_KP.unflatten(1, shapes[name])
                if name in self._layers:
                    self._layers[name].weight = values
                else:
                    self._tables[name].rows = self._among_all(name, adapters, values)

    def _among_all(self, name: str, adapters: Sequence[int], rows_KND: Tensor) -> Tensor:
        """The rows of the tokens of all adapters; others than these are not told."""
        everyone = list(self._initial[name].tensor_split(self._adapters))
        for adapter, rows_ND in zip(adapters, rows_KND, strict=True):
            everyone[adapter] = rows_ND
        return torch.cat(everyone)
