"""The loop of diffusers' SDXL LoRA script (`train_dreambooth_lora_sdxl.py`), with accelerate and PEFT, and no more.

Per step: a batch of pixels from a DataLoader over tensors in memory, the VAE, the captions of its rows through both
text encoders (as the script has it for captions of their own), noise, the U-Net with each row's sizes, a mean squared
error, the backward, clipping, AdamW and its schedule. It has no reading, no hole in the loss, no tracker and no
checkpoint. In two points it is faster than the script: the VAE computes in the type of the other weights, and text is
not moved between devices. Of a 9-channel base the hole and the masked image are encoded, too: equal work.
"""

import time
from itertools import chain, islice, repeat
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.loop_times import LoopTimes
from inpaint.models.base import Base
from inpaint.models.layers import adaptable_layers, is_trained
from inpaint.recipes.lora import LoraRecipe
from inpaint.train.objective import AUTOCAST, MicroBatch, to_hole, to_pixels
from inpaint.train.settings import Precision

Sample = dict[str, Any]


def time_diffusers(recipe: LoraRecipe, batches: list[MicroBatch], *, steps: int, threads: int) -> LoopTimes:
    """Train the LoRA of a recipe's U-Net for `steps` steps. Its text encoders are not trained."""
    torch.set_num_threads(threads)
    settings, use_gpu = recipe.train, torch.cuda.is_available()
    torch.manual_seed(settings.seed)
    mixed = "no" if settings.precision is Precision.FP32 else str(settings.precision)
    accelerator = Accelerator(mixed_precision=mixed, cpu=not use_gpu)
    base = recipe.load(AUTOCAST.get(settings.precision, torch.float32)).to(accelerator.device)
    for module in (*base.text_encoders, base.vae, base.unet):
        module.requires_grad_(False)
    layers = adaptable_layers(base.unet, "unet")
    targets = [path for name, (path, _) in layers.items() if is_trained(name)]
    rank = recipe.lora.rank
    base.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets))
    cast_training_params(base.unet, dtype=torch.float32)
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    parameters = [p for p in base.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.unet_learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    decay = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)
    samples: Any = _samples(batches)
    loader: Any = DataLoader(samples, settings.global_batch, shuffle=True, collate_fn=_collated)
    unet, optimizer, loader, decay = accelerator.prepare(base.unet, optimizer, loader, decay)
    noising = DDPMScheduler.from_config(base.scheduler.config)
    unet.train()
    ended: list[float] = []
    for batch in islice(chain.from_iterable(repeat(loader)), steps):
        with accelerator.accumulate(unet):
            loss = _loss(base, unet, noising, batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            decay.step()
            optimizer.zero_grad()
        loss.detach().item()
        ended.append(time.perf_counter())
    if not use_gpu:
        return LoopTimes(ended=ended, device="cpu")
    memory = torch.cuda.max_memory_allocated()
    return LoopTimes(ended=ended, device=torch.cuda.get_device_name(), memory=memory)


def _samples(batches: list[MicroBatch]) -> list[Sample]:
    """What the script's data set holds."""
    cpu, samples = torch.device("cpu"), []
    for batch in batches:
        pixels_B3HW, hole_B1HW = to_pixels(batch["image"], cpu), to_hole(batch["hole"], cpu)
        for i, prompt in enumerate(batch["prompt"]):
            sizes = [*batch["original_size"][i], *batch["crop_top_left"][i], *pixels_B3HW.shape[2:]]
            parts = {"pixels": pixels_B3HW[i], "hole": hole_B1HW[i], "prompt": str(prompt)}
            samples.append({**parts, "sizes": torch.tensor(sizes)})
    return samples


def _collated(samples: list[Sample]) -> Sample:
    batch: Sample = {"prompts": [sample["prompt"] for sample in samples]}
    for name in ("pixels", "hole", "sizes"):
        batch[name] = torch.stack([sample[name] for sample in samples]).contiguous()
    return batch


def _loss(base: Base, unet: torch.nn.Module, noising: DDPMScheduler, batch: Sample) -> Tensor:
    clean_BChw = _encode(base, batch["pixels"])
    noise_BChw = torch.randn_like(clean_BChw)
    timesteps_B = torch.randint(0, noising.config.num_train_timesteps, (len(clean_BChw),), device=clean_BChw.device)
    given = noising.add_noise(clean_BChw, noise_BChw, timesteps_B)
    if base.info.in_channels == 9:
        hole_B1hw = F.interpolate(batch["hole"], size=clean_BChw.shape[2:]).to(given.dtype)
        given = torch.cat([given, hole_B1hw, _encode(base, batch["pixels"] * (batch["hole"] < 0.5))], dim=1)
    embeds_BLD, pooled_BP = _text(base, batch["prompts"])
    told = {"text_embeds": pooled_BP, "time_ids": batch["sizes"].to(pooled_BP.dtype)}
    output_BChw = unet(given, timesteps_B, embeds_BLD, added_cond_kwargs=told).sample
    return F.mse_loss(output_BChw.float(), noise_BChw.float(), reduction="mean")


@torch.no_grad()
def _encode(base: Base, pixels_B3HW: Tensor) -> Tensor:
    latents_BChw = base.vae.encode(pixels_B3HW.to(base.dtype)).latent_dist.sample()
    return latents_BChw * base.vae.config.scaling_factor


@torch.no_grad()
def _text(base: Base, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Both encoders' penultimate states, and the second one's pooled text."""
    states, pooled_BP = [], torch.empty(0)
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        output = encoder(tokens.input_ids.to(base.device), output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled_BP = output[0]
    return torch.cat(states, dim=-1), pooled_BP
