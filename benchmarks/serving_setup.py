"""What `benchmarks.serving` serves: the toy base with 16 noised copies of a shipped adapter, or a real architecture."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from torch import Tensor

from benchmarks.random_base import ARCHITECTURES, build_architecture
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.models.base import Base, read_base_info
from inpaint.models.locate import TOY_BASE
from inpaint.toy.catalogue import render
from inpaint.toy.measure import HELD_OUT_SEED

CATEGORIES = [f"CDP_{number:02}" for number in range(16)]
RANK = 8


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One setting of the benchmark."""

    base: str
    rival_base: str
    adapters: Path
    size: int
    """Side of the photos in pixels."""
    steps: int
    guidance_scale: float
    prompt: str
    precision: Literal["fp32", "bf16"]
    device: str
    threads: int
    rank: int

    def photo(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """H x W x 3 uint8, and its hole: 255 = paint."""
        scene = render(HELD_OUT_SEED, number)
        large = np.ones((self.size // scene.image.shape[0],) * 2, dtype=np.uint8)
        image = np.kron(scene.image, large[:, :, None])
        return image, np.kron((~scene.product * 255).astype(np.uint8), large)


def toy_bench(folder: Path, threads: int) -> Bench:
    """The toy base, on the CPU."""
    shipped = load_adapter(TOY_BASE.parent / "adapters" / "CDP_COS")
    for number, category in enumerate(CATEGORIES):
        save_adapter(folder / "adapters" / category, noised(shipped, category, number))
    return Bench(
        base="toy",
        rival_base=str(TOY_BASE),
        adapters=folder / "adapters",
        size=64,
        steps=25,
        guidance_scale=1.0,
        prompt="a red mug",
        precision="fp32",
        device="cpu",
        threads=threads,
        rank=RANK,
    )


def write_bench(architecture: str, folder: Path, threads: int) -> Bench:
    """A real architecture with random weights, as a folder; on the GPU, in bf16. Raises InpaintError."""
    if architecture not in ARCHITECTURES or ARCHITECTURES[architecture].in_channels != 9:
        known = ", ".join(name for name, a in ARCHITECTURES.items() if a.in_channels == 9)
        raise InpaintError(f"--gpu {architecture}: give one of {known}")
    base = build_architecture(architecture, device="cpu", dtype=torch.bfloat16)
    _save_pipeline(base, folder / "base")
    info = read_base_info(str(folder / "base"))
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).mul(0.02).half()

    for category in CATEGORIES:
        lora = {}
        for layer, (outputs, inputs) in info.layers.items():
            lora[f"{layer}.lora_A.weight"] = noise(RANK, inputs)
            lora[f"{layer}.lora_B.weight"] = noise(outputs, RANK)
        card = AdapterCard(
            base=architecture,
            base_revision=info.revision,
            tokens={category: category},
            prompt_format="{token} background, {prompt}",
            resolution=info.default_size,
            rank=RANK,
            alpha=float(RANK),
            samples=0,
            manifest="",
        )
        embeds = tuple({category: noise(width)} for width in info.text_widths)
        save_adapter(folder / "adapters" / category, Adapter(card=card, lora=lora, embeds=embeds))
    return Bench(
        base=str(folder / "base"),
        rival_base=str(folder / "base"),
        adapters=folder / "adapters",
        size=info.default_size,
        steps=25,
        guidance_scale=7.5,
        prompt="a red mug",
        precision="bf16",
        device="cuda",
        threads=threads,
        rank=RANK,
    )


def noised(shipped: Adapter, category: str, seed: int, *, spread: float = 1 / 3) -> Adapter:
    """An adapter for another category. Args: spread: of the noise, in that of each tensor's numbers."""
    generator = torch.Generator().manual_seed(seed)

    def changed(tensor: Tensor) -> Tensor:
        plain = tensor.float()
        return (plain + spread * plain.std() * torch.randn(plain.shape, generator=generator)).to(tensor.dtype)

    (token,) = shipped.card.tokens.values()
    return Adapter(
        card=replace(shipped.card, tokens={category: category}, files={}),
        lora={name: changed(tensor) for name, tensor in shipped.lora.items()},
        embeds=tuple({category: changed(embeds[token])} for embeds in shipped.embeds),
    )


def _save_pipeline(base: Base, folder: Path) -> None:
    parts = {"vae": base.vae, "unet": base.unet, "scheduler": base.scheduler}
    parts |= {"text_encoder": base.text_encoders[0], "tokenizer": base.tokenizers[0]}
    if base.info.is_xl:
        parts |= {"text_encoder_2": base.text_encoders[1], "tokenizer_2": base.tokenizers[1]}
        pipeline = StableDiffusionXLInpaintPipeline(**parts)
    else:
        plain = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionInpaintPipeline(**parts, **plain)
    pipeline.save_pretrained(folder)
