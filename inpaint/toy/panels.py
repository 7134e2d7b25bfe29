"""Toy composites: four scenes of the toy world as the panels of one picture; a pure function of (seed, index).

A sheet shows one product in four views on one kind of background, and its caption says neither: what belongs into a
hidden panel can be known from the visible ones alone. Shapes: S = side of a panel, panels in reading order.
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.randomness import generator
from inpaint.toy.catalogue import Scene, render
from inpaint.toy.textures import Array

TRAITS = ("shape", "colour", "background")
"""What the panels of a composite may have in common."""
PRODUCT = ("shape", "colour")
"""What makes a product the same."""
SHEET_PROMPT = "four photos"
"""Of every sheet, and of what the base saw of unrelated panels: that they agree is what an adapter learns."""


@dataclass(frozen=True, kw_only=True)
class Composite:
    """2 x 2 panels."""

    image: Array
    """2S 2S 3, uint8."""
    panels: tuple[Scene, ...]


def compose(seed: int, index: int, size: int = 64, *, common: Collection[str] = TRAITS) -> Composite:
    """The composite number `index` of the world `seed`, with panels of `size` pixels: the scenes `4 * index` and the
    three after it, whose `common` traits are the first one's. By default it is a sheet."""
    first = render(seed, 4 * index, size)
    shared = {trait: getattr(first, trait) for trait in common}
    panels = (first, *(render(seed, 4 * index + place, size, **shared) for place in (1, 2, 3)))
    rows = [np.concatenate([panel.image for panel in panels[start : start + 2]], axis=1) for start in (0, 2)]
    return Composite(image=np.concatenate(rows), panels=panels)


def write_sheets(folder: str | Path, *, seed: int, count: int, first_index: int = 0, size: int = 64) -> Path:
    """Write sheets as `sheet000000.png` and a caption of the same name beside each; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first_index, first_index + count):
        Image.fromarray(compose(seed, index, size).image).save(folder / f"sheet{index:06d}.png")
        (folder / f"sheet{index:06d}.txt").write_text(SHEET_PROMPT + "\n", encoding="utf-8")
    return folder


def write_mixture(folder: str | Path, *, seed: int, count: int, size: int = 64) -> Path:
    """Write what the SDXL base is trained on, PNGs and `mixture.csv` (`output,prompt`); returns its path.

    A tenth are single scenes of the composites' size, a tenth composites whose panels have nothing in common, the
    others such that share a product or a background, never both: a base that can look from one panel to another, and
    that was never shown a sheet. An eighth of these captions tell what is shared.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / "mixture.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("output", "prompt"))
        for index in range(count):
            picture, prompt = _mixed(seed, index, size)
            Image.fromarray(picture).save(folder / f"images/{index:06d}.png")
            writer.writerow((f"images/{index:06d}.png", prompt))
    return path


def _mixed(seed: int, index: int, size: int) -> tuple[Array, str]:
    """One picture of the mixture, uint8 2S 2S 3, and its caption."""
    rng = generator(seed, "toy/mixture", index)
    kind, tells = rng.random(), rng.random() < 1 / 8
    if kind < 0.1:
        scene = render(seed, 4 * index, 2 * size)
        return scene.image, scene.caption(True)
    if kind < 0.2:
        return compose(seed, index, size, common=()).image, "four photos"
    common = PRODUCT if rng.random() < 0.5 else ("background",)
    composite = compose(seed, index, size, common=common)
    told = (getattr(composite.panels[0], trait) if tells else f"one {trait}" for trait in common)
    return composite.image, "four photos of " + " and ".join(told)
