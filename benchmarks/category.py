"""What a category LoRA is worth: the share of held-out products painted on the category's own backgrounds.

    python -m benchmarks.category

Trains from 24 images per category, exactly as `make demo` does, and paints 200 held-out products per category with
the adapter and, with the same prompts and seeds, without. Bars: `hit_rate_min` >= 0.90, `kept_pixels_changed` 0.
"""

import tempfile
from dataclasses import dataclass

import tyro

from benchmarks.harness import emit, progress
from inpaint.cluster import connect
from inpaint.recipes.demo import Demo, headline, painter_of, prompt_of, training_of
from inpaint.toy.detectors import Detectors
from inpaint.toy.measure import held_out, measure_category
from inpaint.train.run import run


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    categories: tuple[str, ...] = ("CDP_COS", "CDP_FOOD")
    """Trained one after the other, an adapter each."""
    images: int = 24
    """Training images per category."""
    held_out: int = 200
    """Products painted per category."""
    seed: int = 0
    output: str | None = None
    """Folder in which the trainings are kept, new or empty; unset: a temporary one."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    connect()
    detectors = Detectors.fit()
    scenes = held_out(settings.held_out)
    adapted, plain = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        output = settings.output or temporary
        demo = Demo(output=output, categories=settings.categories, images=settings.images, seed=settings.seed)
        folders = run(training_of(demo))
        for category, folder in zip(sorted(settings.categories), folders, strict=True):
            prompts = [prompt_of(scene, category) for scene in scenes]
            adapted[category] = measure_category(painter_of(folder), detectors, category, prompts, scenes)
            plain[category] = measure_category(painter_of(None), detectors, category, prompts, scenes)
            progress(f"{category}: {adapted[category].hit_rate:.3f}, base {plain[category].hit_rate:.3f}")
    emit(
        "category",
        headline(adapted, plain),
        per_category={
            name: {
                "hit_rate": adapted[name].hit_rate,
                "base_hit_rate": plain[name].hit_rate,
                "backgrounds": adapted[name].counts,
                "base_backgrounds": plain[name].counts,
            }
            for name in adapted
        },
        detector_error=detectors.error()["background"],
    )


if __name__ == "__main__":
    main()
