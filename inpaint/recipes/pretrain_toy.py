"""How the toy base is made: first its VAE, then its U-Net and text encoder, both through the one loop."""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from inpaint.data.pipeline import read_manifest
from inpaint.data.rows import Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import CsvSource
from inpaint.errors import InpaintError
from inpaint.models.base import Base, load_base
from inpaint.toy.base import assemble, build_vae, measured_scaling_factor
from inpaint.toy.catalogue import render, write_catalogue
from inpaint.toy.measure import measure_base
from inpaint.train.autoencoder import Reconstruction
from inpaint.train.checkpoint import CheckpointStore, Progress
from inpaint.train.latent import LatentInpainting, LossSettings
from inpaint.train.objective import ParameterGroup, to_pixels
from inpaint.train.settings import TrainSettings
from inpaint.train.trainer import Workload, fit


@dataclass(frozen=True, kw_only=True)
class PretrainToy:
    """Settings of `python -m ray_jobs.pretrain_toy`. The defaults made the weights that are shipped."""

    output: str
    """Folder of the run; the base is written to its `base/`."""
    images: int = 8000
    """Size of the procedural catalogue that is trained on."""
    named: float = 0.7
    """Share of the captions that name the background."""
    seed: int = 7
    """Of the catalogue and of both trainings."""
    vae_learning_rate: float = 2e-3
    unet_learning_rate: float = 8e-4
    vae: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            samples=35_200, global_batch=16, micro_batch=8, workers=2, zero_stage=0, weight_decay=0.0, ema_halflife=800
        )
    )
    """Training of the VAE."""
    unet: TrainSettings = field(
        default_factory=lambda: TrainSettings(
            samples=120_000, global_batch=32, micro_batch=16, workers=2, zero_stage=0, ema_halflife=4000
        )
    )
    """Training of the U-Net and the text encoder."""


def pretrain_toy(config: PretrainToy) -> tuple[Path, dict[str, float]]:
    """Make the base and measure it; returns its folder, in diffusers format, and the figures of `measure_base`.

    They are written beside it, to `base.json`, with the settings that made it. Run again, it goes on where it ended.

    Raises:
        InpaintError: SIGTERM stopped the training.
    """
    output = Path(config.output).resolve()  # Ray Train's workers run in another directory
    manifest = _catalogue(output / "catalogue", config)
    vae_folder = output / "vae_base"
    if not (vae_folder / "model_index.json").is_file():
        tensors = _train_vae(config, manifest, output / "vae")
        vae = build_vae()
        vae.load_state_dict(tensors)
        renders = np.stack([render(config.seed + 1, index).image for index in range(512)])
        images = to_pixels(renders, torch.device("cpu"))
        vae.register_to_config(scaling_factor=measured_scaling_factor(vae, images))
        assemble(vae_folder, vae=vae, seed=config.seed)
    tensors = _train_unet(config, manifest, vae_folder, output / "unet")
    base = load_base(vae_folder)
    for name, module in (("unet", base.unet), ("text_encoder", base.text_encoders[0])):
        prefix = f"{name}."
        module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    folder = assemble(output / "base", vae=base.vae, text_encoder=base.text_encoders[0], unet=base.unet)
    figures = measure_base(str(folder))
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    made = {"command": "python -m ray_jobs.pretrain_toy --output RUN", "settings": settings, "figures": figures}
    (output / "base.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return folder, figures


def _catalogue(folder: Path, config: PretrainToy) -> Manifest:
    csv = folder / "catalogue.csv"
    if not csv.is_file():
        write_catalogue(folder, seed=config.seed, count=config.images, categories=None, with_background=config.named)
    return read_manifest(CsvSource(path=csv))[0]


def _train_vae(config: PretrainToy, manifest: Manifest, output: Path) -> dict[str, torch.Tensor]:
    build = partial(build_reconstruction, learning_rate=config.vae_learning_rate, seed=config.seed)
    return _fit(config, "toy VAE", manifest, build, config.vae, output)


def _train_unet(config: PretrainToy, manifest: Manifest, base: Path, output: Path) -> dict[str, torch.Tensor]:
    build = partial(build_whole, base=str(base), learning_rate=config.unet_learning_rate, seed=config.seed)
    return _fit(config, "toy U-Net", manifest, build, config.unet, output)


def _fit(
    config: PretrainToy, name: str, manifest: Manifest, build: partial, settings: TrainSettings, output: Path
) -> dict[str, torch.Tensor]:
    """Train, and return the averaged parameters."""
    read = ReadSettings(height=64, width=64, flip_probability=0.5)
    identity = {"learning_rate": build.keywords["learning_rate"]}
    workload = Workload(name=name, manifest=manifest, read=read, build=build, settings=settings, identity=identity)
    store = CheckpointStore(f"{output}/checkpoints")
    ended: Progress = fit(workload, str(output), resume=True)
    if ended.samples < settings.total_samples(len(manifest)):
        raise InpaintError(f"{name} was stopped at sample {ended.samples}: run the command again to continue")
    loaded = store.latest()
    assert loaded is not None
    return loaded[0]["ema"]


def build_reconstruction(device: torch.device, *, learning_rate: float, seed: int) -> Reconstruction:
    """The VAE's objective, with equal initial weights on every worker."""
    torch.manual_seed(seed)
    vae = build_vae().to(device)
    return Reconstruction(vae, learning_rate=learning_rate, seed=seed, kl_weight=1e-6, gradient_weight=0.5)


def build_whole(device: torch.device, *, base: str, learning_rate: float, seed: int) -> LatentInpainting:
    """The objective of training all of a base but its VAE."""
    loaded: Base = load_base(base, device=device)
    loaded.vae.requires_grad_(False)
    modules: dict[str, nn.Module] = {"unet": loaded.unet, "text_encoder": loaded.text_encoders[0]}
    groups = [
        ParameterGroup(name, learning_rate, {f"{name}.{n}": p for n, p in module.named_parameters()})
        for name, module in modules.items()
    ]
    return LatentInpainting(loaded, groups, seed=seed, loss=LossSettings(), precision=TrainSettings().precision)
