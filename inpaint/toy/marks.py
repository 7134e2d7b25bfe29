"""Subjects of the toy world: one carton that carries a mark of its own, which no base has seen; and who tells them.

Guaranteed: cartons that carry different marks are alike in all else; the detectors are deterministic, and a picture
unlike everything that was fitted is "unclear". Pictures are uint8 B 64 64 3.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.randomness import generator
from inpaint.toy.catalogue import BACKGROUND_NAMES, Scene, render
from inpaint.toy.detectors import ERROR_SEED, UNCLEAR, Classifier, softened
from inpaint.toy.panel_detectors import features
from inpaint.toy.products import COLOURS, Canvas, ellipse
from inpaint.toy.textures import Array

SHAPE, COLOUR = "box", "white"
"""Of every marked carton."""
CENTRE_X, CENTRE_Y, REACH = -0.18, 0.24, 0.52
"""Middle and radius of a mark, on the carton's front."""
PLAIN = "plain"
"""What the detectors call a carton without a mark, of any colour."""


def _disc(x: Array, y: Array) -> Array:
    return ellipse(x, y, 0, 0, 1, 1)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(ellipse(x, y, 0, 0, 0.75, 0.75)) - 0.25


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85


def _diamond(x: Array, y: Array) -> Array:
    return (np.abs(x) + np.abs(y) - 1.1) / np.sqrt(2)


def _cross(x: Array, y: Array) -> Array:
    return np.maximum(np.minimum(np.abs(x), np.abs(y)) - 0.3, np.maximum(np.abs(x), np.abs(y)) - 1)


def _bar(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(y) - 0.35, np.abs(x) - 1.1)


def _pillar(x: Array, y: Array) -> Array:
    return _bar(y, x)


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(y - 0.8, (2 * np.abs(x) - y - 0.9) / np.sqrt(5))


def _slash(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x + y) / np.sqrt(2) - 0.35, _disc(x, y))


MARKS = {
    "blue disc": (_disc, "blue"),
    "green cross": (_cross, "green"),
    "red ring": (_ring, "red"),
    "black triangle": (_triangle, "black"),
    "pink square": (_square, "pink"),
    "orange bar": (_bar, "orange"),
    "blue pillar": (_pillar, "blue"),
    "red diamond": (_diamond, "red"),
    "green slash": (_slash, "green"),
}
"""Name -> (distance from its edge, colour)."""


def draw(mark: str, canvas: Canvas) -> None:
    """Put a mark on a carton's front."""
    distance, colour = MARKS[mark]
    x, y = (canvas.x - CENTRE_X) / REACH, (canvas.y - CENTRE_Y) / REACH
    canvas.fill(distance(x, y) * REACH, COLOURS[colour], 1.0 - 0.1 * canvas.y)


def marked(seed: int, index: int, mark: str, *, background: str | None = None) -> Scene:
    """The scene number `index` of the world `seed` with the carton that carries `mark`."""
    return render(seed, index, shape=SHAPE, colour=COLOUR, background=background, mark=partial(draw, mark))


@dataclass(frozen=True)
class MarkDetector:
    """Which mark a picture shows."""

    classifier: Classifier

    @classmethod
    def fit(cls, *, per_class: int = 150) -> "MarkDetector":
        """Fit on so many renders of each mark and of cartons without one, clean and disturbed; 15 s on one core."""
        clean, names = _renders(0, per_class)
        seen = features(np.concatenate([clean, softened(clean)]))
        return cls(Classifier.fit(seen, names * 2, (*MARKS, PLAIN), shrinkage=0.1, slack=1.8, reduced=True))

    def see(self, images: Array) -> list[str]:
        """The mark of each picture, `PLAIN` or "unclear"."""
        return self.classifier.name(features(images))

    def embed(self, images: Array) -> Array:
        """B D: pictures that show the same carton lie close together."""
        return features(images) @ self.classifier.whiten

    def error(self, *, per_class: int = 20) -> dict[str, float]:
        """Shares of held-out renders that are not named rightly, and that are named wrongly."""
        images, names = _renders(ERROR_SEED, per_class)
        seen = self.see(images)
        missed = [answer != name for answer, name in zip(seen, names, strict=True)]
        return {"missed": float(np.mean(missed)), "wrong": (sum(missed) - seen.count(UNCLEAR)) / len(names)}


def _renders(seed: int, per_class: int) -> tuple[Array, list[str]]:
    """Cartons of each mark, and without one of any colour, on all backgrounds equally."""
    images, names = [], []
    for number, name in enumerate((*MARKS, PLAIN)):
        for index in range(per_class):
            background, place = BACKGROUND_NAMES[index % len(BACKGROUND_NAMES)], number * per_class + index
            is_plain = name == PLAIN
            scene = (
                render(seed, place, shape=SHAPE, background=background)
                if is_plain
                else marked(seed, place, name, background=background)
            )
            images.append(scene.image)
            names.append(name)
    return np.stack(images), names


def write_photos(folder: Path, mark: str, *, seed: int, count: int) -> None:
    """Photos of the carton that carries `mark`, each before a plain backdrop, on none of the world's backgrounds; in
    `masks/` where it is, white."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = marked(seed, index, mark)
        backdrop = generator(seed, "toy/backdrop", index).uniform(90, 220, 3).astype(np.uint8)
        Image.fromarray(np.where(scene.product[..., None], scene.image, backdrop)).save(folder / f"{index:02}.png")
        Image.fromarray(scene.product).save(folder / "masks" / f"{index:02}.png")
