"""The training loop that a PyTorch script would have, as diffusers' train scripts write it: the yardstick of ours.

It trains the same modules, made by the same function, on batches that lie in memory as tensors. It has no reading, no
tokenising, no seeded noise, no checkpoint and no console.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.loop_times import LoopTimes
from inpaint.models.base import Base
from inpaint.models.prompt_text import AS_WRITTEN, read_prompt, tokenize
from inpaint.recipes.lora import LoraRecipe
from inpaint.train.objective import MicroBatch, autocast, to_hole, to_pixels

Tensors = dict[str, Any]


def time_bare(recipe: LoraRecipe, batches: list[MicroBatch], *, steps: int, threads: int) -> LoopTimes:
    """Train what a recipe says for `steps` steps."""
    torch.set_num_threads(threads)
    settings = recipe.train
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = recipe.objective(device)
    base, groups = objective.base, objective.groups()
    parameters = [p for group in groups for p in group.parameters.values()]
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in groups],
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    alphas_T = base.scheduler.alphas_cumprod.to(device)
    preloaded = [_tensors(base, batch) for batch in batches]
    objective.train()
    ended = []
    for step in range(steps):
        batch = {key: _moved(value, device) for key, value in preloaded[step % len(preloaded)].items()}
        with autocast(settings.precision, device):
            loss = _loss(base, batch, alphas_T)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        loss.detach().item()
        ended.append(time.perf_counter())
    return LoopTimes(ended=ended, device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu")


def _tensors(base: Base, batch: MicroBatch) -> Tensors:
    """What a DataLoader's workers would hand out."""
    cpu = torch.device("cpu")
    pixels_B3HW, hole_B1HW = to_pixels(batch["image"], cpu), to_hole(batch["hole"], cpu)
    prompts = [read_prompt(str(prompt), AS_WRITTEN) for prompt in batch["prompt"]]
    return {
        "pixels": pixels_B3HW,
        "masked": pixels_B3HW * (hole_B1HW < 0.5),
        "hole": hole_B1HW,
        "ids": tokenize(base.tokenizers, [prompts] * len(base.tokenizers)).ids,
    }


def _moved(value: Any, device: torch.device) -> Any:
    return [v.to(device) for v in value] if isinstance(value, list) else value.to(device)


def _loss(base: Base, batch: Tensors, alphas_T: Tensor) -> Tensor:
    dtype = base.unet.conv_in.weight.dtype
    clean_BChw = _encode(base, batch["pixels"].to(dtype))
    noise_BChw = torch.randn_like(clean_BChw)
    timesteps_B = torch.randint(0, len(alphas_T), (len(clean_BChw),), device=clean_BChw.device)
    alpha_B111 = alphas_T[timesteps_B][:, None, None, None]
    noisy_BChw = alpha_B111.sqrt() * clean_BChw + (1 - alpha_B111).sqrt() * noise_BChw
    hole_B1hw = F.interpolate(batch["hole"], size=clean_BChw.shape[2:])
    given = torch.cat([noisy_BChw, hole_B1hw, _encode(base, batch["masked"].to(dtype))], dim=1)
    text_BLD = base.text_encoders[0](batch["ids"][0])[0]
    output_BChw = base.unet(given.to(dtype), timesteps_B, encoder_hidden_states=text_BLD).sample
    error_BChw = F.mse_loss(output_BChw.float(), noise_BChw.float(), reduction="none")
    return (error_BChw * hole_B1hw).mean((1, 2, 3)).div(hole_B1hw.mean((1, 2, 3)).clamp(min=1e-6)).mean()


@torch.no_grad()
def _encode(base: Base, pixels_B3HW: Tensor) -> Tensor:
    latents_BChw = base.vae.encode(pixels_B3HW).latent_dist.sample()
    return latents_BChw.float() * base.vae.config.scaling_factor
