"""What a painting run does, decided before anything is painted: its settings, the models they name, its tasks. No Ray.

A task's seed is a function of (run seed, row id), so a row's picture does not depend on which other rows there are.
Its `key` covers everything that its picture depends on, so that a second run knows what it need not do again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal

from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import Manifest, Row
from inpaint.data.storage import local_copy
from inpaint.errors import BadRow, InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.adapter import Adapter, AdapterCard, apply_adapter, check_adapter
from inpaint.models.base import DTYPES, load_base, read_base_info
from inpaint.models.locate import absolute_name
from inpaint.paint.painter import Painter
from inpaint.paint.request import SamplingSettings

COMPARISONS = "comparisons"


@dataclass(frozen=True, kw_only=True)
class PaintSettings:
    """How all pictures of a run are painted."""

    base: str | None = None
    """A folder in diffusers format or a `.safetensors` file, its URL, a hub id, or `toy`; default: the adapter's."""
    revision: str | None = None
    """Of the base; default: the one that the adapter was trained on."""
    adapter: str | None = None
    """An adapter's folder or URL; rows with a category then get its token into their prompt."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    """Of the run; in a data set each row's own is made from it and the row's id."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the base's weights; fp16 is for GPUs."""
    negative_prompt: str = ""
    """What to steer away from."""


@dataclass(frozen=True)
class PaintModels:
    """What settings name, found and checked, without the base's weights. Travels to where it is painted."""

    settings: PaintSettings
    """With nothing left open."""
    adapter: Adapter | None
    """By value: other machines need not see its folder."""

    @property
    def identity(self) -> str:
        """The same string means the same weights."""
        files = [] if self.adapter is None else sorted(self.adapter.card.files.items())
        return f"{self.settings.revision} {self.settings.precision} {files}"

    def painter(self, device: str, max_batch: int) -> Painter:
        """Load the base, and apply the adapter."""
        settings = self.settings
        assert settings.base is not None
        with local_copy(settings.base) as name:
            base = load_base(name, revision=settings.revision, dtype=DTYPES[settings.precision])
        if self.adapter is not None:
            apply_adapter(base, self.adapter)
        return Painter(base, device=device, max_batch=max_batch)


def read_models(settings: PaintSettings) -> PaintModels:
    """Find what the settings name, and settle what they leave open.

    Raises:
        InpaintError: no base, or a base or an adapter that is not there, or does not fit.
    """
    adapter = None if settings.adapter is None else load_adapter(settings.adapter)
    base, revision = settings.base, settings.revision
    if adapter is not None:
        base, revision = base or adapter.card.base, revision or adapter.card.base_revision
    if base is None:
        raise InpaintError("base: give one (toy, a folder, a hub id), or an adapter, which names its own")
    with local_copy(base) as name:
        info = read_base_info(name, revision)
    if adapter is not None:
        check_adapter(adapter, info)
    decided = replace(
        settings, base=absolute_name(base), revision=info.revision, sampling=settings.sampling.resolved(info)
    )
    return PaintModels(decided, adapter)


@dataclass(frozen=True, kw_only=True)
class PaintTask:
    """One row to paint; plain values, for it travels."""

    row: Row
    prompt: str
    """With the category's token in it."""
    seed: int
    output: str
    """Path of the picture below the output folder; its comparison is at `comparisons/` + this."""
    key: str
    """sha256 of all that the picture depends on."""


def plan_tasks(manifest: Manifest, models: PaintModels) -> tuple[list[PaintTask], list[Quarantined]]:
    """A task for each row, in the manifest's order, and the rows whose category the adapter does not know."""
    tasks, unknown = [], []
    settings, card = models.settings, None if models.adapter is None else models.adapter.card
    names = output_names(manifest.table["id"].to_pylist())
    shared = [models.identity, asdict(settings.sampling), settings.seed, settings.negative_prompt]
    for number, row in enumerate(manifest.rows(), start=1):
        try:
            prompt = format_prompt(row.prompt, row.category, card)
        except BadRow as error:
            unknown.append(Quarantined.of(number, row.image, error))
            continue
        text = json.dumps([*shared, row.id, row.digest, prompt], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        seed = row_seed(settings.seed, row.id)
        tasks.append(PaintTask(row=row, prompt=prompt, seed=seed, output=names[row.id], key=key))
    return tasks, unknown


def format_prompt(prompt: str, category: str | None, adapter: AdapterCard | None) -> str:
    """`a red box` -> `<CDP_FOOD> background, a red box`; as written without an adapter or without a category.

    Raises:
        BadRow: a category that the adapter was not trained on.
    """
    if adapter is None:
        return prompt
    if category is not None and adapter.tokens and category not in adapter.tokens:
        known = ", ".join(sorted(adapter.tokens))
        raise BadRow("category", Reason.UNKNOWN_CATEGORY, f"{category!r}: the adapter has {known}")
    return adapter.prompt(prompt, category)


def row_seed(seed: int, row_id: str) -> int:
    """0 .. 2^63 - 1."""
    digest = hashlib.blake2b(f"{seed}/paint/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def output_names(ids: Iterable[str]) -> dict[str, str]:
    """Row id -> its picture's path below the output folder: `shoes/a.jpg` -> `shoes/a.png`.

    Where two rows would share a path (`a.jpg` beside `a.png`), both keep their whole id: `a.jpg.png`, `a.png.png`.
    """
    short = {row_id: _short_name(row_id) for row_id in ids}
    uses = Counter(name.casefold() for name in short.values())
    names = {i: name if uses[name.casefold()] == 1 else f"{i}.png" for i, name in short.items()}
    written = Counter(n.casefold() for name in names.values() for n in (name, f"{COMPARISONS}/{name}"))
    doubled = [i for i, name in names.items() if written[name.casefold()] > 1]
    if doubled:
        raise InpaintError(f"row {doubled[0]}: another row's picture would have the same file name; rename the image")
    return names


def _short_name(row_id: str) -> str:
    path, hash_sign, number = row_id.rpartition("#")
    if not (hash_sign and number.isdigit()):
        path, number = row_id, ""
    stem = PurePosixPath(path).with_suffix("").as_posix()
    return f"{stem}#{number}.png" if number else f"{stem}.png"
