"""Painting holes with a base and its adapters: `inpaint.serve.apps.paint:build`, which `serve_config.yaml` names."""

import dataclasses
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve

from inpaint.errors import InpaintError
from inpaint.models.base import BaseInfo
from inpaint.models.locate import TOY_BASE, absolute_name
from inpaint.serve.adapters.registry import RegistrySettings
from inpaint.serve.admission import AdmissionSettings
from inpaint.serve.deployments.ingress import Ingress
from inpaint.serve.deployments.painters import Painters
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.http.limits import HttpSettings

SHIPPED_ADAPTERS = {"toy": TOY_BASE.parent / "adapters", "toy-sdxl": TOY_BASE.parent / "sdxl_adapters"}
"""What the registries of these names stand for: the adapters that come with the package, by their base."""

OF_ONNX = {"slots", "max_rank", "ahead_rows", "side_rows", "threads", "loaders", "longest_turn_s"}
"""Of the engine's settings, those that painters on ONNX Runtime read."""


class PaintArgs(BaseModel):
    """`args` of the application."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = "toy"
    """Folder in diffusers format, `.safetensors` file, hub id, `toy` or `toy-sdxl`."""
    base_revision: str | None = None
    """Expected revision; what is there when unset."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of all weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU that the painter was given, else the CPU."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of a painter on CPUs; unset: as many as CPUs that it was given."""
    onnx: str | None = None
    """Folder or URL that `python -m ray_jobs.export --to onnx` has written of the base (its `onnx` folder): painters
    then compute with ONNX Runtime, on CPUs, and do not load the base's weights."""
    controlnet: str | None = None
    """A ControlNet's folder or hub id, or `toy-edges`: orders may then have a control picture, and share batches with
    others."""
    controlnet_revision: str | None = None
    """Expected revision; what is there when unset."""
    steps: int | None = Field(default=None, ge=1)
    """Sampling steps where a request says nothing; unset: what the base prefers."""
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    """Guidance where a request says nothing; unset: what the base prefers."""
    registry: RegistrySettings = RegistrySettings(root="toy")
    """Where adapters come from; `root: toy` and `root: toy-sdxl` are those that come with the package."""
    engine: EngineSettings = EngineSettings()
    """Of each painter."""
    http: HttpSettings = HttpSettings()
    """Limits and keys."""
    admission: AdmissionSettings = AdmissionSettings()
    """Of all ingresses together."""
    health_timeout_s: float = Field(default=60.0, gt=0)
    """A painter whose forward takes longer is replaced."""

    @model_validator(mode="after")
    def _check_onnx(self) -> Self:
        """Raises InpaintError for what has no effect where painters compute with ONNX Runtime."""
        if self.onnx is None:
            return self
        if self.controlnet is not None:
            raise InpaintError(f"controlnet {self.controlnet}: painters on ONNX Runtime have none; give null")
        if self.device == "cuda":
            raise InpaintError("device cuda: painters on ONNX Runtime are for CPUs; leave it out")
        unread = self.engine.model_fields_set - OF_ONNX
        if unread:
            raise InpaintError(
                f"engine.{min(unread)}: no effect on painters on ONNX Runtime, which read {', '.join(sorted(OF_ONNX))}"
            )
        return self

    @property
    def registry_settings(self) -> RegistrySettings:
        """With the folder that a shipped one's name stands for, and no rank that the engine's slots cannot hold."""
        root = str(SHIPPED_ADAPTERS.get(self.registry.root, self.registry.root))
        max_rank = min(self.registry.max_rank, self.engine.max_rank)
        return self.registry.model_copy(update={"root": root, "max_rank": max_rank})

    @property
    def anywhere(self) -> Self:
        """The same for processes in other directories."""
        onnx = self.onnx if self.onnx is None or "://" in self.onnx else str(Path(self.onnx).expanduser().resolve())
        return self.model_copy(update={"base": absolute_name(self.base), "onnx": onnx})

    def served(self, info: BaseInfo) -> BaseInfo:
        """What clients hear of the base."""
        return dataclasses.replace(
            info,
            name=Path(self.base).name if Path(self.base).is_absolute() else self.base,
            guidance_scale=info.guidance_scale if self.guidance_scale is None else self.guidance_scale,
            steps=self.steps or info.steps,
        )


def build(args: PaintArgs) -> serve.Application:
    """An ingress in front of painters; replicas, resources and scaling are set per deployment in the configuration."""
    args = args.anywhere
    return Ingress.bind(args, Painters.bind(args))
