"""Rows -> samples: what a worker does with one micro-batch: fetching, geometry, hole, text. No ray here.

Promises: a batch depends on (manifest, settings, seed, positions) alone, and a file that cannot be read becomes a row
with weight 0 and the reason, in its place; the crop follows the row's own mask, which it holds wholly where it can,
else as much of it as it can; nothing of a mask is lost in resizing.
"""

import string
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from inpaint.data.bank import Bank, choose, crop_randomness, hole_of, is_mirrored
from inpaint.data.captions import CaptionTags
from inpaint.data.decode import DEFAULT_LIMITS, PAINT, check_hole, load_hole, load_rgb
from inpaint.data.files import read
from inpaint.data.holes import Box, Feathered, Grown, Hole, OwnMask, Sometimes, cover, is_empty
from inpaint.data.plan import PADDING, Plan
from inpaint.data.rows import Manifest, Row, rows_of
from inpaint.data.storage import open_root
from inpaint.errors import BadRow, InpaintError
from inpaint.randomness import generator

if TYPE_CHECKING:  # which read what is said here of samples
    from inpaint.data.decoded import DecodedRows
    from inpaint.data.latents import StoredLatents

FAR_LARGER = 4
PROMPT_FIELDS = ("token", "prompt", "category")


class Crop(StrEnum):
    """Which part of an image of another aspect is used."""

    CENTRE = "centre"
    RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How a row becomes a sample."""

    height: int
    """Of what the model sees, in pixels; a multiple of 8. The largest crop of this aspect is resized to it."""
    width: int
    """As `height`."""
    shapes: tuple[tuple[int, int], ...] = ()
    """Height and width of each bucket of rows, of at most the same area; empty: all rows are seen alike."""
    crop: Crop = Crop.CENTRE
    """Which part of an image of another aspect is used, where a mask leaves the choice."""
    flip_probability: float = 0.0
    """Share of samples that are mirrored left to right; 0 where products carry text."""
    hole: Hole = Sometimes(Feathered(Grown(OwnMask())))
    """What is to be painted."""
    caption_dropout: float = 0.1
    """Share of samples with an empty prompt and label, for classifier-free guidance."""
    prompt_format: str = "{prompt}"
    """Built from `{token}`, `{prompt}` and `{category}`, such as `"{token} background, {prompt}"`."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Category -> its token, for `{token}`."""
    caption_tags: CaptionTags | None = None
    """What is done with captions before they are told; unset: nothing."""
    loss_in_mask: bool = False
    """Take the loss within the row's own mask alone, whatever the hole; all over the hole where a row has none."""
    bank: Bank | None = None
    """Draw crops, mirrorings and holes among a few of each row; unset: anew for each sample."""
    keeps_image: bool = False
    """Show images beside latents that come in their place, for something else is made of them, too."""

    def __post_init__(self) -> None:
        for height, width in ((self.height, self.width), *self.shapes):
            for name, side in (("height", height), ("width", width)):
                if side < 8 or side % 8:
                    raise InpaintError(f"{name} {side} is not a positive multiple of 8")
        for name in ("flip_probability", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise InpaintError(f"{name} {getattr(self, name)} is not between 0 and 1")
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(self.prompt_format) if name is not None}
        except ValueError as error:
            raise InpaintError(f"prompt_format {self.prompt_format!r}: {error}") from error
        if not used <= set(PROMPT_FIELDS):
            unknown = ", ".join(sorted(used - set(PROMPT_FIELDS)))
            raise InpaintError(
                f"prompt_format {self.prompt_format!r} uses {unknown!r}; known fields: {', '.join(PROMPT_FIELDS)}"
            )

    def of_bucket(self, bucket: int | None) -> "ReadSettings":
        """Those of a bucket's rows. Args: bucket: None where rows have none."""
        if bucket is None or not self.shapes:
            return self
        height, width = self.shapes[bucket]
        return replace(self, height=height, width=width, shapes=())

    @property
    def views(self) -> int:
        """Of each row in the bank."""
        assert self.bank is not None, "a setting of its own"
        return self.bank.view_count(random_crops=self.crop is Crop.RANDOM, mirrors=0 < self.flip_probability < 1)

    def variants(self, seed: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """View and hole, int64[B] each, that samples at positions (int64[B]) take of the bank."""
        assert self.bank is not None, "a setting of its own"
        return choose(seed, positions, self.views, self.bank.holes, self.hole.whole)

    def crops(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Which of its row's crops each sample shows, int64[B]. Args: positions: int64[B]."""
        if self.crop is Crop.CENTRE:
            return np.zeros(len(positions), dtype=np.int64)
        return self.variants(seed, positions)[0]

    @property
    def reads_mask(self) -> bool:
        """Whether a row's own mask is looked at."""
        return self.hole.uses_own or self.loss_in_mask

    def prompt_of(self, row: Row, rng: np.random.Generator | None = None) -> str:
        """What the model is told of a row. Args: rng: draws what a sample's own is; None: as it is written."""
        tags, caption = self.caption_tags, row.prompt
        if tags is not None:
            caption = tags.written(caption) if rng is None else tags.drawn(caption, rng)
        category = row.category or ""
        token = self.tokens.get(category, "")
        return self.prompt_format.format(token=token, prompt=caption, category=category)

    def check_categories(self, categories: Iterable[str | None]) -> None:
        """Raise InpaintError where a row's category has no token, or a row has none, and the prompt needs it."""
        uses_token = "{token" in self.prompt_format
        for category in categories:
            if category is None and (uses_token or "{category" in self.prompt_format):
                raise InpaintError(
                    f"prompt_format {self.prompt_format!r} needs a category and some rows have none: "
                    "fill the category column, or leave the field out of the format"
                )
            if uses_token and category not in self.tokens:
                raise InpaintError(
                    f"category {category!r} has no token; tokens has {', '.join(sorted(self.tokens)) or 'none'}"
                )


def settle_reader() -> None:
    """To be called in a process that reads samples: they are read side by side, so that threads of OpenCV's would fight
    for the same cores; and what Pillow warns of in files was told when they were inspected."""
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def read_batch(
    manifest: Manifest,
    plan: Plan,
    settings: ReadSettings,
    positions: np.ndarray,
    threads: Executor,
    fetchers: Executor | None = None,
    stored: "StoredLatents | None" = None,
    decoded: "DecodedRows | None" = None,
) -> dict[str, np.ndarray]:
    """One micro-batch, its rows read by `threads`, their files by `fetchers` where given: the batch contract of
    docs/architecture.md.

    Args:
        positions: int64[B], perhaps with padding; their rows are all of one bucket.
        stored: latents of the manifest's rows, which are read in place of pixels.
        decoded: crops of them, by these settings, which are taken in place of files.
    """
    places = np.flatnonzero(positions != PADDING)
    _, indices = plan.lookup(positions[places])
    settings = settings.of_bucket(manifest.bucket_of(indices))
    rows = dict(zip(places.tolist(), rows_of(manifest.table.take(pa.array(indices))), strict=True))
    batch = _blank(positions, settings, manifest.has_inputs, stored)
    if stored is not None:
        views, holes = settings.variants(plan.seed, positions[places])
        variants = dict(zip(places.tolist(), np.stack([indices, views, holes], 1).tolist(), strict=True))
    shows_image = "image" in batch
    if decoded is not None and shows_image:
        crops = settings.crops(plan.seed, positions[places])
        crop_of = dict(zip(places.tolist(), np.stack([indices, crops], 1).tolist(), strict=True))

    def get(i: int) -> tuple[Any, Any, Any]:
        view = decoded.find(*crop_of[i]) if decoded is not None and shows_image else None
        files = fetch(rows[i], reads_mask=settings.reads_mask) if shows_image and view is None else {}
        return view, files, stored.fetch(*variants[i]) if stored is not None else None

    def made(i: int, view: Any, files: Any, entries: Any) -> dict[str, Any]:
        row, position = rows[i], int(positions[i])
        if shows_image:
            sample = make_sample(row, files, settings, plan.seed, position, view)
        else:
            prompt, label = text_of(row, settings, plan.seed, position)
            sample = {"prompt": prompt, "label": label}
        size = (settings.height, settings.width)
        return sample if stored is None else {**sample, **stored.sample(row, size, *entries)}

    fetched = {i: fetchers.submit(get, i) for i in rows} if fetchers else {}

    def fill(i: int) -> None:
        try:
            sample = made(i, *(fetched[i].result() if fetched else get(i)))
        except BadRow as error:
            batch["error"][i] = f"{rows[i].id}: {error}"
            return
        batch["weight"][i] = rows[i].weight
        for name in sample.keys() & batch.keys():
            batch[name][i] = sample[name]

    for _ in threads.map(fill, rows):
        pass  # asks for each result, so that an error of ours is raised here
    return batch


def _blank(
    positions: np.ndarray, settings: ReadSettings, has_inputs: bool, stored: "StoredLatents | None"
) -> dict[str, np.ndarray]:
    """A batch of nothing but padding."""
    size, shape = len(positions), (settings.height, settings.width)
    batch = {
        "position": positions,
        "hole": np.full((size, *shape), 255, dtype=np.uint8),
        "original_size": np.full((size, 2), shape, dtype=np.int32),
        "crop_top_left": np.zeros((size, 2), dtype=np.int32),
        "weight": np.zeros(size, dtype=np.float32),
        **{name: np.full(size, "", dtype=object) for name in ("prompt", "label", "error")},
    }
    if settings.loss_in_mask:
        batch["area"] = np.full((size, *shape), 255, dtype=np.uint8)
    if stored is not None:
        batch |= stored.variants.spec.blank(size, shape)
    if stored is None or settings.keeps_image:
        batch["image"] = np.zeros((size, *shape, 3), dtype=np.uint8)
    if stored is None and has_inputs:
        batch["input"] = np.zeros((size, *shape, 3), dtype=np.uint8)
    return batch


def fetch(row: Row, *, reads_mask: bool) -> dict[str, bytes]:
    """A row's files by column, those that there are; its mask only where it is wanted. Raises BadRow."""
    root, most = open_root(row.root), DEFAULT_LIMITS.max_bytes
    files = {"image": read(root, row.image, "output", most)}
    if row.input is not None:
        files["input"] = read(root, row.input, "input", most)
    if row.hole is not None and reads_mask:
        files["hole"] = read(root, row.hole, "mask", most)
    return files


def make_sample(
    row: Row,
    files: Mapping[str, bytes],
    settings: ReadSettings,
    seed: int,
    position: int,
    view: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Decode, crop, resize, flip, make the hole, format the text: a function of its arguments alone.

    Returns `image` and `input`, uint8 H W 3, `hole`, uint8 H W (never empty), `original_size` and `crop_top_left`,
    `prompt` and `label`; and `area`, uint8 H W, where the row's own mask was read. Raises BadRow where a file cannot be
    decoded.

    Args:
        files: as `fetch` gives them.
        view: what `view_of` returned for the sample's crop, if it is known; files are then not looked at.
    """
    if settings.bank is None:
        mirrored = bool(generator(seed, "flip", position).random() < settings.flip_probability)
        crop, recipe = generator(seed, "crop", position), settings.hole
        hole_randomness = generator(seed, "hole", position)
    else:
        which, number = (int(column[0]) for column in settings.variants(seed, np.array([position])))
        mirrored, crop = is_mirrored(row, which, settings.flip_probability), crop_randomness(row, which)
        recipe, hole_randomness = hole_of(row, settings.hole, which, number)
    seen = _shown(row, view or view_of(row, files, settings, crop), mirrored=mirrored)
    prompt, label = text_of(row, settings, seed, position)
    return {**seen, "hole": draw_hole(recipe, seen, hole_randomness), "prompt": prompt, "label": label}


def see(
    row: Row, files: Mapping[str, bytes], settings: ReadSettings, rng: np.random.Generator, *, mirrored: bool
) -> dict[str, Any]:
    """What a sample shows but its hole and its text, as `make_sample` returns it. Args: rng: for the crop."""
    return _shown(row, view_of(row, files, settings, rng), mirrored=mirrored)


def view_of(
    row: Row, files: Mapping[str, bytes], settings: ReadSettings, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A crop of a row: `image`, uint8 H W 3, `input` where the row has one, `area`, uint8 H W, where its mask was read,
    and `corners`, int32[2, 2]: of it as it is, and of it mirrored. Raises BadRow. Args: rng: for the crop."""
    shape, limits = (settings.height, settings.width), DEFAULT_LIMITS
    image = load_rgb(files["image"], "output", limits, target=shape)
    mask = None
    if "hole" in files:
        grey = np.asarray(load_hole(files["hole"], "mask", limits))
        check_hole(grey, "mask")  # it may have changed since it was inspected
        mask = grey >= PAINT
    box = _choose_box(image, mask, settings, rng)
    corners = [_corner(box, shape, flip) for flip in (False, True)]
    view = {"image": _resized(image, box, shape), "corners": np.array(corners, dtype=np.int32)}
    if "input" in files:
        view["input"] = _resized(load_rgb(files["input"], "input", limits, target=shape), box, shape)
    if mask is not None:
        view["area"] = cover(mask, shape, box).astype(np.uint8) * 255
    return view


def _shown(row: Row, view: Mapping[str, np.ndarray], *, mirrored: bool) -> dict[str, Any]:
    planes = {name: values for name, values in view.items() if name != "corners"}
    if mirrored:
        planes = {name: np.ascontiguousarray(values[:, ::-1]) for name, values in planes.items()}
    sizes = {"original_size": (row.height, row.width), "crop_top_left": tuple(view["corners"][int(mirrored)].tolist())}
    return {"input": planes["image"], **planes, **sizes}


def draw_hole(recipe: Hole, seen: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
    """A hole in what `see` returned, uint8 H W, not empty."""
    height, width = seen["image"].shape[:2]
    hole = recipe.seeing(seen["image"]).draw(seen.get("area"), height, width, rng)
    assert hole.shape == (height, width) and not is_empty(hole), f"{recipe} drew a hole of {hole.shape}, or none"
    return hole


def text_of(row: Row, settings: ReadSettings, seed: int, position: int) -> tuple[str, str]:
    """The formatted prompt and the label, both "" where the caption is dropped."""
    if generator(seed, "caption", position).random() < settings.caption_dropout:
        return "", ""
    return settings.prompt_of(row, generator(seed, "tags", position)), row.label or ""


def crop_size(
    width: np.ndarray | int, height: np.ndarray | int, aspect: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of the largest crop whose height is `aspect` times its width, in whole pixels, int64[...]."""
    # Rounded, for an image of the crop's own shape would lose its last column to the division.
    wide, high = (np.maximum(np.round(side, 6), 1).astype(np.int64) for side in (height / aspect, width * aspect))
    return np.minimum(width, wide), np.minimum(height, high)


def _choose_box(image: Image.Image, mask: np.ndarray | None, settings: ReadSettings, rng: np.random.Generator) -> Box:
    """The largest box of the settings' aspect: in the centre or anywhere, moved to where the mask is."""
    width, height = image.size if mask is None else (mask.shape[1], mask.shape[0])
    wide, high = map(int, crop_size(width, height, settings.height / settings.width))
    x, y = rng.random(2) if settings.crop is Crop.RANDOM else (0.5, 0.5)
    left, top = round(x * (width - wide)), round(y * (height - high))
    if mask is not None:
        left = _followed(mask, left, wide)
        top = _followed(mask.T, top, high)
    return left / width, top / height, (left + wide) / width, (top + high) / height


def _followed(mask_HW: np.ndarray, start: int, length: int) -> int:
    """The nearest start at which `length` columns hold all that is painted; or else all that is kept, as of a product
    before a background; or else lie within that."""
    painted, kept = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(~mask_HW.all(axis=0))
    shown = painted if painted[-1] + 1 - painted[0] <= length or not len(kept) else kept
    ends = (int(shown[0]), int(shown[-1]) + 1 - length)
    start = min(max(start, min(ends), 0), max(ends), mask_HW.shape[1] - length)
    if not mask_HW[:, start : start + length].any():
        # Nothing is painted here: where the crop holds the most of it.
        held = np.searchsorted(painted, painted + length) - np.arange(len(painted))
        start = min(int(painted[held.argmax()]), mask_HW.shape[1] - length)
    return start


def _corner(box: Box, shape: tuple[int, int], flip: bool) -> tuple[int, int]:
    """Top and left of the crop in the whole image where that was resized, mirrored and then cropped, as diffusers' SDXL
    scripts tell it."""
    left, top, right, bottom = box
    return round(top / (bottom - top) * shape[0]), round((1 - right if flip else left) / (right - left) * shape[1])


def _resized(image: Image.Image, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """What of an image lies in `box`, uint8 H W 3."""
    height, width = shape
    (left, right), (top, bottom) = _pixels(box[::2], image.width), _pixels(box[1::2], image.height)
    if right - left >= FAR_LARGER * width and bottom - top >= FAR_LARGER * height:
        # In Pillow's own memory, for an array of all pixels would take as much again; whole blocks are averaged first.
        pixels = (left, top, right, bottom)
        array = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=pixels, reducing_gap=3.0))
    else:
        array = np.asarray(image)[top:bottom, left:right]
    if array.shape[:2] != shape:
        shrinks = array.shape[0] >= height and array.shape[1] >= width
        array = cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    return np.ascontiguousarray(array)


def _pixels(shares: tuple[float, ...], side: int) -> tuple[int, int]:
    """From a share of a side to another one, in whole pixels, at least one."""
    first = min(round(shares[0] * side), side - 1)
    return first, max(round(shares[1] * side), first + 1)
