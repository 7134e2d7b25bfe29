"""Paint the holes of a CSV's or folder's photos, or of one photo; what is outside the holes stays bit for bit.

    python -m ray_jobs.paint --data set.csv --base toy --adapter ADAPTER --output runs/painted

`set.csv`: input, mask (white = paint), output, prompt, category. Run again, it goes on. One photo:

    python -m ray_jobs.paint --image a.jpg --mask m.png --prompt "a red box on wood" --base toy --output a_painted.png

A model of one's own has masks that are black where to fill:
    python -m ray_jobs.paint --model RUN --image image.png --mask mask.png --output output.png
"""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from inpaint.cluster import connect
from inpaint.data.sources import CsvSource, FolderSource
from inpaint.errors import InpaintError
from inpaint.paint.batch import PaintCluster, paint_dataset
from inpaint.paint.rows import paint_file
from inpaint.paint.tasks import PaintSettings
from inpaint.progress import ProgressBar
from inpaint.recipes.inpainting import paint_with_model


def paint(
    settings: Annotated[PaintSettings, tyro.conf.arg(name="")],
    cluster: Annotated[PaintCluster, tyro.conf.arg(name="")],
    output: Path,
    data: str | None = None,
    image: Path | None = None,
    mask: Path | None = None,
    prompt: str = "",
    category: str | None = None,
) -> None:
    """`--data`: a CSV, or a folder (photos have `--category`, and `--prompt` where no text is beside them)."""
    if (data is None) == (image is None) or (image is None) != (mask is None):
        raise InpaintError("give --data (a CSV or a folder), or --image with --mask")
    if image is not None and mask is not None:
        print(paint_file(image, mask, prompt, output, settings, category=category))
        return
    assert data is not None
    folder = FolderSource(path=data, prompt=prompt, category=category)
    source = CsvSource(path=data) if data.lower().endswith(".csv") else folder
    connect()
    with ProgressBar("painting") as bar:
        report = paint_dataset(source, settings, output, cluster=cluster, on_progress=bar.show)
    print(f"{report.painted} painted, {report.skipped} were done, {len(report.quarantined)} in quarantine: {output}")


if __name__ == "__main__":
    own = any(argument.startswith("--model") for argument in sys.argv)
    try:
        tyro.cli(paint_with_model if own else paint, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    except InpaintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
