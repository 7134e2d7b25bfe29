"""What was found, drawn into a photo for people to look at."""

import cv2
import numpy as np

from inpaint.vision.finder import Findings

LONGEST = 768
"""Pixels along the longer side of the drawing, at most."""
COLOURS = ((230, 60, 40), (40, 120, 240), (40, 170, 80), (240, 170, 20), (160, 70, 200), (20, 180, 190))
"""Of the classes, in turn."""


def overlay(image: np.ndarray, findings: Findings) -> np.ndarray:
    """The photo, H x W x 3 uint8, made smaller, with each product's pixels tinted, its box, name and score."""
    scale = min(1.0, LONGEST / max(image.shape[:2]))
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    drawn = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    names = list(findings.best)
    for one in reversed(findings.found):  # the best on top
        colour = COLOURS[names.index(one.product) % len(COLOURS)]
        mask = cv2.resize(one.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        drawn[mask] = (0.55 * drawn[mask] + 0.45 * np.array(colour)).astype(np.uint8)
        left, top, right, bottom = (round(edge * scale) for edge in one.box)
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour, 2)
        where = (left + 3, max(14, top - 5))
        for thickness, ink in ((3, (255, 255, 255)), (1, colour)):
            text = f"{one.product} {one.score:.2f}"
            cv2.putText(drawn, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.45, ink, thickness, cv2.LINE_AA)
    return drawn
