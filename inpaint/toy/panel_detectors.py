"""What a panel shows, judged by its pixels alone: nobody says where in it the product stands.

Guaranteed: deterministic; the background is judged where no product of this world ever stands; a picture unlike
everything that was fitted is answered "unclear". Not covered: other worlds than `inpaint.toy.catalogue`'s. Pictures are
uint8 B 64 64 3.
"""

from dataclasses import dataclass

import numpy as np

from inpaint.toy.catalogue import BACKGROUND_NAMES, COLOUR_NAMES, SHAPE_NAMES
from inpaint.toy.detectors import (
    ERROR_SEED,
    UNCLEAR,
    WORKING_SIZE,
    Classifier,
    balanced_renders,
    directions,
    disturbed,
    ground,
    softened,
)
from inpaint.toy.textures import Array

NAMES = {"shape": SHAPE_NAMES, "colour": COLOUR_NAMES, "background": BACKGROUND_NAMES}
EDGE_CELLS, COLOUR_CELLS = 8, 16
FRAME = np.ones((WORKING_SIZE, WORKING_SIZE), bool)
"""Pixels that no product of this world reaches."""
FRAME[6:61, 11:53] = False


def features(images_BSS3: Array) -> Array:
    """Gradient directions and mean colours of the panel's squares, B 1280."""
    pixels = images_BSS3.astype(np.float32) / 255
    edges = np.sqrt(directions(pixels, EDGE_CELLS)).reshape(len(pixels), -1)
    side = WORKING_SIZE // COLOUR_CELLS
    colours = pixels.reshape(-1, COLOUR_CELLS, side, COLOUR_CELLS, side, 3).mean((2, 4))
    return np.concatenate([edges, colours.reshape(len(pixels), -1)], 1)


def framed(images_BSS3: Array) -> Array:
    """What stands behind the product, B 50."""
    return ground(images_BSS3, np.broadcast_to(FRAME, images_BSS3.shape[:3]))


@dataclass(frozen=True)
class PanelDetectors:
    """One classifier per trait."""

    by_trait: dict[str, Classifier]

    @classmethod
    def fit(cls, *, per_class: int = 150) -> "PanelDetectors":
        """Fit on `8 * per_class` renders, clean and disturbed. Some ten seconds on one core."""
        scenes, clean, _ = balanced_renders(0, 8 * per_class)
        images = np.concatenate([clean, softened(clean)])
        labels = {trait: [getattr(scene, trait) for scene in scenes] * 2 for trait in NAMES}
        of_all, of_frame = features(images), framed(images)
        by_trait = {
            trait: Classifier.fit(of_all, labels[trait], NAMES[trait], shrinkage=0.1, slack=1.8, reduced=True)
            for trait in ("shape", "colour")
        }
        background = Classifier.fit(of_frame, labels["background"], BACKGROUND_NAMES, shrinkage=0.02, slack=1.8)
        return cls({**by_trait, "background": background})

    def see(self, images: Array) -> dict[str, list[str]]:
        """Per trait, its name in each picture."""
        of_all, of_frame = features(images), framed(images)
        return {
            trait: classifier.name(of_frame if trait == "background" else of_all)
            for trait, classifier in self.by_trait.items()
        }

    def error(self, *, count: int = 400, blur: float = 0.0, brightness: float = 1.0) -> dict[str, float]:
        """Share of held-out renders of which each trait is not named rightly, and, as `wrong_...`, named wrongly."""
        scenes, images, _ = balanced_renders(ERROR_SEED, count)
        figures: dict[str, float] = {}
        for trait, names in self.see(disturbed(images, blur=blur, brightness=brightness)).items():
            right = [name == getattr(scene, trait) for name, scene in zip(names, scenes, strict=True)]
            missed = 1 - sum(right) / count
            figures |= {trait: missed, f"wrong_{trait}": missed - names.count(UNCLEAR) / count}
        return figures
