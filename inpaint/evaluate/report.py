"""A report of one run: `report.json` with the figures and `report.html`, one file with its pictures inside."""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells below a title; numbers are shown with three digits after the point, very small and very large ones
    with two in all."""

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


@dataclass(frozen=True)
class Line:
    """One of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    is_strong: bool = False
    """Whether it stands out."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines of one measure over samples."""

    title: str
    lines: Sequence[Line]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Lowest and highest x, lowest and highest y."""
        x, y = zip(*(point for line in self.lines for point in line.points), strict=True)
        return min(x), max(x), min(y), max(y)

    def points(self, line: Line, width: int, height: int) -> str:
        """As the `points` of an SVG polyline."""
        left, right, low, high = self.bounds
        pairs = [(_share(x, left, right) * width, height - _share(y, low, high) * height) for x, y in line.points]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


@dataclass(frozen=True)
class Axis:
    """What all have of one thing: numbers, or words."""

    name: str
    values: Sequence[object]
    log: bool = False

    @property
    def ends(self) -> tuple[object, object]:
        """What stands at the bottom and at the top."""
        return (self._order[0], self._order[-1]) if self._order else (min(self._numbers), max(self._numbers))

    def heights(self, height: int) -> list[float]:
        """Where each lies, downwards from the top."""
        if self._order:
            places = {value: float(place) for place, value in enumerate(self._order)}
            found = [places[str(value)] for value in self.values]
        else:
            found = [math.log(number) if self.log else number for number in self._numbers]
        return [height - _share(value, min(found), max(found)) * height for value in found]

    @property
    def _numbers(self) -> list[float]:
        return [float(value) for value in self.values if isinstance(value, (int, float))]

    @property
    def _order(self) -> list[str]:
        """Of words; empty where all are numbers."""
        is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)
        return [] if is_number else sorted({str(value) for value in self.values})


@dataclass(frozen=True, kw_only=True)
class ParallelCoordinates:
    """An axis for each thing, and a line through all of them for each who has them (Inselberg 1985)."""

    title: str
    axes: Sequence[Axis]
    strongest: int
    """Whose line stands out."""

    def lines(self, width: int, height: int) -> list[str]:
        """As the `points` of SVG polylines."""
        heights = zip(*(axis.heights(height) for axis in self.axes), strict=True)
        step = width / max(len(self.axes) - 1, 1)
        return [" ".join(f"{number * step:.1f},{y:.1f}" for number, y in enumerate(line)) for line in heights]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / max(high - low, 1e-12)


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
    charts: Sequence[Chart] = ()
    parallels: Sequence[ParallelCoordinates] = ()
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
        is_usual = value == 0 or 0.01 <= abs(value) < 1e6
        return f"{value:.3f}".rstrip("0").rstrip(".") if is_usual else f"{value:.2g}"
    return str(value)


def _data_url(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
