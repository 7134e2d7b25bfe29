"""Photoshoot LoRA: the style of a folder of product photos, called by an activation tag, with kohya's notions.

Source: kohya-ss/sd-scripts, `train_network.py`, and the settings of its usual front end.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import pyarrow.compute as pc
import tyro

from inpaint.data.bank import Bank
from inpaint.data.captions import CaptionTags
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.sample import Crop, ReadSettings
from inpaint.data.sources import FolderNames, FolderSource
from inpaint.errors import InpaintError
from inpaint.models.adapter import AdapterCard, check_name
from inpaint.models.lora import LoraSettings
from inpaint.recipes.lora import MANY_HOLES
from inpaint.recipes.lora_command import LoraCommand
from inpaint.recipes.picture_lora import PictureLora
from inpaint.stopping import StopToken
from inpaint.train.recipe import Trained
from inpaint.train.run import run
from inpaint.train.settings import RateSchedule, may_change


@dataclass(frozen=True, kw_only=True)
class PhotoshootLora(PictureLora):
    """A LoRA on photos and their captions. `data` is a folder of images, each with its caption in a text file of its
    name; below `6_handbag` they come six times in an epoch, and without a caption are called `handbag`."""

    title = "photoshoot"

    name: str = may_change("photoshoot")
    """Of the adapter."""
    captions: CaptionTags = CaptionTags()
    """How captions are told; the activation tag calls what was learned."""
    repeats: int = 1
    """How often images come in an epoch whose folders' names do not say it."""
    kohya: bool = may_change(True)
    checkpoint_epochs: float | None = may_change(None)
    """Epochs between checkpoints; where given, it replaces `train.checkpoint_every`."""

    def source(self, data: str) -> FolderSource:
        return FolderSource(path=data, folder_names=FolderNames.REPEATS, repeats=self.repeats)

    def read_settings(self) -> ReadSettings:
        return replace(super().read_settings(), caption_tags=self.captions)

    def check(self) -> None:
        super().check()
        check_name(self.name)

    def bind(self, rows: Manifest) -> Self:
        bound = super().bind(rows)
        if self.checkpoint_epochs is None:
            return bound
        samples = self.checkpoint_epochs * Plan.of(rows, self.train.seed).samples_per_epoch
        return replace(bound, train=replace(bound.train, checkpoint_every=max(1, round(samples))))

    def check_rows(self, rows: Manifest) -> None:
        super().check_rows(rows)
        if self.captions.activation:
            return
        untold = np.flatnonzero(pc.equal(pc.utf8_trim_whitespace(rows.table["prompt"]), "").to_numpy())
        if len(untold):
            raise InpaintError(
                f"{len(untold)} images have no caption (the first: {rows.table['id'][int(untold[0])]}), and nothing "
                "would be told of them: give an activation tag, write captions (`x.txt` beside `x.jpg`), or put the "
                "images into a folder such as `6_handbag`"
            )

    def parts(self, rows: Manifest) -> dict[str, Manifest]:
        return {self.name: rows}

    def shown(self, rows: Manifest) -> Manifest:
        """With the activation tag in their prompts."""
        read = self.read_settings()
        return Manifest.of(replace(row, prompt=read.prompt_of(row)) for row in rows.rows())

    def card(self, trained: Trained) -> AdapterCard:
        """Its tag is what a category's token is elsewhere, with no embedding of its own."""
        card = super().card(trained)
        if not self.captions.activation:
            return card
        return replace(card, tokens={self.name: self.captions.activation}, prompt_format="{token}, {prompt}")


@dataclass(frozen=True, kw_only=True)
class TrainPhotoshootLora(LoraCommand):
    """Settings of `python -m ray_jobs.train_photoshoot_lora`; kohya's names for them are taken, too."""

    data_dir: Annotated[str, tyro.conf.arg(aliases=["--train-data-dir"])]
    """Folder (or URL) of photos: `a.jpg` and its caption `a.txt`. Below `6_handbag` they come six times per epoch."""
    output_dir: str
    """Folder (or URL) of the run; the adapter is written to its `adapters/NAME/`."""
    tag: str = ""
    """Activation tag: begins every caption, and calls the style in prompts; a word that means nothing yet."""
    output_name: str | None = None
    """Of the adapter; unset: the tag and the number of epochs, such as `ppzocketv2-10`."""
    base: Annotated[str, tyro.conf.arg(aliases=["--pretrained-model-name-or-path"])] = (
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    """SD 1.5, SDXL, or their inpainting bases: a folder, a hub id, a `.safetensors` file, `toy`."""
    revision: str | None = None
    """Of a hub id: branch, tag or commit."""
    repeats: int = 1
    """How often photos come in an epoch whose folders' names do not say it."""
    max_train_epochs: float = 10
    """Passes over the photos with their repeats."""
    train_batch_size: int = 2
    """Photos per optimizer step, over all workers."""
    resolution: int | None = None
    """Side of the training images in pixels; unset: the base's own, 512 of SD 1.5."""
    aspect_buckets: bool = False
    """See each photo in the shape, of several of about this area, that cuts least off it, instead of all in one; the
    photos of a step are of one shape."""
    random_crop: bool = False
    """Use a random part of a photo of another shape; else its middle."""
    flip_aug: bool = False
    """Mirror half of the samples left to right."""
    bank: Bank = MANY_HOLES
    shuffle_caption: bool = False
    """Tell what stands between a caption's commas in another order each time."""
    keep_tokens: int = 1
    """Tags at a caption's beginning that neither move nor are left out, the activation tag among them."""
    caption_dropout_rate: float = 0.05
    """Share of samples with an empty prompt, for classifier-free guidance."""
    caption_tag_dropout_rate: float = 0.0
    """Share of the tags that are left out, but for those of `keep_tokens`."""
    random_holes: bool | None = None
    """Paint random holes in training instead of whole pictures; unset: on bases that are made for inpainting."""
    network_dim: int = 16
    """The LoRA's rank."""
    network_alpha: float = 16
    """Its update is scaled by network_alpha / network_dim."""
    network_dropout: float = 0.0
    unet_lr: float = 1e-4
    """Learning rate of the U-Net's LoRA; 0: it gets none."""
    text_encoder_lr: float = 5e-5
    """Of the text encoders'; 0: they get none."""
    lr_scheduler: RateSchedule = RateSchedule.COSINE
    lr_warmup: float = 0.05
    """Share of the run over which learning rates rise from zero."""
    max_micro_batch: int = 2
    """Most samples per forward on one worker; what remains of the batch is accumulated."""
    save_every_n_epochs: float = 1
    """Epochs between checkpoints."""
    resume: bool = False
    """Go on with the run in `output_dir`, exactly."""
    kohya: bool = True
    """Write the adapter for A1111 and ComfyUI, too: one file in its folder `kohya`."""

    def __post_init__(self) -> None:
        for name in ("max_train_epochs", "save_every_n_epochs"):
            if getattr(self, name) <= 0:
                raise InpaintError(f"{name} {getattr(self, name)}: give more than 0")
        if min(self.unet_lr, self.text_encoder_lr) < 0 or not self.unet_lr + self.text_encoder_lr:
            raise InpaintError(
                f"unet_lr {self.unet_lr}, text_encoder_lr {self.text_encoder_lr}: give learning rates; 0 for the one "
                "that shall not be trained"
            )
        check_name(self.name)

    @property
    def name(self) -> str:
        """Of the adapter, as it is called in `<lora:NAME:WEIGHT>`."""
        if self.output_name is not None:
            return self.output_name
        words = re.sub(r"[^A-Za-z0-9_.-]+", "-", self.tag).strip("-") or PhotoshootLora.title
        return f"{words}-{self.max_train_epochs:g}"

    def recipe(self) -> PhotoshootLora:
        """What is run."""
        return PhotoshootLora(
            data=self.data_dir,
            output=self.output_dir,
            name=self.name,
            base=self.base,
            revision=self.revision,
            resolution=self.resolution,
            aspect_buckets=self.aspect_buckets,
            repeats=self.repeats,
            checkpoint_epochs=self.save_every_n_epochs,
            captions=CaptionTags(
                activation=self.tag,
                keep=self.keep_tokens,
                shuffle=self.shuffle_caption,
                dropout=self.caption_tag_dropout_rate,
            ),
            caption_dropout=self.caption_dropout_rate,
            random_holes=self.random_holes,
            crop=Crop.RANDOM if self.random_crop else Crop.CENTRE,
            flip_probability=0.5 if self.flip_aug else 0.0,
            unet_learning_rate=self.unet_lr,
            text_encoder_learning_rate=self.text_encoder_lr,
            resume=self.resume,
            lora=LoraSettings(
                rank=self.network_dim,
                alpha=self.network_alpha,
                dropout=self.network_dropout,
                unet=self.unet_lr > 0,
                text_encoder=self.text_encoder_lr > 0,
            ),
            train=self.train_settings(
                epochs=self.max_train_epochs,
                global_batch=self.train_batch_size,
                schedule=self.lr_scheduler,
                warmup=self.lr_warmup,
            ),
            **self.run_settings(),
        )


def train_photoshoot(
    config: TrainPhotoshootLora, *, stop: StopToken | None = None, announce: Callable[[str], None] = print
) -> str:
    """Train; returns the adapter's folder. Raises InpaintError, as `inpaint.run`."""
    (folder,) = run(config.recipe(), stop=stop, announce=announce)
    return folder
