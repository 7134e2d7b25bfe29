"""What the toy detectors look at: colours and gradients of some of a picture's pixels.

Legend: B = pictures, S = WORKING_SIZE. Pictures are uint8 B H W 3 of any size over 32, regions bool B H W.
A feature never depends on a pixel outside its region (the shape's region is the product's bounding box).
"""

import numpy as np
from PIL import Image

from inpaint.errors import InpaintError

Array = np.ndarray

WORKING_SIZE = 64
CROP, CELLS = 30, 5
HUES, TONES, DIRECTIONS = 12, 5, 8


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
    pixels = np.stack(crops)
    dx, dy = (np.gradient(pixels, axis=axis) for axis in (2, 1))
    strongest = np.argmax(dx**2 + dy**2, -1)[..., None]
    dx, dy = (np.take_along_axis(d, strongest, -1)[..., 0] for d in (dx, dy))
    side = CROP // CELLS
    angle, strength = (
        values.reshape(-1, CELLS, side, CELLS, side).swapaxes(2, 3).reshape(-1, side, side)
        for values in (np.arctan2(dy, dx) / np.pi % 1 * DIRECTIONS, np.hypot(dx, dy))
    )
    hog = _soft_histogram(angle, strength, DIRECTIONS).reshape(len(pixels), -1, DIRECTIONS)
    hog = np.sqrt(hog / np.maximum(hog.sum((1, 2), keepdims=True), 1e-6)).reshape(len(hog), -1)
    return np.concatenate([hog, 0.5 * np.array(proportions)[:, None]], 1)
