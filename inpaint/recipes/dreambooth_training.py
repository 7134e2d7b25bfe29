"""DreamBooth as one job: one subject's folder or a folder of them, class pictures where they lack, a LoRA for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from inpaint.data.bank import Bank
from inpaint.data.sample import Crop
from inpaint.errors import InpaintError
from inpaint.models.base import load_tokenizers
from inpaint.models.lora import LoraSettings
from inpaint.paint.batch import PaintSettings
from inpaint.paint.request import SamplingSettings
from inpaint.progress import ProgressBar
from inpaint.recipes.class_images import fill_classes
from inpaint.recipes.dreambooth import DreamboothLora, Subject, classes_of
from inpaint.recipes.dreambooth_identifier import AUTO
from inpaint.recipes.dreambooth_side_by_side import train_subjects
from inpaint.recipes.dreambooth_subjects import Wording, find_subjects
from inpaint.recipes.lora import MANY_HOLES
from inpaint.recipes.lora_command import LoraCommand
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken
from inpaint.train.run import run
from inpaint.train.settings import RateSchedule

CLASS_IMAGES = "class_images"
"""In the run's folder, where no other is given for them."""


@dataclass(frozen=True, kw_only=True)
class TrainDreambooth(LoraCommand, Wording):
    """Settings of `python -m ray_jobs.train_dreambooth_lora`."""

    instance_dir: Annotated[str, tyro.conf.arg(aliases=["--instance-data-dir"])]
    """Folder (or URL) of one subject's photos; or of folders, one per subject, which are trained side by side."""
    output_dir: str
    """Folder (or URL) of the run; the adapters are written to its `adapters/NAME/`."""
    base: Annotated[str, tyro.conf.arg(aliases=["--pretrained-model-name-or-path"])] = (
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    """SD 1.5, SDXL, or their inpainting bases: a folder, a hub id, a `.safetensors` file, `toy`."""
    revision: str | None = None
    """Of a hub id: branch, tag or commit."""
    subjects: str | None = None
    """Of several subjects: a CSV `subject,class` and, where photos shall come more often, `repeats`."""
    with_prior_preservation: bool = False
    """Train on pictures of the class, too, so that the base does not forget what else there is of it."""
    class_dir: Annotated[str | None, tyro.conf.arg(aliases=["--class-data-dir"])] = None
    """Folder (or URL) of these pictures, of several subjects with a folder per class; what lacks is made by the base,
    what is there is left as it is. Unset: `class_images` in `output_dir`."""
    num_class_images: int = 100
    """Pictures per class."""
    prior_generation_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the base's weights when it makes them; fp16 is for GPUs."""
    prior_loss_weight: float = 1.0
    """Weight of the class's pictures in the loss."""
    prior_ratio: tuple[int, int] = (1, 1)
    """How many photos of the subject and pictures of its class come in turn."""
    mask_dir: str | None = None
    """Name of a folder beside the photos with their masks, white on the subject: the loss is taken there alone."""
    random_holes: bool | None = None
    """Paint random holes in training instead of whole pictures; unset: on bases that are made for inpainting."""
    train_text_encoder: bool = False
    """Whether the text encoders get LoRA layers, too."""
    rank: int = 4
    lora_alpha: float | None = None
    """The LoRA's update is scaled by alpha / rank; unset: alpha = rank."""
    lora_dropout: float = 0.0
    learning_rate: float = 5e-4
    text_encoder_lr: float = 5e-6
    lr_scheduler: RateSchedule = RateSchedule.CONSTANT
    lr_warmup_steps: int = 0
    max_train_steps: int = 500
    """Optimizer steps."""
    train_batch_size: int = 4
    """Samples per optimizer step, over all workers; those of the class are among them."""
    resolution: int | None = None
    """Side of the training images in pixels; unset: the base's own."""
    aspect_buckets: bool = False
    """See each photo in the shape, of several of about this area, that cuts least off it, instead of all in one; the
    samples of a step are of one shape, and are photos of subjects or pictures of classes, in turns of whole steps."""
    center_crop: bool = False
    """Use the middle of a photo of another shape; else a random part."""
    random_flip: bool = False
    """Mirror half of the samples left to right."""
    bank: Bank = MANY_HOLES
    checkpointing_steps: int = 500
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int = 2
    resume: Annotated[bool, tyro.conf.arg(aliases=["--resume-from-checkpoint"])] = False
    """Go on with the run in `output_dir`, exactly."""
    together: int = 1
    """Of several subjects, so many are trained at once on each actor, or as many as memory holds: one forward and
    backward for all of them."""
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()
    """By which class pictures are made, and several subjects are trained."""

    def __post_init__(self) -> None:
        if self.together < 1:
            raise InpaintError(f"together is {self.together}: give at least 1")
        for name in ("max_train_steps", "checkpointing_steps", "num_class_images"):
            if getattr(self, name) < 1:
                raise InpaintError(f"{name} {getattr(self, name)}: give at least 1")
        if not 0 <= self.lr_warmup_steps < self.max_train_steps:
            raise InpaintError(f"lr_warmup_steps {self.lr_warmup_steps}: give fewer than the {self.max_train_steps}")
        if self.class_dir is not None and not self.with_prior_preservation:
            raise InpaintError("class_dir is for prior preservation: give --with-prior-preservation, or leave it out")
        if self.identifier == AUTO and "{identifier}" not in self.instance_prompt:
            raise InpaintError(
                f"identifier {AUTO}: write where it goes into the instance prompt {self.instance_prompt!r}, as in "
                "`a photo of {identifier} dog`"
            )

    @property
    def class_pictures(self) -> str:
        """Folder of all classes' pictures."""
        return self.class_dir or f"{self.output_dir}/{CLASS_IMAGES}"

    def found(self) -> list[Subject]:
        """The subjects in `instance_dir`. Raises InpaintError; warns of identifiers that serve badly."""
        tokenizers = load_tokenizers(self.base, self.revision)
        class_dir = self.class_pictures if self.with_prior_preservation else None
        return find_subjects(self.instance_dir, self, tokenizers, table=self.subjects, class_dir=class_dir)

    def recipe(self, subjects: Sequence[Subject]) -> DreamboothLora:
        """What is run."""
        return DreamboothLora(
            data=self.instance_dir,
            output=self.output_dir,
            subjects=tuple(subjects),
            base=self.base,
            revision=self.revision,
            resolution=self.resolution,
            aspect_buckets=self.aspect_buckets,
            shares=self.prior_ratio,
            prior_loss_weight=self.prior_loss_weight,
            masks=self.mask_dir,
            random_holes=self.random_holes,
            crop=Crop.CENTRE if self.center_crop else Crop.RANDOM,
            flip_probability=0.5 if self.random_flip else 0.0,
            unet_learning_rate=self.learning_rate,
            text_encoder_learning_rate=self.text_encoder_lr,
            resume=self.resume,
            lora=LoraSettings(
                rank=self.rank,
                alpha=self.lora_alpha,
                dropout=self.lora_dropout,
                text_encoder=self.train_text_encoder,
            ),
            train=self.train_settings(
                samples=self.max_train_steps * self.train_batch_size,
                global_batch=self.train_batch_size,
                schedule=self.lr_scheduler,
                warmup=self.lr_warmup_steps / self.max_train_steps,
                checkpoint_every=self.checkpointing_steps * self.train_batch_size,
                keep_checkpoints=self.checkpoints_total_limit,
            ),
            **self.run_settings(),
        )


def train_dreambooth(
    config: TrainDreambooth, *, stop: StopToken | None = None, announce: Callable[[str], None] = print
) -> list[str]:
    """Make what lacks of the class pictures, train, export; returns the adapters' folders.

    Raises:
        InpaintError: unusable data, settings or base, or `stop` ended it (the message says how to go on).
    """
    subjects = config.found()
    for subject in subjects:
        announce(f"{subject.name}: {subject.prompt!r}" + (subject.class_folder and f" beside {subject.class_prompt!r}"))
    if config.with_prior_preservation:
        _make_class_pictures(config, subjects, stop)
    recipe = config.recipe(subjects)
    if len(subjects) == 1:
        return run(recipe, stop=stop, announce=announce)
    return train_subjects(recipe, pool=config.pool, together=config.together, stop=stop, announce=announce)


def _make_class_pictures(config: TrainDreambooth, subjects: Sequence[Subject], stop: StopToken | None) -> None:
    settings = PaintSettings(
        base=config.base,
        revision=config.revision,
        seed=config.seed,
        precision=config.prior_generation_precision,
        sampling=SamplingSettings(size=config.resolution),
    )
    below = len(config.class_pictures)
    prompts = {folder[below:].strip("/"): prompt for folder, prompt in classes_of(subjects)}
    with ProgressBar("class pictures") as bar:
        fill_classes(
            config.class_pictures,
            prompts,
            config.num_class_images,
            settings,
            endings=config.class_endings,
            pool=config.pool,
            on_progress=bar.show,
            stop=stop,
        )
