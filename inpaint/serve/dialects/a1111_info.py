"""What A1111's answers say of their pictures: `info`, and the infotext in each picture."""

from collections.abc import Sequence
from typing import Any

from inpaint.models.info import BaseInfo
from inpaint.paint.request import PaintRequest
from inpaint.serve.dialects.a1111_probes import SAMPLERS
from inpaint.serve.wire.desk import Sent
from inpaint.serve.wire.names import Chosen
from inpaint.serve.wire.wish import Wish


def infotext(request: PaintRequest, seed: int, base: BaseInfo, chosen: Sequence[Chosen]) -> str:
    """A picture's settings as A1111 writes them and its PNG Info tab reads them."""
    sampler = SAMPLERS[request.sampling.sampler][0]
    height, width = request.hole.shape
    pairs = {
        "Steps": request.sampling.steps,
        "Sampler": sampler,
        "CFG scale": f"{request.sampling.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model hash": base.revision[:10],
        "Model": base.name,
        "Denoising strength": f"{request.sampling.strength:g}",
        "Mask blur": request.sampling.feather,
    }
    if chosen:
        hashes = ", ".join(f"{one.entry.name}: {one.entry.digest[:12]}" for one in chosen)
        pairs["Lora hashes"] = f'"{hashes}"'
    tags = "".join(f" <lora:{one.entry.name}:{one.weight:g}>" for one in chosen)
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return f"{request.prompt}{tags}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in pairs.items())


def info(wish: Wish, n_iter: int, sent: Sequence[Sent], base: BaseInfo) -> dict[str, Any]:
    """What an answer's `info` says, before it is written as JSON."""
    request, seeds = wish.request, [one.seed for one in sent]
    height, width = request.hole.shape
    assert wish.infotexts is not None
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * wish.n,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * wish.n,
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": request.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLERS[request.sampling.sampler][0],
        "cfg_scale": request.sampling.guidance_scale,
        "steps": request.sampling.steps,
        "batch_size": wish.n // n_iter,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": base.name,
        "sd_model_hash": base.revision[:10],
        "denoising_strength": request.sampling.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [wish.infotexts(seed) for seed in seeds],
        "styles": [],
        "clip_skip": 1,
        "is_using_inpainting_conditioning": True,
        "ignored": list(wish.warnings),
        "adapters": [vars(use) for use in wish.adapters],
        "kept_pixels_changed": sum(one.painted.kept_pixels_changed for one in sent if one.painted),
    }
