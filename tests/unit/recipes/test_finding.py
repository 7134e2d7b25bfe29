"""`ray_jobs.find_products`: a row per photo, masks, overlays, what was skipped, and a category CSV."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inpaint.data.rows import Manifest
from inpaint.data.sources import CsvSource
from inpaint.errors import InpaintError
from inpaint.recipes import finding
from inpaint.recipes.finding import FOUND, FindProducts, FindWorker, HoleSide, find_products, plan_finds
from inpaint.recipes.found_tables import CategoryCsv, category_of, read_lines, write_tables
from inpaint.rowmap import ActorPool, ActorResources, map_rows
from inpaint.stopping import StopToken
from inpaint.vision.finder import Findings, FindQuery, Found
from inpaint.vision.finders import FinderSettings
from tests.tiny_vision import tiny_clipseg
from tests.unit.recipes.rows import rows_below

HERE = ActorResources("cpu", 1)
LOOKED_AT: list[int] = []


class RedFinder:
    """Finds what is red, and nothing else; a red picture with a blue corner is a picture of a shoe."""

    threshold = 0.4

    def find(self, images, query: FindQuery) -> list[Findings]:
        LOOKED_AT.extend(len(image) for image in images)
        return [self._findings(image, query.products[0].name) for image in images]

    def _findings(self, image: np.ndarray, name: str) -> Findings:
        mask = image[..., 0] > 200
        if not mask.any():
            return Findings(found=(), best={name: 0.1})
        if image[0, 0, 2] > 200:
            return Findings(found=(), best={name: 0.6}, overruled={name: "picture of a shoe"})
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        return Findings(found=(Found(product=name, score=0.9, box=box, mask=mask),), best={name: 0.9})


def write_photo(path: Path, side: int, *, product: bool, picture: bool = False) -> None:
    image = np.full((side, side + 4, 3), 90, np.uint8)
    if product:
        image[4:12, 6:16] = (255, 0, 0)
    if picture:
        image[0, 0] = (0, 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def config(tmp_path, monkeypatch) -> FindProducts:
    """Five photos, of which two show a shoe; and a finder that knows it."""
    for number, name in enumerate(("a.png", "b/a.png", "none.png", "poster.png", "wall.png")):
        write_photo(
            tmp_path / "photos" / name,
            20 + number,
            product=name in ("a.png", "b/a.png", "poster.png"),
            picture=name == "poster.png",
        )
    monkeypatch.setattr(finding, "load_finder", lambda settings, device: RedFinder())
    LOOKED_AT.clear()
    return FindProducts(data=str(tmp_path / "photos"), output=str(tmp_path / "out"), products=("shoe",))


def run(config: FindProducts, stop: StopToken | None = None, **settings):
    """As the job does, in this process; returns the manifest and the lines."""
    manifest = Manifest.of(rows_below(config.data))
    pool = ActorPool(max_batch=2)
    items = plan_finds(manifest, config, {"red": "v1"})
    map_rows(items, partial(FindWorker, config), config.output, name=FOUND, pool=pool, here=HERE, stop=stop, **settings)
    return manifest, read_lines(config.output, FOUND)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_photo_has_its_row_and_what_is_skipped_says_why_with_the_best_score(config) -> None:
    manifest, lines = run(config)
    counts = write_tables(config.output, manifest, lines)
    assert counts == {"shoe": 2, "skipped": 3}
    out = Path(config.output)
    rows = {row["id"]: row for row in pq.read_table(out / "found.parquet").to_pylist()}
    assert list(rows) == [row.id for row in manifest.rows()] == [row["id"] for row in read_csv(out / "found.csv")]
    found = rows["b/a.png"]
    assert (found["found"], found["product"], found["count"], found["reason"]) == (True, "shoe", 1, None)
    assert [found[name] for name in ("x0", "y0", "x1", "y1")] == [6, 4, 16, 12]
    assert json.loads(found["products"])[0]["score"] == 0.9
    skipped = {row["id"]: row for row in read_csv(out / "skipped.csv")}
    assert skipped.keys() == {"none.png", "poster.png", "wall.png"}
    assert (skipped["none.png"]["reason"], skipped["none.png"]["score"]) == ("below the threshold", "0.1")
    assert skipped["poster.png"]["reason"] == "it is 'picture of a shoe'"
    assert skipped["none.png"]["threshold"] == "0.4"
    assert sorted(path.name for path in (out / "masks").rglob("*.png")) == ["a.png", "a.png"]


@pytest.mark.parametrize(("hole", "white"), [(HoleSide.PRODUCT, True), (HoleSide.BACKGROUND, False)])
def test_the_mask_is_white_on_the_side_that_is_painted(config, hole, white) -> None:
    run(replace(config, hole=hole))
    mask = np.asarray(Image.open(Path(config.output) / "masks/a.png").convert("L")) == 255
    assert mask.shape == (20, 24) and mask[5, 7] == white and mask[0, 0] != white
    assert mask.sum() == (80 if white else mask.size - 80)
    assert Image.open(Path(config.output) / "overlays/a.jpg").size == (24, 20)


def test_a_stopped_run_goes_on_without_looking_at_a_photo_twice(config) -> None:
    stop = StopToken()
    stop.request()
    with pytest.raises(InpaintError, match="stopped as asked after 2 of 5"):
        run(config, stop)
    _, lines = run(config)
    assert len(lines) == len(LOOKED_AT) == 5
    (Path(config.output) / "masks/a.png").unlink()
    run(config)
    assert len(LOOKED_AT) == 6, "only whose mask was lost"
    run(replace(config, products=("shoe:0.5",)))
    assert len(LOOKED_AT) == 11, "another question is asked of all"


def test_the_category_csv_is_read_as_any_other(config, tmp_path) -> None:
    (tmp_path / "photos/a.txt").write_text("a red shoe")
    config = replace(config, hole=HoleSide.BACKGROUND, csv=str(tmp_path / "shoes.csv"))
    manifest, lines = run(config)
    assert config.category_csv.write(manifest, lines) == 2
    rows = read_csv(tmp_path / "shoes.csv")
    assert rows[0] == {
        "input": "",
        "mask": "out/masks/a.png",
        "output": "photos/a.png",
        "prompt": "shoe",
        "category": "CDP_SHOE",
    }
    listed = CsvSource(path=str(tmp_path / "shoes.csv")).listing()
    assert (listed.table.num_rows, listed.quarantined) == (2, [])
    assert all((tmp_path / row["mask"]).is_file() and (tmp_path / row["output"]).is_file() for row in rows)


def test_a_csv_from_which_photos_or_masks_cannot_be_reached_is_refused(tmp_path) -> None:
    given = {"data": str(tmp_path / "photos"), "output": str(tmp_path / "out"), "category": None}
    with pytest.raises(InpaintError, match="output .*out is not below"):
        CategoryCsv.of(str(tmp_path / "photos/x.csv"), **given)
    inside = CategoryCsv.of(str(tmp_path / "photos/x.csv"), **{**given, "output": str(tmp_path / "photos/found")})
    assert (inside.images, inside.masks) == ("", "found")


@pytest.mark.parametrize(("name", "category"), [("hand bag", "CDP_HAND_BAG"), ("T-shirt", "CDP_T_SHIRT")])
def test_a_class_is_a_category_that_no_prompt_names(name, category) -> None:
    assert category_of(name) == category


@pytest.mark.parametrize("given", [{"products": ()}, {"products": ("a", "a")}, {"category": "CDP_X"}])
def test_what_cannot_be_asked_is_refused_before_anything_is_read(given) -> None:
    with pytest.raises(InpaintError):
        FindProducts(**{"data": "d", "output": "o", "products": ("shoe",), **given})


def test_a_photo_that_broke_meanwhile_is_set_aside(config) -> None:
    manifest = Manifest.of(rows_below(config.data))
    (Path(config.data) / "wall.png").write_bytes(b"no photo")
    items = plan_finds(manifest, config, {})
    report = map_rows(items, partial(FindWorker, config), config.output, name=FOUND, pool=ActorPool(), here=HERE)
    assert (report.done, [bad.name for bad in report.quarantined]) == (4, ["wall.png"])


def test_the_job_looks_at_a_folder_on_ray_and_says_what_it_found(ray_cluster, tmp_path) -> None:
    for number in range(3):
        write_photo(tmp_path / f"photos/{number}.png", 20 + 8 * number, product=True)
    (tmp_path / "photos/broken.png").write_bytes(b"no photo")
    config = FindProducts(
        data=str(tmp_path / "photos"),
        output=str(tmp_path / "out"),
        products=("red:0.01", "wood:0.01"),
        csv=str(tmp_path / "set.csv"),
        finder=FinderSettings(finder=str(tiny_clipseg(tmp_path / "clipseg"))),
        pool=ActorPool(actors=1, cpus_per_actor=1.0, max_batch=2),
    )
    said = find_products(config)
    assert "3 looked at, 0 were done, 1 in " in said and "3 rows in" in said
    assert "0 looked at, 3 were done, 1 in " in find_products(config)
    assert len(read_csv(tmp_path / "set.csv")) == 3
