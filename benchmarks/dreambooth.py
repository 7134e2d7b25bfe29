"""What prior preservation is worth: a subject learned from five photos, its class kept.

    python -m benchmarks.dreambooth

The subject is a carton with a mark that the base never saw, in five photos before plain backdrops, with masks. Trained
with prior preservation and without, as the job does it, in some 12 minutes on two cores in all; then pictures from
text, with guidance: the subject on each of the world's eight backgrounds, none of which was in its photos (those of its
class, which the base made, stand on them), and the class without the subject's word. Bars: `subject_fidelity` >= 0.80
(share of pictures that show the subject), `context_followed` >= 0.80 (the background that the prompt names),
`class_kept` >= 0.90 (share of pictures of the class that do not show the subject) and more than
`class_kept_without_prior`. `lookalike_map`: each picture as a query among photos of the subject and of eight cartons
with other marks, mean average precision; `base_lookalike_map` the same of the base alone.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.harness import emit, progress
from inpaint.cluster import connect
from inpaint.diffusion.objective import LossSettings
from inpaint.evaluate.fidelity import lookalike_map
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.adapter import apply_adapter
from inpaint.models.base import load_base
from inpaint.paint.painter import Painter
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.recipes.dreambooth_training import TrainDreambooth, train_dreambooth
from inpaint.rowmap import ActorPool
from inpaint.toy.base import IMAGE_SIZES
from inpaint.toy.catalogue import BACKGROUND_NAMES
from inpaint.toy.marks import COLOUR, MARKS, SHAPE, MarkDetector, marked, write_photos
from inpaint.toy.measure import paint_all
from inpaint.toy.panel_detectors import PanelDetectors
from inpaint.train.settings import Precision, RateSchedule, ValidationSettings

SUBJECT = next(iter(MARKS))
PHOTO_SEED, GALLERY_SEED = 21, 900_021
BATCH = 12


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    photos: int = 5
    """Of the subject."""
    class_images: int = 64
    """Made by the base."""
    steps: int = 300
    """Optimizer steps on the subject alone; with prior preservation twice as many, half of whose samples are it."""
    learning_rate: float = 1e-3
    guidance_scale: float = 2.0
    pictures: int = 200
    """Painted of each kind."""
    gallery: int = 8
    """Photos of each carton among which the subject's are found."""
    seed: int = 0
    output: str | None = None
    """Folder in which the trainings are kept, new or empty; unset: a temporary one."""


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    connect()
    with tempfile.TemporaryDirectory() as temporary:
        measure(settings, Path(settings.output or temporary))


def measure(settings: Settings, output: Path) -> None:
    """Train twice, paint, judge."""
    write_photos(output / "carton", SUBJECT, seed=PHOTO_SEED, count=settings.photos)
    with_prior, word = train(settings, output, prior=True)
    without, _ = train(settings, output, prior=False)
    detector, contexts = MarkDetector.fit(), PanelDetectors.fit()
    of_subject, of_class = f"a {word} {SHAPE}", f"a {COLOUR} {SHAPE}"
    painted = {
        "subject": paint(settings, with_prior, of_subject),
        "subject without prior": paint(settings, without, of_subject),
        "class": paint(settings, with_prior, of_class),
        "class without prior": paint(settings, without, of_class),
        "base": paint(settings, None, of_subject),
    }
    shows = {name: np.array(detector.see(images)) == SUBJECT for name, images in painted.items()}
    followed = {
        name: float(np.mean(np.array(contexts.see(images)["background"]) == named(settings.pictures)))
        for name, images in painted.items()
    }
    own, others = gallery(settings, detector)
    figures = {
        "subject_fidelity": float(shows["subject"].mean()),
        "context_followed": followed["subject"],
        "class_kept": 1 - float(shows["class"].mean()),
        "class_kept_without_prior": 1 - float(shows["class without prior"].mean()),
        "subject_fidelity_without_prior": float(shows["subject without prior"].mean()),
        "lookalike_map": lookalike_map(detector.embed(painted["subject"]), own, others),
        "base_lookalike_map": lookalike_map(detector.embed(painted["base"]), own, others),
    }
    emit("dreambooth", figures, identifier=word, context_followed=followed, detector_error=detector.error())


def train(settings: Settings, output: Path, *, prior: bool) -> tuple[str, str]:
    """The adapter's folder, and the subject's word."""
    progress(f"training {'with' if prior else 'without'} prior preservation")
    config = TrainDreambooth(
        instance_dir=str(output / "carton"),
        output_dir=str(output / ("with" if prior else "without")),
        base="toy",
        identifier="auto",
        instance_prompt="a {identifier} {class}",
        class_name=SHAPE,
        class_prompt=f"a {COLOUR} {{class}}",
        # Else the plain backdrops would be learned with the subject, and backgrounds be forgotten.
        mask_dir="masks",
        with_prior_preservation=prior,
        num_class_images=settings.class_images,
        class_endings=tuple(f"on {background}" for background in BACKGROUND_NAMES),
        # Pictures are made from text alone, also on this base for inpainting.
        random_holes=False,
        rank=16,
        learning_rate=settings.learning_rate,
        lr_scheduler=RateSchedule.COSINE,
        max_train_steps=settings.steps * (2 if prior else 1),
        train_batch_size=BATCH,
        max_micro_batch=8,
        loss=LossSettings(debiased=True),
        mixed_precision=Precision.FP32,
        seed=settings.seed,
        card_samples=0,
        validation=ValidationSettings(samples=0),
        pool=ActorPool(max_batch=BATCH),
    )
    (subject,) = config.found()
    (folder,) = train_dreambooth(config, announce=progress)
    return folder, subject.prompt.split()[1]


def named(count: int) -> np.ndarray:
    """The backgrounds that prompts name, in turn."""
    return np.array([BACKGROUND_NAMES[number % len(BACKGROUND_NAMES)] for number in range(count)])


def paint(settings: Settings, adapter: str | None, what: str) -> np.ndarray:
    """Pictures of `what` on each background in turn, uint8 N H W 3."""
    base = load_base("toy")
    if adapter is not None:
        apply_adapter(base, load_adapter(adapter))
    side = IMAGE_SIZES["sd15"]
    requests = [
        PaintRequest.of_text(
            f"{what} on {background}",
            height=side,
            width=side,
            seed=number,
            sampling=SamplingSettings(guidance_scale=settings.guidance_scale),
        )
        for number, background in enumerate(named(settings.pictures))
    ]
    return paint_all(Painter(base, max_batch=BATCH), requests, f"painting {what}")


def gallery(settings: Settings, detector: MarkDetector) -> tuple[np.ndarray, np.ndarray]:
    """Embedded photos of the subject, and of cartons with other marks."""
    places = range(settings.gallery)
    embedded = {
        mark: detector.embed(np.stack([marked(GALLERY_SEED, index, mark).image for index in places])) for mark in MARKS
    }
    return embedded.pop(SUBJECT), np.concatenate(list(embedded.values()))


if __name__ == "__main__":
    main()
