"""Painted holes are measured row by row from files; a run goes on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.evaluate.holes import PaintedRuns, means, measure_holes
from inpaint.evaluate.metrics import boundary_jump, hole_l1, hole_psnr, hole_ssim, object_expansion, spread
from inpaint.rowmap import ActorResources

RNG = np.random.default_rng(2)
TRUTH = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
HOLE = np.zeros((24, 24), dtype=bool)
HOLE[6:15, 6:20] = True
RESULTS = [np.where(HOLE[..., None], RNG.integers(0, 256, TRUTH.shape, dtype=np.uint8), TRUTH) for _ in range(2)]
FOUND = np.zeros((24, 24), dtype=bool)
FOUND[:10] = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def save(name: str, picture: np.ndarray) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)

    save("data/a.png", TRUTH)
    save("data/mask.png", HOLE)
    for name, picture in zip(("one", "two"), RESULTS, strict=True):
        save(f"{name}/a.png", picture)
    save("same/a.png", TRUTH)
    save("small/a.png", TRUTH[:8])
    save("found/a.png", FOUND)
    return tmp_path


def measured(folder: Path, *painted: str, found: bool = False):
    row = Row(
        id="a.png", root=str(folder / "data"), image="a.png", hole="mask.png", width=24, height=24, digest="0" * 64
    )
    folders = tuple(str(folder / name) for name in painted)
    asked = PaintedRuns(folders=folders, found=str(folder / "found") if found else None)
    return measure_holes(Manifest.of([row]), asked, str(folder / "out"), here=ActorResources("cpu", 1))


def test_a_rows_figures_are_those_of_its_files(folder: Path) -> None:
    (line,), _ = measured(folder, "one", "two", found=True)
    wanted = {
        "psnr": hole_psnr(RESULTS[0], TRUTH, HOLE),
        "ssim": hole_ssim(RESULTS[0], TRUTH, HOLE),
        "l1": hole_l1(RESULTS[0], TRUTH, HOLE),
        "boundary_jump": boundary_jump(RESULTS[0], HOLE),
        "spread": spread(RESULTS, HOLE),
        "object_expansion": object_expansion(FOUND, ~HOLE),
    }
    assert {name: line[name] for name in wanted} == pytest.approx(wanted)
    assert means([line, line]) == pytest.approx(wanted)


def test_what_cannot_be_measured_is_missing_or_in_the_quarantine(folder: Path) -> None:
    (line,), _ = measured(folder, "same")
    assert line["l1"] == 0 and line["ssim"] == pytest.approx(1)
    assert not {"psnr", "spread", "object_expansion"} & line.keys()
    lines, report = measured(folder, "small")
    assert lines == [] and "24 x 24 and 24 x 24 and 24 x 8" in report.quarantined[0].detail
    with pytest.raises(InpaintError, match="no picture could be measured"):
        means(lines)


def test_a_picture_that_changed_is_measured_again(folder: Path) -> None:
    assert measured(folder, "one")[1].done == 1
    assert measured(folder, "one")[1].skipped == 1
    Image.fromarray(TRUTH).save(folder / "one/a.png", compress_level=0)
    (line,), report = measured(folder, "one")
    assert report.done == 1 and line["l1"] == 0
