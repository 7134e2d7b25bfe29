"""How much work an order is: the measure by which it is admitted, routed and scaled for.

The unit is one U-Net row at the base's own size: one denoising step of one picture without guidance. So 25 steps with
guidance are 50, and at twice the side 200. Encoding and decoding are left out: that is a few rows' worth.
"""

import numpy as np

from inpaint.paint.request import PaintRequest
from inpaint.paint.shapes import working_shape
from inpaint.serve.orders import BaseInfo


def work_of(request: PaintRequest, base: BaseInfo) -> float:
    """U-Net rows that the order takes, weighed by their pixels; 0 without a hole."""
    height, width = seen_shape(request.hole, request.padding)
    if not height:
        return 0.0
    size = request.size or base.default_size
    high, wide = working_shape(height, width, size=size, multiple=base.size_multiple)
    rows = 2 if request.guidance_scale > 1 else 1
    return steps_taken(request) * rows * (high * wide) / base.default_size**2


def steps_taken(request: PaintRequest) -> int:
    """Denoising steps after `strength` has cut the first ones, as diffusers counts them; at least one."""
    return max(1, min(int(request.steps * request.strength), request.steps))


def seen_shape(hole_HW: np.ndarray, padding: int | None) -> tuple[int, int]:
    """Height and width, in photo pixels, of what is looked at around the hole; (0, 0) without a hole."""
    rows, columns = np.flatnonzero(hole_HW.any(axis=1)), np.flatnonzero(hole_HW.any(axis=0))
    if not rows.size:
        return 0, 0
    if padding is None:
        return int(hole_HW.shape[0]), int(hole_HW.shape[1])
    high = min(rows[-1] + 1 + padding, hole_HW.shape[0]) - max(rows[0] - padding, 0)
    wide = min(columns[-1] + 1 + padding, hole_HW.shape[1]) - max(columns[0] - padding, 0)
    return int(high), int(wide)
