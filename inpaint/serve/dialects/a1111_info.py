"""What A1111's answers say of their pictures: `info`, and the infotext in each picture; its names of what we have."""

from typing import Any

from inpaint.diffusion.samplers import Sampler
from inpaint.models.info import BaseInfo
from inpaint.serve.dialects.adapters import unknown
from inpaint.serve.dialects.call import PaintCall

SAMPLERS: dict[Sampler, tuple[str, ...]] = {
    Sampler.DDIM: ("DDIM", "ddim"),
    Sampler.EULER: ("Euler", "k_euler"),
    Sampler.EULER_ANCESTRAL: ("Euler a", "k_euler_a", "k_euler_ancestral"),
    Sampler.DPMPP_2M: ("DPM++ 2M", "k_dpmpp_2m"),
    Sampler.LCM: ("LCM", "k_lcm"),
}
"""Our samplers -> A1111's name, then its aliases."""


def infotext(call: PaintCall, seed: int, base: BaseInfo) -> str:
    """A picture's settings as A1111 writes them and its PNG Info tab reads them."""
    request, sampling = call.request, call.request.sampling
    height, width = request.hole.shape
    pairs = {
        "Steps": sampling.steps,
        "Sampler": SAMPLERS[sampling.sampler][0],
        "CFG scale": f"{sampling.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model hash": base.revision[:10],
        "Model": base.name,
        "Denoising strength": f"{sampling.strength:g}",
        "Mask blur": sampling.feather,
    }
    if call.adapters:
        hashes = ", ".join(f"{use.name}: {use.digest[:12]}" for use in call.adapters)
        pairs["Lora hashes"] = f'"{hashes}"'
    tags = "".join(f" <lora:{use.name}:{use.weight:g}>" for use in call.adapters)
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return f"{request.prompt}{tags}{negative}\n" + ", ".join(f"{name}: {value}" for name, value in pairs.items())


def info(call: PaintCall, n_iter: int, base: BaseInfo) -> dict[str, Any]:
    """What an answer's `info` says, before it is written as JSON."""
    request, sampling = call.request, call.request.sampling
    seeds = [request.seed + number for number in range(call.n)]
    height, width = request.hole.shape
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * call.n,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * call.n,
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": request.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLERS[sampling.sampler][0],
        "cfg_scale": sampling.guidance_scale,
        "steps": sampling.steps,
        "batch_size": call.n // n_iter,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": base.name,
        "sd_model_hash": base.revision[:10],
        "denoising_strength": sampling.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(call, seed, base) for seed in seeds],
        "styles": [],
        "clip_skip": 1,
        "is_using_inpainting_conditioning": True,
        "ignored": list(call.warnings),
        "adapters": [vars(use) for use in call.adapters],
        "kept_pixels_changed": 0,
    }


def checkpoint(base: BaseInfo) -> str:
    """The base as A1111 titles its checkpoints."""
    return f"{base.name} [{base.revision[:10]}]"


def check_checkpoint(options: dict[str, Any], field: str, base: BaseInfo) -> None:
    """Raise Problem 404 where options ask for another base than the one served."""
    wanted = options.get("sd_model_checkpoint")
    known = (checkpoint(base), base.name, base.revision, base.revision[:10])
    if wanted is not None and wanted not in known:
        raise unknown(str(wanted)[:200], known, field)
