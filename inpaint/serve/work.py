"""How much work an order is: the measure by which it is admitted, routed and scaled for.

The unit is one U-Net row at the base's own size: one denoising step of one picture without guidance. So 25 steps with
guidance are 50, and at twice the side 200. Encoding and decoding are left out: that is a few rows' worth.
"""

from inpaint.models.info import BaseInfo
from inpaint.paint.crop import window_of
from inpaint.paint.request import PaintRequest
from inpaint.paint.shapes import working_shape


def work_of(request: PaintRequest, base: BaseInfo) -> float:
    """U-Net rows that the order takes, weighed by their pixels; 0 without a hole."""
    if not request.hole.any():
        return 0.0
    window = window_of(request.hole, request.sampling.padding)
    size = request.sampling.size or base.default_size
    high, wide = working_shape(window.height, window.width, size=size, multiple=base.size_multiple)
    rows = 2 if request.sampling.is_guided else 1
    return request.sampling.steps_taken * rows * (high * wide) / base.default_size**2
