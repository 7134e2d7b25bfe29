"""DDPM inpainting from scratch: a folder of images in, an inpainting model of one's own out, no pretrained weights.

A run's folder holds `model.json` (what the model is) and `checkpoints/` (weights, optimizer and EMA): it can be painted
with while it is still training.
"""

import json
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from inpaint.data import quarantine
from inpaint.data.holes import Sometimes
from inpaint.data.pipeline import read_manifest
from inpaint.data.random_shapes import RandomShapes
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import FolderNames, FolderSource
from inpaint.data.storage import read_file, write_file
from inpaint.diffusion.ddpm import Noise, NoiseSettings
from inpaint.diffusion.unet import MaskedUNet, UNetSettings
from inpaint.diffusion.unet import preset as unet_preset
from inpaint.errors import InpaintError
from inpaint.paint.ddpm_painter import DdpmPainter, ModelCard
from inpaint.progress import ProgressBar
from inpaint.train.checkpoint import CheckpointStore, Progress
from inpaint.train.ddpm import HoleDiffusion
from inpaint.train.settings import Precision, Schedule, TrainSettings
from inpaint.train.trainer import Workload, check_cluster, check_stop, fit

MODEL = "model.json"


@dataclass(frozen=True, kw_only=True)
class TrainDdpm:
    """Settings of `python -m ray_jobs.train_ddpm`."""

    data: str
    """Folder of images, with all folders below it: a path or an object-store URL."""
    output: str
    """Folder or URL of the run: the model, checkpoints, logs, quarantine."""
    image_size: int = 128
    """Side of the training images in pixels; the short side is resized to it, and the middle square is used."""
    unet: UNetSettings = UNetSettings()
    """The network; `--image-size` sets the preset of that size."""
    noise: NoiseSettings = NoiseSettings()
    """Noise schedule, and what is predicted."""
    min_snr_gamma: float | None = None
    """Weigh timesteps by min(SNR, gamma) / SNR (5 is usual); unset: all alike."""
    debiased: bool = False
    """Weigh timesteps so that the noisiest ones, which decide what is painted, count like the others: by 1 / sqrt(SNR)
    for noise prediction, by 1 / (SNR + 1), which is the clean pixels' own error, for v."""
    holes: RandomShapes = RandomShapes()
    """What is to be painted in training."""
    full_hole_probability: float = 0.0
    """Share of samples whose hole is the whole image, so that the model can paint whole images, too."""
    flip_probability: float = 0.5
    """Share of samples mirrored left to right; 0 where images carry text."""
    classes: bool = False
    """Condition on a class: the name of the folder that an image lies in."""
    class_dropout: float = 0.1
    """Share of samples whose class is not told, for classifier-free guidance."""
    learning_rate: float = 1e-4
    max_bad_fraction: float = 0.05
    """The job stops before training when more of the images than this cannot be used."""
    checkpoint_epochs: float | None = None
    """Epochs between checkpoints; where given, it replaces `train.checkpoint_every`."""
    train: TrainSettings = field(default_factory=lambda: train_settings(precision=Precision.BF16))
    resume: bool = False
    """Continue the run in `output`, exactly: on the images and settings it began with."""

    def __post_init__(self) -> None:
        if self.image_size % self.unet.multiple:
            raise InpaintError(
                f"image_size {self.image_size}: this network needs a multiple of {self.unet.multiple} pixels"
            )
        if self.checkpoint_epochs is not None and self.checkpoint_epochs <= 0:
            raise InpaintError(f"checkpoint_epochs {self.checkpoint_epochs}: give more than 0")


def train_settings(*, precision: Precision, epochs: float = 2000, batch: int = 32, micro: int = 8) -> TrainSettings:
    """Those of a training from scratch: constant learning rate and a moving average, as Ho 2020.

    So a run can be continued with more epochs than it began with.
    """
    return TrainSettings(
        epochs=epochs,
        global_batch=batch,
        micro_batch=micro,
        precision=precision,
        schedule=Schedule.CONSTANT,
        warmup=0.0,
        weight_decay=0.0,
        beta2=0.999,
        ema_halflife=20_000,
        checkpoint_every=20_000,
    )


def preset(image_size: int, *, data: str, output: str) -> TrainDdpm:
    """The defaults for images of 32, 64, 128, 256 or 512 pixels.

    Raises:
        InpaintError: another size.
    """
    unet = unet_preset(image_size)
    config = TrainDdpm(data=data, output=output, image_size=image_size, unet=unet)
    if image_size == 32:
        # Small enough for CPUs, where bf16 is slower than fp32.
        small = train_settings(precision=Precision.FP32, micro=16)
        noise = NoiseSettings(noise=Noise.COSINE, prediction_type="v_prediction")
        return replace(config, noise=noise, debiased=True, train=small, learning_rate=1.5e-3)
    if image_size == 64:
        return replace(config, learning_rate=2e-4)
    return config


def train_ddpm(config: TrainDdpm) -> Progress:
    """Read, then train; the model is in `config.output` from the first checkpoint on. Returns where it ended.

    Raises:
        InpaintError: unusable data or settings, or SIGTERM ended the training (the message says how to go on).
    """
    workload = start_run(config)
    progress = fit(workload, config.output, resume=config.resume)
    if progress.samples < config.train.total_samples(len(workload.manifest)):
        raise InpaintError(f"stopped at sample {progress.samples}, checkpointed: go on with --resume")
    return progress


def start_run(config: TrainDdpm) -> Workload:
    """What `train_ddpm` does before it trains: reads the images, and writes what the model is to the run's folder."""
    check_cluster(config.train)
    manifest = read_images(config)
    workload = workload_of(config, manifest)
    if not CheckpointStore(f"{config.output}/checkpoints").names():
        # What a run began with stays: `fit` refuses to continue it with another model.
        text = json.dumps(card_of(config, manifest).to_json(), indent=1)
        write_file(config.output, MODEL, f"{text}\n".encode())
    return workload


def read_images(config: TrainDdpm) -> Manifest:
    """The usable images; the others are written to the output's `data/quarantine.jsonl`."""
    source = FolderSource(path=config.data, folder_names=FolderNames.LABEL if config.classes else FolderNames.NOTHING)
    with ProgressBar("checking images") as bar:

        def show(done: int, total: int) -> None:
            check_stop()
            bar.show(done, total)

        manifest, bad = read_manifest(
            source,
            max_bad_fraction=config.max_bad_fraction,
            quarantine=f"{config.output}/data/quarantine.jsonl",
            progress=show,
        )
        if bad:
            bar.warn(quarantine.table(bad, len(bad) + len(manifest)))
    return manifest


def card_of(config: TrainDdpm, manifest: Manifest) -> ModelCard:
    """What the model is, with the classes of its images."""
    classes = manifest.labels if config.classes else ()
    if config.classes and not classes:
        raise InpaintError(f"{config.data}: classes are names of folders, and all images lie in the folder itself")
    unet = replace(config.unet, classes=len(classes))
    return ModelCard(image_size=config.image_size, unet=unet, noise=config.noise, classes=classes)


def workload_of(config: TrainDdpm, manifest: Manifest) -> Workload:
    """The training as the loop takes it."""
    card = card_of(config, manifest)
    read = ReadSettings(
        height=config.image_size,
        width=config.image_size,
        flip_probability=config.flip_probability,
        hole=Sometimes(config.holes, probability=config.full_hole_probability),
        caption_dropout=config.class_dropout if config.classes else 1.0,
    )
    identity = {
        "model": card.to_json(),
        "learning_rate": config.learning_rate,
        "min_snr_gamma": config.min_snr_gamma,
        "debiased": config.debiased,
    }
    settings = config.train
    if config.checkpoint_epochs is not None:
        settings = replace(settings, checkpoint_every=max(1, round(config.checkpoint_epochs * len(manifest))))
    return Workload(
        name="ddpm",
        manifest=manifest,
        read=read,
        build=partial(build_ddpm, config=config, card=card),
        settings=settings,
        identity=identity,
    )


def build_ddpm(device: torch.device, *, config: TrainDdpm, card: ModelCard) -> HoleDiffusion:
    """The objective, with equal initial weights on every worker."""
    torch.manual_seed(config.train.seed)
    return HoleDiffusion(
        MaskedUNet(card.unet).to(device),
        card.noise,
        classes=card.classes,
        learning_rate=config.learning_rate,
        seed=config.train.seed,
        min_snr_gamma=config.min_snr_gamma,
        debiased=config.debiased,
        precision=config.train.precision,
    )


def load_ddpm(run: str, *, device: str | torch.device | None = None, max_batch: int = 16) -> DdpmPainter:
    """A painter with the newest good weights of a run (the moving average, where one is kept).

    Args:
        run: the `output` of a training, finished or not: a folder or an object-store URL.
        device: default: a GPU where there is one.

    Raises:
        InpaintError: no model or no checkpoint there yet.
    """
    found = read_file(run, MODEL)
    if found is None:
        raise InpaintError(f"{run} holds no {MODEL}: give the output folder of `python -m ray_jobs.train_ddpm`")
    card = ModelCard.from_json(json.loads(found))
    loaded = CheckpointStore(f"{run}/checkpoints").latest()
    if loaded is None:
        raise InpaintError(f"{run} holds no checkpoint yet: wait for its first one, or train with a smaller interval")
    tensors, _ = loaded
    chosen = device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu")
    return DdpmPainter(card, tensors.get("ema", tensors["trained"]), device=chosen, max_batch=max_batch)
