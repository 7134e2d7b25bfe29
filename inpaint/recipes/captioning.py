"""Captions as one job: a text file beside each photo, begun with an activation tag."""

import posixpath
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import tyro

from inpaint.data.quarantine import Quarantined, Reason
from inpaint.data.rows import Row
from inpaint.data.sources import Captions, FolderSource
from inpaint.data.storage import read_file
from inpaint.device import use_cores
from inpaint.errors import BadRow, InpaintError
from inpaint.paint.photos import read_image
from inpaint.progress import ProgressBar
from inpaint.recipes.data_set import in_words, read_rows
from inpaint.rowmap import ActorPool, ActorResources, Item, Result, key_of, map_rows
from inpaint.stopping import StopToken
from inpaint.vision.captioner import CaptionerSettings, load_captioner
from inpaint.vision.pretrained import revision

CAPTIONED = "captioned.jsonl"
"""Done-list in the photos' folder: id, caption, kept, files."""


@dataclass(frozen=True, kw_only=True)
class CaptionPhotos:
    """Settings of `python -m ray_jobs.caption`."""

    data: str
    """A folder of photos, or its URL: `x.txt` is written beside `x.jpg`."""
    tag: str = ""
    """What every caption begins with, so that prompts with it call for what is trained, such as `ppzocketv2`."""
    overwrite: bool = False
    """Write captions anew that are there already; else they are kept as they are, whoever wrote them."""
    captioner: Annotated[CaptionerSettings, tyro.conf.arg(name="")] = CaptionerSettings()
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()

    def __post_init__(self) -> None:
        if "\n" in self.tag or self.tag != self.tag.strip():
            raise InpaintError(f"tag {self.tag!r}: give one line without spaces around it")

    def text(self, caption: str) -> str:
        """What is written of a caption."""
        return ", ".join(part for part in (self.tag, caption) if part)


def caption_photos(config: CaptionPhotos, *, stop: StopToken | None = None) -> str:
    """Write the captions, and say what was done; on the connected Ray cluster. Run again, it goes on where it ended.

    Raises:
        InpaintError: a folder, settings or a captioner that cannot be used, or `stop` was requested.
    """
    version = revision(config.captioner.model)  # what is wrong with it is told before the files are read
    rows, bad = read_rows(FolderSource(path=config.data, captions=Captions.UNREAD), config.data, stop)
    items, shared = plan_captions(list(rows.rows()), config, version)
    with ProgressBar("captioning") as bar:
        report = map_rows(
            items,
            partial(CaptionWorker, config),
            config.data,
            name=CAPTIONED,
            pool=config.pool,
            quarantined=[*bad, *shared],
            on_progress=bar.show,
            stop=stop,
        )
        for warned in report.warned:
            bar.warn(warned.line)
    return in_words(report, "captioned", config.data)


def plan_captions(rows: Sequence[Row], config: CaptionPhotos, version: str) -> tuple[list[Item], list[Quarantined]]:
    """An item for each row, and the rows that would share a text file with another one."""
    uses = Counter(caption_path(row.image).casefold() for row in rows)
    items, shared = [], []
    settings = [config.tag, config.overwrite, version, repr(config.captioner)]
    for number, row in enumerate(rows, start=1):
        path = caption_path(row.image)
        if uses[path.casefold()] > 1:
            detail = f"{path!r} would be the caption of another image, too: rename one of them"
            shared.append(Quarantined.of(number, row.image, BadRow("output", Reason.SHARED_CAPTION, detail)))
        else:
            items.append(Item(row.id, key_of(*settings, row.digest), row))
    return items, shared


def caption_path(image: str) -> str:
    """`a/x.jpg` -> `a/x.txt`."""
    return posixpath.splitext(image)[0] + ".txt"


class CaptionWorker:
    """Captions batches of photos, which threads read."""

    def __init__(self, config: CaptionPhotos, resources: ActorResources) -> None:
        use_cores(resources.threads)
        self.config, self.threads = config, ThreadPoolExecutor(resources.threads)
        self.captioner = load_captioner(config.captioner, resources.device)

    def __call__(self, rows: Sequence[Row]) -> list[Result | BadRow]:
        read = list(self.threads.map(self._read, rows))
        photos = [one for one in read if isinstance(one, np.ndarray)]
        captions = iter(self.captioner.caption(photos))
        return [
            self._result(row, next(captions)) if isinstance(one, np.ndarray) else one
            for row, one in zip(rows, read, strict=True)
        ]

    def _read(self, row: Row) -> np.ndarray | Result | BadRow:
        """The photo; or its caption, where one is there and is kept."""
        path = caption_path(row.image)
        there = None if self.config.overwrite else read_file(row.root, path)
        if there is not None and there.strip():
            # Its bytes go back as they came, so that the done-list knows of a change.
            return Result(files={path: there}, line={"caption": there.decode(errors="replace").strip(), "kept": True})
        try:
            return read_image(row.root, row.image)
        except BadRow as error:
            return error

    def _result(self, row: Row, caption: str) -> Result:
        text = self.config.text(caption)
        return Result(files={caption_path(row.image): f"{text}\n".encode()}, line={"caption": text, "kept": False})
