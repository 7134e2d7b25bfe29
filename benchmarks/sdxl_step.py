"""A training step of the panel LoRA on SDXL beside diffusers' own loop at equal work (train_step: sdxl)."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.diffusers_loop import time_diffusers
from benchmarks.harness import emit, progress
from benchmarks.loop_times import Compared, Subject, compare
from benchmarks.random_base import build_architecture
from inpaint import cluster
from inpaint.data.pipeline import read_manifest
from inpaint.models.base import Base, load_base
from inpaint.models.lora import LoraSettings, inject_lora
from inpaint.recipes.panel_lora import PanelLora
from inpaint.toy.base import IMAGE_SIZES, assemble
from inpaint.toy.panels import write_sheets
from inpaint.train.loop import peak_flops
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings

COMPOSITES = 32
RANK = 16
SMALL = "toy-sdxl"


@dataclass(frozen=True, kw_only=True)
class RandomPanels(PanelLora):
    """The panel LoRA on random weights, made on the worker: nothing but names travels there."""

    architecture: str

    def load(self, dtype: torch.dtype) -> Base:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.architecture != SMALL:
            return build_architecture(self.architecture, device=device, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            return load_base(assemble(folder, architecture="sdxl"), dtype=dtype, device=device)


def measure_sdxl_step(
    architecture: str, *, batch: int | None, image_size: int | None, steps: int | None, warmup: int, rounds: int
) -> None:
    """Compare, and emit. On a GPU at full size, without and with gradient checkpointing; on CPUs with the small base
    that comes with the package, random weights, without."""
    cluster.connect()
    use_gpu = any(node.gpus for node in cluster.cluster_nodes())
    if not use_gpu:
        progress(f"no GPU here: {SMALL} instead of {architecture}, at its own size")
        architecture, image_size = SMALL, IMAGE_SIZES["sdxl"]
    image_size = image_size or 1024
    before = os.getloadavg()
    found: dict[bool, Compared] = {}
    with tempfile.TemporaryDirectory() as folder:
        sheets = write_sheets(Path(folder) / "sheets", seed=0, count=COMPOSITES, size=image_size // 2)
        for checkpointing in (False, True) if use_gpu else (False,):
            train = TrainSettings(
                global_batch=batch or 4,
                max_micro_batch=batch or 4,
                samples=(warmup + (steps or (30 if use_gpu else 16))) * (batch or 4),
                workers=1,
                precision=Precision.BF16,
                gradient_checkpointing=checkpointing,
                checkpoint_every=2**40,
            )
            recipe = RandomPanels(
                data=str(sheets),
                output=folder,
                architecture=architecture,
                resolution=(image_size, image_size),
                lora=LoraSettings(rank=RANK, text_encoder=False),
                train=train,
                validation=ValidationSettings(samples=0),
            )
            rows, _ = read_manifest(recipe.source(recipe.data))
            counted = train.samples // train.global_batch - warmup
            subject = Subject(recipe=recipe, rows=rows, use_gpu=use_gpu, steps=counted, warmup=warmup)
            progress(f"gradient checkpointing: {checkpointing}")
            found[checkpointing] = compare(subject, time_diffusers, rounds)
    flops = unet_flops(architecture, image_size) if use_gpu else 0.0
    figures = {
        f"{name}{'_checkpointing' if checkpointing else ''}": value
        for checkpointing, one in found.items()
        for name, value in _figures(one, flops).items()
    }
    emit(
        "train_step",
        figures,
        ratios={str(checkpointing): one.ratios for checkpointing, one in found.items()},
        seconds_per_sample={str(checkpointing): one.seconds for checkpointing, one in found.items()},
        waiting_share={str(checkpointing): one.waiting_share for checkpointing, one in found.items()},
        unet_tflop_per_image=flops / 1e12,
        architecture=architecture,
        precision=str(train.precision),
        rank=RANK,
        batch=train.global_batch,
        image_size=image_size,
        load_average=[before, os.getloadavg()],
    )


def _figures(found: Compared, flops: float) -> dict[str, float]:
    """The ratio; on a GPU also images/s, TFLOP/s of the U-Net's forward and backward, their share of the peak, GiB."""
    assert found.theirs is not None
    figures = {"time_ratio_vs_diffusers": found.ratio}
    for side, per_sample in zip(("ours", "diffusers"), found.medians.values(), strict=True):
        figures[f"{side}_images_per_s"] = 1 / per_sample
        if found.theirs.device == "cpu":
            continue
        peak = peak_flops(found.theirs.device)
        memory = found.reports[-1]["memory"] if side == "ours" else found.theirs.memory
        figures |= {f"{side}_tflops": flops / per_sample / 1e12, f"{side}_memory_gib": memory / 2**30}
        if peak is not None:
            figures[f"{side}_peak_share"] = flops / per_sample / peak
    return figures


def unet_flops(architecture: str, image_size: int) -> float:
    """Of one image's forward and backward through the U-Net, without what checkpointing computes again: counted by
    torch on the meta device, so that nothing is computed."""
    base = build_architecture(architecture, device="meta")
    inject_lora(base, LoraSettings(rank=RANK, text_encoder=False), seed=0)
    config, side = base.unet.config, image_size // base.info.downsample
    with torch.device("meta"):
        told = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        text = torch.empty(1, 77, config.cross_attention_dim)
        latents = torch.empty(1, config.in_channels, side, side)
        with FlopCounterMode(display=False) as counter:
            base.unet(latents, torch.empty(1), text, added_cond_kwargs=told).sample.sum().backward()
    return float(counter.get_total_flops())
