"""Painting a data set: a map over its rows (`inpaint.rowmap`), each actor with its own painter.

Guaranteed: one picture per usable row, its kept pixels bit for bit the input's; a row's picture does not depend on the
number of actors or on the other rows, for its seed is a function of (run seed, row id). A task's key covers everything
that its picture depends on, so that a second run knows what it need not do again.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np

from inpaint.data import quarantine
from inpaint.data.panels import ChosenPanels, Grid
from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import Manifest, Row
from inpaint.data.storage import opened
from inpaint.device import use_cores
from inpaint.errors import BadRow, InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.export.kohya import SUFFIX, read_adapter_file
from inpaint.models.adapter import Adapter, apply_adapter, check_adapter
from inpaint.models.base import DTYPES, Base, BaseInfo, load_base, read_base_info
from inpaint.models.locate import absolute_name
from inpaint.models.prompt_text import split_lora_tags
from inpaint.paint.painter import Painter
from inpaint.paint.paste import comparison, kept_pixels_changed
from inpaint.paint.photos import Photo, encode_png, read_row
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.rowmap import QUARANTINE, ActorPool, ActorResources, Item, MapReport, Result, key_of, map_rows
from inpaint.stopping import StopToken

PAINTED = "painted.jsonl"
"""Done-list of the output: id, prompt, seed, output, kept_pixels_changed, seconds, files."""
COMPARISONS = "comparisons"


@dataclass(frozen=True, kw_only=True)
class PaintSettings:
    """How all pictures of a run are painted."""

    base: str | None = None
    """A folder in diffusers format or a `.safetensors` file, its URL, a hub id, or `toy`; default: the adapter's."""
    revision: str | None = None
    """Of the base; default: the one that the adapter was trained on."""
    adapter: str | None = None
    """An adapter's folder or URL, or a `.safetensors` file of kohya, Civitai or diffusers, which needs `base`; rows of
    its categories get their token into their prompt, and `<lora:NAME:WEIGHT>` in a prompt weighs it."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    """Of the run; in a data set each row's own is made from it and the row's id."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the base's weights; fp16 is for GPUs."""
    negative_prompt: str = ""
    """What to steer away from."""
    panels: tuple[int, ...] = ()
    """Of a data set of composites: the panels to paint, whatever masks it has; 0 is at the top left, 1 beside it."""
    grid: str = "2x2"
    """Of composites: rows x columns."""

    def __post_init__(self) -> None:
        _ = self.chosen_panels

    def check_base(self) -> None:
        """Raises InpaintError where no base is named, neither here nor by an adapter's folder."""
        if self.base is None and (self.adapter is None or self.adapter.endswith(SUFFIX)):
            raise InpaintError("base: give one (toy, a folder, a hub id), or an adapter's folder, which names its own")

    @property
    def chosen_panels(self) -> ChosenPanels | None:
        """None where photos are no composites. Raises InpaintError for panels that a grid does not have."""
        grid = Grid.parse(self.grid)
        return ChosenPanels(self.panels, grid) if self.panels else None


@dataclass(frozen=True)
class PaintModels:
    """What settings name, found and checked, without the base's weights. Travels to where it is painted."""

    settings: PaintSettings
    """With nothing left open."""
    adapter: Adapter | None
    """By value: other machines need not see its folder."""
    info: BaseInfo

    def load(self, device: str) -> Base:
        """Load the base, and apply the adapter."""
        settings = self.settings
        assert settings.base is not None
        base = load_base(settings.base, revision=settings.revision, dtype=DTYPES[settings.precision])
        if self.adapter is not None:
            apply_adapter(base, self.adapter)
        return base.to(device)

    def painter(self, device: str, max_batch: int) -> Painter:
        """What paints with these."""
        return Painter(self.load(device), max_batch=max_batch)

    @property
    def adapter_name(self) -> str | None:
        """What the adapter is called in prompts: as its folder or file."""
        where = self.settings.adapter
        return None if where is None else PurePosixPath(where).name.removesuffix(SUFFIX)

    def prompt(self, prompt: str, category: str | None) -> str:
        """As the adapter was trained; a tag `<lora:NAME:WEIGHT>` that calls it weighs it, and stays for `request` to
        read. Raises InpaintError for a category that the adapter was not trained on, BadRow for tags of others."""
        text, tags = self.split(prompt)
        if self.adapter is None:
            return prompt
        card = self.adapter.card
        if tags and len(card.tokens) == 1:
            category = category or next(iter(card.tokens))
        return card.prompt(text, category) + "".join(f" <lora:{name}:{weight:g}>" for name, weight in tags)

    def split(self, prompt: str) -> tuple[str, list[tuple[str, float]]]:
        """The prompt without its tag, and the tag. Raises BadRow for tags that do not call the adapter."""
        try:
            text, tags = split_lora_tags(prompt)
        except InpaintError as error:
            raise BadRow("prompt", Reason.UNKNOWN_ADAPTER, str(error)) from error
        called = [name for name, _ in tags]
        if called and (self.adapter is None or called != [self.adapter_name]):
            there = f"there is {self.adapter_name} alone" if self.adapter_name else "give --adapter"
            detail = f"{' and '.join(called)[:80]!r} in <lora:NAME:WEIGHT>: {there}, once in a prompt"
            raise BadRow("prompt", Reason.UNKNOWN_ADAPTER, detail)
        return text, tags

    def key(self, *task: str) -> str:
        """Hash of all that a picture depends on: the settings, the weights, and what its task says."""
        settings = self.settings
        files = [] if self.adapter is None else sorted(self.adapter.card.files.items())
        weights = f"{settings.revision} {settings.precision} {files}"
        shared: list[object] = [weights, asdict(settings.sampling), settings.seed, settings.negative_prompt]
        if settings.panels:
            shared += [settings.panels, settings.grid]
        return key_of(*shared, *task)

    def request(self, photo: np.ndarray, hole: np.ndarray, prompt: str, seed: int) -> PaintRequest:
        """One hole, painted as the settings say. Args: prompt: as `prompt` gives it."""
        return PaintRequest(image=photo, hole=hole, seed=seed, **self.told(prompt))

    def told(self, prompt: str) -> dict[str, Any]:
        """What requests hold of a prompt, as `prompt` gives it, and of the settings."""
        text, tags = self.split(prompt)
        weight = tags[0][1] if tags else 1.0
        shared = {"negative_prompt": self.settings.negative_prompt, "sampling": self.settings.sampling}
        return {"prompt": text, "adapter_weight": weight, **shared}


def read_models(settings: PaintSettings) -> PaintModels:
    """Find what the settings name, and settle what they leave open. Raises InpaintError where there is no base, or one
    or an adapter that is not there, or does not fit."""
    settings.check_base()
    where, base, revision = settings.adapter, settings.base, settings.revision
    is_file = where is not None and where.endswith(SUFFIX)
    adapter = None if where is None or is_file else load_adapter(where)
    if adapter is not None:
        base, revision = base or adapter.card.base, revision or adapter.card.base_revision
    assert base is not None
    info = read_base_info(base, revision)
    if where is not None and is_file:
        with opened(where) as file:
            adapter = read_adapter_file(file.read(), PurePosixPath(where).name.removesuffix(SUFFIX), info)
    if adapter is not None:
        check_adapter(adapter, info)
    sampling = settings.sampling.of_composite() if settings.panels else settings.sampling
    decided = replace(settings, base=absolute_name(base), revision=info.revision, sampling=sampling.resolved(info))
    return PaintModels(decided, adapter, info)


def paint_manifest(
    manifest: Manifest,
    settings: PaintSettings,
    output: str,
    *,
    pool: ActorPool | None = None,
    here: ActorResources | None = None,
    quarantined: Sequence[Quarantined] = (),
    on_progress: Callable[[int, int], None] | None = None,
    stop: StopToken | None = None,
) -> MapReport:
    """Paints every row into `output` (a folder or URL): pictures, comparisons, `painted.jsonl`, `quarantine.jsonl`.

    What is there already, painted from the same row in the same way, is not painted again. Where a row has an `input`,
    that is the photo which is painted on; else its image is. Without a mask all but a random centre crop is painted.

    Args:
        pool, here, on_progress, stop: as in `inpaint.rowmap.map_rows`.
        quarantined: rows that could not be read; they are reported with those that cannot be painted.

    Raises:
        InpaintError: no usable row; settings, a base, an adapter or an output that cannot be used; stopped.
    """
    models = read_models(settings)
    items, unknown = plan_tasks(manifest, models)
    # Pictures of like aspect share a working shape, and only those share a U-Net call.
    items.sort(key=lambda item: item.value.row.height / item.value.row.width)
    pool = pool or ActorPool()
    report = map_rows(
        items,
        partial(PaintWorker, models, pool.max_batch),
        output,
        name=PAINTED,
        pool=pool,
        here=here,
        quarantined=[*quarantined, *unknown],
        on_progress=on_progress,
        stop=stop,
    )
    quarantine.check(report.quarantined, len(manifest) + len(quarantined), 1.0, f"{output}/{QUARANTINE}")
    return report


@dataclass(frozen=True, kw_only=True)
class PaintTask:
    """One row to paint; plain values, for it travels."""

    row: Row
    prompt: str
    """With the category's token in it, and the adapter's weight."""
    output: str
    """Path of the picture below the output folder; its comparison is at `comparisons/` + this."""


def plan_tasks(manifest: Manifest, models: PaintModels) -> tuple[list[Item], list[Quarantined]]:
    """A `PaintTask` for each row, in the manifest's order, and the rows whose category the adapter does not know."""
    items, unknown = [], []
    names = output_names(manifest.table["id"].to_pylist())
    for number, row in enumerate(manifest.rows(), start=1):
        try:
            prompt = models.prompt(row.prompt, row.category)
        except BadRow as error:
            unknown.append(Quarantined.of(number, row.image, error))
            continue
        except InpaintError as error:
            unknown.append(Quarantined.of(number, row.image, BadRow("category", Reason.UNKNOWN_CATEGORY, str(error))))
            continue
        task = PaintTask(row=row, prompt=prompt, output=names[row.id])
        items.append(Item(row.id, models.key(row.id, row.digest, prompt), task))
    return items, unknown


def row_seed(seed: int, row_id: str) -> int:
    """0 .. 2^63 - 1."""
    digest = hashlib.blake2b(f"{seed}/paint/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def output_names(ids: Iterable[str]) -> dict[str, str]:
    """Row id -> its picture's path below the output folder: `shoes/a.jpg` -> `shoes/a.png`. Where two rows would share
    a path (`a.jpg` beside `a.png`), both keep their whole id: `a.jpg.png`, `a.png.png`."""
    short = {row_id: _short_name(row_id) for row_id in ids}
    uses = Counter(name.casefold() for name in short.values())
    names = {i: name if uses[name.casefold()] == 1 else f"{i}.png" for i, name in short.items()}
    written = Counter(n.casefold() for name in names.values() for n in (name, f"{COMPARISONS}/{name}"))
    doubled = [i for i, name in names.items() if written[name.casefold()] > 1]
    if doubled:
        raise InpaintError(f"row {doubled[0]}: another row's picture would have the same file name; rename the image")
    return names


def _short_name(row_id: str) -> str:
    path, sign, number = row_id.rpartition("#")
    if not (sign and number.isdigit()):
        path, sign, number = row_id, "", ""
    return f"{PurePosixPath(path).with_suffix('').as_posix()}{sign}{number}.png"


class Worker:
    """What an actor paints with."""

    def __init__(self, models: PaintModels, max_batch: int, resources: ActorResources) -> None:
        # Ray sets OMP_NUM_THREADS from whole CPUs only, and torch may have read it before.
        use_cores(resources.threads)
        self.threads = ThreadPoolExecutor(resources.threads)
        self.models = models
        self.painter = models.painter(resources.device, max_batch)


class PaintWorker(Worker):
    """Paints batches of tasks; each batch is read and encoded by threads around one painting."""

    def __call__(self, tasks: Sequence[PaintTask]) -> list[Result | BadRow]:
        started = time.monotonic()
        read = list(self.threads.map(self._request, tasks))
        good = [(task, *one) for task, one in zip(tasks, read, strict=True) if not isinstance(one, BadRow)]
        pictures = self.painter.paint([request for _, _, request in good])
        seconds = round((time.monotonic() - started) / len(tasks), 3)
        results = iter(self.threads.map(partial(_result, seconds), good, pictures))
        return [outcome if isinstance(outcome, BadRow) else next(results) for outcome in read]

    def _request(self, task: PaintTask) -> tuple[Photo, PaintRequest] | BadRow:
        seed = self.models.settings.seed
        try:
            photo, hole = read_row(task.row, seed, self.models.settings.chosen_panels)
        except BadRow as error:
            # The file vanished or changed since the manifest was made.
            return error
        return photo, self.models.request(photo.image, hole, task.prompt, row_seed(seed, task.row.id))


def _result(seconds: float, painted: tuple[PaintTask, Photo, PaintRequest], picture: np.ndarray) -> Result:
    task, photo, request = painted
    return painted_result(task.output, photo, request, picture, seconds)


def painted_result(output: str, photo: Photo, request: PaintRequest, picture: np.ndarray, seconds: float) -> Result:
    """The files of a painted row, its picture at `output`, and what is said of it."""
    strip, whole = comparison(request.image, request.hole, picture), photo.painted(picture, request.hole)
    return Result(
        files={f"{COMPARISONS}/{output}": encode_png(strip), output: encode_png(whole)},
        line={
            "prompt": request.prompt,
            "seed": request.seed,
            "output": output,
            "kept_pixels_changed": kept_pixels_changed(request.image, picture, request.hole),
            "seconds": seconds,
        },
    )
