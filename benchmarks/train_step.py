"""What our training loop costs: its time per sample over that of another loop with the same model and batch.

    python -m benchmarks.train_step                                  # five minutes on 2 idle cores
    python -m benchmarks.train_step --rounds 1 --no-zero             # one minute
    python -m benchmarks.train_step --architecture sdxl --image-size 1024    # on a GPU 10 minutes, on 2 cores 8
    python -m benchmarks.train_step --architecture ddpm-128          # the DDPM's U-Net beside diffusers' UNet2DModel

Ours is `inpaint.train.trainer.fit` on one worker, reading pictures with Ray Data; the other loop's batches lie in
memory, in a Ray process with the same threads and niceness. Only our workers keep freed memory (docs/decisions.md),
which here makes no difference beyond the noise. They take turns; the first steps of each are not counted. Time is wall
clock from the last uncounted step's end to the last step's end, so it holds waiting for data, reports and optimizer.
toy, sd15-inpaint: the category LoRA (U-Net, text encoder, tokens) beside a bare PyTorch loop
(`benchmarks/bare_loop.py`). Bar: `time_ratio` (median over the rounds) <= 1.10. Beside it ZeRO 1, 2 and 3 on two
workers, and stage 0 on one; on a GPU also images/s, TFLOP/s (forward and backward, counted by torch) and share of the
GPU's bf16 peak.
sdxl, sdxl-inpaint: the panel LoRA, rank 16, bf16, beside what diffusers' script does per step
(`benchmarks/diffusers_loop.py`). Bar: `time_ratio_vs_diffusers` <= 1.05. On a GPU without and with gradient
checkpointing, images/s (goal: 28 on an H200), TFLOP/s of the U-Net's forward and backward and their share of the bf16
peak (goal: 0.40), memory; where there is none, on the small SDXL base's architecture, whatever image size is given.
`ddpm-128` measures something else (`benchmarks/unet_speed.py`). Bar: `speed_ratio_vs_unet2dmodel` >= 1.0.
"""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.bare_loop import time_bare
from benchmarks.harness import emit, progress
from benchmarks.loop_times import Compared, Subject, compare, ours
from benchmarks.random_base import build_architecture
from benchmarks.sdxl_step import measure_sdxl_step
from benchmarks.unet_speed import measure_unet_speed
from inpaint import cluster
from inpaint.data.pipeline import read_manifest
from inpaint.models.base import Base, load_base
from inpaint.recipes.category_lora import CategoryLora
from inpaint.toy.base import IMAGE_SIZES, assemble
from inpaint.toy.catalogue import CATEGORIES, CATEGORY_INIT_WORDS, write_catalogue
from inpaint.train.loop import peak_flops
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings

IMAGES = 32
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    architecture: Literal["toy", "sd15-inpaint", "sdxl", "sdxl-inpaint", "ddpm-128"] = "toy"
    """Random weights of this architecture, no download; sd15-inpaint is meant for a GPU."""
    batch: int | None = None
    """Samples per step; unset: 8, for SDXL 4, for ddpm-128 32 on a GPU and 1 on CPUs."""
    image_size: int | None = None
    """Side of the images in pixels; unset: the architecture's own."""
    steps: int | None = None
    """Counted steps per round and side; unset: 30, for SDXL on CPUs 16."""
    warmup: int = 5
    """Steps before them, not counted."""
    rounds: int = 5
    """Turns that each side takes."""
    zero: bool = True
    """Whether stages 0 to 3 are measured beside, of the category LoRA."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward, on both sides; of SDXL on a GPU both ways are measured."""

    def __post_init__(self) -> None:
        if min(self.steps or 1, self.warmup, self.rounds) < 1:
            raise SystemExit("steps, warmup and rounds must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RandomLora(CategoryLora):
    """The category LoRA on random weights, made on the worker: nothing but names travels there."""

    architecture: str

    def load(self, dtype: torch.dtype) -> Base:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.architecture != "toy":
            return build_architecture(self.architecture, device=device, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            return load_base(assemble(folder), dtype=dtype, device=device)

    def init_word(self, category: str) -> str:
        return CATEGORY_INIT_WORDS[category]


def subject_of(settings: Settings, folder: Path) -> Subject:
    """The recipe on a catalogue written to `folder`."""
    use_gpu = any(node.gpus for node in cluster.cluster_nodes())
    toy = settings.architecture == "toy"
    if not (use_gpu or toy):
        progress(f"{settings.architecture} on a CPU: minutes per step and many GB; it is meant for a GPU")
    default = IMAGE_SIZES["sd15"] if toy else build_architecture(settings.architecture, device="meta").info.default_size
    resolution = settings.image_size or default
    batch, steps = settings.batch or BATCH, settings.steps or 30
    data = write_catalogue(folder / "data", seed=0, count=IMAGES, size=resolution)
    train = TrainSettings(
        samples=(settings.warmup + steps) * batch,
        global_batch=batch,
        max_micro_batch=batch,
        workers=1,
        precision=Precision.BF16 if use_gpu else Precision.FP32,
        gradient_checkpointing=settings.gradient_checkpointing,
        checkpoint_every=2**40,
    )
    recipe = RandomLora(
        data=str(data),
        output=str(folder),
        architecture=settings.architecture,
        resolution=resolution,
        categories=tuple(sorted(CATEGORIES)),
        train=train,
        validation=ValidationSettings(samples=0),
    )
    rows, _ = read_manifest(recipe.source(recipe.data))
    return Subject(recipe=recipe, rows=rows, use_gpu=use_gpu, steps=steps, warmup=settings.warmup)


def zero_rates(subject: Subject) -> dict[str, float]:
    """Samples/s by ZeRO stage and workers; the batch per worker stays."""
    rates, given = {}, subject.recipe.train
    places = sum(int(n.gpus) if subject.use_gpu else 2 for n in cluster.cluster_nodes())
    for stage, workers in ((0, 1), (1, 2), (2, 2), (3, 2)):
        if workers > places:
            progress(f"ZeRO {stage} on {workers} workers is left out: {places} GPU")
            continue
        batch, name = given.max_micro_batch * workers, f"zero{stage}_workers{workers}"
        samples = (subject.warmup + subject.steps) * batch
        train = replace(given, zero_stage=stage, workers=workers, global_batch=batch, samples=samples)
        rates[name] = 1 / ours(replace(subject, recipe=replace(subject.recipe, train=train)), [])
        progress(f"ZeRO {stage} on {workers} worker(s): {rates[name]:.3g} samples/s")
    return rates


def gpu_figures(found: Compared) -> dict[str, float]:
    """Images/s, TFLOP/s and share of peak of both sides; empty without a GPU."""
    assert found.theirs is not None
    if found.theirs.device == "cpu":
        return {}
    flops, peak = found.reports[-1]["flops_per_sample"], peak_flops(found.theirs.device)
    figures = {"tflop_per_image": flops / 1e12}
    for side, per_sample in zip(("ours", "bare"), found.medians.values(), strict=True):
        figures[f"{side}_images_per_s"] = 1 / per_sample
        figures[f"{side}_tflops"] = flops / per_sample / 1e12
        if peak is not None:
            figures[f"{side}_peak_share"] = flops / per_sample / peak
    return figures


def measure_category_step(settings: Settings) -> None:
    """Compare with the bare loop, and emit."""
    cluster.connect()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        subject = subject_of(settings, Path(folder))
        found = compare(subject, time_bare, settings.rounds)
        rates = zero_rates(subject) if settings.zero else {}
    assert found.theirs is not None
    emit(
        "train_step",
        {
            "time_ratio": found.ratio,
            "ours_samples_per_s": 1 / found.medians["ours"],
            "bare_samples_per_s": 1 / found.medians["theirs"],
            **gpu_figures(found),
        },
        ratios=found.ratios,
        seconds_per_sample=found.seconds,
        waiting_share=found.waiting_share,
        samples_per_s=rates,
        architecture=settings.architecture,
        device=found.theirs.device,
        batch=subject.recipe.train.global_batch,
        image_size=subject.recipe.resolution,
        load_average=[before, os.getloadavg()],
    )


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    steps, turns = settings.steps, {"warmup": settings.warmup, "rounds": settings.rounds}
    if settings.architecture == "ddpm-128":
        measure_unet_speed(batch=settings.batch, steps=steps or 30, **turns)
    elif settings.architecture in ("sdxl", "sdxl-inpaint"):
        size = settings.image_size
        measure_sdxl_step(settings.architecture, batch=settings.batch, image_size=size, steps=steps, **turns)
    else:
        measure_category_step(settings)


if __name__ == "__main__":
    main()
