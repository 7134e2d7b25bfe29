"""What the photoshoot's stages see in the toy world: captions, and products found by text, against the truth.

    python -m benchmarks.photoshoot

300 held-out toy photos: 200 with a product that is asked for, 60 with another one, 40 with none. `caption_accuracy`:
captions that name colour and shape, both and no others. `presence_recall`, `presence_precision`, `presence_mcc`
(Matthews): is it there, as its own class. `mask_iou`: mean over the 200, 0 where nothing was found. Bars: 0.90, 0.97,
0.97, none, 0.85. Takes a minute on a core.
"""

from dataclasses import dataclass

import tyro

from benchmarks.harness import emit, progress
from inpaint.toy.measure_vision import caption_accuracy, find_all, mask_iou, photoshoot_scenes, presence
from inpaint.vision.captioner import CaptionerSettings, load_captioner
from inpaint.vision.finders import FinderSettings, load_finder


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    captioner: str = "toy"
    finder: str = "toy"


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    scenes = photoshoot_scenes()
    progress(f"{len(scenes)} scenes; captions")
    accuracy = caption_accuracy(load_captioner(CaptionerSettings(captioner=settings.captioner)), scenes)
    progress("finding")
    findings = find_all(load_finder(FinderSettings(finder=settings.finder)), scenes)
    there = presence(scenes, findings)
    figures = {
        "caption_accuracy": accuracy,
        "presence_recall": there.recall,
        "presence_precision": there.precision,
        "presence_mcc": there.mcc,
        "mask_iou": mask_iou(scenes, findings),
    }
    emit("photoshoot", figures, captioner=settings.captioner, finder=settings.finder)


if __name__ == "__main__":
    main()
