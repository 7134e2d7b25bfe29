"""How a run paints: its settings, and the models that they name."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from inpaint.data.storage import local_copy
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.adapter import Adapter, apply_adapter, check_adapter
from inpaint.models.base import load_base
from inpaint.models.info import read_base_info
from inpaint.models.locate import absolute_name
from inpaint.paint.painter import Painter
from inpaint.paint.request import SamplingSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class PaintSettings:
    """How all pictures of a run are painted."""

    base: str | None = None
    """A folder in diffusers format or a `.safetensors` file, its URL, a hub id, or `toy`; default: the adapter's."""
    revision: str | None = None
    """Of the base; default: the one that the adapter was trained on."""
    adapter: str | None = None
    """An adapter's folder or URL; rows with a category then get its token into their prompt."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    """Of the run; in a data set each row's own is made from it and the row's id."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the base's weights; fp16 is for GPUs."""
    negative_prompt: str = ""
    """What to steer away from."""


@dataclass(frozen=True)
class PaintModels:
    """What settings name, found and checked, without the base's weights. Travels to where it is painted."""

    settings: PaintSettings
    """With nothing left open."""
    adapter: Adapter | None
    """By value: other machines need not see its folder."""

    @property
    def identity(self) -> str:
        """The same string means the same weights."""
        files = [] if self.adapter is None else sorted(self.adapter.card.files.items())
        return f"{self.settings.revision} {self.settings.precision} {files}"

    def painter(self, device: str, max_batch: int) -> Painter:
        """Load the base, and apply the adapter."""
        settings = self.settings
        assert settings.base is not None
        with local_copy(settings.base) as name:
            base = load_base(name, revision=settings.revision, dtype=DTYPES[settings.precision])
        if self.adapter is not None:
            apply_adapter(base, self.adapter)
        return Painter(base, device=device, max_batch=max_batch)


def read_models(settings: PaintSettings) -> PaintModels:
    """Find what the settings name, and settle what they leave open.

    Raises:
        InpaintError: no base, or a base or an adapter that is not there, or does not fit.
    """
    adapter = None if settings.adapter is None else load_adapter(settings.adapter)
    base, revision = settings.base, settings.revision
    if adapter is not None:
        base, revision = base or adapter.card.base, revision or adapter.card.base_revision
    if base is None:
        raise InpaintError("base: give one (toy, a folder, a hub id), or an adapter, which names its own")
    with local_copy(base) as name:
        info = read_base_info(name, revision)
    if adapter is not None:
        check_adapter(adapter, info)
    decided = replace(
        settings, base=absolute_name(base), revision=info.revision, sampling=settings.sampling.resolved(info)
    )
    return PaintModels(decided, adapter)
