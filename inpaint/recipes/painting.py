"""Painting as one job: a data set or one photo, with a base (and an adapter) or with a model of one's own."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from inpaint.data.sources import CsvSource, FolderSource, Source
from inpaint.device import choose_device
from inpaint.diffusion.ddpm import PixelSampling
from inpaint.errors import InpaintError
from inpaint.paint.batch import PaintSettings, paint_manifest, read_models
from inpaint.paint.photos import Fill, check_png_name, comparison_name, read_photo, write_pictures
from inpaint.progress import ProgressBar
from inpaint.recipes.data_set import in_words, read_rows
from inpaint.recipes.inpainting import inpaint_image
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken


@dataclass(frozen=True, kw_only=True)
class PaintPhotos:
    """Settings of `python -m ray_jobs.paint`: `data`, or `image` and `mask`; a base or an adapter, or `model`."""

    output: str
    """Of `data`: a folder or URL. Of a photo: a PNG; its comparison goes to `NAME_comparison.png`."""
    data: str | None = None
    """A CSV (`input, mask, output, prompt, category`; white in a mask = paint) or a folder of images; a path or URL."""
    image: str | None = None
    """One photo instead."""
    mask: str | None = None
    """Of the photo's size: white = paint; with `model` black = fill, white = keep."""
    prompt: str = ""
    """Of the photo, or of a folder's images without a text file beside them."""
    category: str | None = None
    """Of the photo, or of a folder's images: one that the adapter knows."""
    settings: Annotated[PaintSettings, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = PaintSettings()
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()
    model: str | None = None
    """The output of `python -m ray_jobs.train_ddpm`, which fills one photo without text. Of the other settings it takes
    `seed`, `guidance_scale`, `feather`, and alone `label`, `output_size`, `display_reverse` and `sampling.*`."""
    label: str = ""
    """Name of the class that shall be painted, where the model has classes."""
    output_size: int | None = None
    """Longer side of the result in pixels; unset: the photo's own."""
    display_reverse: str | None = None
    """A PNG for ten pictures of the reverse process."""
    sampling: PixelSampling = field(default_factory=PixelSampling)

    def __post_init__(self) -> None:
        if (self.data is None) == (self.image is None) or (self.image is None) != (self.mask is None):
            raise InpaintError("give --data (a CSV or a folder), or --image with --mask")
        if self.model is not None and self.data is not None:
            raise InpaintError("--model fills one photo: give --image with --mask")
        if self.image is not None:
            check_png_name(self.output)
        # What would be ignored is refused.
        if self.image is not None and self.settings.panels:
            raise InpaintError("--panels are for --data; `python -m ray_jobs.paint_panels` paints one composite's")
        if self.image is not None and self.pool != ActorPool():
            raise InpaintError("--actors, --cpus-per-actor, --gpus-per-actor and --max-batch are for --data")
        if self.model is None:
            if (self.label, self.output_size, self.display_reverse, self.sampling) != ("", None, None, PixelSampling()):
                raise InpaintError("--label, --output-size, --display-reverse and --sampling.* need --model")
            if self.category is not None and self.settings.adapter is None:
                raise InpaintError(f"--category {self.category}: an adapter's word; give --adapter, or leave it out")
            if self.is_csv and (self.prompt, self.category) != ("", None):
                raise InpaintError("--prompt and --category are a photo's or a folder's: a CSV has columns for them")
            return
        shared = replace(self.settings.sampling, guidance_scale=None, feather=0)
        if (self.prompt, self.category, replace(self.settings, seed=0, sampling=shared)) != ("", None, PaintSettings()):
            raise InpaintError(
                "--model takes no text and no base: give --seed, --guidance-scale, --feather, --label, --output-size, "
                "--display-reverse and --sampling.* alone"
            )

    @property
    def is_csv(self) -> bool:
        """Whether `data` is one."""
        return self.data is not None and self.data.lower().endswith(".csv")


def paint_photos(config: PaintPhotos, *, stop: StopToken | None = None) -> str:
    """Paint, and say what was done. Starts or joins a Ray cluster for a data set, and does without for one photo.

    Raises:
        InpaintError: files, settings, a base, an adapter or a model that cannot be used, or `stop` was requested.
    """
    if config.data is not None:
        return _paint_data(config, config.data, stop)
    assert config.image is not None and config.mask is not None
    if config.model is not None:
        _fill_photo(config, config.model, config.image, config.mask)
    else:
        _paint_photo(config, config.image, config.mask)
    return comparison_name(config.output)


def _paint_data(config: PaintPhotos, data: str, stop: StopToken | None) -> str:
    folder = FolderSource(path=data, prompt=config.prompt, category=config.category)
    source = CsvSource(path=data) if config.is_csv else folder
    return paint_source(source, config.settings, config.output, pool=config.pool, stop=stop)


def paint_source(
    source: Source, settings: PaintSettings, output: str, *, pool: ActorPool, stop: StopToken | None
) -> str:
    """Paint a data set into a folder or URL, and say what was done. Raises InpaintError, as `paint_photos`."""
    from inpaint import cluster

    read_models(settings)  # what is wrong with them is told before the files are read
    cluster.connect()
    manifest, bad = read_rows(source, output, stop)
    with ProgressBar("painting") as bar:
        report = paint_manifest(manifest, settings, output, pool=pool, quarantined=bad, on_progress=bar.show, stop=stop)
        for warned in report.warned:
            bar.warn(warned.line)
    return in_words(report, "painted", output)


def _paint_photo(config: PaintPhotos, image: str, mask: str) -> None:
    photo, hole = read_photo(image, mask, Fill.WHITE)
    models = read_models(config.settings)
    request = models.request(photo.image, hole, models.prompt(config.prompt, config.category), models.settings.seed)
    (picture,) = models.painter(str(choose_device()), max_batch=1).paint([request])
    write_pictures(config.output, photo, hole, picture)


def _fill_photo(config: PaintPhotos, model: str, image: str, mask: str) -> None:
    given = config.settings.sampling
    with ProgressBar("painting") as bar:
        inpaint_image(
            image,
            mask,
            model,
            save_result=config.output,
            output_size=config.output_size,
            sampling=config.sampling,
            label=config.label,
            guidance_scale=1.0 if given.guidance_scale is None else given.guidance_scale,
            feather=given.feather,
            seed=config.settings.seed,
            display_reverse=config.display_reverse,
            on_step=bar.show,
        )
