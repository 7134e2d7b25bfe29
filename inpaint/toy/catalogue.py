"""The toy world: products on backgrounds, with exact captions; a pure function of (seed, index).

Guaranteed: the same (seed, index) is the same scene at every size, on every call; a product's pixels are the same
whatever the background; the caption says what is to be seen. Not covered: several products, photographic realism.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.randomness import generator
from inpaint.toy.products import COLOURS, SHAPES, Canvas, Drawing
from inpaint.toy.textures import TEXTURES, Array, grid

SHAPE_NAMES = tuple(SHAPES)
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND_NAMES = tuple(TEXTURES)

CATEGORIES: dict[str, tuple[str, str]] = {
    "CDP_COS": ("marble", "velvet"),
    "CDP_FOOD": ("wood", "cloth"),
    "CDP_TECH": ("bricks", "sky"),
    "CDP_HOME": ("grass", "sand"),
}
"""Each category's own two backgrounds; together they are all backgrounds."""

CATEGORY_INIT_WORDS = {"CDP_COS": "cosmetics", "CDP_FOOD": "food", "CDP_TECH": "technology", "CDP_HOME": "home"}
"""The word whose embedding a category's new token starts from; the base was never trained on it."""

NOTHING = "nothing"
"""What a caption says of a scene without a product."""

SUPERSAMPLING = 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One product on one background, or the background alone."""

    image: Array
    """H W 3, uint8."""
    product: Array
    """H W, bool: True on the product's pixels."""
    shape: str
    """Empty where there is no product, as is the colour."""
    colour: str
    background: str

    def caption(self, with_background: bool) -> str:
        """`an orange bowl on sand`, or `an orange bowl`; without a product `nothing on sand`."""
        article = "an" if self.colour[:1] in tuple("aeiou") else "a"
        what = f"{article} {self.colour} {self.shape}" if self.shape else NOTHING
        return what + (f" on {self.background}" if with_background else "")


def render(
    seed: int,
    index: int,
    size: int = 64,
    *,
    shape: str | None = None,
    colour: str | None = None,
    background: str | None = None,
    mark: Drawing | None = None,
    empty: bool = False,
) -> Scene:
    """The scene number `index` of the world `seed`, at `size` x `size` pixels.

    What is not given is drawn uniformly, but a mark, which is drawn on the product; by itself there is none. Giving one
    changes nothing else of the scene. An `empty` scene is the background alone, without product and shadow.

    Raises:
        InpaintError: an unknown name, or a size under 32.
    """
    if size < 32:
        raise InpaintError(f"size {size} is too small to show a product: use 32 or more (64 is the toy bases' size)")
    classes = generator(seed, "toy/classes", index)

    def chosen(what: str, given: str | None, names: tuple[str, ...]) -> str:
        drawn = names[int(classes.integers(len(names)))]
        if given not in (None, *names):
            raise InpaintError(f"{what} {given!r} is not in the toy world: use one of {', '.join(names)}")
        return given or drawn

    shape = chosen("shape", shape, SHAPE_NAMES)
    colour = chosen("colour", colour, COLOUR_NAMES)
    background = chosen("background", background, BACKGROUND_NAMES)
    u, v = grid(size * SUPERSAMPLING)
    picture = TEXTURES[background](generator(seed, f"toy/{background}", index), u, v)
    if empty:
        nowhere = np.zeros((size, size), bool)
        return Scene(image=_as_bytes(_shrink(picture)), product=nowhere, shape="", colour="", background=background)
    image, product = _place(picture, u, v, shape, colour, mark, generator(seed, "toy/product", index))
    return Scene(image=image, product=product, shape=shape, colour=colour, background=background)


def _place(
    picture: Array, u: Array, v: Array, shape: str, colour: str, mark: Drawing | None, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw the product and its shadow on the supersampled `picture`; the image (uint8) and the product's pixels.

    A pixel that is mostly product is all product, so that the kept pixels tell nothing of the background behind
    them; a pixel that is partly product, but not the product's, is blended as a camera would.
    """
    drawing, aspect, (narrow, wide) = SHAPES[shape]
    half = (narrow + (wide - narrow) * rng.uniform()) / (2 * aspect)
    centre_u, floor_v = rng.uniform(0.44, 0.56), rng.uniform(0.49, 0.55) + half
    tint = np.clip(COLOURS[colour] * (1 + rng.uniform(-0.03, 0.03, 3)), 0, 1).astype(np.float32)
    x, y = (u - centre_u) / half, (v - floor_v) / half + 1
    shadow = np.exp(-(np.clip((x / aspect / 1.02) ** 2 + ((y - 1.0) / 0.14) ** 2, 0, 30) ** 1.5))
    image = _shrink(picture * (1 - 0.42 * shadow)[..., None])

    # Only the product's frame is drawn: most of the picture is not in it.
    reach = aspect * half * 1.08
    rows = _span(floor_v - 2.1 * half, floor_v + 0.1 * half, len(image))
    columns = _span(centre_u - reach, centre_u + reach, len(image))
    fine = tuple(slice(s.start * SUPERSAMPLING, s.stop * SUPERSAMPLING) for s in (rows, columns))
    canvas = Canvas(x[fine], y[fine], 1 / (len(u) * half), tint)
    drawing(canvas)
    if mark is not None:
        mark(canvas)
    alpha = canvas.alpha[..., None]
    weight = _shrink(alpha)
    inside = weight >= 0.5
    cover = np.where(inside, 1, weight)
    layer = _shrink(np.clip(canvas.rgb, 0, 1) * alpha) / np.maximum(weight, 1e-3)
    image[rows, columns] = image[rows, columns] * (1 - cover) + layer * cover
    product = np.zeros(image.shape[:2], bool)
    product[rows, columns] = inside[..., 0]
    return _as_bytes(image), product


def _span(start: float, stop: float, pixels: int) -> slice:
    """The whole pixels that start..stop (in 0..1) touches."""
    first, last = (int(np.clip(t, 0, 1) * pixels) for t in (start, stop))
    return slice(first, min(last + 1, pixels))


def _as_bytes(image: Array) -> Array:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _shrink(fine: Array) -> Array:
    """Mean of each SUPERSAMPLING x SUPERSAMPLING square."""
    return (fine[::2, ::2] + fine[::2, 1::2] + fine[1::2, ::2] + fine[1::2, 1::2]) / np.float32(SUPERSAMPLING**2)


def write_catalogue(
    folder: str | Path,
    *,
    seed: int,
    count: int,
    size: int = 64,
    categories: Sequence[str] | None = tuple(CATEGORIES),
    first_index: int = 0,
    with_background: float | None = None,
) -> Path:
    """Write the scenes `first_index` .. `first_index + count - 1` as PNGs and `catalogue.csv`; returns its path.

    Columns `input,mask,output,prompt,category`, paths relative to the CSV, `input` empty (the output with the hole
    blanked). The mask is white where to paint: everything but the product. Existing files are overwritten.

    Args:
        count: rows in all. Category rows take their categories in turn, so the numbers differ by one at most.
        categories: each row shows one of its category's own two backgrounds. None: any background, no category.
        with_background: share of the prompts that name the background, drawn per index; by default none of them
            with categories (the adapter has to learn that), all without.

    Raises:
        InpaintError: an unknown category, a count under 1, a share outside 0..1.
    """
    share = (1.0 if categories is None else 0.0) if with_background is None else float(with_background)
    if count < 1 or not 0 <= share <= 1:
        raise InpaintError(f"count {count} must be 1 or more, with_background {share} in 0..1")
    for category in categories or ():
        if category not in CATEGORIES:
            raise InpaintError(f"category {category!r} is not in the toy world: use one of {', '.join(CATEGORIES)}")
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "catalogue.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("input", "mask", "output", "prompt", "category"))
        for index in range(first_index, first_index + count):
            category, background = "", None
            if categories is not None:
                category = categories[index % len(categories)]
                background = CATEGORIES[category][int(generator(seed, "toy/category", index).integers(2))]
            scene = render(seed, index, size, background=background)
            named = bool(generator(seed, "toy/prompt", index).random() < share)
            image, mask = f"images/{index:06d}.png", f"masks/{index:06d}.png"
            Image.fromarray(scene.image).save(folder / image)
            Image.fromarray(np.where(scene.product, 0, 255).astype(np.uint8)).save(folder / mask)
            writer.writerow(("", mask, image, scene.caption(named), category))
    return path


def write_scenes(folder: str | Path, *, seed: int, count: int, empty: float, size: int = 64) -> Path:
    """Write scenes with all traits drawn, some of them without a product, as PNGs and `scenes.csv`; returns its path.

    Columns `output,mask,prompt`; the mask is white on the product, which is what finders look for, and absent where
    there is none. Every caption names the background. Existing files are overwritten.

    Args:
        empty: share of the scenes that have no product, drawn per index.
    """
    folder = Path(folder)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "scenes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("output", "mask", "prompt"))
        for index in range(count):
            is_empty = bool(generator(seed, "toy/empty", index).random() < empty)
            scene = render(seed, index, size, empty=is_empty)
            image, mask = f"images/{index:06d}.png", "" if is_empty else f"masks/{index:06d}.png"
            Image.fromarray(scene.image).save(folder / image)
            if mask:
                Image.fromarray(scene.product.astype(np.uint8) * 255).save(folder / mask)
            writer.writerow((image, mask, scene.caption(True)))
    return path
