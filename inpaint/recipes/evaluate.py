"""Evaluation as one job: a subject's generated pictures, or painted holes; figures, and a report with pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from inpaint.data.pipeline import read_manifest
from inpaint.data.rows import Manifest
from inpaint.data.sources import CsvSource, FolderSource, Source
from inpaint.errors import InpaintError
from inpaint.evaluate.backbones import Backbones
from inpaint.evaluate.holes import FIGURES, PaintedRuns, means, measure_holes
from inpaint.evaluate.report import Gallery, Report, Table, write_report
from inpaint.paint.batch import COMPARISONS
from inpaint.paint.photos import read_thumbnail
from inpaint.progress import ProgressBar
from inpaint.recipes.evaluate_subjects import Subjects, evaluate_subjects
from inpaint.rowmap import ActorPool
from inpaint.stopping import StopToken

SHOWN = 12
"""Pictures in the report of painted holes: the worst."""


@dataclass(frozen=True, kw_only=True)
class EvaluatePictures:
    """Settings of `python -m ray_jobs.evaluate`: `real` and `generated`, or `data` and `painted`."""

    output: str
    """A folder for `report.html` and `report.json`; what was computed stays there for the next run."""
    real: str | None = None
    """A folder or URL of the subject's photos."""
    generated: str | None = None
    """What `python -m ray_jobs.generate` made of it; or a folder of pictures, each with its prompt in a text file."""
    of_class: str | None = None
    """Generated pictures of the class without the identifier, for PRES."""
    lookalikes: str | None = None
    """Photos of what is easily mistaken for the subject, for the ranking."""
    identifier: str = ""
    """The subject's word: left out of the prompts that pictures are compared with, for CLIP does not know it."""
    per_subject: bool = False
    """The folders have a folder for each subject, with the same names; figures are of each, and their means."""
    backbones: Annotated[Backbones, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = Backbones()
    data: str | None = None
    """A CSV (`input, mask, output, prompt, category`) or a folder of images, as they were painted."""
    painted: tuple[str, ...] = ()
    """Outputs of `python -m ray_jobs.paint` over it; with several, of other seeds, how much samples differ, too."""
    found: str | None = None
    """A folder of masks named as the painted pictures: white where a detector found the product in them."""
    seed: int = 0
    """Of the first painting run, where rows have no mask."""
    pool: Annotated[ActorPool, tyro.conf.arg(name="")] = ActorPool()

    def __post_init__(self) -> None:
        if "://" in self.output:
            raise InpaintError(f"output {self.output}: a report is a local folder")
        of_subjects = (self.real, self.generated, self.of_class, self.lookalikes)
        if (self.real is None) != (self.generated is None) or (self.real is None) == (self.data is None):
            raise InpaintError("give --real and --generated, or --data and --painted")
        if (self.data is None) != (not self.painted) or (self.data is None and self.found is not None):
            raise InpaintError("--data, --painted and --found belong together")
        if self.data is not None and any(of_subjects):
            raise InpaintError("--of-class and --lookalikes are for --real and --generated")


def evaluate_pictures(config: EvaluatePictures, *, stop: StopToken | None = None) -> tuple[Path, dict[str, float]]:
    """Measure, and write the report; returns its page and its figures. On the connected Ray cluster.

    Raises:
        InpaintError: folders, backbones or pictures that cannot be used, or `stop` was requested.
    """
    with ProgressBar("reading") as bar:

        def read(source: Source, name: str) -> Manifest:
            memory, aside = f"{config.output}/{name}.parquet", f"{config.output}/{name}_quarantine.jsonl"
            manifest, _ = read_manifest(
                source, max_bad_fraction=1.0, quarantine=aside, memory=memory, progress=bar.show, stop=stop
            )
            return manifest

        if config.data is not None:
            is_csv = config.data.lower().endswith(".csv")
            rows = read(CsvSource(path=config.data) if is_csv else FolderSource(path=config.data), "data")
        else:
            folders = {name: getattr(config, name) for name in ("real", "generated", "of_class", "lookalikes")}
            sets = {name: read(FolderSource(path=path), name) for name, path in folders.items() if path is not None}
    with ProgressBar("measuring") as bar:
        if config.data is not None:
            report = _of_holes(config, rows, bar.show, stop)
        else:
            subjects = Subjects(sets=sets, folders=folders, identifier=config.identifier, apart=config.per_subject)
            report = evaluate_subjects(subjects, config.backbones, config.output, config.pool, bar.show, stop)
    return write_report(config.output, report), dict(report.headline)


def _of_holes(
    config: EvaluatePictures, rows: Manifest, on_progress: Callable[[int, int], None], stop: StopToken | None
) -> Report:
    painted = PaintedRuns(folders=config.painted, found=config.found, seed=config.seed)
    lines, done = measure_holes(rows, painted, config.output, pool=config.pool, on_progress=on_progress, stop=stop)
    worst = sorted(lines, key=lambda line: -float(str(line["l1"])))[:SHOWN]
    columns = [name for name in FIGURES if any(name in line for line in lines)]
    return Report(
        title="Painted holes",
        summary=f"{len(lines)} pictures of {config.painted[0]}, {len(done.quarantined)} that could not be measured.",
        headline=means(lines),
        tables=[
            Table(
                title="The worst by L1",
                note="PSNR in dB and SSIM inside the hole; L1 and the jump at its edge as shares of white.",
                columns=("picture", *(name.replace("_", " ") for name in columns)),
                rows=[(line["picture"], *(line.get(name, "") for name in columns)) for line in worst],
            )
        ],
        galleries=[
            Gallery(
                title="The worst by L1",
                note="Input, hole (tinted), painted.",
                pictures=[
                    (
                        read_thumbnail(config.painted[0], f"{COMPARISONS}/{line['picture']}", 768, 384),
                        str(line["picture"]),
                    )
                    for line in worst
                ],
            )
        ],
        details={"data": config.data, "painted": config.painted},
    )
