"""What looks at the toy world: empty scenes, how sight is measured, the shipped captioner, the two trainings."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inpaint.recipes.toy_vision import ASKED, ToyBlip, ToyClipSeg, scene_rows
from inpaint.toy.catalogue import render, write_scenes
from inpaint.toy.measure_vision import NAMED, Presence, mask_iou, measure_vision, photoshoot_scenes, presence
from inpaint.toy.vision import build_blip, build_clipseg, caption_tokenizer, finder_tokenizer, save_vision
from inpaint.vision.captioner import CaptionerSettings, load_captioner
from inpaint.vision.finder import Findings, Found
from inpaint.vision.finders import FinderSettings, load_finder
from inpaint.vision.pretrained import TOYS

FRESH_SEED = 900_018
"""A world that neither training nor benchmark shows."""


def test_an_empty_scene_is_the_background_alone_and_says_so() -> None:
    full, empty = render(3, 5), render(3, 5, empty=True)
    assert not empty.product.any() and empty.caption(True) == f"nothing on {full.background}"
    corner = np.s_[:8, :8]
    assert (full.image[corner] == empty.image[corner]).all() and (full.image != empty.image).any()


def test_written_scenes_have_a_mask_where_there_is_a_product(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, seed=1, count=12, empty=0.5)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert 0 < sum(row["mask"] == "" for row in rows) < 12
    for row in rows:
        assert (row["mask"] == "") == row["prompt"].startswith("nothing on")
        if row["mask"]:
            mask = np.asarray(Image.open(tmp_path / row["mask"]))
            assert 0 < (mask == 255).mean() < 0.5, "white on the product"
    found = scene_rows(path)
    assert [row.hole or "" for row in found.rows()] == [row["mask"] for row in rows]


def findings(scene, *products: str) -> Findings:
    found = tuple(Found(product=name, score=0.9, box=(0, 0, 1, 1), mask=scene.product) for name in products)
    return Findings(found=found, best={})


def test_presence_is_counted_per_scene_and_by_class() -> None:
    scenes = photoshoot_scenes(named=3, others=1, empty=1)
    answers = [findings(scenes[0], NAMED[0]), findings(scenes[1]), findings(scenes[2], NAMED[0])]
    counted = presence(scenes, [*answers, findings(scenes[3], NAMED[1]), findings(scenes[4])])
    assert counted == Presence(hits=1, false_alarms=2, misses=2, rejections=1)
    assert (counted.recall, counted.precision) == pytest.approx((1 / 3, 1 / 3))
    assert Presence(5, 0, 0, 5).mcc == 1.0 and Presence(0, 5, 5, 0).mcc == -1.0 and Presence(0, 0, 0, 0).mcc == 0.0
    assert mask_iou(scenes[:3], answers) == pytest.approx(2 / 3)


def test_what_is_shipped_sees_about_what_its_record_says() -> None:
    """On fresh scenes, which are a few dozen, so that three standard errors are let go."""
    record = json.loads((TOYS / "vision.json").read_text(encoding="utf-8"))["figures"]
    captioner = load_captioner(CaptionerSettings(captioner="toy", beams=1))
    scenes = photoshoot_scenes(named=60, others=18, empty=12, seed=FRESH_SEED)
    figures, _ = measure_vision(captioner, load_finder(FinderSettings(finder="toy")), scenes)
    assert figures.keys() == record.keys()
    for name in ("caption_accuracy", "presence_recall", "presence_precision"):
        share = record[name]
        assert figures[name] >= share - 3 * math.sqrt(max(share * (1 - share), 0.02) / 60), name
    assert figures["mask_iou"] >= record["mask_iou"] - 0.05
    assert record["caption_accuracy"] >= 0.9


def batch(count: int, size: int) -> dict:
    scenes = [render(1, index, size, empty=index % 3 == 0) for index in range(count)]
    holes = [np.uint8(255) * (scene.product | (not scene.shape)) for scene in scenes]
    return {
        "image": np.stack([scene.image for scene in scenes]),
        "hole": np.stack(holes),
        "prompt": np.array([scene.caption(True) for scene in scenes], object),
        "position": np.arange(count),
    }


def test_both_trainings_have_a_loss_per_sample_that_all_weights_learn_from(tmp_path: Path) -> None:
    blip = str(save_vision(tmp_path / "blip", build_blip(), caption_tokenizer()))
    settings = {"data": "d", "output": "o", "learning_rate": 1e-3}
    for recipe in (ToyBlip(**settings), ToyClipSeg(**settings, captioner=blip)):
        objective = recipe.objective(torch.device("cpu"))
        shown = batch(4, recipe.read_settings().height)
        loss = objective(shown)
        assert loss.shape == (4,) and loss.isfinite().all()
        loss.mean().backward()
        for group in objective.groups():
            assert all(p.grad is not None for p in group.parameters.values())
        assert len(objective.paint(shown, 2)) == 2


def test_a_finder_is_asked_for_what_is_there_first_and_never_twice(tmp_path: Path) -> None:
    blip = str(save_vision(tmp_path / "blip", build_blip(), caption_tokenizer()))
    finding = ToyClipSeg(data="d", output="o", learning_rate=1e-3, captioner=blip).objective(torch.device("cpu"))
    for position in range(20):
        asked = finding._asked(3, position, "words")
        assert asked[0] == 3 and len(set(asked)) == len(asked) == 3
    assert {int(n) for p in range(40) for n in finding._asked(-1, p, "words")} == set(range(len(ASKED)))


def test_what_is_exported_is_found_by_as_it_was_trained(tmp_path: Path) -> None:
    tokenizer = finder_tokenizer(tmp_path / "clipseg")
    torch.manual_seed(0)
    folder = save_vision(tmp_path / "clipseg", build_clipseg(tokenizer), tokenizer)
    finder = load_finder(FinderSettings(finder=str(folder)))
    heat = finder.heat([render(1, 0).image], ["box", "hand bag"])
    assert heat.shape == (1, 2, 128, 128) and not np.allclose(heat[0, 0], heat[0, 1], atol=1e-3)
