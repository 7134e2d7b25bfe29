"""What captioners and finders see in the toy world, whose scenes say what is there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inpaint.toy.catalogue import SHAPE_NAMES, Scene, render
from inpaint.toy.measure import HELD_OUT_SEED
from inpaint.vision.captioner import Captioner
from inpaint.vision.finder import Finder, Findings, FindQuery

NAMED, OTHERS = SHAPE_NAMES[:5], SHAPE_NAMES[5:]
"""Products that are asked for, and those that are in photos beside them."""
QUERY = FindQuery.parse(NAMED)
BATCH = 50


def photoshoot_scenes(named: int = 200, others: int = 60, empty: int = 40, *, seed: int = HELD_OUT_SEED) -> list[Scene]:
    """Scenes that no training saw: with a product that is asked for, with another one, and with none, in this order."""
    asked = [render(seed, index, shape=NAMED[index % len(NAMED)]) for index in range(named)]
    rest = [render(seed, named + index, shape=OTHERS[index % len(OTHERS)]) for index in range(others)]
    return [*asked, *rest, *(render(seed, named + others + index, empty=True) for index in range(empty))]


def measure_vision(
    captioner: Captioner, finder: Finder, scenes: Sequence[Scene]
) -> tuple[dict[str, float], list[Findings]]:
    """The figures that captioner and finder must reach on `photoshoot_scenes`, and what was found.

    Keys: `caption_accuracy`; `presence_recall`, `presence_precision` and `presence_mcc` of products that are asked for;
    `mask_iou`.
    """
    accuracy, findings = caption_accuracy(captioner, scenes), find_all(finder, scenes)
    there = presence(scenes, findings)
    figures = {
        "caption_accuracy": accuracy,
        "presence_recall": there.recall,
        "presence_precision": there.precision,
        "presence_mcc": there.mcc,
        "mask_iou": mask_iou(scenes, findings),
    }
    return figures, findings


def caption_accuracy(captioner: Captioner, scenes: Sequence[Scene]) -> float:
    """Share of the scenes with a product whose caption names its colour and shape, and no other colour or shape."""
    shown = [scene for scene in scenes if scene.shape]
    captions = [text for part in _parts(shown) for text in captioner.caption([scene.image for scene in part])]
    right = [scene.caption(False) in text for scene, text in zip(shown, captions, strict=True)]
    return float(np.mean(right))


@dataclass(frozen=True)
class Presence:
    """Whether a product that is asked for is there: counts of what was found against what is."""

    hits: int
    """There and found; as its own class."""
    false_alarms: int
    misses: int
    rejections: int
    """Not there and not found."""

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.hits + self.misses)

    @property
    def precision(self) -> float:
        return self.hits / max(1, self.hits + self.false_alarms)

    @property
    def mcc(self) -> float:
        """Matthews correlation coefficient, in [-1, 1]."""
        tp, fp, fn, tn = self.hits, self.false_alarms, self.misses, self.rejections
        below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return (tp * tn - fp * fn) / below if below else 0.0


def find_all(finder: Finder, scenes: Sequence[Scene], query: FindQuery = QUERY) -> list[Findings]:
    """What is found in each scene."""
    return [one for part in _parts(scenes) for one in finder.find([scene.image for scene in part], query)]


def presence(scenes: Sequence[Scene], findings: Sequence[Findings]) -> Presence:
    """Counted per scene. A product that is found as another class is missed, and a false alarm."""
    hits = alarms = misses = rejections = 0
    for scene, one in zip(scenes, findings, strict=True):
        classes = {found.product for found in one.found}
        wanted = {scene.shape} & set(NAMED)
        hits += len(wanted & classes)
        misses += len(wanted - classes)
        alarms += bool(classes - wanted)
        rejections += not classes and not wanted
    return Presence(hits, alarms, misses, rejections)


def mask_iou(scenes: Sequence[Scene], findings: Sequence[Findings]) -> float:
    """Mean intersection over union of what was found with the product, over the scenes with one that is asked for;
    0 where nothing was found."""
    shown = [(scene, one.mask) for scene, one in zip(scenes, findings, strict=True) if scene.shape in NAMED]
    return float(np.mean([0.0 if mask is None else _iou(mask, scene.product) for scene, mask in shown]))


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def _parts(scenes: Sequence[Scene]) -> list[Sequence[Scene]]:
    return [scenes[start : start + BATCH] for start in range(0, len(scenes), BATCH)]
