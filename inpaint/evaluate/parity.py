"""What unmodified diffusers paints with an export, beside what we paint: how far an export is from what was trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image
from torch import Tensor

from inpaint.models.base import Base, no_progress_bars
from inpaint.paint.request import PaintRequest


@dataclass(frozen=True)
class Parity:
    """How far pictures are apart, in [0, 1], before paste-back."""

    largest: float
    mean: float

    @classmethod
    def of(cls, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> "Parity":
        """Of two painters' pictures of the same requests, H W 3 float32 each."""
        apart = [np.abs(a.astype(np.float64) - b) for a, b in zip(ours, theirs, strict=True)]
        return cls(float(np.max([one.max() for one in apart])), float(np.mean([one.mean() for one in apart])))


def pipeline_of(base: Base) -> Any:
    """diffusers' pipeline for inpainting around a base's modules, which stay the base's."""
    parts: dict[str, Any] = {"vae": base.vae, "unet": base.unet, "scheduler": base.scheduler}
    for suffix, encoder, tokenizer in zip(("", "_2"), base.text_encoders, base.tokenizers, strict=False):
        parts |= {f"text_encoder{suffix}": encoder, f"tokenizer{suffix}": tokenizer}
    if base.info.is_xl:
        zeros = base.zero_empty_negative
        return _quiet(
            StableDiffusionXLInpaintPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
        )
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return _quiet(StableDiffusionInpaintPipeline(**parts, **unchecked))


def load_pipeline(folder: str | Path, *, is_xl: bool, dtype: torch.dtype) -> Any:
    """diffusers' pipeline for inpainting from a folder."""
    kind = StableDiffusionXLInpaintPipeline if is_xl else StableDiffusionInpaintPipeline
    unchecked = {"add_watermarker": False} if is_xl else {"safety_checker": None}
    with no_progress_bars():
        return _quiet(kind.from_pretrained(folder, dtype=dtype, local_files_only=True, **unchecked))


def load_token(pipeline: Any, token: str, vectors: Sequence[Tensor]) -> None:
    """Teach a pipeline a token: what each of its text encoders has of it, D or N D."""
    for suffix, vector in zip(("", "_2"), vectors, strict=False):
        models = {name: getattr(pipeline, name + suffix) for name in ("tokenizer", "text_encoder")}
        pipeline.load_textual_inversion(vector, token=token, **models)


def painted_by(pipeline: Any, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    """What a pipeline paints of requests with nothing left open, by DDIM."""
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return [paint_with(pipeline, request) for request in requests]


def paint_with(pipeline: Any, request: PaintRequest, **more: Any) -> np.ndarray:
    """What a pipeline paints of a request with nothing left open, by its own scheduler, at the photo's own size: H W 3
    float32 in [0, 1], before paste-back. Args: more: of the pipeline's call."""
    picture: np.ndarray = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or None,
        image=Image.fromarray(request.image),
        mask_image=Image.fromarray(request.hole),
        **{"height": request.image.shape[0], "width": request.image.shape[1]} | more,
        strength=request.sampling.strength,
        num_inference_steps=request.sampling.steps,
        guidance_scale=request.sampling.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    ).images[0]
    return picture


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
