"""From photos to enhanced products as one resumable job: captioned, looked at and enhanced, each by workers of its own.

Guaranteed: photos stream from stage to stage; every photo's way is told by its id in `manifest.jsonl`, with the reason
where it was left out; what an earlier run did in the same way is not done again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import tyro

from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import Manifest, Row
from inpaint.data.storage import read_file, write_file
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.batch import output_names
from inpaint.progress import ProgressBar
from inpaint.recipes.captioning import CAPTIONED, CaptionPhotos, CaptionWorker, plan_captions
from inpaint.recipes.data_set import read_rows, source_of
from inpaint.recipes.enhancing import (
    ENHANCED,
    EnhanceModels,
    EnhanceSettings,
    EnhanceWorker,
    plan_enhancement,
    read_enhance_models,
)
from inpaint.recipes.finding import FOUND, FindProducts, FindTask, FindWorker, plan_finds
from inpaint.recipes.found_tables import read_lines
from inpaint.rowmap import QUARANTINE, ActorPool, ActorResources, Item, MapStage, Result, Work, map_stages
from inpaint.stopping import StopToken
from inpaint.vision.captioner import CaptionerSettings
from inpaint.vision.finders import FinderSettings
from inpaint.vision.pretrained import revision

MANIFEST = "manifest.jsonl"
"""In the output: id, outcome (enhanced, skipped, set aside, not done), reason, and what the stages found and made."""
CAPTIONS = "captions"


@dataclass(frozen=True, kw_only=True)
class EnhancePhotos:
    """Settings of `python -m ray_jobs.enhance`."""

    data: str
    """A folder of photos, a CSV (`input, mask, output, prompt, category`), or the URL of one."""
    output: str
    """A folder or URL: `NAME.png`, or the photo as it came where it is skipped; `manifest.jsonl` about all."""
    products: tuple[str, ...] = ()
    """What to look for: a name each, its synonyms, a threshold: "hand bag|purse:0.4". Unset: the rows' own masks, white
    on the product, say where it is; rows without one are skipped."""
    negatives: Annotated[tuple[str, ...], tyro.conf.arg(name="not")] = ()
    """What is no product though it looks like one."""
    finder: Annotated[FinderSettings, tyro.conf.arg(name="find")] = FinderSettings()
    enhance: Annotated[EnhanceSettings, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = EnhanceSettings()
    find_pool: ActorPool = ActorPool(gpus_per_actor=0.3)
    """Of those who look."""
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool(gpus_per_actor=0.5)
    """Of those who paint."""

    def __post_init__(self) -> None:
        self.enhance.paint.check_base()
        if self.products:
            _ = self.finding
        elif self.negatives:
            raise InpaintError("--not: is beside --products; give these, too")

    @property
    def finding(self) -> FindProducts:
        """Raises InpaintError for names that cannot be looked for."""
        return FindProducts(
            data=self.data, output=self.output, products=self.products, negatives=self.negatives, finder=self.finder
        )


@dataclass(frozen=True, kw_only=True)
class Photoshoot(EnhancePhotos):
    """Settings of `python -m ray_jobs.photoshoot`."""

    tag: str = ""
    """What every caption begins with."""
    overwrite: bool = False
    """Caption anew what has a text file beside it; else it is kept as it is."""
    captioner: Annotated[CaptionerSettings, tyro.conf.arg(name="caption")] = CaptionerSettings()
    caption_pool: ActorPool = ActorPool(gpus_per_actor=0.2)
    """Of those who caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.products:
            raise InpaintError('products: say what to look for, such as --products "hand bag|purse" shoe')
        _ = self.captioning

    @property
    def captioning(self) -> CaptionPhotos:
        """Raises InpaintError for a tag that cannot be."""
        return CaptionPhotos(data=self.data, tag=self.tag, overwrite=self.overwrite, captioner=self.captioner)


def enhance_photos(config: EnhancePhotos, *, stop: StopToken | None = None) -> str:
    """Do what is not done, and say what was; on the connected Ray cluster. A `Photoshoot` captions first.

    Raises:
        InpaintError: data, settings, or a model that cannot be used, or `stop` was requested.
    """
    # What is wrong with models is told before the files are read.
    models = read_enhance_models(config.enhance)
    _revisions(config)
    manifest, bad = read_rows(source_of(config.data), config.output, stop)
    items, stages, unusable = plan_stages(config, manifest, models)
    try:
        with ProgressBar("photoshoot" if isinstance(config, Photoshoot) else "enhancing") as bar:
            bad += unusable
            reports = map_stages(items, stages, config.output, quarantined=bad, on_progress=bar.show, stop=stop)
            for warned in (one for report in reports for one in report.warned):
                bar.warn(warned.line)
    finally:
        counts = write_manifest(config.output, manifest.table["id"].to_pylist(), [stage.name for stage in stages])
    return f"{', '.join(f'{count} {outcome}' for outcome, count in counts.items())}: {config.output}/{MANIFEST}"


def plan_stages(
    config: EnhancePhotos, manifest: Manifest, models: EnhanceModels
) -> tuple[list[Item], list[MapStage], list[Quarantined]]:
    """The items of the first stage, the stages, and the rows that no stage can use. Raises InpaintError for a tag that
    calls another adapter."""
    models.split(config.tag if isinstance(config, Photoshoot) else "")
    rows, bad = _usable(config, list(manifest.rows()), models)
    names = output_names([row.id for row in rows])
    paint = MapStage(name=ENHANCED, load=partial(EnhanceWorker, models, config.pool.max_batch), pool=config.pool)
    if not config.products:
        reasons = ["" if row.hole else "it has no mask" for row in rows]
        tasks = zip(rows, reasons, strict=True)
        return [plan_enhancement(models, row, names[row.id], skipped=why) for row, why in tasks], [paint], bad
    looks = plan_finds(manifest, config.finding, _revisions(config)["finder"])
    finds = {item.id: item for item in looks if item.id in names}
    then, load = partial(_enhancement, models, names), partial(FindWorker, config.finding)
    stages = [MapStage(name=FOUND, load=load, pool=config.find_pool, then=then), paint]
    if not isinstance(config, Photoshoot):
        return list(finds.values()), stages, bad
    items, shared = plan_captions(rows, config.captioning, _revisions(config)["captioner"]["captioner"])
    caption = partial(_captions, config.captioning)
    stages.insert(0, MapStage(name=CAPTIONED, load=caption, pool=config.caption_pool, then=partial(_look, finds)))
    return items, stages, bad + shared


def _revisions(config: EnhancePhotos) -> dict[str, dict[str, str]]:
    """Of the models that look. Raises InpaintError for what is not there."""
    finder = config.finder.revisions() if config.products else {}
    captioner = {"captioner": revision(config.captioner.model)} if isinstance(config, Photoshoot) else {}
    return {"finder": finder, "captioner": captioner}


def _usable(config: EnhancePhotos, rows: Sequence[Row], models: EnhanceModels) -> tuple[list[Row], list[Quarantined]]:
    """Rows whose category the adapter knows, and whose own prompt can be one; and the others."""
    good, bad = [], []
    is_anew = isinstance(config, Photoshoot) and config.overwrite
    for number, row in enumerate(rows, start=1):
        prompt = models.enhance.prompt(config.products, "" if is_anew else row.prompt)
        try:
            models.prompt(prompt, models.enhance.enhance_category or row.category)
            good.append(row)
        except BadRow as error:
            bad.append(Quarantined.of(number, row.image, error))
        except InpaintError as error:
            bad.append(Quarantined.of(number, row.image, BadRow("category", Reason.UNKNOWN_CATEGORY, str(error))))
    return good, bad


def _captions(config: CaptionPhotos, resources: ActorResources) -> Work:
    """Captions that are written to a folder of the output."""
    worker = CaptionWorker(config, resources)

    def work(rows: list[Row]) -> list[Result | BadRow]:
        return [
            one if isinstance(one, BadRow) else replace(one, files={f"{CAPTIONS}/{p}": d for p, d in one.files.items()})
            for one in worker(rows)
        ]

    return work


def _look(finds: Mapping[str, Item], item: Item, line: Mapping[str, Any], read: Callable[[str], bytes]) -> Item:
    """What is looked for in a photo that has its caption."""
    find = finds[item.id]
    task: FindTask = find.value
    return replace(find, value=replace(task, row=replace(task.row, prompt=line["caption"])))


def _enhancement(
    models: EnhanceModels,
    names: Mapping[str, str],
    item: Item,
    line: Mapping[str, Any],
    read: Callable[[str], bytes],
) -> Item:
    """What is painted of a photo that was looked at."""
    row: Row = item.value.row
    if not line["found"]:
        reason = f"no product: {line['product']} has {line['score']:.2f}, {line['reason']}"
        return plan_enhancement(models, row, names[item.id], skipped=reason)
    products = tuple(dict.fromkeys(one["product"] for one in line["products"]))
    try:
        return plan_enhancement(models, row, names[item.id], products=products, mask=read(line["mask"]))
    except BadRow as error:  # of a caption that came after the rows were looked through
        return plan_enhancement(models, row, names[item.id], skipped=str(error))


def write_manifest(output: str, ids: Sequence[str], lists: Sequence[str]) -> dict[str, int]:
    """Write what became of each row, from the stages' done-lists and the quarantine; how many had each outcome."""
    stages = {name: read_lines(output, name) for name in lists}
    aside = {line["name"]: line for line in map(json.loads, (read_file(output, QUARANTINE) or b"").splitlines())}
    counts = dict.fromkeys(("enhanced", "skipped", "set aside", "not done"), 0)
    written = []
    for name in dict.fromkeys([*ids, *aside]):
        told = {key: value for lines in stages.values() for key, value in lines.get(name, {}).items()}
        end = stages[ENHANCED].get(name)
        if name in aside:
            outcome, reason = "set aside", f"{aside[name]['reason']}: {aside[name]['detail']}"
        elif end is None:
            outcome, reason = "not done", "run it again, it goes on"
        else:
            outcome, reason = "skipped" if end["skipped"] else "enhanced", end["reason"]
        about = {key: told[key] for key in ("caption", "products", "score", "mask", "output", "seed") if key in told}
        counts[outcome] += 1
        written.append(json.dumps({"id": name, "outcome": outcome, "reason": reason, **about}) + "\n")
    write_file(output, MANIFEST, "".join(written).encode())
    return counts
