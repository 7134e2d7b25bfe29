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
from inpaint.recipes.demo import Demo, train_and_measure


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
    with tempfile.TemporaryDirectory() as temporary:
        demo = Demo(
            output=settings.output or temporary,
            categories=settings.categories,
            images=settings.images,
            held_out=settings.held_out,
            seed=settings.seed,
        )
        measured = train_and_measure(demo, announce=progress)
    emit(
        "category",
        measured.headline(),
        per_category={
            name: {
                "hit_rate": painted.hit_rate,
                "base_hit_rate": measured.plain[name].hit_rate,
                "backgrounds": painted.counts,
                "base_backgrounds": measured.plain[name].counts,
            }
            for name, painted in measured.adapted.items()
        },
        detector_error=measured.detector_error,
    )


if __name__ == "__main__":
    main()
