"""Pictures from text as one job: prompts in, a folder of pictures and a grid of them out."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from inpaint.data.storage import opened, write_file
from inpaint.errors import InpaintError
from inpaint.evaluate.prompts import PICTURES_PER_PROMPT, dreambench_prompts
from inpaint.export.grid import grid
from inpaint.paint.batch import PaintSettings
from inpaint.paint.generate import generate, picture_name
from inpaint.paint.photos import encode_png, read_thumbnail
from inpaint.paint.request import Start
from inpaint.progress import ProgressBar
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken

GRID = "grid.png"
LARGEST_GRID = 64
"""Pictures in it."""
CELL = 256
"""Pixels along the longer side of a picture in it, at most."""
COLUMNS = 8
"""Of the grid, at most."""


@dataclass(frozen=True, kw_only=True)
class GeneratePictures:
    """Settings of `python -m ray_jobs.generate`: a base or an adapter, and `prompt`, `prompts` or `dreambench`."""

    output: str
    """A folder or URL: `PROMPT/SEED.png`, `generated.jsonl` about them, and `grid.png`."""
    prompt: str | None = None
    """What to paint."""
    prompts: str | None = None
    """A text file in UTF-8 instead, a prompt per line; a path or URL."""
    dreambench: str | None = None
    """A subject instead, such as `sks backpack`: the 25 prompts that DreamBooth is evaluated with."""
    living: bool = False
    """Whether the subject is a living one: it then has other prompts."""
    n: int = PICTURES_PER_PROMPT
    """Pictures of each prompt, with the seeds seed, seed + 1, ..."""
    width: int | None = None
    """Pixels; default: `size`, or what the base was trained at."""
    height: int | None = None
    """The same."""
    category: str | None = None
    """Of all prompts: one that the adapter knows."""
    settings: Annotated[PaintSettings, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = PaintSettings()
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()

    def __post_init__(self) -> None:
        if [self.prompt, self.prompts, self.dreambench].count(None) != 2:
            raise InpaintError("give --prompt, --prompts (a file of them) or --dreambench")
        if self.living and self.dreambench is None:
            raise InpaintError("--living is for --dreambench")
        if self.category is not None and self.settings.adapter is None:
            raise InpaintError(f"--category {self.category}: an adapter's word; give --adapter, or leave it out")
        sampling = self.settings.sampling
        if (self.settings.panels, sampling.padding, sampling.feather, sampling.start) != ((), None, 0, Start.ORIGINAL):
            raise InpaintError("--panels, --padding, --feather and --start are for photos; leave them out")


def generate_pictures(config: GeneratePictures, *, stop: StopToken | None = None) -> str:
    """Make what is missing, and a grid of the first ones, those of a prompt side by side; on the connected Ray cluster.

    Raises:
        InpaintError: prompts, settings, a base or an adapter that cannot be used, or `stop` was requested.
    """
    prompts = _prompts(config)
    with ProgressBar("painting") as bar:
        report = generate(
            prompts,
            config.settings,
            config.output,
            n=config.n,
            height=config.height,
            width=config.width,
            category=config.category,
            pool=config.pool,
            on_progress=bar.show,
            stop=stop,
        )
        for warned in report.warned:
            bar.warn(warned.line)
    seeds = range(config.settings.seed, config.settings.seed + config.n)
    names = [picture_name(prompt, seed) for prompt in prompts for seed in seeds]
    pictures = [read_thumbnail(config.output, name, CELL, CELL) for name in names[:LARGEST_GRID]]
    write_file(config.output, GRID, encode_png(grid(pictures, columns=min(config.n, COLUMNS))))
    return f"{report.done} made, {report.skipped} were done: {config.output}/{GRID}"


def _prompts(config: GeneratePictures) -> list[str]:
    if config.prompts is not None:
        return _read_prompts(config.prompts)
    if config.dreambench is not None:
        return dreambench_prompts(config.dreambench, living=config.living)
    return [str(config.prompt)]


def _read_prompts(where: str) -> list[str]:
    """Lines that are not blank."""
    with opened(where) as file:
        data = file.read()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InpaintError(f"prompts {where}: is no UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip()]
