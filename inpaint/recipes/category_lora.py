"""Category LoRA: a background style per product category, the product untouched."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

import torch

from inpaint.data import quarantine
from inpaint.data.holes import Feathered, Grown, OwnMask, Sometimes
from inpaint.data.pipeline import read_manifest
from inpaint.data.rows import Manifest
from inpaint.data.sample import Crop, ReadSettings
from inpaint.data.sources import CsvSource
from inpaint.errors import InpaintError
from inpaint.models.adapter import Adapter, AdapterCard, adapter_from
from inpaint.models.base import Base, load_base
from inpaint.models.info import read_base_info
from inpaint.models.locate import absolute_name
from inpaint.models.lora import LoraSettings, inject_lora, lora_parameters
from inpaint.models.tokens import add_tokens, token_parameters
from inpaint.progress import ProgressBar
from inpaint.train.checkpoint import CheckpointStore, Progress
from inpaint.train.latent import LatentInpainting, LossSettings
from inpaint.train.objective import AUTOCAST, ParameterGroup
from inpaint.train.settings import Precision, TrainSettings
from inpaint.train.trainer import Workload, check_stop, fit

PROMPT_FORMAT = "{token} background, {prompt}"


class Adapters(StrEnum):
    """How many adapters are trained."""

    SHARED = "shared"
    PER_CATEGORY = "per-category"


@dataclass(frozen=True, kw_only=True)
class CategoryLora:
    """Settings of `python -m ray_jobs.train_category_lora`."""

    data: str
    """CSV with the columns input, mask, output, prompt, category: a path or an object-store URL."""
    output: str
    """Folder or URL of the run: checkpoints, logs, quarantine; adapters go to its `adapters/`."""
    base: str = "toy"
    """Base in diffusers format: a folder, a hub id, or `toy`."""
    revision: str | None = None
    """Of a hub id: branch, tag or commit."""
    categories: tuple[str, ...] = ()
    """Categories that may occur in the CSV; rows of others go to the quarantine. Empty: any."""
    init_words: Mapping[str, str] = field(default_factory=dict)
    """Words whose mean embedding starts a category's token; `product` where not given."""
    adapters: Adapters = Adapters.SHARED
    """One adapter for all categories, or one for each, trained side by side where the cluster has room."""
    resolution: int | None = None
    """Side of the training images in pixels; unset: the base's own."""
    crop: Crop = Crop.CENTRE
    """Which square of an oblong image is used."""
    flip_probability: float = 0.5
    """Share of samples mirrored left to right; 0 where products carry text."""
    caption_dropout: float = 0.05
    """Share of samples with an empty prompt, for classifier-free guidance."""
    full_hole_probability: float = 0.25
    """Share of samples whose hole is the whole image."""
    max_bad_fraction: float = 0.05
    """The job stops before training when more of the rows than this cannot be used."""
    lora: LoraSettings = LoraSettings()
    loss: LossSettings = LossSettings()
    unet_learning_rate: float = 1e-4
    text_encoder_learning_rate: float = 5e-5
    token_learning_rate: float = 1e-3
    card_samples: int = 8
    """Rows painted for the adapter's model card; 0: none."""
    train: TrainSettings = TrainSettings()
    resume: bool = False
    """Continue the run in `output`, exactly: on the manifest and settings it began with."""


def preset(name: str, *, data: str, output: str) -> CategoryLora:
    """The documented defaults for a kind of base.

    toy: three minutes per category on two cores. sd15: kohya's and diffusers' usual rank and rates for SD 1.5. sdxl:
    the same for 1024 px.

    Raises:
        InpaintError: an unknown name.
    """
    if name == "toy":
        return CategoryLora(
            data=data,
            output=output,
            unet_learning_rate=2e-3,
            text_encoder_learning_rate=2e-3,
            token_learning_rate=1e-2,
            caption_dropout=0.2,
            lora=LoraSettings(rank=6),
            loss=LossSettings(debiased=True),
            train=TrainSettings(samples=7200, global_batch=16, micro_batch=8, workers=2, checkpoint_every=2400),
        )
    if name == "sd15":
        return CategoryLora(
            data=data,
            output=output,
            base="stable-diffusion-v1-5/stable-diffusion-inpainting",
            lora=LoraSettings(rank=16),
            train=TrainSettings(samples=24_000, global_batch=16, micro_batch=4, precision=Precision.BF16),
        )
    if name == "sdxl":
        return CategoryLora(
            data=data,
            output=output,
            base="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
            lora=LoraSettings(rank=16),
            train=TrainSettings(
                samples=24_000, global_batch=16, micro_batch=2, precision=Precision.BF16, gradient_checkpointing=True
            ),
        )
    raise InpaintError(f"preset {name!r}: give toy, sd15 or sdxl")


def read_data(config: CategoryLora) -> Manifest:
    """The usable rows of the CSV; the others are written to the output's `data/quarantine.jsonl`.

    Raises:
        InpaintError: the CSV is unusable, or too many rows are in the quarantine.
    """
    source = CsvSource(path=config.data, categories=config.categories or None, category_required=True)
    with ProgressBar("checking rows") as bar:

        def show(done: int, total: int) -> None:
            check_stop()
            bar.show(done, total)

        listed = f"{config.output}/data/quarantine.jsonl"
        manifest, bad = read_manifest(
            source, max_bad_fraction=config.max_bad_fraction, quarantine=listed, progress=show
        )
        if bad:
            bar.warn(quarantine.table(bad, len(bad) + len(manifest)))
    return manifest


def runs_of(config: CategoryLora, manifest: Manifest) -> dict[str, tuple[CategoryLora, Manifest]]:
    """The trainings to be run, by adapter name: one, or one per category with that category's rows."""
    categories = list(manifest.categories)
    _check_categories(categories, manifest)
    if config.adapters is Adapters.SHARED:
        return {"shared" if len(categories) > 1 else categories[0]: (config, manifest)}
    return {
        category: (replace(config, output=f"{config.output}/{category}"), manifest.select(category))
        for category in categories
    }


def _check_categories(categories: list[str], manifest: Manifest) -> None:
    """A category is a token, which is found wherever its letters stand, and the name of a folder."""
    for category in categories:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", category) or category in ("adapters", "shared"):
            raise InpaintError(f"category {category!r}: name it with letters, digits, '_', '-' and '.', as in CDP_FOOD")
        prompt = next((row.prompt for row in manifest.rows() if category.lower() in row.prompt.lower()), None)
        if prompt is not None:
            raise InpaintError(
                f"category {category!r} becomes a token and would be found in the prompt {prompt!r}: give it a name "
                f"that is no word, such as CDP_{category.upper()}"
            )


def workload_of(name: str, config: CategoryLora, manifest: Manifest) -> Workload:
    """One training as the loop takes it."""
    facts = read_base_info(config.base, config.revision)
    # Workers load exactly what the identity says, and from another directory.
    config = replace(config, base=absolute_name(config.base), revision=facts.revision)
    tokens = {category: category for category in manifest.categories}
    words = {token: config.init_words.get(category, "product") for category, token in tokens.items()}
    read = ReadSettings(
        height=config.resolution or facts.default_size,
        width=config.resolution or facts.default_size,
        crop=config.crop,
        flip_probability=config.flip_probability,
        hole=Sometimes(Feathered(Grown(OwnMask())), probability=config.full_hole_probability),
        caption_dropout=config.caption_dropout,
        prompt_format=PROMPT_FORMAT,
        tokens=tokens,
    )
    rates = (config.unet_learning_rate, config.text_encoder_learning_rate, config.token_learning_rate)
    identity = {"base": facts.revision, "lora": vars(config.lora), "loss": vars(config.loss), "rates": rates}
    return Workload(
        name=name,
        manifest=manifest,
        read=read,
        build=partial(build_category_lora, config=config, words=words),
        settings=config.train,
        identity=identity,
    )


def build_category_lora(
    device: torch.device, *, config: CategoryLora, words: Mapping[str, str], base: Base | None = None
) -> LatentInpainting:
    """The objective: LoRA on U-Net and text encoders, and the new tokens' rows."""
    settings = config.train
    if base is None:
        dtype = AUTOCAST.get(settings.precision, torch.float32)
        base = load_base(config.base, revision=config.revision, dtype=dtype)
    inject_lora(base, config.lora, seed=settings.seed)
    add_tokens(base, words)
    base.to(device)
    base.unet.to(memory_format=torch.channels_last)
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
        for encoder in base.text_encoders:
            encoder.gradient_checkpointing_enable()
    lora = lora_parameters(base)
    unet = {n: p for n, p in lora.items() if n.startswith("unet.")}
    text = {n: p for n, p in lora.items() if not n.startswith("unet.")}
    groups = [
        ParameterGroup("unet", config.unet_learning_rate, unet),
        ParameterGroup("text_encoder", config.text_encoder_learning_rate, text),
        ParameterGroup("tokens", config.token_learning_rate, token_parameters(base)),
    ]
    groups = [group for group in groups if group.parameters]
    return LatentInpainting(base, groups, seed=settings.seed, loss=config.loss, precision=settings.precision)


def train_one(
    name: str, config: CategoryLora, manifest: Manifest, *, side_by_side: int = 1
) -> tuple[Progress, Adapter | None]:
    """Train one adapter; None where SIGTERM ended it before its end."""
    workload = workload_of(name, config, manifest)
    progress = fit(workload, config.output, resume=config.resume, side_by_side=side_by_side)
    if progress.samples < config.train.total_samples(len(manifest)):
        return progress, None
    loaded = CheckpointStore(f"{config.output}/checkpoints").latest()
    assert loaded is not None
    tensors, progress = loaded
    card = AdapterCard(
        base=config.base,
        base_revision=str(workload.identity["base"]),
        tokens=dict(workload.read.tokens),
        prompt_format=PROMPT_FORMAT,
        resolution=workload.read.width,
        rank=config.lora.rank,
        alpha=config.lora.scaled_alpha,
        samples=progress.samples,
        manifest=progress.manifest,
        metrics=progress.metrics,
    )
    return progress, adapter_from(tensors.get("ema", tensors["trained"]), card)
