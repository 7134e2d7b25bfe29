"""What jobs over a data set share: its rows, read and remembered in the job's output."""

from inpaint.data.pipeline import read_manifest
from inpaint.data.quarantine import Quarantined
from inpaint.data.rows import Manifest
from inpaint.data.sources import Captions, CsvSource, FolderSource, Source
from inpaint.progress import ProgressBar
from inpaint.rowmap import QUARANTINE, MapReport
from inpaint.stopping import StopToken

MEMORY = ".inspected.parquet"
"""What files told, in the output; hidden, for that may be the folder of images itself."""


def source_of(data: str, captions: Captions = Captions.WHERE_THERE) -> Source:
    """A category CSV, or a folder of images."""
    return CsvSource(path=data) if data.lower().endswith(".csv") else FolderSource(path=data, captions=captions)


def read_rows(source: Source, output: str, stop: StopToken | None) -> tuple[Manifest, list[Quarantined]]:
    """The usable rows and the others, on the connected Ray cluster; what `output` remembers is not opened again. Raises
    InpaintError, also where no row can be used."""
    with ProgressBar("reading") as bar:
        return read_manifest(
            source,
            max_bad_fraction=1.0,
            quarantine=f"{output}/{QUARANTINE}",
            memory=f"{output}/{MEMORY}",
            progress=bar.show,
            stop=stop,
        )


def in_words(report: MapReport, done: str, output: str) -> str:
    """`12 painted, 3 were done, 1 in OUTPUT/quarantine.jsonl: OUTPUT`."""
    aside = f"{len(report.quarantined)} in {output}/{QUARANTINE}"
    return f"{report.done} {done}, {report.skipped} were done, {aside}: {output}"
