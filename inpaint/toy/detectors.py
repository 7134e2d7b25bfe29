"""Which background, colour and shape a picture shows: classifiers fitted on the generator's ground truth.

Guaranteed: deterministic; the background is judged by hole pixels alone, the colour by product pixels alone, the
shape by the picture inside the product's bounding box and that box's proportions. A picture unlike everything that
was fitted is answered "unclear" rather than with the least unlikely name.
Not covered: other worlds than `inpaint.toy.catalogue`'s.

Legend: B = pictures, S = WORKING_SIZE. Pictures are uint8 B H W 3 of any one size from 64 up, regions bool B H W.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.randomness import generator
from inpaint.toy.catalogue import BACKGROUND_NAMES, COLOUR_NAMES, SHAPE_NAMES, Scene, render
from inpaint.toy.textures import Array

UNCLEAR = "unclear"
MARGIN = 0.8
"""A class must be this much nearer than the next; real renders are below 0.6, two backgrounds at once near 1."""
ERROR_SEED = 1_000_003
"""The world whose scenes measure the detectors' error; nothing is fitted on it."""
WORKING_SIZE = 64
CROP, CELLS = 30, 5
HUES, TONES, DIRECTIONS = 12, 5, 8


@dataclass(frozen=True)
class Classifier:
    """Linear discriminant analysis with a shrunken covariance, and a limit on the distance to the nearest class.

    Source: Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, section 4.3.
    """

    names: tuple[str, ...]
    whiten: Array
    """D x D, or D x fewer: after it the classes have unit covariance."""
    centres: Array
    """Classes x D, whitened."""
    limit: Array
    """Per class, the distance beyond which a picture is unlike it."""

    @classmethod
    def fit(
        cls,
        features: Array,
        labels: list[str],
        names: tuple[str, ...],
        *,
        shrinkage: float,
        slack: float,
        reduced: bool = False,
    ) -> "Classifier":
        """Features N D. The limit is `slack` times the 99th percentile of the distances of a class's own members.

        Args:
            reduced: look at directions alone in which classes differ (section 4.3.3): where most of what varies says
                nothing of them.
        """
        label = np.array(labels)
        means = np.stack([features[label == name].mean(0) for name in names])
        inside = features - means[[names.index(name) for name in labels]]
        covariance = inside.T @ inside / len(inside)
        floor = shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + floor)
        whiten = vectors / np.sqrt(values)
        if reduced:
            whiten = whiten @ np.linalg.svd((means - means.mean(0)) @ whiten)[2][: len(names) - 1].T
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


def shrink(images_BHW3: Array, regions_BHW: Array) -> tuple[Array, Array]:
    """Both at WORKING_SIZE; colours are averaged inside the region only. Colours float32 0..1, regions bool."""
    # Sums over boxes whose edges are the nearest pixels: exact for multiples, good enough for the rest.
    edges = np.linspace(0, images_BHW3.shape[1], WORKING_SIZE + 1).round().astype(int)[:-1]
    weight = regions_BHW.astype(np.float32)[..., None]
    colours = images_BHW3.astype(np.float32) / 255 * weight
    colours, weight, area = (
        np.add.reduceat(np.add.reduceat(values, edges, axis=1), edges, axis=2)
        for values in (colours, weight, np.ones_like(weight[:1]))
    )
    return colours / np.maximum(weight, 1e-6), (weight > 0.5 * area)[..., 0]


def palette(colours_BSS3: Array, regions_BSS: Array) -> Array:
    """Square roots of the shares of hues (weighed by chroma) and of tones (weighed by greyness), B 17."""
    high, low = colours_BSS3.max(-1), colours_BSS3.min(-1)
    r, g, b = np.moveaxis(colours_BSS3, -1, 0)
    hue = np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b) / (2 * np.pi) % 1
    strength = np.clip((high - low - 0.06) / 0.22, 0, 1)
    coloured = _soft_histogram(hue * HUES, strength * regions_BSS, HUES)
    grey = _soft_histogram(0.5 * (high + low) * (TONES - 1), (1 - strength) * regions_BSS, TONES)
    share = np.concatenate([coloured, grey], 1) / np.maximum(regions_BSS.sum((1, 2)), 1)[:, None]
    return np.sqrt(share)


def _soft_histogram(place_BSS: Array, weight_BSS: Array, bins: int) -> Array:
    """Each pixel shares its weight between the two nearest bins, of which the first follows the last; B bins."""
    count = len(place_BSS)
    lower = np.floor(place_BSS).astype(np.int64)
    upper_share = place_BSS - lower
    offset = np.arange(count)[:, None, None] * bins
    out = np.zeros(count * bins)
    for place, share in ((lower, 1 - upper_share), (lower + 1, upper_share)):
        out += np.bincount((place % bins + offset).ravel(), (weight_BSS * share).ravel(), count * bins)
    return out.reshape(count, bins)


def texture(colours_BSS3: Array, regions_BSS: Array) -> Array:
    """Brightness statistics, and gradient directions and strengths at distances of 1, 2 and 4 pixels, B 33."""
    light = colours_BSS3.mean(-1)
    area = np.maximum(regions_BSS.sum((1, 2)), 1)
    mean = (light * regions_BSS).sum((1, 2)) / area
    spread = np.sqrt((((light - mean[:, None, None]) ** 2) * regions_BSS).sum((1, 2)) / area)
    columns = [mean[:, None], spread[:, None]]
    for k in (1, 2, 4):
        here, right, down = np.s_[:, :-k, :-k], np.s_[:, :-k, k:], np.s_[:, k:, :-k]
        dx, dy = light[right] - light[here], light[down] - light[here]
        valid = regions_BSS[here] & regions_BSS[right] & regions_BSS[down]
        strength = np.hypot(dx, dy) * valid
        turned = _soft_histogram(np.arctan2(dy, dx) / np.pi % 1 * DIRECTIONS, strength, DIRECTIONS)
        columns.append(np.sqrt(turned / np.maximum(turned.sum(1, keepdims=True), 1e-6)))
        energy = strength.sum((1, 2)) / np.maximum(valid.sum((1, 2)), 1)
        columns.append(np.sqrt(energy)[:, None] * 2)
    return np.concatenate(columns, 1)


def silhouette(images_BHW3: Array, products_BHW: Array) -> Array:
    """Gradient directions in 5 x 5 cells of the product's bounding box, and the box's proportions, B 201."""
    crops, proportions = [], []
    for image, product in zip(images_BHW3, products_BHW, strict=True):
        columns, rows = np.flatnonzero(product.any(0)), np.flatnonzero(product.any(1))
        if not len(columns):
            raise InpaintError("a product region is empty: the detectors need at least one True pixel per picture")
        left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        margin = 0.06 * max(right - left, bottom - top)
        around = (left - margin, top - margin, right + margin, bottom + margin)
        crop = Image.fromarray(image).transform(
            (CROP, CROP), Image.Transform.EXTENT, around, resample=Image.Resampling.BILINEAR
        )
        crops.append(np.asarray(crop, np.float32) / 255)
        proportions.append(np.log((right - left) / (bottom - top)))
    hog = directions(np.stack(crops), CELLS)
    hog = np.sqrt(hog / np.maximum(hog.sum((1, 2), keepdims=True), 1e-6)).reshape(len(hog), -1)
    return np.concatenate([hog, 0.5 * np.array(proportions)[:, None]], 1)


def directions(pixels_BNN3: Array, cells: int) -> Array:
    """Strengths of the gradient's directions in `cells` x `cells` squares of pictures in [0, 1], B cells^2 8."""
    dx, dy = (np.gradient(pixels_BNN3, axis=axis) for axis in (2, 1))
    strongest = np.argmax(dx**2 + dy**2, -1)[..., None]
    dx, dy = (np.take_along_axis(d, strongest, -1)[..., 0] for d in (dx, dy))
    side = pixels_BNN3.shape[1] // cells
    angle, strength = (
        values.reshape(-1, cells, side, cells, side).swapaxes(2, 3).reshape(-1, side, side)
        for values in (np.arctan2(dy, dx) / np.pi % 1 * DIRECTIONS, np.hypot(dx, dy))
    )
    return _soft_histogram(angle, strength, DIRECTIONS).reshape(len(pixels_BNN3), -1, DIRECTIONS)


def ground(images: Array, holes: Array) -> Array:
    """Palette and texture of what lies in the holes, B 50."""
    colours, regions = shrink(images, holes)
    return np.concatenate([palette(colours, regions), texture(colours, regions)], 1)


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


def softened(images: Array) -> Array:
    """The same pictures, uint8 B H W 3, a third of them disturbed in each of three ways."""
    thirds = zip(np.array_split(images, 3), (0.7, 1.1, 1.5), (0.93, 1.07, 1.0), strict=True)
    return np.concatenate([disturbed(part, blur=blur, brightness=light) for part, blur, light in thirds])


def balanced_renders(seed: int, count: int) -> tuple[list[Scene], Array, Array]:
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
    """The three classifiers."""

    backgrounds: Classifier
    colours: Classifier
    shapes: Classifier

    @classmethod
    def fit(cls, *, per_class: int = 80) -> "Detectors":
        """Fit on `8 * per_class` renders, clean and disturbed. A few seconds on one core."""
        scenes, clean, products = balanced_renders(0, 8 * per_class)
        images, products = np.concatenate([clean, softened(clean)]), np.concatenate([products, products])
        background, colour, shape = (
            [getattr(scene, what) for scene in scenes] * 2 for what in ("background", "colour", "shape")
        )
        # Slack: what a VAE of 28 dB gives back stays known, noise and two backgrounds at once do not.
        return cls(
            Classifier.fit(ground(images, ~products), background, BACKGROUND_NAMES, shrinkage=0.02, slack=1.8),
            Classifier.fit(palette(*shrink(images, products)), colour, COLOUR_NAMES, shrinkage=0.02, slack=2.2),
            Classifier.fit(silhouette(images, products), shape, SHAPE_NAMES, shrinkage=0.1, slack=1.5),
        )

    def background(self, images: Array, holes: Array) -> list[str]:
        """Judged by the pixels where `holes` is True."""
        return self.backgrounds.name(ground(images, holes))

    def colour(self, images: Array, products: Array) -> list[str]:
        """Judged by the pixels where `products` is True."""
        return self.colours.name(palette(*shrink(images, products)))

    def shape(self, images: Array, products: Array) -> list[str]:
        """Judged by the picture in the bounding box of `products`, and by the box's proportions."""
        return self.shapes.name(silhouette(images, products))

    def error(self, *, count: int = 800, blur: float = 0.0, brightness: float = 1.0) -> dict[str, float]:
        """Shares of held-out renders answered wrongly ("unclear" counts as wrong) and answered "unclear".

        Keys: `background`, `colour`, `shape` and `unclear_background`, `unclear_colour`, `unclear_shape`.
        """
        scenes, images, products = balanced_renders(ERROR_SEED, count)
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
