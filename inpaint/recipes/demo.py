"""The whole way on one machine: a toy catalogue, a LoRA per category, held-out products painted, a report."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inpaint.evaluate.report import Curve, Gallery, Report, Table, write_report
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.adapter import apply_adapter
from inpaint.models.base import load_base
from inpaint.paint.painter import Painter
from inpaint.paint.paste import comparison
from inpaint.recipes.category_lora import PROMPT_FORMAT, Adapters, CategoryLora, preset_of
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import CATEGORIES, CATEGORY_INIT_WORDS, Scene, write_catalogue
from inpaint.toy.detectors import Detectors
from inpaint.toy.measure import PaintedScenes, held_out, measure_category
from inpaint.train.run import run
from inpaint.train.settings import plain as settings_of

CATALOGUE_SEED = 11
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Settings of `python -m ray_jobs.demo`."""

    output: str = "runs/demo"
    """Folder of the run."""
    categories: tuple[str, ...] = ("CDP_COS", "CDP_FOOD")
    """Which of the toy world's categories are trained: CDP_COS, CDP_FOOD, CDP_TECH, CDP_HOME."""
    images: int = 24
    """Training images per category."""
    held_out: int = 48
    """Products painted per category, which no training saw."""
    samples: int | None = None
    """Samples each adapter is trained on; unset: the preset's."""
    seed: int = 0
    """Of the training and the painting."""


def training_of(demo: Demo) -> CategoryLora:
    """The category training that the demo runs; writes its catalogue."""
    data = write_catalogue(
        Path(demo.output) / "data",
        seed=CATALOGUE_SEED,
        count=demo.images * len(demo.categories),
        categories=demo.categories,
    )
    config = preset_of("toy", data=str(data), output=f"{demo.output}/training")
    train = replace(config.train, seed=demo.seed, samples=demo.samples or config.train.samples)
    words = {category: CATEGORY_INIT_WORDS[category] for category in demo.categories}
    # A demo that was interrupted, or is run again, goes on from its checkpoints.
    return replace(config, adapters=Adapters.PER_CATEGORY, init_words=words, train=train, resume=True)


@dataclass(frozen=True)
class DemoReport:
    """What the demo ends with."""

    page: Path
    """`report.html`."""
    data: Path
    """`report.json`."""
    figures: dict[str, float]


def run_demo(demo: Demo, *, stop: StopToken | None = None, announce: Callable[[str], None] = print) -> DemoReport:
    """Train, paint and measure."""
    config = training_of(demo)
    announce(f"training a LoRA for each of {', '.join(demo.categories)} on {demo.images} images")
    folders = dict(zip(sorted(demo.categories), run(config, stop=stop), strict=True))
    detectors = Detectors.fit()
    scenes = held_out(demo.held_out)
    adapted, plain = {}, {}
    for category, folder in folders.items():
        announce(f"painting {demo.held_out} held-out products for {category}, with the adapter and without")
        prompts = [prompt_of(scene, category) for scene in scenes]
        adapted[category] = measure_category(painter_of(folder), detectors, category, prompts, scenes)
        plain[category] = measure_category(painter_of(None), detectors, category, prompts, scenes)
    report = _report(demo, config, folders, scenes, adapted, plain, detectors.error()["background"])
    page, data = write_report(demo.output, report)
    return DemoReport(page, data, dict(report.headline))


def prompt_of(scene: Scene, category: str) -> str:
    """As a category's prompts are written; it does not name the background."""
    return PROMPT_FORMAT.format(token=category, prompt=scene.caption(False))


def painter_of(adapter: str | None) -> Painter:
    """A painter on the toy base, with an adapter folder's adapter or without."""
    base = load_base("toy")
    if adapter is not None:
        apply_adapter(base, load_adapter(adapter))
    return Painter(base, max_batch=16)


def headline(adapted: dict[str, PaintedScenes], plain: dict[str, PaintedScenes]) -> dict[str, float]:
    """The three figures that the demo and the benchmark are about."""
    results = [*adapted.values(), *plain.values()]
    return {
        "hit_rate_min": min(result.hit_rate for result in adapted.values()),
        "base_hit_rate_max": max(result.hit_rate for result in plain.values()),
        "kept_pixels_changed": float(sum(result.kept_pixels_changed for result in results)),
    }


def _report(
    demo: Demo,
    config: CategoryLora,
    folders: dict[str, str],
    scenes: list[Scene],
    adapted: dict[str, PaintedScenes],
    plain: dict[str, PaintedScenes],
    error: float,
) -> Report:
    rows = [
        (name, ", ".join(CATEGORIES[name]), adapted[name].hit_rate, plain[name].hit_rate, _counts(adapted[name]))
        for name in adapted
    ]
    table = Table(
        title="Share painted on the category's own backgrounds",
        note=f"{demo.held_out} held-out products each, judged by a detector that is wrong on {error:.1%} of real "
        "renders. The prompt does not name the background.",
        columns=("category", "its backgrounds", "with the adapter", "base alone", "backgrounds seen"),
        rows=rows,
    )
    galleries = [
        Gallery(
            title=name,
            note="Input, hole (tinted), painted. Product pixels are the input's, bit for bit.",
            pictures=[
                (comparison(scene.image, ~scene.product, image), scene.caption(False))
                for scene, image in list(zip(scenes, adapted[name].images, strict=True))[:SHOWN]
            ],
        )
        for name in adapted
    ]
    cards = {name: json.loads((Path(folder) / "adapter.json").read_text()) for name, folder in folders.items()}
    return Report(
        title="Category LoRAs on the toy base",
        summary=f"Trained on {demo.images} images per category, on one machine: Ray Data reads, Ray Train and "
        f"DeepSpeed train on CPU workers, and every product keeps its pixels.",
        headline=headline(adapted, plain),
        tables=[table],
        galleries=galleries,
        curves=[_loss_curve(f"{config.output}/{name}", name) for name in folders],
        details={"adapters": cards, "training": settings_of(config)},
    )


def _counts(result: PaintedScenes) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(result.counts.items(), key=lambda item: -item[1]))


def _loss_curve(run: str, name: str) -> Curve:
    """The loss over samples, from the run's TensorBoard files, averaged over windows of 20 steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"{run}/tensorboard").Reload().Scalars("loss")
    x, y = np.array([event.step for event in events]), np.array([event.value for event in events])
    window = max(1, min(20, len(y) // 4))
    smooth = np.convolve(y, np.ones(window) / window, mode="valid")
    return Curve(title=f"Loss of {name}", x=x[window - 1 :].tolist(), y=smooth.tolist())
