"""How much work an order is: the measure by which it is admitted, routed and scaled for.

The unit is one U-Net row at the base's own size: one denoising step of one picture without guidance. So 25 steps with
guidance are 50, and at twice the side 200. Encoding and decoding are left out: that is a few rows' worth.
"""

from inpaint.models.base import BaseInfo
from inpaint.paint.crop import working_shape_of
from inpaint.paint.request import PaintRequest


def work_of(request: PaintRequest, base: BaseInfo) -> float:
    """U-Net rows that the order takes, weighed by their pixels; 0 without a hole."""
    if not request.hole.any():
        return 0.0
    high, wide = working_shape_of(base, request)
    rows = 2 if request.sampling.is_guided else 1
    return request.sampling.steps_taken * rows * (high * wide) / base.default_size**2
