"""Subjects of the toy world: one carton that carries a mark of its own, which no base has seen; and who tells them.

Guaranteed: cartons that carry different marks are alike in all else; the detector is deterministic, and sees no
mark where it is not sure. Pictures are uint8 B 64 64 3.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from inpaint.randomness import generator
from inpaint.toy.catalogue import BACKGROUND_NAMES, Scene, render
from inpaint.toy.detectors import ERROR_SEED, balanced_renders
from inpaint.toy.products import COLOURS, Canvas, ellipse
from inpaint.toy.textures import Array

SHAPE, COLOUR = "box", "white"
"""Of every marked carton."""
CENTRE_X, CENTRE_Y, REACH = -0.18, 0.24, 0.52
"""Middle and radius of a mark, on the carton's front."""
NO_MARK = "none"
"""What the detector says of a picture without any."""
TEMPLATE_SEED = 11
"""The world whose cartons are looked for."""


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
    """Which mark a picture shows: cartons of all sizes are looked for everywhere in it, by their pixels alone.

    What stands around a carton, and its own edge, say nothing: it is the pattern on its front that is compared, by
    normalised correlation (Lewis, Fast Template Matching, 1995), whatever its brightness.
    """

    templates: dict[str, list[tuple[Array, Array]]]
    """Mark -> cartons that carry it, float32 h w 3 in [0, 1], and where they are themselves, 0 or 1."""
    limit: float
    """The highest correlation of a mark with pictures that do not show it."""

    @classmethod
    def fit(cls, *, per_class: int = 10, sizes: int = 5) -> "MarkDetector":
        """The limit is that of so many renders of each mark, of cartons without one and, eight times as many, of the
        world's products; some 4 s on one core."""
        by_size = sorted(range(60), key=lambda index: marked(TEMPLATE_SEED, index, next(iter(MARKS))).product.sum())
        places = [by_size[round(share * 59)] for share in np.linspace(0.05, 0.95, sizes)]
        templates = {name: [_template(marked(TEMPLATE_SEED, index, name)) for index in places] for name in MARKS}
        images, names = _renders(0, per_class)
        other = balanced_renders(0, 8 * per_class)[1]
        without = cls(templates, 0.0)
        seen, own = without.embed(images), np.array(names)[:, None] == np.array(list(MARKS))
        return cls(templates, float(max(seen[~own].max(), without.embed(other).max())))

    def see(self, images: Array) -> list[str]:
        """The mark of each picture, or `NO_MARK`."""
        seen, names = self.embed(images), list(MARKS)
        return [names[row.argmax()] if row.max() > self.limit else NO_MARK for row in seen]

    def embed(self, images: Array) -> Array:
        """B x marks, -1 to 1: how well each is found. Pictures that show the same carton lie close together."""
        found = [
            [max(_correlation(image, *one) for one in templates) for templates in self.templates.values()]
            for image in images.astype(np.float32) / 255
        ]
        return np.array(found)

    def error(self, *, per_class: int = 20) -> dict[str, float]:
        """Shares of held-out renders whose mark is not seen, and of those in which one is seen that is not there."""
        images, names = _renders(ERROR_SEED, per_class)
        pairs = list(zip(self.see(images), names, strict=True))
        missed = [seen == NO_MARK for seen, name in pairs if name != NO_MARK]
        return {"missed": float(np.mean(missed)), "wrong": float(np.mean([s not in (n, NO_MARK) for s, n in pairs]))}


def _template(scene: Scene) -> tuple[Array, Array]:
    """A product's frame, and in it the product without the pixels at its edge."""
    rows, columns = (np.flatnonzero(scene.product.any(axis)) for axis in (1, 0))
    frame = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = cv2.erode(scene.product[frame].astype(np.float32), np.ones((3, 3)))
    return scene.image[frame].astype(np.float32) / 255, np.repeat(inside[..., None], 3, axis=2)


def _correlation(image: Array, template: Array, inside: Array) -> float:
    """The best of all places; where nothing varies there is none."""
    found = cv2.matchTemplate(image, template, cv2.TM_CCOEFF_NORMED, mask=inside)
    return float(np.nan_to_num(found, nan=-1.0, posinf=-1.0, neginf=-1.0).max())


def _renders(seed: int, per_class: int) -> tuple[Array, list[str]]:
    """Cartons of each mark, and without one of any colour, on all backgrounds equally."""
    images, names = [], []
    for number, name in enumerate((*MARKS, NO_MARK)):
        for index in range(per_class):
            background, place = BACKGROUND_NAMES[index % len(BACKGROUND_NAMES)], number * per_class + index
            is_plain = name == NO_MARK
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
