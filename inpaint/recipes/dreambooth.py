"""DreamBooth LoRA: a subject from a few photos, beside pictures of its class, so that the class is not forgotten.

Source: Ruiz et al. 2022, "DreamBooth". Prior preservation is a second source at a set ratio, whose rows have a weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from inpaint.data.inspection import row_ids
from inpaint.data.rows import SCHEMA, Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import FolderSource, JoinedSource, Source
from inpaint.errors import InpaintError
from inpaint.recipes.picture_lora import PictureLora
from inpaint.train.settings import may_change


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One subject: its photos, and what they and pictures of its class are called."""

    name: str
    """Of its adapter."""
    folder: str = ""
    """Below the recipe's `data`; empty: that folder itself."""
    prompt: str
    """Of its photos, with the identifier; a text file beside a photo replaces it."""
    class_prompt: str = ""
    """What its class is called, as the pictures in `class_folder` are; a text file beside one replaces it."""
    class_folder: str = ""
    """Folder or URL of pictures of its class, for prior preservation; empty: there is none."""
    repeats: int = 1
    """How often each photo comes in one epoch."""


@dataclass(frozen=True, kw_only=True)
class DreamboothLora(PictureLora):
    """A LoRA per subject. `data` is the folder of one subject's photos, or of several subjects' folders."""

    title = "dreambooth"

    subjects: tuple[Subject, ...] = may_change()
    """Each is a training of its own; what is read of them is compared by its rows."""
    shares: tuple[int, int] = (1, 1)
    """How many photos of the subject and pictures of its class come in turn, whatever their counts."""
    prior_loss_weight: float = 1.0
    """Weight of the class's pictures in the loss."""
    masks: str | None = None
    """Name of a folder beside the photos with their masks, white on the subject: the loss is taken there alone."""
    caption_dropout: float = 0.0

    def source(self, data: str) -> Source:
        photos: list[FolderSource] = [
            FolderSource(path=_below(data, s.folder), prompt=s.prompt, repeats=s.repeats, masks=self.masks)
            for s in self.subjects
        ]
        pictures = [
            FolderSource(path=where, prompt=prompt, weight=self.prior_loss_weight)
            for where, prompt in classes_of(self.subjects)
        ]
        # Those of the subjects come first: an epoch is one pass over a subject's photos.
        of_subject, of_class = self.shares
        return JoinedSource((*((p, of_subject) for p in photos), *((p, of_class) for p in pictures)))

    def read_settings(self) -> ReadSettings:
        return replace(super().read_settings(), loss_in_mask=self.masks is not None)

    def check(self) -> None:
        super().check()
        if not self.subjects:
            raise InpaintError(f"{self.data}: there is no subject in it")
        if self.prior_loss_weight < 0 or min(self.shares) < 1:
            raise InpaintError(
                f"prior_loss_weight {self.prior_loss_weight}, shares {self.shares}: give a weight of 0 or more, and 1 "
                "or more of each"
            )

    def parts(self, rows: Manifest) -> dict[str, Manifest]:
        classes, found = classes_of(self.subjects), {}
        for number, subject in enumerate(self.subjects):
            of_class = [len(self.subjects) + classes.index(_class_of(subject))] if subject.class_folder else []
            found[subject.name] = _only(rows, [number, *of_class])
        return found

    def run_folder(self, part: str) -> str:
        return self.output if len(self.subjects) == 1 else f"{self.output}/{part}"


def classes_of(subjects: Iterable[Subject]) -> list[tuple[str, str]]:
    """Folder and prompt of each class that has pictures, once."""
    return list(dict.fromkeys(_class_of(subject) for subject in subjects if subject.class_folder))


def _class_of(subject: Subject) -> tuple[str, str]:
    return subject.class_folder, subject.class_prompt


def _only(rows: Manifest, sources: list[int]) -> Manifest:
    """The rows of some sources, numbered anew: as if they had been read without the others."""
    table = rows.table.filter(pa.array(np.isin(rows.table["source"], sources)))
    source = np.searchsorted(sources, table["source"]).astype(np.int32)
    images = table["image"]
    ids, _ = row_ids(images, images.combine_chunks().dictionary_encode().indices.to_numpy())
    for name, column in (("source", pa.array(source)), ("id", ids)):
        place = SCHEMA.get_field_index(name)
        table = table.set_column(place, SCHEMA.field(place), column)
    return Manifest(table.combine_chunks(), tuple(rows.shares[source] for source in sources))


def _below(data: str, folder: str) -> str:
    return f"{data.rstrip('/')}/{folder}" if folder else data
