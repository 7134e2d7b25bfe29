"""Boxes that claim the same place, and which of them stands: from scored boxes to findings. Plain geometry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inpaint.vision.finder import MOST_FOUND, Box, Findings, FindQuery, Found

OVERLAP = 0.5
"""Boxes with a larger intersection over union are about one thing; and a box of which more lies inside a negative's."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A box that a class, or a negative, has a score for."""

    owner: str
    """The class's name, or the negative."""
    score: float
    box: Box
    negative: bool = False
    asked: int = 0
    """Number of the owner in what was asked for: the products, then the negatives."""
    number: int = 0
    """Which of the owner's boxes it is."""


Scored = tuple[np.ndarray, np.ndarray]
"""Boxes of one owner, N 4: x0 y0 x1 y1 as shares of the image; and their scores, N."""


def findings_of(
    scored: Sequence[Scored],
    query: FindQuery,
    threshold: float,
    size: tuple[int, int],
    masks: Callable[[Sequence[Claim]], Sequence[np.ndarray]],
) -> Findings:
    """What stands in an image of so many rows and columns.

    Args:
        scored: of each product, then of each negative.
        masks: of the claims that stand, H x W bool; where one is empty, its box is the mask.
    """
    height, width = size
    thresholds = [product.threshold or threshold for product in query.products]
    # A negative below every product's threshold takes nothing.
    thresholds += [min(thresholds)] * len(query.negatives)
    owners = [product.name for product in query.products] + list(query.negatives)
    claims = [
        Claim(
            owner=owners[asked],
            score=float(scores[number]),
            box=box,
            negative=asked >= len(query.products),
            asked=asked,
            number=int(number),
        )
        for asked, (boxes, scores) in enumerate(scored)
        for number in np.flatnonzero(scores >= thresholds[asked])
        if (box := whole_pixels(boxes[number] * [width, height, width, height], height, width)) is not None
    ]
    standing, overruled = settle(claims)
    told = standing[:MOST_FOUND]
    found = tuple(
        Found(
            product=claim.owner, score=claim.score, box=claim.box, mask=mask if mask.any() else _filled(size, claim.box)
        )
        for claim, mask in zip(told, masks(told) if told else (), strict=True)
    )
    best = {name: float(scores.max(initial=0.0)) for name, (_, scores) in zip(owners, scored, strict=True)}
    best = {product.name: best[product.name] for product in query.products}
    return Findings(found=found, best=best, overruled=overruled, left_out=len(standing) - len(told))


def settle(claims: Sequence[Claim]) -> tuple[list[Claim], dict[str, str]]:
    """The products' claims that stand, best first, and class -> the negative that took a place from it.

    From the best score down: a claim falls where a better one is about the same thing, whichever class that is of, and
    where it lies in a better one of a negative (greedy non-maximum suppression).
    """
    standing: list[Claim] = []
    overruled: dict[str, str] = {}
    for claim in sorted(claims, key=lambda claim: -claim.score):
        rival = next((better for better in standing if _takes(better, claim)), None)
        if rival is None:
            standing.append(claim)
        elif rival.negative and not claim.negative:
            overruled.setdefault(claim.owner, rival.owner)
    return [claim for claim in standing if not claim.negative], overruled


def whole_pixels(box: Sequence[float] | np.ndarray, height: int, width: int) -> Box | None:
    """The pixels that a box x0 y0 x1 y1 touches inside the image; None where there is none."""
    if not np.isfinite(box).all():
        return None
    x0, y0 = (int(max(0, np.floor(edge))) for edge in box[:2])
    x1, y1 = int(min(width, np.ceil(box[2]))), int(min(height, np.ceil(box[3])))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def box_of(mask: np.ndarray) -> Box:
    """The box around the pixels of a mask, H x W bool, that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _takes(better: Claim, claim: Claim) -> bool:
    (left, top, right, bottom), (x0, y0, x1, y1) = better.box, claim.box
    shared = max(0, min(right, x1) - max(left, x0)) * max(0, min(bottom, y1) - max(top, y0))
    own, others = (x1 - x0) * (y1 - y0), (right - left) * (bottom - top)
    return shared > OVERLAP * (own if better.negative and not claim.negative else own + others - shared)


def _filled(size: tuple[int, int], box: Box) -> np.ndarray:
    left, top, right, bottom = box
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask
