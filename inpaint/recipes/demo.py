"""The whole way on one machine: a toy catalogue, a LoRA per category, held-out products painted, a report."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inpaint.errors import InpaintError
from inpaint.evaluate.report import Curve, Gallery, Report, Table, write_report
from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.paste import comparison
from inpaint.recipes.category_lora import PROMPT_FORMAT, Adapters, CategoryLora
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import CATEGORIES, CATEGORY_INIT_WORDS, write_catalogue
from inpaint.toy.detectors import Detectors
from inpaint.toy.measure import PaintedScenes, held_out, paint_scenes
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


@dataclass(frozen=True)
class Measured:
    """What each category's adapter makes of held-out products."""

    training: CategoryLora
    adapters: dict[str, str]
    """Folders, by category."""
    adapted: dict[str, PaintedScenes]
    plain: dict[str, PaintedScenes]
    """By the base alone, with the same prompts and seeds."""
    detector_error: float
    """Share of real renders whose background the detector gets wrong."""

    def headline(self) -> dict[str, float]:
        """The three figures that the demo and the benchmark are about."""
        painted = [*self.adapted.values(), *self.plain.values()]
        return {
            "hit_rate_min": min(result.hit_rate for result in self.adapted.values()),
            "base_hit_rate_max": max(result.hit_rate for result in self.plain.values()),
            "kept_pixels_changed": float(sum(result.kept_pixels_changed for result in painted)),
        }


def run_demo(demo: Demo, *, stop: StopToken | None = None) -> tuple[Path, dict[str, float]]:
    """Train, paint, measure and report; returns `report.html`, which has a `report.json` beside it, and the figures."""
    measured = train_and_measure(demo, stop=stop)
    return write_report(demo.output, _report(demo, measured)), measured.headline()


def train_and_measure(
    demo: Demo, *, stop: StopToken | None = None, announce: Callable[[str], None] = print
) -> Measured:
    """Train an adapter for each category, and paint held-out products with it and, with the same seeds, without."""
    training = _training(demo)
    announce(f"training a LoRA for each of {', '.join(demo.categories)} on {demo.images} images")
    adapters = dict(zip(sorted(demo.categories), run(training, stop=stop), strict=True))
    detectors, scenes = Detectors.fit(), held_out(demo.held_out)

    def painted(category: str, adapter: str | None) -> PaintedScenes:
        painter = read_models(PaintSettings(base="toy", adapter=adapter)).painter("cpu", max_batch=16)
        # As a category's prompts are written; they do not name the background.
        prompts = [PROMPT_FORMAT.format(token=category, prompt=scene.caption(False)) for scene in scenes]
        wanted = [CATEGORIES[category]] * len(scenes)
        return paint_scenes(painter, detectors, scenes, prompts, wanted, title=f"painting for {category}")

    adapted, plain = {}, {}
    for category, folder in adapters.items():
        announce(f"painting {demo.held_out} held-out products for {category}, with the adapter and without")
        adapted[category], plain[category] = painted(category, folder), painted(category, None)
    return Measured(training, adapters, adapted, plain, detectors.error()["background"])


def _training(demo: Demo) -> CategoryLora:
    """The category training that the demo runs; writes its catalogue. Raises InpaintError for an output at a URL."""
    if "://" in demo.output:
        raise InpaintError(f"output {demo.output}: the demo runs on one machine; give a folder on it")
    data = write_catalogue(
        Path(demo.output) / "data",
        seed=CATALOGUE_SEED,
        count=demo.images * len(demo.categories),
        categories=demo.categories,
    )
    config = CategoryLora.of_preset("toy", data=str(data), output=f"{demo.output}/training")
    train = replace(config.train, seed=demo.seed, samples=demo.samples or config.train.samples)
    words = {category: CATEGORY_INIT_WORDS[category] for category in demo.categories}
    # A demo that was interrupted, or is run again, goes on from its checkpoints.
    return replace(config, adapters=Adapters.PER_CATEGORY, init_words=words, train=train, resume=True, recheck=True)


def _report(demo: Demo, measured: Measured) -> Report:
    table = Table(
        title="Share painted on the category's own backgrounds",
        note=f"{demo.held_out} held-out products each, judged by a detector that is wrong on "
        f"{measured.detector_error:.1%} of real renders. The prompt does not name the background.",
        columns=("category", "its backgrounds", "with the adapter", "base alone", "backgrounds seen"),
        rows=[
            (name, ", ".join(CATEGORIES[name]), painted.hit_rate, measured.plain[name].hit_rate, _counts(painted))
            for name, painted in measured.adapted.items()
        ],
    )
    shown = held_out(min(SHOWN, demo.held_out))
    galleries = [
        Gallery(
            title=name,
            note="Input, hole (tinted), painted. Product pixels are the input's, bit for bit.",
            pictures=[
                (comparison(scene.image, ~scene.product, image), scene.caption(False))
                for scene, image in zip(shown, painted.images, strict=False)
            ],
        )
        for name, painted in measured.adapted.items()
    ]
    cards = {n: json.loads((Path(folder) / "adapter.json").read_text()) for n, folder in measured.adapters.items()}
    return Report(
        title="Category LoRAs on the toy base",
        summary=f"Trained on {demo.images} images per category, on one machine: Ray Data reads, Ray Train and "
        f"DeepSpeed train on CPU workers, and every product keeps its pixels.",
        headline=measured.headline(),
        tables=[table],
        galleries=galleries,
        curves=[_loss_curve(f"{measured.training.output}/{name}", name) for name in measured.adapters],
        details={"adapters": cards, "training": settings_of(measured.training)},
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
