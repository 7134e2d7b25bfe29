"""What our training loop costs: its time per sample over that of a bare PyTorch loop with the same model and batch.

    python -m benchmarks.train_step                                  # five minutes on 2 idle cores
    python -m benchmarks.train_step --rounds 1 --no-zero             # one minute
    python -m benchmarks.train_step --architecture sdxl-inpaint      # for a GPU; random weights, no download
    python -m benchmarks.train_step --architecture ddpm-128          # the DDPM's U-Net beside diffusers' UNet2DModel

Both sides train the category LoRA (U-Net, text encoder, tokens) in Ray processes with the same threads and niceness;
only our workers keep freed memory (docs/decisions.md), which here makes no difference beyond the noise.
Ours is `inpaint.train.trainer.fit` on one worker, reading a catalogue with Ray Data; bare is `benchmarks/bare_loop.py`,
its batches in memory. They take turns; the first steps of each are not counted. Time is wall clock from the last
uncounted step's end to the last step's end, so it holds waiting for data, reports and optimizer.
Bar: `time_ratio` (median over the rounds) <= 1.10. Beside it ZeRO 1, 2 and 3 on two workers, and stage 0 on one; on a
GPU also images/s, TFLOP/s (forward and backward, counted by torch) and share of the GPU's bf16 peak.
`ddpm-128` measures something else (`benchmarks/unet_speed.py`). Bar: `speed_ratio_vs_unet2dmodel` >= 1.0.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import ray
import torch
import tyro

from benchmarks.bare_loop import time_bare
from benchmarks.harness import emit, paired_ratio, progress
from benchmarks.random_base import build_architecture
from benchmarks.unet_speed import measure_unet_speed
from inpaint import cluster
from inpaint.data.pipeline import read_manifest
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.sample import read_batch
from inpaint.models.base import Base, info_of
from inpaint.models.layers import Modules
from inpaint.recipes.category_lora import CategoryLora
from inpaint.toy.base import (
    IMAGE_SIZES,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from inpaint.toy.catalogue import CATEGORIES, CATEGORY_INIT_WORDS, write_catalogue
from inpaint.train.loop import StepReport, peak_flops
from inpaint.train.objective import MicroBatch
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings
from inpaint.train.trainer import Training, fit

IMAGES = 32
BATCH = {"toy": 8, "sd15-inpaint": 8, "sdxl": 4, "sdxl-inpaint": 4}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    architecture: Literal["toy", "sd15-inpaint", "sdxl", "sdxl-inpaint", "ddpm-128"] = "toy"
    """Random weights of this architecture; all but toy are meant for a GPU."""
    batch: int | None = None
    """Samples per step; unset: 8, for SDXL 4, for ddpm-128 32 on a GPU and 1 on CPUs."""
    resolution: int | None = None
    """Side of the images in pixels; unset: the architecture's own."""
    steps: int = 30
    """Counted steps per round and side."""
    warmup: int = 5
    """Steps before them, not counted."""
    rounds: int = 5
    """Turns that each side takes."""
    zero: bool = True
    """Whether stages 0 to 3 are measured beside."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward, on both sides."""

    def __post_init__(self) -> None:
        if min(self.steps, self.warmup, self.rounds) < 1:
            raise SystemExit("steps, warmup and rounds must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One training, ready to be run by either side."""

    settings: Settings
    recipe: CategoryLora
    rows: Manifest
    use_gpu: bool

    @property
    def train(self) -> TrainSettings:
        return self.recipe.train


@dataclass(frozen=True, kw_only=True)
class RandomLora(CategoryLora):
    """The category LoRA on random weights, made on the worker: nothing but names travels there."""

    architecture: str

    def load(self, dtype: torch.dtype) -> Base:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.architecture == "toy":
            return _toy(device, dtype)
        return build_architecture(self.architecture, device=device, dtype=dtype)

    def init_word(self, category: str) -> str:
        return CATEGORY_INIT_WORDS[category]


def _toy(device: torch.device, dtype: torch.dtype) -> Base:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, vae, unet = build_text_encoder(tokenizer), build_vae(), build_unet()
    for module in (encoder, vae, unet):
        module.to(device, dtype).eval()
    modules = Modules(text_encoders=[encoder], vae=vae, unet=unet)
    info = info_of(modules, name="toy", revision="random-0")
    return Base(info=info, tokenizers=[tokenizer], scheduler=build_scheduler(), **vars(modules))


def subject_of(settings: Settings, folder: Path) -> Subject:
    """The recipe on a catalogue written to `folder`."""
    use_gpu = any(node.gpus for node in cluster.cluster_nodes())
    toy = settings.architecture == "toy"
    if not (use_gpu or toy):
        progress(f"{settings.architecture} on a CPU: minutes per step and many GB; it is meant for a GPU")
    default = IMAGE_SIZES["sd15"] if toy else build_architecture(settings.architecture, device="meta").info.default_size
    resolution = settings.resolution or default
    batch = settings.batch or BATCH[settings.architecture]
    data = write_catalogue(folder / "data", seed=0, count=IMAGES, size=resolution)
    train = TrainSettings(
        samples=(settings.warmup + settings.steps) * batch,
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
    return Subject(settings=settings, recipe=recipe, rows=rows, use_gpu=use_gpu)


def ours(subject: Subject, reports: list[StepReport]) -> float:
    """Seconds per sample of a run through Ray Train; its reports are appended to `reports`."""
    found: list[StepReport] = []
    with tempfile.TemporaryDirectory() as output:
        training = Training(name="train-step", recipe=subject.recipe, rows=subject.rows, output=output)
        fit(training, watch=found.append)
    reports += found[subject.settings.warmup :]
    return _per_sample([report["time"] for report in found], subject)


def bare(subject: Subject, batches: list[MicroBatch], devices: list[str]) -> float:
    """Seconds per sample of the bare loop in a fresh Ray process."""
    threads = cluster.worker_threads(cluster.plan_workers(1, subject.use_gpu, cluster.cluster_nodes()))
    remote = ray.remote(num_cpus=1, num_gpus=int(subject.use_gpu), max_calls=1)(time_bare)
    environment = {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    steps = subject.settings.warmup + subject.settings.steps
    call = remote.options(runtime_env={"env_vars": environment}).remote(
        subject.recipe.objective, batches, subject.train, steps=steps, threads=threads
    )
    ended, device = ray.get(call)
    devices.append(device)
    return _per_sample(ended, subject)


def _per_sample(ended: list[float], subject: Subject) -> float:
    counted = ended[subject.settings.warmup - 1 :]
    assert len(counted) == subject.settings.steps + 1, f"{len(ended)} steps were reported"
    return (counted[-1] - counted[0]) / subject.settings.steps / subject.train.global_batch


def batches_of(subject: Subject) -> list[MicroBatch]:
    """The batches of the first epoch, in memory."""
    rows, batch = subject.rows, subject.train.global_batch
    plan, read = Plan.of(rows, 0), subject.recipe.read_settings()
    positions = np.arange(max(len(rows) // batch, 1) * batch).reshape(-1, batch)
    with ThreadPoolExecutor(1) as threads:
        return [read_batch(rows, plan, read, some, threads) for some in positions]


def zero_rates(subject: Subject) -> dict[str, float]:
    """Samples/s by ZeRO stage and workers; the batch per worker stays."""
    rates = {}
    places = sum(int(n.gpus) if subject.use_gpu else 2 for n in cluster.cluster_nodes())
    for stage, workers in ((0, 1), (1, 2), (2, 2), (3, 2)):
        if workers > places:
            progress(f"ZeRO {stage} on {workers} workers is left out: {places} GPU")
            continue
        batch, steps = subject.train.max_micro_batch * workers, subject.settings.warmup + subject.settings.steps
        train = replace(subject.train, zero_stage=stage, workers=workers, global_batch=batch, samples=steps * batch)
        rates[f"zero{stage}_workers{workers}"] = 1 / ours(
            replace(subject, recipe=replace(subject.recipe, train=train)), []
        )
        progress(f"ZeRO {stage} on {workers} worker(s): {rates[f'zero{stage}_workers{workers}']:.3g} samples/s")
    return rates


def waiting_share(reports: list[StepReport]) -> float:
    """Share of the time between steps that was spent waiting for data, over the reports of several runs."""
    pairs = [(a, b) for a, b in pairwise(reports) if b["samples"] > a["samples"]]
    return sum(b["waited"] for _, b in pairs) / sum(b["time"] - a["time"] for a, b in pairs)


def gpu_figures(device: str, reports: list[StepReport], seconds: dict[str, float]) -> dict[str, float]:
    """Images/s, TFLOP/s and share of peak of both sides, from seconds per sample; empty without a GPU."""
    if device == "cpu":
        return {}
    flops, peak = reports[-1]["flops_per_sample"], peak_flops(device)
    figures = {"tflop_per_image": flops / 1e12}
    for side, per_sample in seconds.items():
        figures[f"{side}_images_per_s"] = 1 / per_sample
        figures[f"{side}_tflops"] = flops / per_sample / 1e12
        if peak is not None:
            figures[f"{side}_peak_share"] = flops / per_sample / peak
    return figures


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    if settings.architecture == "ddpm-128":
        measure_unet_speed(batch=settings.batch, steps=settings.steps, warmup=settings.warmup, rounds=settings.rounds)
        return
    cluster.connect()
    before = os.getloadavg()
    reports: list[StepReport] = []
    devices: list[str] = []
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        subject = subject_of(settings, Path(folder))
        batches = batches_of(subject)

        def timed(side: str, per_sample: float) -> float:
            seconds[side].append(per_sample)
            return per_sample

        ratio, ratios = paired_ratio(
            lambda: timed("ours", ours(subject, reports)),
            lambda: timed("bare", bare(subject, batches, devices)),
            settings.rounds,
        )
        rates = zero_rates(subject) if settings.zero else {}
    medians = {side: median(values) for side, values in seconds.items()}
    emit(
        "train_step",
        {
            "time_ratio": ratio,
            "ours_samples_per_s": 1 / medians["ours"],
            "bare_samples_per_s": 1 / medians["bare"],
            **gpu_figures(devices[0], reports, medians),
        },
        ratios=ratios,
        seconds_per_sample=seconds,
        waiting_share=waiting_share(reports),
        samples_per_s=rates,
        architecture=settings.architecture,
        device=devices[0],
        batch=subject.train.global_batch,
        resolution=subject.recipe.resolution,
        load_average=[before, os.getloadavg()],
    )


if __name__ == "__main__":
    main()
