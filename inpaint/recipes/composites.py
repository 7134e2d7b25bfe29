"""Composites made of single pictures: a row of a CSV, or the pictures of one name in several folders, becomes one."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image, ImageColor

from inpaint.data.decode import DEFAULT_LIMITS, load_rgb
from inpaint.data.files import check_relative, read
from inpaint.data.panels import Grid
from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.sample import crop_size
from inpaint.data.sources import FolderSource
from inpaint.data.storage import absolute, open_root, opened
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.batch import output_names
from inpaint.paint.photos import encode_png
from inpaint.progress import ProgressBar
from inpaint.rowmap import QUARANTINE, ActorPool, ActorResources, Item, Result, Work, key_of, map_rows
from inpaint.stopping import StopToken

MADE = "composites.jsonl"
"""Done-list of the output."""
Files = tuple[tuple[str, str], ...]
"""Root and path of each panel's picture."""


@dataclass(frozen=True, kw_only=True)
class MakeComposites:
    """Settings of `python -m ray_jobs.make_composites`: `data` or `folders`."""

    output: str
    """Folder (or URL) for `NAME.png` beside its caption `NAME.txt`: what `train_panel_lora` takes."""
    data: str | None = None
    """A CSV with the columns panel0, panel1, ... and prompt; paths are relative to its folder."""
    folders: tuple[str, ...] = ()
    """One folder per panel instead: pictures of one name (whatever their extension) are one composite. The prompt
    is in a text file of that name, in the first folder that has one."""
    prompt: str | None = None
    """Of composites that have none of their own; unset: they go to the quarantine."""
    grid: str = "2x2"
    """Rows x columns."""
    panel_size: int | tuple[int, int] = 512
    """Side of a panel in pixels, or its height and width."""
    fit: Literal["crop", "pad"] = "crop"
    """Pictures of another shape are cropped to their centre, or shown whole on `colour`, which hides gutters where more
    than an eighth of a panel is of it."""
    gutter: int = 0
    """Pixels between panels."""
    border: int = 0
    """Pixels around all of them."""
    colour: str = "white"
    """Of gutters, borders and padding: a name or #rrggbb."""
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()

    def __post_init__(self) -> None:
        if (self.data is None) == (not self.folders):
            raise InpaintError("give --data (a CSV), or --folders (one for each panel)")
        count = Grid.parse(self.grid).count
        if self.folders and len(self.folders) != count:
            raise InpaintError(f"{len(self.folders)} folders for a grid of {self.grid}: give {count}, one per panel")
        if min(self.shape) < 8 or min(self.gutter, self.border) < 0:
            raise InpaintError(
                f"panel_size {self.panel_size}: at least 8; gutter {self.gutter}, border {self.border}: at least 0"
            )
        _ = self.rgb

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a panel."""
        return (self.panel_size, self.panel_size) if isinstance(self.panel_size, int) else self.panel_size

    @property
    def rgb(self) -> tuple[int, ...]:
        """Of `colour`. Raises InpaintError."""
        try:
            return ImageColor.getrgb(self.colour)[:3]
        except ValueError as error:
            raise InpaintError(f"colour {self.colour!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class CompositeTask:
    """One composite to make; plain values, for it travels."""

    files: Files
    prompt: str
    output: str
    """Path of the picture below the output folder; its caption is beside it."""


def make_composites(config: MakeComposites, *, stop: StopToken | None = None) -> str:
    """Make what is not there yet, on the connected cluster, and say what was done.

    Raises:
        InpaintError: no such CSV or folder, a CSV without the columns, no usable row, an output that cannot be used,
            or `stop` was requested.
    """
    bad: list[Quarantined] = []
    found = _of_csv(config, config.data, bad) if config.data else _of_folders(config, bad)
    if not found:
        shown = f": {bad[0].name}: {bad[0].reason}: {bad[0].detail}" if bad else ""
        raise InpaintError(f"{config.data or ', '.join(config.folders)}: no composite can be made{shown}")
    names = output_names([name for name, _, _ in found])
    settings = [config.grid, config.shape, config.fit, config.gutter, config.border, config.rgb]
    items = []
    for name, files, prompt in found:
        key = key_of(settings, files, prompt)
        items.append(Item(name, key, CompositeTask(files=files, prompt=prompt, output=names[name])))
    with ProgressBar("composites") as bar:
        report = map_rows(
            items,
            partial(_composer, config),
            config.output,
            name=MADE,
            pool=config.pool,
            quarantined=bad,
            on_progress=bar.show,
            stop=stop,
        )
    aside = f"{len(report.quarantined)} in {config.output}/{QUARANTINE}"
    return f"{report.done} made, {report.skipped} were there, {aside}: {config.output}"


def _of_csv(config: MakeComposites, path: str, bad: list[Quarantined]) -> list[tuple[str, Files, str]]:
    """Name, files and prompt of each usable line."""
    root, columns = absolute(path).rpartition("/")[0], [f"panel{n}" for n in range(Grid.parse(config.grid).count)]
    with opened(path) as file:
        try:
            reader = csv.DictReader(io.StringIO(file.read().decode("utf-8-sig"), newline=""))
        except UnicodeDecodeError as error:
            raise InpaintError(f"{path}: is not UTF-8: {error}") from error
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise InpaintError(f"{path}: no column {missing[0]}; a grid of {config.grid} needs {', '.join(columns)}")
    found: list[tuple[str, Files, str]] = []
    for row in reader:
        name = f"{PurePosixPath(path).stem}{reader.line_num:06d}.png"
        try:
            if None in row or None in row.values():
                raise BadRow("row", Reason.TOO_FEW_FIELDS, "as many cells as the header has; put commas in quotes")
            files = tuple((root, _path(row[column].strip(), column)) for column in columns)
            found.append((name, files, _prompt(row.get("prompt"), config)))
        except BadRow as error:
            bad.append(Quarantined.of(reader.line_num, name, error))
    return found


def _path(text: str, column: str) -> str:
    if not text:
        raise BadRow(column, Reason.EMPTY_FIELD, "write the path of the panel's picture")
    return check_relative(text, column)


def _prompt(text: str | None, config: MakeComposites) -> str:
    prompt = (text or "").strip() or config.prompt
    if not prompt:
        raise BadRow("prompt", Reason.EMPTY_PROMPT, "write what the composite shows, or give --prompt for all")
    return prompt


def _of_folders(config: MakeComposites, bad: list[Quarantined]) -> list[tuple[str, Files, str]]:
    """The same of the pictures of one name in all folders."""
    by_stem: list[dict[str, tuple[str, str, str | None]]] = []
    for folder in config.folders:
        listed = FolderSource(path=folder).listing()
        bad += listed.quarantined
        columns = (listed.table[name].to_pylist() for name in ("root", "image", "caption"))
        by_stem.append(
            {
                str(PurePosixPath(image).with_suffix("")): (root, image, caption)
                for root, image, caption in zip(*columns, strict=True)
            }
        )
    found: list[tuple[str, Files, str]] = []
    for number, stem in enumerate(sorted(set().union(*by_stem)), start=1):
        try:
            lacking = [folder for folder, own in zip(config.folders, by_stem, strict=True) if stem not in own]
            if lacking:
                raise BadRow("panel", Reason.MISSING_FILE, f"{stem} is not in {', '.join(lacking)}")
            own = [of_folder[stem] for of_folder in by_stem]
            captions = [(root, caption) for root, _, caption in own if caption]
            text = None
            if captions:
                text = read(open_root(captions[0][0]), captions[0][1], "caption", 2**16).decode(errors="replace")
            found.append((f"{stem}.png", tuple((root, image) for root, image, _ in own), _prompt(text, config)))
        except BadRow as error:
            bad.append(Quarantined.of(number, stem, error))
    return found


def _composer(config: MakeComposites, resources: ActorResources) -> Work:
    return partial(_composed, config)


def _composed(config: MakeComposites, tasks: Sequence[CompositeTask]) -> list[Result | BadRow]:
    outcomes: list[Result | BadRow] = []
    for task in tasks:
        try:
            panels = [_panel(config, number, *file) for number, file in enumerate(task.files)]
        except BadRow as error:
            outcomes.append(error)
            continue
        caption = f"{task.output.removesuffix('.png')}.txt"
        files = {task.output: encode_png(composed(config, panels)), caption: f"{task.prompt}\n".encode()}
        outcomes.append(Result(files=files, line={"panels": [path for _, path in task.files]}))
    return outcomes


def _panel(config: MakeComposites, number: int, root: str, path: str) -> Image.Image:
    """One panel's picture at its size. Raises BadRow."""
    (height, width), field = config.shape, f"panel{number}"
    data = read(open_root(root), path, field, DEFAULT_LIMITS.max_bytes)
    picture = load_rgb(data, field, DEFAULT_LIMITS, target=config.shape)
    if config.fit == "crop":
        wide, high = map(int, crop_size(*picture.size, height / width))
        left, top = (picture.width - wide) // 2, (picture.height - high) // 2
        box = (left, top, left + wide, top + high)
        return picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    scale = min(width / picture.width, height / picture.height)
    inner = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )
    padded = Image.new("RGB", (width, height), config.rgb)
    padded.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return padded


def composed(config: MakeComposites, panels: Sequence[Image.Image]) -> np.ndarray:
    """The composite, uint8 H W 3, of pictures of the panels' size in reading order."""
    grid, (height, width), step = Grid.parse(config.grid), config.shape, config.gutter
    high = grid.rows * (height + step) - step + 2 * config.border
    wide = grid.columns * (width + step) - step + 2 * config.border
    picture = Image.new("RGB", (wide, high), config.rgb)
    for number, panel in enumerate(panels):
        row, column = divmod(number, grid.columns)
        picture.paste(panel, (config.border + column * (width + step), config.border + row * (height + step)))
    return np.asarray(picture)
