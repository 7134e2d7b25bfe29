"""Painting panels of composites as one job: one composite, several pictures of it, or a data set."""

import secrets
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated

import tyro

from inpaint.data.panels import ChosenPanels, Grid
from inpaint.data.sources import CsvSource, FolderSource
from inpaint.device import choose_device
from inpaint.errors import InpaintError
from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.paste import comparison
from inpaint.paint.photos import read_composite, write_png
from inpaint.paint.request import WHOLE, SamplingSettings
from inpaint.progress import ProgressBar
from inpaint.recipes.painting import paint_source
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken


@dataclass(frozen=True, kw_only=True)
class PaintPanels:
    """Settings of `python -m ray_jobs.paint_panels`: `input_image` and `prompt`, or `data`."""

    lora_path: str | None = None
    """An adapter's folder or URL, as `train_panel_lora` writes it; unset: the base alone."""
    input_image: str | None = None
    """One composite; what lies in the panels to paint is not looked at."""
    prompt: str = ""
    """Of the composite, or of a folder's images without a text file beside them."""
    data: str | None = None
    """Many composites instead: a folder, each with its prompt in a text file of its name, or a CSV (`output,prompt`);
    a path or URL."""
    panels_to_inpaint: tuple[int, ...] = (2, 3)
    """0 is at the top left, then in reading order."""
    grid: str = "2x2"
    """Rows x columns of a composite."""
    output_dir: str = "inference_output"
    """Folder (or URL) for the pictures: `NAME.png`, or `NAME_0.png`, `NAME_1.png`, ..."""
    negative_prompt: str = ""
    """What to steer away from."""
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    """Up to 1 there is none."""
    num_images: int = 1
    """Pictures of the composite, with the seeds seed, seed + 1, ..."""
    seed: int | None = None
    """Unset: any; it is said at the end."""
    use_gradient_mask: bool = False
    """Fade from what was in the painted panels to the painting, from their edges inwards."""
    gradient_width: int = 20
    """Of this transition, in pixels of the composite."""
    strength: float = 1.0
    """1 forgets what was in the panels, less keeps its layout."""
    base_model: str | None = None
    """A folder, a hub id, a `.safetensors` file, `toy-sdxl`; unset: the one that the adapter was trained on."""
    save_comparison: bool = False
    """Write `NAME_comparison.png` beside the pictures: the input, its hole, the result. Of data they always are."""
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()

    def __post_init__(self) -> None:
        if (self.data is None) == (self.input_image is None):
            raise InpaintError("give --input-image (one composite), or --data (a folder or a CSV)")
        if self.lora_path is None and self.base_model is None:
            raise InpaintError("give --lora-path (an adapter names its base), or --base-model")
        if self.gradient_width < 1 or self.num_images < 1:
            raise InpaintError(f"gradient_width {self.gradient_width}, num_images {self.num_images}: give at least 1")
        # What would be ignored is refused.
        if self.input_image is not None and self.pool != ActorPool():
            raise InpaintError("--actors, --cpus-per-actor, --gpus-per-actor and --max-batch are for --data")
        if self.data is not None and (self.num_images, self.save_comparison) != (1, False):
            raise InpaintError(
                "--num-images and --save-comparison are for --input-image: of --data, each composite "
                "becomes one picture, and its comparison is always written"
            )
        _ = self.chosen

    @property
    def chosen(self) -> ChosenPanels:
        """The panels to paint."""
        return ChosenPanels(self.panels_to_inpaint, Grid.parse(self.grid))

    def settings(self, seed: int) -> PaintSettings:
        """As the painter has them."""
        return PaintSettings(
            base=self.base_model,
            adapter=self.lora_path,
            negative_prompt=self.negative_prompt,
            seed=seed,
            sampling=SamplingSettings(
                steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                strength=self.strength,
                padding=WHOLE,
                feather=self.gradient_width if self.use_gradient_mask else 0,
            ),
        )


def paint_panels(config: PaintPanels, *, stop: StopToken | None = None) -> str:
    """Paint, and say what was done. Starts or joins a Ray cluster for a data set, and does without for one composite.

    Raises:
        InpaintError: files, panels, settings, a base or an adapter that cannot be used, or `stop` was requested.
    """
    seed = secrets.randbelow(2**32) if config.seed is None else config.seed
    settings = config.settings(seed)
    if config.data is None:
        return _paint_one(config, settings, stop or StopToken())
    is_csv = config.data.lower().endswith(".csv")
    if is_csv and config.prompt:
        raise InpaintError("--prompt is a composite's or a folder's: a CSV has a column for it")
    source = CsvSource(path=config.data) if is_csv else FolderSource(path=config.data, prompt=config.prompt)
    settings = replace(settings, panels=config.panels_to_inpaint, grid=config.grid)
    return f"{paint_source(source, settings, config.output_dir, pool=config.pool, stop=stop)} (seed {seed})"


def _paint_one(config: PaintPanels, settings: PaintSettings, stop: StopToken) -> str:
    assert config.input_image is not None
    models = read_models(settings)
    photo, hole = read_composite(config.input_image, config.chosen)
    painter = models.painter(str(choose_device()), max_batch=1)
    prompt, stem = models.prompt(config.prompt, None), PurePosixPath(config.input_image).stem
    written = []
    with ProgressBar("painting") as bar:
        for number in range(config.num_images):
            stop.check()
            request = models.request(photo.image, hole, prompt, settings.seed + number)
            (picture,) = painter.paint([request])
            name = f"{config.output_dir}/{stem}" + (f"_{number}" if config.num_images > 1 else "")
            write_png(f"{name}.png", photo.painted(picture, hole))
            if config.save_comparison:
                write_png(f"{name}_comparison.png", comparison(photo.image, hole, picture))
            written.append(f"{name}.png")
            bar.show(number + 1, config.num_images)
    return f"{', '.join(written)} (seed {settings.seed})"
