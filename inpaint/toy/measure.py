"""What the toy base can do, and what an adapter makes it do, judged by detectors that know the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from inpaint.models.base import Base, load_base
from inpaint.paint.painter import Painter
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.progress import ProgressBar
from inpaint.toy.catalogue import BACKGROUND_NAMES, CATEGORIES, Scene, render
from inpaint.toy.detectors import Detectors

HELD_OUT_SEED = 900_001
"""The world whose products are painted; nothing is trained on it."""
SAMPLING = SamplingSettings(steps=25, guidance_scale=1.0)


def held_out(count: int, *, first: int = 0) -> list[Scene]:
    """Products that no training saw."""
    return [render(HELD_OUT_SEED, index) for index in range(first, first + count)]


def paint_scenes(
    painter: Painter, scenes: Sequence[Scene], prompts: Sequence[str], *, seed: int = 0, title: str = "painting"
) -> np.ndarray:
    """Paint everything but the product of each scene; uint8 N H W 3."""
    requests = [
        PaintRequest(
            image=scene.image,
            hole=~scene.product,
            prompt=prompt,
            seed=seed + number,
            sampling=SAMPLING,
        )
        for number, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True))
    ]
    images: list[np.ndarray] = []
    with ProgressBar(title, total=len(requests)) as bar:
        while len(images) < len(requests):
            images += painter.paint(requests[len(images) :][: painter.max_batch])
            bar.show(len(images), len(requests))
    return np.stack(images)


def backgrounds_of(detectors: Detectors, scenes: Sequence[Scene], images: np.ndarray) -> list[str]:
    """What the detector sees around each product."""
    return detectors.background(images, ~np.stack([scene.product for scene in scenes]))


def kept_changed(scenes: Sequence[Scene], images: np.ndarray) -> int:
    """Product pixels that painting changed, over all scenes."""
    pairs = zip(scenes, images, strict=True)
    return sum(kept_pixels_changed(scene.image, image, ~scene.product) for scene, image in pairs)


@torch.no_grad()
def reconstruction_db(base: Base, scenes: Sequence[Scene]) -> float:
    """PSNR in dB of the VAE's reconstruction over all pixels of the scenes."""
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
    errors = []
    for part in images.split(64):
        decoded = base.vae.decode(base.vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
        errors.append(((decoded - part) / 2).square().mean((1, 2, 3)))
    return float(-10 * torch.cat(errors).mean().log10())


def measure_base(folder: str, *, samples: int = 200) -> dict[str, float]:
    """The figures that a toy base must reach, on held-out products.

    Keys: `vae_db`; `named_hit_rate`, the share painted on the background that the prompt names; `least_common_share`,
    the smallest share of any background where the prompt names none; `kept_pixels_changed`; the detector's error.
    """
    base = load_base(folder)
    detectors = Detectors.fit()
    painter = Painter(base, device="cpu", max_batch=16)
    scenes = held_out(samples)
    wanted = [BACKGROUND_NAMES[i % len(BACKGROUND_NAMES)] for i in range(samples)]
    named = [f"{scene.caption(False)} on {background}" for scene, background in zip(scenes, wanted, strict=True)]
    with_name = paint_scenes(painter, scenes, named)
    without = paint_scenes(painter, scenes, [scene.caption(False) for scene in scenes], seed=samples)
    seen = backgrounds_of(detectors, scenes, without)
    hits = np.equal(backgrounds_of(detectors, scenes, with_name), wanted)
    return {
        "vae_db": reconstruction_db(base, held_out(512, first=samples)),
        "named_hit_rate": float(np.mean(hits)),
        "least_common_share": min(seen.count(name) for name in BACKGROUND_NAMES) / samples,
        "kept_pixels_changed": kept_changed(scenes, with_name) + kept_changed(scenes, without),
        "background_detector_error": detectors.error()["background"],
    }


@dataclass(frozen=True)
class CategoryResult:
    """What painting held-out products for one category gave."""

    category: str
    hit_rate: float
    """Share painted on one of the category's own backgrounds."""
    counts: dict[str, int]
    """How often each background was seen."""
    kept_pixels_changed: int
    images: np.ndarray
    """N H W 3, uint8."""


def measure_category(
    painter: Painter, detectors: Detectors, category: str, prompts: Sequence[str], scenes: Sequence[Scene]
) -> CategoryResult:
    """Paint the scenes with the prompts and count whose backgrounds come."""
    images = paint_scenes(painter, scenes, prompts, title=f"painting for {category}")
    seen = backgrounds_of(detectors, scenes, images)
    return CategoryResult(
        category=category,
        hit_rate=float(np.mean([name in CATEGORIES[category] for name in seen])),
        counts={name: seen.count(name) for name in sorted(set(seen))},
        kept_pixels_changed=kept_changed(scenes, images),
        images=images,
    )
