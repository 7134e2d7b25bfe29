"""How many painters: by the work that is waiting, not by the number of requests.

Ray Serve calls the policy in its controller and applies the configuration's bounds, delays and factors to its answer;
starting the first painter of none is Serve's own doing.
"""

import math
from collections.abc import Mapping
from typing import Any

WORK = "remaining_work"
"""The painters' statistic that is summed: U-Net rows that have come and are not done."""


class ByRemainingWork:
    """Serve's autoscaling policy: as many painters as hold the waiting work at `work_per_painter` each."""

    def __init__(self, work_per_painter: float = 500.0) -> None:
        """Args: work_per_painter: U-Net rows that may wait at one painter, > 0."""
        if not work_per_painter > 0:
            raise ValueError(f"work_per_painter is {work_per_painter}: give a positive number of U-Net rows")
        self.work_per_painter = work_per_painter

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """`ctx` is a ray.serve.config.AutoscalingContext."""
        metrics: Mapping[str, Mapping[Any, float]] = ctx.aggregated_metrics or {}
        wanted = math.ceil(sum(metrics.get(WORK, {}).values()) / self.work_per_painter - 1e-9)
        # Requests that wait for a painter are in no painter's statistics; neither is one whose work is just done.
        if ctx.total_num_requests > 0:
            wanted = max(wanted, 1)
        return min(max(wanted, ctx.capacity_adjusted_min_replicas), ctx.capacity_adjusted_max_replicas), {}
