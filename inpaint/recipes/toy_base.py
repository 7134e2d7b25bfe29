"""How the toy base is made: first its VAE, then its U-Net and text encoder, both through the one loop.

Shapes: B samples, H x W pixels, h x w latents, C latent channels.
"""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL
from torch import Tensor, nn

from inpaint.data.holes import Panels, Sometimes
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import CsvSource
from inpaint.device import on_device
from inpaint.diffusion import keyed
from inpaint.diffusion.objective import LossSettings
from inpaint.errors import InpaintError
from inpaint.models.base import Base, load_base
from inpaint.paint.ddpm_painter import to_uint8
from inpaint.stopping import StopToken
from inpaint.toy.base import (
    IMAGE_SIZES,
    Architecture,
    assemble,
    begin_with,
    build_unet,
    build_vae,
    measured_scaling_factor,
)
from inpaint.toy.catalogue import render, write_catalogue
from inpaint.toy.measure import measure_base
from inpaint.toy.measure_panels import measure_panel_base
from inpaint.toy.panels import write_mixture
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import AUTOCAST, MicroBatch, Objective, PaintedSample, ParameterGroup, to_pixels
from inpaint.train.recipe import Recipe, Trained
from inpaint.train.run import run
from inpaint.train.settings import Precision, TrainSettings, arguments_of, plain


class Reconstruction(nn.Module):
    """Absolute, squared and gradient error of a VAE's pictures, and a small KL term (Kingma 2013; Rombach 2022)."""

    def __init__(self, vae: AutoencoderKL, *, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.vae, self.learning_rate, self.seed = vae, learning_rate, seed

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.learning_rate, dict(self.vae.named_parameters()))]

    def forward(self, batch: MicroBatch, *, validating: bool = False) -> Tensor:
        image_B3HW = to_pixels(batch["image"], self.vae.device)
        posterior = self.vae.encode(image_B3HW).latent_dist
        positions_B = on_device(batch["position"], self.vae.device)
        purpose = "validation vae" if validating else "vae"
        noise_BChw = keyed.normal(self.seed, purpose, positions_B, tuple(posterior.mean.shape[1:]))
        error_B3HW = self.vae.decode(posterior.mean + posterior.std * noise_BChw).sample - image_B3HW
        loss_B = error_B3HW.abs().mean((1, 2, 3)) + 2 * error_B3HW.square().mean((1, 2, 3))
        for axis in (2, 3):
            loss_B = loss_B + 0.5 * error_B3HW.diff(dim=axis).abs().mean((1, 2, 3))
        return loss_B + 1e-6 * posterior.kl()

    @torch.no_grad()
    def paint(self, batch: MicroBatch, count: int) -> list[PaintedSample]:
        """Input and reconstruction side by side."""
        image_B3HW = to_pixels(batch["image"][:count], self.vae.device)
        output_B3HW = self.vae.decode(self.vae.encode(image_B3HW).latent_dist.mean).sample
        return [PaintedSample(strip) for strip in to_uint8(torch.cat([image_B3HW, output_B3HW], dim=3))]


@dataclass(frozen=True, kw_only=True)
class ToyPart(Recipe):
    """What both trainings share: `data` is a toy catalogue's CSV; what is exported is a base's folder."""

    learning_rate: float

    def source(self, data: str) -> CsvSource:
        return CsvSource(path=data)

    def read_settings(self) -> ReadSettings:
        return ReadSettings(height=IMAGE_SIZES["sd15"], width=IMAGE_SIZES["sd15"], flip_probability=0.5)

    def export_folder(self, part: str) -> str:
        return f"{self.output}/base"


@dataclass(frozen=True, kw_only=True)
class ToyVae(ToyPart):
    """The VAE, from random weights; the rest of the exported base is untrained."""

    title = "toy VAE"

    def objective(self, device: torch.device) -> Objective:
        torch.manual_seed(self.train.seed)
        return Reconstruction(build_vae().to(device), learning_rate=self.learning_rate, seed=self.train.seed)

    def export(self, trained: Trained, folder: Path) -> None:
        vae = build_vae()
        vae.load_state_dict(trained.parameters)
        renders = np.stack([render(self.train.seed + 1, index).image for index in range(512)])
        images = to_pixels(renders, torch.device("cpu"))
        vae.register_to_config(scaling_factor=measured_scaling_factor(vae, images))
        assemble(folder, parts={"vae": vae}, seed=self.train.seed)


@dataclass(frozen=True, kw_only=True)
class ToyUnet(ToyPart):
    """All of a base but its VAE. The SDXL base learns panels: what belongs into hidden ones, or into all of them."""

    title = "toy U-Net"

    base: str
    """Folder of a base whose VAE is trained, and with whose other weights it begins."""
    architecture: Architecture = "sd15"
    loss: LossSettings = LossSettings()

    def read_settings(self) -> ReadSettings:
        if self.architecture == "sd15":
            return super().read_settings()
        size = IMAGE_SIZES[self.architecture]
        return ReadSettings(height=size, width=size, hole=Sometimes(Panels(most=3), 0.1))

    def objective(self, device: torch.device) -> Objective:
        base, settings = load_base(self.base, device=device), self.train
        base.vae.requires_grad_(False).to(AUTOCAST.get(settings.precision, torch.float32))
        groups = [
            ParameterGroup(self.learning_rate, {f"{name}.{n}": p for n, p in module.named_parameters()})
            for name, module in _trained_modules(base).items()
        ]
        return LatentInpainting(base, groups, seed=settings.seed, loss=self.loss, precision=settings.precision)

    def export(self, trained: Trained, folder: Path) -> None:
        base = load_base(self.base)
        modules = _trained_modules(base)
        for name, module in modules.items():
            module.load_state_dict({n: trained.parameters[f"{name}.{n}"] for n, _ in module.named_parameters()})
        assemble(folder, architecture=self.architecture, parts={"vae": base.vae, **modules})


def _trained_modules(base: Base) -> dict[str, nn.Module]:
    return {"unet": base.unet, **dict(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False))}


@dataclass(frozen=True, kw_only=True)
class PretrainToy:
    """Settings of `python -m ray_jobs.pretrain_toy`. The defaults made the weights that are shipped."""

    output: str
    """Folder of the run; the base is written to its `unet/base/`."""
    architecture: Architecture = "sd15"
    """sd15 is made from nothing, sdxl of what another base has."""
    begin: str = "toy"
    """Of sdxl: the base whose VAE it takes, and with whose weights of the same name and size it begins."""
    images: int = 8000
    """Size of the procedural catalogue that is trained on."""
    named: float = 0.7
    """Share of the captions that name the background; of sd15."""
    seed: int = 7
    """Of the pictures and of the trainings."""
    vae_learning_rate: float = 2e-3
    unet_learning_rate: float = 8e-4
    loss: LossSettings = LossSettings()
    """Of the U-Net."""
    vae: TrainSettings = TrainSettings(
        samples=35_200, max_micro_batch=8, zero_stage=0, weight_decay=0.0, ema_halflife=800
    )
    """Training of the VAE; of sd15."""
    unet: TrainSettings = TrainSettings(
        samples=120_000, global_batch=32, max_micro_batch=16, zero_stage=0, ema_halflife=4000
    )
    """Training of the U-Net and the text encoders."""

    @classmethod
    def of_architecture(cls, architecture: Architecture, *, output: str) -> Self:
        """The documented defaults of an architecture."""
        return cls(output=output, **({} if architecture == "sd15" else XL))

    @classmethod
    def defaults(cls, *, architecture: Architecture = "sd15") -> Self:
        """A command's."""
        return cls.of_architecture(architecture, output=tyro.MISSING)


XL: dict[str, Any] = {
    "architecture": "sdxl",
    "unet_learning_rate": 4e-4,
    "loss": LossSettings(debiased=True, timestep_shift=4.0, kept_weight=0.1),
    "unet": TrainSettings(
        samples=80_000, global_batch=8, max_micro_batch=8, precision=Precision.BF16, zero_stage=0, ema_halflife=2000
    ),
}
"""What differs for SDXL. A composite takes four times as long as one scene, so there are fewer samples; what a panel
shows is decided where noise is most, so that the loss is debiased."""


def pretrain_toy(config: PretrainToy, *, stop: StopToken | None = None) -> tuple[Path, dict[str, float]]:
    """Make the base and measure it; returns its folder, in diffusers format, and the figures of `measure_base`,
    for SDXL of `measure_panel_base`.

    They are written to `base.json` in `output`, with the settings that made it. Run again, it goes on where it ended.

    Raises:
        InpaintError: `stop` ended the training, or `output` is a URL.
    """
    if "://" in config.output:
        raise InpaintError(f"output {config.output}: the base is made on one machine; give a folder on it")
    output, seed = Path(config.output).resolve(), config.seed
    # What an earlier run left is gone on with, if it began with these rows.
    begin = _begin_sdxl if config.architecture == "sdxl" else _begin_sd15
    csv, base = begin(config, output, stop)
    unet = ToyUnet(
        **_run_of(csv, output / "unet"),
        train=replace(config.unet, seed=seed),
        learning_rate=config.unet_learning_rate,
        base=base,
        architecture=config.architecture,
        loss=config.loss,
    )
    (folder,) = run(unet, stop=stop)
    figures = measure_panel_base(folder) if config.architecture == "sdxl" else measure_base(folder)
    settings = {name: value for name, value in plain(config).items() if name != "output"}
    command = ["python", "-m", "ray_jobs.pretrain_toy", "--architecture", config.architecture, "--output", "RUN"]
    command += arguments_of(config, PretrainToy.of_architecture(config.architecture, output=config.output))
    made = {"command": shlex.join(command), "settings": settings, "figures": figures}
    (output / "base.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return Path(folder), figures


def _begin_sd15(config: PretrainToy, output: Path, stop: StopToken | None) -> tuple[Path, str]:
    """The rows, and a base with a trained VAE."""
    csv = write_catalogue(
        output / "catalogue", seed=config.seed, count=config.images, categories=None, with_background=config.named
    )
    train = replace(config.vae, seed=config.seed)
    vae = ToyVae(**_run_of(csv, output / "vae"), train=train, learning_rate=config.vae_learning_rate)
    (base,) = run(vae, stop=stop)
    return csv, base


def _begin_sdxl(config: PretrainToy, output: Path, stop: StopToken | None) -> tuple[Path, str]:
    """The rows, and a base with all that it shares with another one."""
    csv = write_mixture(output / "mixture", seed=config.seed, count=config.images)
    other = load_base(config.begin)
    parts: dict[str, nn.Module] = {"vae": other.vae}
    if other.info.is_xl:
        parts |= _trained_modules(other)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            parts["unet"] = begin_with(build_unet("sdxl"), other.unet)
    return csv, str(assemble(output / "begin", architecture="sdxl", parts=parts, seed=config.seed))


def _run_of(csv: Path, output: Path) -> dict[str, Any]:
    return {"data": str(csv), "output": str(output), "resume": True, "recheck": True}
