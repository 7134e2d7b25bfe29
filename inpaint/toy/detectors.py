"""Which background, colour and shape a picture shows: classifiers fitted on the generator's ground truth.

Guaranteed: deterministic; the background is judged by hole pixels alone, the colour by product pixels alone, the
shape by the picture inside the product's bounding box and that box's proportions. A picture unlike everything that
was fitted is answered "unclear" rather than with the least unlikely name.
Not covered: other worlds than `inpaint.toy.catalogue`'s.
"""

from dataclasses import dataclass

import numpy as np

from inpaint.randomness import generator
from inpaint.toy.catalogue import BACKGROUND_NAMES, COLOUR_NAMES, SHAPE_NAMES, Scene, render
from inpaint.toy.features import Array, palette, shrink, silhouette, texture

UNCLEAR = "unclear"
MARGIN = 0.8
"""A class must be this much nearer than the next; real renders are below 0.6, two backgrounds at once near 1."""
ERROR_SEED = 1_000_003
"""The world whose scenes measure the detectors' error; nothing is fitted on it."""


@dataclass(frozen=True)
class Classifier:
    """Linear discriminant analysis with a shrunken covariance, and a limit on the distance to the nearest class.

    Source: Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 4.3.
    """

    names: tuple[str, ...]
    whiten: Array
    """D x D: after it the classes have unit covariance."""
    centres: Array
    """Classes x D, whitened."""
    limit: Array
    """Per class, the distance beyond which a picture is unlike it."""

    @classmethod
    def fit(
        cls, features: Array, labels: list[str], names: tuple[str, ...], *, shrinkage: float, slack: float
    ) -> "Classifier":
        """Features N D. The limit is `slack` times the 99th percentile of the distances of a class's own members."""
        label = np.array(labels)
        means = np.stack([features[label == name].mean(0) for name in names])
        inside = features - means[[names.index(name) for name in labels]]
        covariance = inside.T @ inside / len(inside)
        floor = shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + floor)
        whiten = vectors / np.sqrt(values)
        distance = np.linalg.norm(inside @ whiten, axis=1)
        limit = np.array([slack * np.quantile(distance[label == name], 0.99) for name in names])
        return cls(names, whiten, means @ whiten, limit)

    def name(self, features: Array) -> list[str]:
        """The nearest class of each row, or "unclear"."""
        # The nearest by plain distance is the most likely class; its limit only says whether to believe it.
        distance = np.linalg.norm((features @ self.whiten)[:, None] - self.centres, axis=2)
        first, second = np.partition(distance, 1, axis=1)[:, :2].T
        best = distance.argmin(1)
        clear = (first <= self.limit[best]) & (first <= MARGIN * second)
        return [self.names[k] if sure else UNCLEAR for k, sure in zip(best, clear, strict=True)]


def _background_features(images: Array, holes: Array) -> Array:
    colours, regions = shrink(images, holes)
    return np.concatenate([palette(colours, regions), texture(colours, regions)], 1)


def _colour_features(images: Array, products: Array) -> Array:
    return palette(*shrink(images, products))


def disturbed(images: Array, *, blur: float = 0.0, brightness: float = 1.0) -> Array:
    """uint8 B H W 3 as a VAE may give it back: Gaussian blur of `blur` pixels, `brightness` times as bright."""
    values = images.astype(np.float32)
    if blur:
        reach = int(3 * blur + 1)
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur) ** 2)
        kernel /= kernel.sum()
        for axis in (1, 2):
            padded = np.pad(values, [(reach, reach) if k == axis else (0, 0) for k in range(4)], mode="edge")
            size = values.shape[axis]
            values = sum(w * padded.take(range(k, k + size), axis) for k, w in enumerate(kernel))
    return np.clip(values * brightness + 0.5, 0, 255).astype(np.uint8)


def _renders(seed: int, count: int) -> tuple[list[Scene], Array, Array]:
    """Scenes, images and products: all names equally often, in combinations that the seed shuffles."""
    scenes = [
        render(
            seed,
            index,
            background=BACKGROUND_NAMES[index % 8],
            colour=COLOUR_NAMES[(index + generator(seed, "toy/detectors", index).integers(8)) % 8],
            shape=SHAPE_NAMES[(index // 8 + index) % 8],
        )
        for index in range(count)
    ]
    return scenes, np.stack([scene.image for scene in scenes]), np.stack([scene.product for scene in scenes])


@dataclass(frozen=True)
class Detectors:
    """The three classifiers. Pictures are uint8 B H W 3, regions bool B H W, of any one size from 64 up."""

    backgrounds: Classifier
    colours: Classifier
    shapes: Classifier

    @classmethod
    def fit(cls, *, per_class: int = 80) -> "Detectors":
        """Fit on `8 * per_class` renders, clean and disturbed. A few seconds on one core."""
        scenes, clean, products = _renders(0, 8 * per_class)
        thirds = zip(np.array_split(clean, 3), (0.7, 1.1, 1.5), (0.93, 1.07, 1.0), strict=True)
        soft = [disturbed(part, blur=blur, brightness=brightness) for part, blur, brightness in thirds]
        images, products = np.concatenate([clean, *soft]), np.concatenate([products, products])
        background, colour, shape = (
            [getattr(scene, what) for scene in scenes] * 2 for what in ("background", "colour", "shape")
        )
        seen = _background_features(images, ~products), _colour_features(images, products), silhouette(images, products)
        # Slack: what a VAE of 28 dB gives back stays known, noise and two backgrounds at once do not.
        return cls(
            Classifier.fit(seen[0], background, BACKGROUND_NAMES, shrinkage=0.02, slack=1.8),
            Classifier.fit(seen[1], colour, COLOUR_NAMES, shrinkage=0.02, slack=2.2),
            Classifier.fit(seen[2], shape, SHAPE_NAMES, shrinkage=0.1, slack=1.5),
        )

    def background(self, images: Array, holes: Array) -> list[str]:
        """Judged by the pixels where `holes` is True."""
        return self.backgrounds.name(_background_features(images, holes))

    def colour(self, images: Array, products: Array) -> list[str]:
        """Judged by the pixels where `products` is True."""
        return self.colours.name(_colour_features(images, products))

    def shape(self, images: Array, products: Array) -> list[str]:
        """Judged by the picture in the bounding box of `products`, and by the box's proportions."""
        return self.shapes.name(silhouette(images, products))

    def error(self, *, count: int = 800, blur: float = 0.0, brightness: float = 1.0) -> dict[str, float]:
        """Shares of held-out renders answered wrongly ("unclear" counts as wrong) and answered "unclear".

        Keys: `background`, `colour`, `shape` and `unclear_background`, `unclear_colour`, `unclear_shape`.
        """
        scenes, images, products = _renders(ERROR_SEED, count)
        images = disturbed(images, blur=blur, brightness=brightness)
        answers = {
            "background": self.background(images, ~products),
            "colour": self.colour(images, products),
            "shape": self.shape(images, products),
        }
        figures: dict[str, float] = {}
        for what, names in answers.items():
            wrong = [name != getattr(scene, what) for name, scene in zip(names, scenes, strict=True)]
            figures |= {what: sum(wrong) / count, f"unclear_{what}": names.count(UNCLEAR) / count}
        return figures
