"""Between a photo and what is painted of it: the window around the hole, its working size, and back into the photo.

Images are H x W x 3 uint8, holes H x W bool, True = paint. Photos of any size are painted at a size that the base was
trained for; the hole of a large photo, in a window around it, so that it gets all of that size.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from inpaint.data.holes import cover
from inpaint.paint.paste import paste_back
from inpaint.paint.request import WHOLE, PaintRequest, Start

if TYPE_CHECKING:  # a DDPM and HTTP start sooner without diffusers
    from inpaint.models.base import BaseInfo

LONGEST = 2.0
"""A window is at most this many times as long as wide, where the photo is: what bases were trained on."""

MARGIN = 0.25
"""What is seen around a hole unless a request says otherwise: this share of its longer side, on each side."""

Window = tuple[slice, slice]
"""A rectangle: `photo[window]` is its part of a photo or hole."""


def window_of(info: "BaseInfo", request: PaintRequest) -> Window:
    """The part of a photo that is seen and painted on, and then pasted back.

    A photo with no more pixels than are painted at, whole. Of a larger one the hole's bounding box with `MARGIN` around
    it, and no less than the working size, so that nothing is made larger than it is; where the settings say a padding,
    the box with so many pixels on each side, or the whole photo. What is longer than `LONGEST` times its width is
    widened, as far as the photo goes.
    """
    hole, padding = request.hole, request.sampling.padding
    height, width = hole.shape
    size = request.sampling.size or info.default_size
    fits = height * width <= size**2
    if padding == WHOLE or (padding is None and fits) or not hole.any():
        return slice(0, height), slice(0, width)
    box = [np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0)]
    (top, high), (left, wide) = ((int(places[0]), int(places[-1]) + 1 - int(places[0])) for places in box)
    if padding is None:
        margins = 2 * round(MARGIN * max(high, wide))
        top, high = _widened(top, high, max(size, high + margins), height)
        left, wide = _widened(left, wide, max(size, wide + margins), width)
    else:
        top, high = _padded(top, high, padding, height)
        left, wide = _padded(left, wide, padding, width)
    top, high = _widened(top, high, round(wide / LONGEST), height)
    left, wide = _widened(left, wide, round(high / LONGEST), width)
    return slice(top, top + high), slice(left, left + wide)


def _padded(start: int, length: int, padding: int, limit: int) -> tuple[int, int]:
    """With `padding` before and after, as far as there is room in `limit`."""
    padded = max(0, start - padding)
    return padded, min(limit, start + length + padding) - padded


def _widened(start: int, length: int, wanted: int, limit: int) -> tuple[int, int]:
    """At least `wanted` long around the same middle, as far as there is room in `limit`."""
    wanted = min(wanted, limit)
    if length >= wanted:
        return start, length
    return min(max(0, start - (wanted - length) // 2), limit - wanted), wanted


@dataclass(frozen=True, eq=False)
class WorkingImage:
    """What the base sees of a request, at its working shape."""

    window: Window
    image_HW3: np.ndarray
    hole_HW: np.ndarray
    control_HW3: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Working height and width in pixels."""
        return self.hole_HW.shape  # type: ignore[return-value]


def working_shape_of(info: "BaseInfo", request: PaintRequest, window: Window | None = None) -> tuple[int, int]:
    """The working height and width of a request on this base; of a picture from text alone about its own."""
    height, width = request.hole[window or window_of(info, request)].shape
    usual = math.sqrt(height * width) if request.text_alone else info.default_size
    return working_shape(height, width, size=request.sampling.size or usual, multiple=info.size_multiple)


def working_image(info: "BaseInfo", request: PaintRequest) -> WorkingImage:
    """The window of a request, resized to its working shape."""
    window = window_of(info, request)
    shape = working_shape_of(info, request, window)
    image, hole = resize_image(request.image[window], shape), resize_hole(request.hole[window], shape)
    if request.sampling.start == Start.SURROUNDINGS and request.sampling.strength < 1:
        image = filled(image, hole)
    control = request.control
    if control is None:
        return WorkingImage(window, image, hole)
    return WorkingImage(
        window, image, hole, resize_image(control.image[slice(None) if control.of_seen else window], shape)
    )


def seen(info: "BaseInfo", request: PaintRequest) -> np.ndarray:
    """What a base sees of a photo, hole and all: its window at the working shape, H x W x 3 uint8."""
    window = window_of(info, request)
    return resize_image(request.image[window], working_shape_of(info, request, window))


def pasted(request: PaintRequest, window: Window, painted: np.ndarray) -> np.ndarray:
    """The original with what was painted in its hole: a new array, kept pixels bit for bit. `painted` is the
    window as it was painted, at its working shape: H x W x 3 float32 in [0, 1]."""
    small = np.rint(painted * 255).astype(np.uint8)
    large = request.image.copy()
    large[window] = resize_image(small, request.hole[window].shape)
    return paste_back(request.image, large, request.hole, feather=request.sampling.feather)


def working_shape(height: int, width: int, *, size: float, multiple: int) -> tuple[int, int]:
    """About the aspect of `height` x `width` and the area of `size` x `size`, both sides multiples of `multiple`.

    Equal area, not equal longest side: it is what the base was trained for, and makes every photo cost the same.
    """
    scale = size / math.sqrt(height * width)
    high, wide = (max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))
    return high, wide


def resize_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Lanczos, as diffusers' image processor; the same array where nothing is to do."""
    if image.shape[:2] == shape:
        return image
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(image)).resize((shape[1], shape[0]), Image.Resampling.LANCZOS)
    )


def resize_hole(hole: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Nothing of the hole is lost, however small it becomes; as in training."""
    return hole if hole.shape == shape else cover(hole, shape)


def filled(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The image with its hole filled from around it, ever more blurred towards its middle; push-pull (Gortler et al.
    1996, "The Lumigraph"). Without anything kept it is as it was."""
    if hole.all():
        return image
    colours_HW3 = _pull(np.where(hole[..., None], 0, image).astype(np.float32), (~hole).astype(np.float32))
    return np.where(hole[..., None], np.rint(colours_HW3).clip(0, 255).astype(np.uint8), image)


def _pull(colours_HW3: np.ndarray, known_HW: np.ndarray) -> np.ndarray:
    """Colours everywhere, of those that are known in part (0 to 1); unknown ones are 0."""
    height, width = known_HW.shape
    if height * width == 1:
        return colours_HW3
    padding = ((0, height % 2), (0, width % 2))
    weighed = np.pad(colours_HW3 * known_HW[..., None], (*padding, (0, 0)))
    high, wide = weighed.shape[0] // 2, weighed.shape[1] // 2
    sums = weighed.reshape(high, 2, wide, 2, 3).sum((1, 3))
    weights = np.pad(known_HW, padding).reshape(high, 2, wide, 2).sum((1, 3))
    coarse = _pull(sums / np.maximum(weights, 1e-6)[..., None], weights.clip(max=1))
    smooth = cv2.resize(coarse, (2 * wide, 2 * high), interpolation=cv2.INTER_LINEAR)[:height, :width]
    share = known_HW[..., None]
    return share * colours_HW3 + (1 - share) * smooth


def batches_of(kinds: Sequence[Hashable], most: int) -> Iterator[list[int]]:
    """Indices of what is of one kind, at most `most` together."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, kind in enumerate(kinds):
        groups[kind].append(index)
    for group in groups.values():
        yield from (group[start : start + most] for start in range(0, len(group), most))
