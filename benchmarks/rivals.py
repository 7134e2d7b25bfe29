"""What a team builds first: a diffusers pipeline behind Ray Serve, with an adapter chosen per request.

Both are kept as quick as their design allows: channels-last weights, no safety checker, no guidance rows where there is
no guidance, pictures decoded beside the pipeline, adapters read from the local disk. Both paint one request at a time,
under a lock: diffusers' active adapter is a state of the whole pipeline, so that a batch can hold one adapter only, and
`serve.batch` with `serve.multiplexed` paints requests with another's adapter (docs/decisions.md).
"""

import asyncio
import base64
import copy
import io
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoPipelineForInpainting
from PIL import Image
from ray import serve
from safetensors.torch import load_file
from starlette.requests import Request
from starlette.responses import Response

from inpaint.export.adapter_folder import EMBEDS_FILES, LORA_FILE
from inpaint.models.base import DTYPES
from inpaint.paint.photos import encode_png


class _Rival:
    """A pipeline with all categories' tokens, and the HTTP around it."""

    def __init__(self, base: str, adapters: str, threads: int, precision: str, device: str) -> None:
        torch.set_num_threads(threads)
        diffusers.utils.logging.disable_progress_bar()
        self.folder = Path(adapters)
        self.pipeline: Any = AutoPipelineForInpainting.from_pretrained(
            base, torch_dtype=DTYPES[precision], use_safetensors=True, safety_checker=None
        ).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        for module in (self.pipeline.unet, self.pipeline.vae):
            module.to(memory_format=torch.channels_last)
        for name in self.names():
            self._load_tokens(name)
        self.lock = asyncio.Lock()

    def names(self) -> list[str]:
        """Categories, each an adapter folder."""
        return sorted(path.name for path in self.folder.iterdir())

    def load(self, pipeline: Any, name: str) -> None:
        """One adapter into a pipeline, under its category's name."""
        pipeline.load_lora_weights(
            str(self.folder / name),
            weight_name=LORA_FILE,
            adapter_name=name,
            use_safetensors=True,
            local_files_only=True,
        )

    def _load_tokens(self, name: str) -> None:
        parts = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
        for file, (tokenizer, encoder) in zip(EMBEDS_FILES, parts, strict=True):
            path = self.folder / name / file
            if path.is_file():
                for token, vector in load_file(path).items():
                    self.pipeline.load_textual_inversion(
                        vector,
                        token=token,
                        tokenizer=getattr(self.pipeline, tokenizer),
                        text_encoder=getattr(self.pipeline, encoder),
                    )

    async def answer(self, request: Request, chosen: Any) -> Response:
        """Decode, paint under the lock with the pipeline that `chosen(category)` gives, encode."""
        fields = await request.json()
        pictures = await asyncio.to_thread(_decode, fields)
        async with self.lock:
            pipeline = await chosen(fields["category"])
            painted = await asyncio.to_thread(_paint, pipeline, fields, *pictures)
        data = await asyncio.to_thread(_pasted, painted, *pictures)
        return Response(data, media_type="image/png")


@serve.deployment(max_ongoing_requests=1000)
class SetAdapters(_Rival):
    """All adapters loaded; `set_adapters` per request."""

    def __init__(self, base: str, adapters: str, threads: int, precision: str, device: str) -> None:
        super().__init__(base, adapters, threads, precision, device)
        for name in self.names():
            self.load(self.pipeline, name)

    async def __call__(self, request: Request) -> Response:
        """One picture."""
        return await self.answer(request, self._chosen)

    async def _chosen(self, category: str) -> Any:
        await asyncio.to_thread(self.pipeline.set_adapters, [category])
        return self.pipeline


@serve.deployment(max_ongoing_requests=1000)
class Multiplexed(_Rival):
    """A model per category: its own copy of U-Net and text encoders with the adapter fused in, kept by Serve's LRU.

    Fused, a category costs nothing extra per step; all of them fit, so that nothing is loaded twice.
    """

    async def __call__(self, request: Request) -> Response:
        """One picture."""
        return await self.answer(request, self.model)

    @serve.multiplexed(max_num_models_per_replica=16)
    async def model(self, category: str) -> Any:
        """The pipeline of a category."""
        return await asyncio.to_thread(self._copy, category)

    def _copy(self, category: str) -> Any:
        parts = dict(self.pipeline.components)
        for name in ("unet", "text_encoder", "text_encoder_2"):
            if parts.get(name) is not None:
                parts[name] = copy.deepcopy(parts[name])
        pipeline = type(self.pipeline)(**parts)
        pipeline.set_progress_bar_config(disable=True)
        self.load(pipeline, category)
        pipeline.fuse_lora(adapter_names=[category])
        pipeline.unload_lora_weights()
        return pipeline


def _decode(fields: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
    photo, hole = (Image.open(io.BytesIO(base64.b64decode(fields[name]))) for name in ("image", "mask"))
    return photo.convert("RGB"), hole.convert("L")


def _paint(pipeline: Any, fields: dict[str, Any], photo: Image.Image, hole: Image.Image) -> Image.Image:
    with torch.inference_mode():
        return pipeline(
            prompt=f"{fields['category']} background, {fields['prompt']}",
            image=photo,
            mask_image=hole,
            height=photo.height,
            width=photo.width,
            strength=1.0,
            num_inference_steps=fields["steps"],
            guidance_scale=fields["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(fields["seed"]),
        ).images[0]


def _pasted(painted: Image.Image, photo: Image.Image, hole: Image.Image) -> bytes:
    return encode_png(np.asarray(Image.composite(painted, photo, hole)))
