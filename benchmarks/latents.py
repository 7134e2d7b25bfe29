"""What it saves to encode once: FLOPs and time per sample with latents online and cached, and that the run is the same.

    python -m benchmarks.latents                        # a quarter of an hour on 2 busy cores; 12 GB
    python -m benchmarks.latents --sd15-size 64 --rounds 1 --images 8 --epochs 2     # five minutes

FLOPs are counted by torch on the meta device: LoRA of rank 16 on U-Net and text encoders, forward and backward, of SD
1.5 inpainting at 512 px and of SDXL inpainting at 1024 px: `flops_ratio_sd15`, `flops_ratio_sdxl`, cached over online;
beside them the ratio with the encoding's share over 10 epochs.
Time is that of a forward and backward of the category LoRA on CPUs, online and cached in turn, the latter with its
share of the encoding: over 10 epochs with a bank of 3 holes and no mirroring a row is encoded 4 times instead of 20. A
batch has as many rows as the recipe's own micro-batch.
Bars: `time_ratio_sd15` <= 0.6 (the real architecture with random weights, 256 px); `time_ratio_toy` has none.
Whole trainings on the toy base: `max_parameter_difference` (bar: 0.0) between online, cached and, beside a worker of
Ray Train, streamed; `second_run_hits` (bar: 1.0), the share of the latents that a run with another learning rate finds;
and an encoding that is killed in between and gone on with: `encoded_twice` (bar: 0), entries that are in two files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import emit, paired_ratio, progress
from benchmarks.random_base import build_architecture
from inpaint import cluster
from inpaint.data.bank import Bank
from inpaint.data.latent_files import Stored
from inpaint.data.latents import LatentSpec
from inpaint.data.pipeline import read_manifest
from inpaint.data.plan import Plan
from inpaint.data.sample import read_batch
from inpaint.device import use_cores
from inpaint.diffusion.objective import LossSettings
from inpaint.models.base import Base, load_base
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters
from inpaint.recipes.category_lora import CategoryLora
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import write_catalogue
from inpaint.train.alone import train_alone
from inpaint.train.encode import Encoded
from inpaint.train.encoder import LatentEncoder
from inpaint.train.encoding import EncodingSettings, Latents
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import MicroBatch, ParameterGroup
from inpaint.train.run import encode_before, trained_by
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings
from inpaint.train.trainer import Training, fit

CPU = torch.device("cpu")
HOLES = 3
EPOCHS = 10
ENCODES = 1 + HOLES
"""Of each row: its image and its masked images."""
KILL_AFTER = 2
"""Files."""


def flops(name: str) -> dict[str, float]:
    """Per sample, of a training step online and cached, and of one encoding."""
    base = build_architecture(name, device="meta")
    inject_lora(base, LoraSettings(rank=16), seed=0)
    groups = [ParameterGroup(1e-4, lora_parameters(base))]
    objective = LatentInpainting(base, groups, seed=0, loss=LossSettings(), precision=Precision.FP32)
    side = base.info.default_size
    batch = {
        "position": np.arange(1),
        "image": np.zeros((1, side, side, 3), np.uint8),
        "hole": np.full((1, side, side), 255, np.uint8),
        "original_size": np.full((1, 2), side, np.int32),
        "crop_top_left": np.zeros((1, 2), np.int32),
        "prompt": np.array(["a red box on wood"], dtype=object),
    }
    latents = np.zeros((1, 8, side // base.info.downsample, side // base.info.downsample), np.float32)
    cached = {**batch, "latents": latents, "masked_latents": latents}

    def counted(batch: MicroBatch) -> float:
        without_autocast = patch.object(torch, "autocast", lambda *_, **__: nullcontext())  # which meta has none of
        with without_autocast, FlopCounterMode(display=False) as counter:
            objective(batch).mean().backward()
        return float(counter.get_total_flops())

    found = {"online": counted(batch), "cached": counted(cached)}
    return {**found, "encode": (found["online"] - found["cached"]) / 2}


@dataclass(frozen=True, kw_only=True)
class Timed(CategoryLora):
    """The category LoRA, perhaps on random weights of SD 1.5."""

    real: bool = False

    def load(self, dtype: torch.dtype) -> Base:
        return build_architecture("sd15-inpaint", device=CPU, dtype=dtype) if self.real else load_base("toy")

    def load_vae(self) -> AutoencoderKL:
        return self.load(torch.float32).vae


def recipe_on(folder: Path, images: int, size: int, epochs: float, **settings: object) -> Timed:
    """The recipe on a catalogue in `folder`."""
    data = folder / f"data-{size}"
    csv = data / "catalogue.csv" if data.exists() else write_catalogue(data, seed=0, count=images, size=size)
    train = TrainSettings(epochs=epochs, global_batch=8, workers=1, zero_stage=0, checkpoint_every=2**40)
    validation = ValidationSettings(samples=0)
    given = {"bank": Bank(holes=HOLES), "lora": LoraSettings(rank=6), "card_samples": 0, **settings}
    return Timed(data=str(csv), output=str(folder), resolution=size, train=train, validation=validation, **given)  # type: ignore[arg-type]


def training_of(recipe: Timed, output: Path, name: str) -> Training:
    """Ready to be trained by itself."""
    rows, _ = read_manifest(recipe.source(recipe.data))
    return Training.of(recipe, rows, None, name=name, output=str(output))


def step_times(recipe: Timed, folder: Path, rounds: int) -> tuple[float, list[float], dict[str, float]]:
    """Median and all ratios of seconds per sample, cached with its share of the encoding over online."""
    training = training_of(recipe, folder, "timed")
    bound, rows = training.recipe, training.rows
    assert isinstance(bound, Timed)
    objective, read, batch = bound.objective(CPU).train(), bound.read_settings(), bound.train.layout(1).micro_batch
    with ThreadPoolExecutor(1) as threads:
        online = read_batch(rows, Plan.of(rows, 0), read, np.arange(batch), threads)
    downsample = objective.base.info.downsample
    spec = LatentSpec(encoder="", channels=8, downsample=downsample, dtype="float32", sees_masked=True)
    encoder = LatentEncoder(lambda: objective.base.vae, spec, threads=1)
    cached = encoder.encode_batch(dict(online), keeps_image=False)
    seconds: dict[str, list[float]] = {"online": [], "cached": [], "encode": []}

    def timed(name: str, work: Callable[[], object], count: int) -> float:
        began = time.perf_counter()
        work()
        seconds[name].append((time.perf_counter() - began) / count)
        return seconds[name][-1]

    def step(rows: MicroBatch) -> None:
        objective(rows).mean().backward()

    def ours() -> float:
        encode = timed("encode", lambda: encoder.encode_one(online["image"][0], online["hole"][0]), 1)
        return timed("cached", lambda: step(cached), batch) + encode * ENCODES / EPOCHS

    step(cached)  # not counted: the first one allocates
    ratio, ratios = paired_ratio(ours, lambda: timed("online", lambda: step(online), batch), rounds)
    return ratio, ratios, {name: float(np.median(values)) for name, values in seconds.items()}


def encode(training: Training) -> Encoded:
    """What its cache lacks."""
    done = encode_before([training], StopToken(), progress)
    assert done is not None
    return done


def same_run(folder: Path, images: int, epochs: float) -> dict[str, float]:
    """Whole trainings on the toy base with latents from everywhere; and a second run's share of what is there."""
    base = recipe_on(folder, images, 64, epochs, base="toy", encoding=EncodingSettings(cache=str(folder / "cache")))

    def training(name: str, **changes: object) -> Training:
        return training_of(replace(base, **changes), folder / name, name)  # type: ignore[arg-type]

    online, cached, streamed = (training(latents, latents=latents) for latents in Latents)
    encode(cached)
    again = encode(training("other", latents=Latents.CACHED, unet_learning_rate=1.0))
    ended = (train_alone(online, CPU, 1), train_alone(cached, CPU, 1), fit(streamed))
    found = [trained_by(run, end).parameters for run, end in zip((online, cached, streamed), ended, strict=True)]
    difference = max(float((found[0][name] - other[name]).abs().max()) for other in found[1:] for name in found[0])
    return {"max_parameter_difference": difference, "second_run_hits": 1 - again.made / again.needed}


def killed(folder: Path, images: int) -> dict[str, float]:
    """An encoding whose process is killed, and gone on with."""
    command = [sys.executable, "-m", "benchmarks.latents", "--encode-into", str(folder), "--images", str(images)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cache = folder / "killed"
    while len(list(cache.glob("*/*.index"))) < KILL_AFTER and child.poll() is None:
        time.sleep(0.05)
    child.kill()
    child.wait()
    before = sum(len(Stored.at(space).keys) for space in cache.iterdir())
    done = encode(to_be_killed(folder, images))
    (space,) = cache.iterdir()
    keys = Stored.at(space).keys.to_pylist()
    progress(f"killed after {before} of {done.needed} latents, then {done.made} more")
    assert 0 < before < done.needed, "killed too early or too late to show anything: give more images"
    return {"encoded_twice": len(keys) - len(set(keys)), "lacking_after_resume": done.needed - len(set(keys))}


def to_be_killed(folder: Path, images: int) -> Training:
    """Its cache is its own."""
    settings = EncodingSettings(cache=str(folder / "killed"))
    recipe = recipe_on(folder, images, 64, EPOCHS, base="toy", latents=Latents.CACHED, encoding=settings)
    return training_of(recipe, folder, "killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd15-size", type=int, default=256, help="side of SD 1.5's images in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="how often both sides take turns")
    parser.add_argument("--images", type=int, default=64, help="of the toy catalogue")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of the trainings that are compared")
    parser.add_argument("--encode-into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_cores(1)
    cluster.connect()
    if options.encode_into:
        encode(to_be_killed(options.encode_into, options.images))
        return
    figures: dict[str, float] = {}
    details: dict[str, object] = {}
    for name in ("sd15", "sdxl"):
        counted = flops(f"{name}-inpaint")
        figures[f"flops_ratio_{name}"] = counted["cached"] / counted["online"]
        over = (counted["cached"] + counted["encode"] * ENCODES / EPOCHS) / counted["online"]
        details[f"tflop_{name}"] = {**{key: value / 1e12 for key, value in counted.items()}, "ratio_encoding_too": over}
        progress(f"{name}: {json.dumps(details[f'tflop_{name}'])}")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        figures |= killed(folder, options.images)
        figures |= same_run(folder, options.images, options.epochs)
        for name, size, real in (("toy", 64, False), ("sd15", options.sd15_size, True)):
            recipe = recipe_on(folder, options.images, size, EPOCHS, base="toy", real=real)
            ratio, ratios, seconds = step_times(recipe, folder, options.rounds)
            figures[f"time_ratio_{name}"] = ratio
            details |= {f"ratios_{name}": ratios, f"seconds_per_sample_{name}": seconds}
    emit("latents", figures, **details, sd15_size=options.sd15_size, load_average=os.getloadavg())


if __name__ == "__main__":
    main()
