"""A report of one run: `report.json` with the figures and `report.html`, one file with its pictures inside."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells below a title; numbers are shown with three digits after the point."""

    title: str
    note: str = ""
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures (H W 3, uint8) with captions, below a title."""

    title: str
    note: str = ""
    pictures: Sequence[tuple[np.ndarray, str]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of y over x, such as the loss over samples."""

    title: str
    x: Sequence[float]
    y: Sequence[float]

    def points(self, width: int, height: int) -> str:
        """As the `points` of an SVG polyline."""
        x, y = np.asarray(self.x, dtype=float), np.asarray(self.y, dtype=float)
        x = (x - x.min()) / max(float(np.ptp(x)), 1e-12) * width
        y = height - (y - y.min()) / max(float(np.ptp(y)), 1e-12) * height
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run has to show."""

    title: str
    summary: str
    headline: Mapping[str, float]
    """The figures that stand at the top, and in `report.json`."""
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    curves: Sequence[Curve] = ()
    details: Mapping[str, object] = field(default_factory=dict)
    """Settings, versions, revisions."""


def write_report(folder: str | Path, report: Report) -> Path:
    """Write `report.html` and, beside it, `report.json`; returns the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"shown": _shown, "picture": _data_url}
    page = folder / "report.html"
    page.write_text(environment.get_template("report.html.j2").render(report=report), encoding="utf-8")
    content = {
        "title": report.title,
        "figures": dict(report.headline),
        "tables": [asdict(table) for table in report.tables],
        "details": dict(report.details),
    }
    page.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return page


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)


def _data_url(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
