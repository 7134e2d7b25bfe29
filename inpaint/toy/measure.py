"""What the toy base can do, and what an adapter makes it do, judged by detectors that know the ground truth."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from inpaint.models.base import Base, load_base
from inpaint.paint.painter import Painter
from inpaint.paint.paste import kept_pixels_changed
from inpaint.paint.request import PaintRequest
from inpaint.progress import ProgressBar
from inpaint.toy.catalogue import BACKGROUND_NAMES, Scene, render
from inpaint.toy.detectors import Detectors
from inpaint.train.objective import to_pixels

HELD_OUT_SEED = 900_001
"""The world whose products are painted; nothing is trained on it."""


def held_out(count: int, *, first: int = 0) -> list[Scene]:
    """Products that no training saw."""
    return [render(HELD_OUT_SEED, index) for index in range(first, first + count)]


@dataclass(frozen=True)
class PaintedScenes:
    """Held-out products painted around, and what the detectors see there."""

    images: np.ndarray
    """N H W 3, uint8."""
    hit_rate: float
    """Share painted on a background that was wanted."""
    counts: dict[str, int]
    """How often each background was seen."""
    kept_pixels_changed: int


def paint_all(painter: Painter, requests: Sequence[PaintRequest], title: str) -> np.ndarray:
    """Pictures of one size, uint8 N H W 3, in the painter's batches, with a bar of this title."""
    painted: list[np.ndarray] = []
    with ProgressBar(title, total=len(requests)) as bar:
        while len(painted) < len(requests):
            painted += painter.paint(requests[len(painted) :][: painter.max_batch])
            bar.show(len(painted), len(requests))
    return np.stack(painted)


def paint_scenes(
    painter: Painter,
    detectors: Detectors,
    scenes: Sequence[Scene],
    prompts: Sequence[str],
    wanted: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    title: str = "painting",
) -> PaintedScenes:
    """Paint everything but the product of each scene, and see whether one of its `wanted` backgrounds comes."""
    requests = [
        PaintRequest(image=scene.image, hole=~scene.product, prompt=prompt, seed=seed + number)
        for number, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True))
    ]
    images = paint_all(painter, requests, title)
    changed = [kept_pixels_changed(r.image, image, r.hole) for r, image in zip(requests, images, strict=True)]
    seen = detectors.background(images, np.stack([request.hole for request in requests]))
    return PaintedScenes(
        images=images,
        hit_rate=float(np.mean([name in names for name, names in zip(seen, wanted, strict=True)])),
        counts=dict(sorted(Counter(seen).items())),
        kept_pixels_changed=sum(changed),
    )


@torch.no_grad()
def reconstruction_db(base: Base, scenes: Sequence[Scene]) -> float:
    """PSNR in dB of the VAE's reconstruction over all pixels of the scenes."""
    images = to_pixels(np.stack([scene.image for scene in scenes]), base.device)
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
    base, detectors, scenes = load_base(folder), Detectors.fit(), held_out(samples)
    painter = Painter(base, device="cpu", max_batch=16)
    captions = [scene.caption(False) for scene in scenes]
    wanted = [(BACKGROUND_NAMES[i % len(BACKGROUND_NAMES)],) for i in range(samples)]
    prompts = [f"{caption} on {background}" for caption, (background,) in zip(captions, wanted, strict=True)]
    named = paint_scenes(painter, detectors, scenes, prompts, wanted)
    free = paint_scenes(painter, detectors, scenes, captions, [BACKGROUND_NAMES] * samples, seed=samples)
    return {
        "vae_db": reconstruction_db(base, held_out(512, first=samples)),
        "named_hit_rate": named.hit_rate,
        "least_common_share": min(free.counts.get(name, 0) for name in BACKGROUND_NAMES) / samples,
        "kept_pixels_changed": named.kept_pixels_changed + free.kept_pixels_changed,
        "background_detector_error": detectors.error()["background"],
    }
