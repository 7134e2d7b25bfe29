"""The figures of one subject or of many, and their report."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from inpaint.data.rows import Manifest, Row
from inpaint.data.storage import read_file
from inpaint.errors import InpaintError
from inpaint.evaluate.backbones import Backbones
from inpaint.evaluate.embedding import Embedded, Group, SubjectScores, embed_groups, subject_scores
from inpaint.evaluate.fidelity import PUBLISHED
from inpaint.evaluate.report import Gallery, Report, Table
from inpaint.paint.generate import GENERATED
from inpaint.paint.photos import read_thumbnail
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken

TOGETHER = 8
"""Photos of a folder that are embedded at a time."""
SHOWN = 16
"""Generated pictures of a subject in the report."""


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """Pictures to measure: `real` and `generated`, perhaps `of_class` and `lookalikes`."""

    sets: Mapping[str, Manifest]
    folders: Mapping[str, str | None]
    """Where each set lies."""
    identifier: str
    """Left out of prompts."""
    apart: bool
    """Whether sets have a folder per subject."""

    def groups(self) -> dict[tuple[str, str], list[Group]]:
        """(subject, set) -> its groups: of generated pictures one per prompt. Raises InpaintError where a subject has
        no photos or no pictures."""
        found: dict[tuple[str, str], list[Group]] = {}
        for name, manifest in self.sets.items():
            rows: dict[str, list[Row]] = {}
            for row in manifest.rows():
                rows.setdefault(row.image.partition("/")[0] if self.apart else "", []).append(row)
            for subject, its in rows.items():
                found[subject, name] = list(self._groups(subject, name, its))
        real, made = ({subject for subject, of in found if of == name} for name in ("real", "generated"))
        if real != made or not real:
            odd = ", ".join(sorted(real ^ made)) or "one"
            raise InpaintError(f"real and generated: {odd} has no usable photos, or no pictures, in one of them")
        return found

    def _groups(self, subject: str, name: str, rows: Sequence[Row]) -> Iterator[Group]:
        if name != "generated":
            for first in range(0, len(rows), TOGETHER):
                yield _group(f"{name}/{subject}/{first}", rows[first : first + TOGETHER])
            return
        folder = f"{subject}/" if subject else ""
        lines = (read_file(str(self.folders[name]), f"{folder}{GENERATED}") or b"").splitlines()
        made = {folder + line["output"]: line["prompt"] for line in map(json.loads, lines)}
        prompts: dict[str, list[Row]] = {}
        for row in rows:
            if not made or row.image in made:  # a grid is none of them
                prompts.setdefault(made.get(row.image, row.prompt), []).append(row)
        for prompt, its in prompts.items():
            yield _group(f"{name}/{subject}/{prompt}", its, self._told(prompt))

    def _told(self, prompt: str) -> str:
        if not self.identifier:
            return prompt
        return re.sub(rf"(?<!\w){re.escape(self.identifier)}(?!\w) ?", "", prompt).strip()


def _group(name: str, rows: Sequence[Row], prompt: str = "") -> Group:
    images, digests = tuple(row.image for row in rows), tuple(row.digest for row in rows)
    return Group(name=name, root=rows[0].root, images=images, digests=digests, prompt=prompt)


def evaluate_subjects(
    subjects: Subjects,
    backbones: Backbones,
    output: str,
    pool: ActorPool,
    on_progress: Callable[[int, int], None],
    stop: StopToken | None,
) -> Report:
    """Embed what is new, and report. Raises InpaintError."""
    groups = subjects.groups()
    every = [group for its in groups.values() for group in its]
    embedded, done = embed_groups(every, backbones, output, pool=pool, on_progress=on_progress, stop=stop)
    names = sorted({subject for subject, of in groups if of == "real"})

    def of(subject: str, name: str) -> list[Embedded]:
        return [embedded[group.name] for group in groups.get((subject, name), ()) if group.name in embedded]

    scores = {
        subject: subject_scores(
            of(subject, "real"),
            of(subject, "generated"),
            of_class=of(subject, "of_class"),
            lookalikes=of(subject, "lookalikes"),
        )
        for subject in names
    }
    return _report(scores, groups, backbones, len(done.quarantined))


def _report(
    scores: Mapping[str, SubjectScores],
    groups: Mapping[tuple[str, str], Sequence[Group]],
    backbones: Backbones,
    unread: int,
) -> Report:
    columns = [field.name for field in fields(SubjectScores)]
    columns = [name for name in columns if any(getattr(score, name) is not None for score in scores.values())]
    rows = {name: [getattr(score, column) for column in columns] for name, score in scores.items()}
    means = {
        column: float(np.mean(values))
        for column, values in zip(columns, zip(*rows.values(), strict=True), strict=True)
        if None not in values
    }
    of_dino, of_clip = backbones.labels
    labels = {
        "dino": f"DINO ({of_dino})",
        "clip_i": f"CLIP-I ({of_clip})",
        "clip_t": f"CLIP-T ({of_clip})",
        "div": f"DIV ({of_dino} layers)",
        "pres": f"PRES ({of_dino})",
        "lookalike_map": f"look-alike mAP ({of_dino})",
    }
    pictures = sum(len(group.images) for (_, name), its in groups.items() if name == "generated" for group in its)
    published = [(name, *values) for name, values in PUBLISHED.items()]
    return Report(
        title="Subjects",
        summary=f"Subjects: {len(scores)}; generated pictures: {pictures}; groups that could not be read: {unread}. "
        f"Backbones: {of_dino} and {of_clip}; figures of other backbones cannot be compared.",
        headline={labels[name]: value for name, value in means.items()},
        tables=[
            Table(
                title="By subject",
                note="Higher is better, but for PRES, which is lower where the class is kept.",
                columns=("subject", *(labels[column] for column in columns)),
                rows=[(name or "the subject", *_shown(values)) for name, values in rows.items()],
            ),
            Table(
                title="Beside published figures",
                note="DreamBooth (Ruiz 2023), table 1: 30 subjects, 25 prompts each, 4 pictures per prompt, ViT-S/16 "
                "DINO and CLIP. They are comparable with the same backbones, subjects and prompts alone.",
                columns=("method", "DINO", "CLIP-I", "CLIP-T"),
                rows=[
                    ("this run", *_shown([means.get(name) for name in ("dino", "clip_i", "clip_t")])),
                    *((name, *_shown(values)) for name, *values in published),
                ],
            ),
        ],
        galleries=[_gallery(name, groups) for name in scores],
        details={"figures": means, "backbones": backbones.revisions()},
    )


def _gallery(subject: str, groups: Mapping[tuple[str, str], Sequence[Group]]) -> Gallery:
    real, made = groups[subject, "real"][0], groups[subject, "generated"]
    shown = [(real.root, real.images[0], "a photo of it")]
    # The first picture of each prompt, then the second of each, ...
    ranks = range(max(len(group.images) for group in made))
    shown += [(group.root, group.images[i], group.prompt) for i in ranks for group in made if i < len(group.images)]
    pictures = [(read_thumbnail(root, path, 192, 192), caption) for root, path, caption in shown[: 1 + SHOWN]]
    return Gallery(title=subject or "Pictures", note="A photo, then what was generated.", pictures=pictures)


def _shown(values: Sequence[float | None]) -> list[object]:
    return ["" if value is None else value for value in values]
