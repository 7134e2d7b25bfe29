"""The toy world's products in two colours: photos as they are, and as they shall become, all else alike."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.randomness import generator
from inpaint.toy.catalogue import COLOUR_NAMES, Scene, render


@dataclass(frozen=True, kw_only=True)
class Recoloured:
    """A scene, and the same one with its product in another colour."""

    before: Scene
    after: Scene


def recoloured(seed: int, index: int, size: int = 64) -> Recoloured:
    """The scene number `index` of the world `seed`, and another colour for its product, drawn uniformly."""
    before = render(seed, index, size)
    others = [name for name in COLOUR_NAMES if name != before.colour]
    colour = others[int(generator(seed, "toy/recoloured", index).integers(len(others)))]
    # What else is drawn of a scene does not depend on what is given.
    return Recoloured(before=before, after=render(seed, index, size, colour=colour))


def write_recoloured(folder: str | Path, *, seed: int, count: int, size: int = 64) -> Path:
    """Write scenes as a CSV `input,mask,output,prompt` with its pictures; returns its path.

    The input is the photo before, the output after, white in the mask is the product, and the prompt names its new
    colour. So nothing around a hole tells the colour that belongs into it.
    """
    folder = Path(folder)
    for name in ("inputs", "masks", "outputs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "recoloured.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("input", "mask", "output", "prompt"))
        for index in range(count):
            pair = recoloured(seed, index, size)
            names = [f"{kind}/{index:06d}.png" for kind in ("inputs", "masks", "outputs")]
            mask = pair.after.product.astype(np.uint8) * 255
            for name, image in zip(names, (pair.before.image, mask, pair.after.image), strict=True):
                Image.fromarray(image).save(folder / name)
            writer.writerow((*names, pair.after.caption(False)))
    return path
