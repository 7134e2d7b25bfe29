"""What the photoshoot's stages see and make in the toy world: captions, found products, enhanced photos, by the truth.

    python -m benchmarks.photoshoot

300 held-out toy photos: 200 with a product that is asked for, 60 with another one, 40 with none. `caption_accuracy`:
captions that name colour and shape, both and no others. `presence_recall`, `presence_precision`, `presence_mcc`
(Matthews): is it there, as its own class. `mask_iou`: mean over the 200, 0 where nothing was found. Bars: 0.90, 0.97,
0.97, none, 0.85.

What was found is repainted in another colour with a ControlNet. `scene_pixels_changed` (0): outside what was found, all
photos together; `unet_forwards_for_skipped` (0), counted; `class_kept` (0.95) and `attribute_applied` (0.80): of the
enhanced products, by the detectors, for which unclear ones are wrong. Takes some five minutes on a core.
"""

from dataclasses import dataclass

import tyro

from benchmarks.harness import emit, progress
from inpaint.paint.request import SamplingSettings
from inpaint.toy.detectors import Detectors
from inpaint.toy.measure_enhancing import SAMPLING, enhance_scenes, toy_painter
from inpaint.toy.measure_vision import measure_vision, photoshoot_scenes
from inpaint.vision.captioner import CaptionerSettings, load_captioner
from inpaint.vision.finders import FinderSettings, load_finder

FIGURES = ("scene_pixels_changed", "unet_forwards_for_skipped", "class_kept", "attribute_applied")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    captioner: str = "toy"
    finder: str = "toy"
    controlnet: str = "toy-edges"
    guidance_scale: float = SAMPLING.guidance_scale or 1.0


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    scenes = photoshoot_scenes()
    progress(f"{len(scenes)} scenes")
    captioner = load_captioner(CaptionerSettings(captioner=settings.captioner))
    figures, findings = measure_vision(captioner, load_finder(FinderSettings(finder=settings.finder)), scenes)
    progress("enhancing")
    painter = toy_painter(controlnet=settings.controlnet)
    sampling = SamplingSettings(guidance_scale=settings.guidance_scale)
    enhanced = vars(enhance_scenes(painter, Detectors.fit(), scenes, findings, sampling=sampling))
    figures |= {name: enhanced[name] for name in FIGURES}
    emit("photoshoot", figures, skipped_changed=enhanced["skipped_changed"], settings=vars(settings))


if __name__ == "__main__":
    main()
