"""`ray_jobs.evaluate`: what it refuses, and subjects and painted holes measured on Ray into a report."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.evaluate.backbones import Embedder
from inpaint.evaluate.embedding import embed, subject_scores
from inpaint.evaluate.holes import measure_holes
from inpaint.paint.photos import read_image
from inpaint.recipes import evaluate as recipe
from inpaint.recipes.evaluate import EvaluatePictures, evaluate_pictures
from inpaint.rowmap import ActorPool, ActorResources
from tests.unit.evaluate.backbones import tiny_backbones

RNG = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --real and --generated, or"),
        ({"real": "r"}, "give --real and --generated, or"),
        ({"real": "r", "generated": "g", "data": "d", "painted": ("p",)}, "give --real and --generated, or"),
        ({"data": "d"}, "belong together"),
        ({"real": "r", "generated": "g", "found": "f"}, "belong together"),
        ({"data": "d", "painted": ("p",), "lookalikes": "l"}, "--lookalikes are for"),
        ({"data": "d", "painted": ("p",), "output": "s3://b/o"}, "a local folder"),
    ],
)
def test_what_does_not_belong_together_is_refused(given, message):
    with pytest.raises(InpaintError, match=message):
        EvaluatePictures(**{"output": "out", **given})


def save(where: Path, seed: int) -> None:
    where.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(where)


def test_subjects_and_holes_are_measured_on_ray_into_a_report(ray_cluster, tmp_path: Path):
    backbones = tiny_backbones(tmp_path / "weights")
    for number, subject in enumerate(("bag", "cat")):
        save(tmp_path / f"real/{subject}/0.png", number)
        save(tmp_path / f"class/{subject}/0.png", 20 + number)
        save(tmp_path / f"alike/{subject}/0.png", 30 + number)
        lines = []
        for prompt, seed in (("red", 0), ("red", 1), ("wood", 0)):
            save(tmp_path / f"made/{subject}/{prompt}/{seed}.png", 40 + 10 * number + seed + len(prompt))
            lines.append({"prompt": f"a sks {prompt}", "output": f"{prompt}/{seed}.png"})
        save(tmp_path / f"made/{subject}/grid.png", 99)
        (tmp_path / f"made/{subject}/generated.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page, figures = evaluate_pictures(
        EvaluatePictures(
            real=str(tmp_path / "real"),
            generated=str(tmp_path / "made"),
            of_class=str(tmp_path / "class"),
            lookalikes=str(tmp_path / "alike"),
            identifier="sks",
            per_subject=True,
            backbones=backbones,
            pool=ActorPool(cpus_per_actor=1.0),
            output=str(tmp_path / "out"),
        )
    )
    embedder = Embedder.load(backbones)

    def group(*paths: str, prompt: str = ""):
        return embed(embedder, [read_image(str(tmp_path), path) for path in paths], prompt)

    wanted = [
        subject_scores(
            [group(f"real/{name}/0.png")],
            [
                group(f"made/{name}/red/0.png", f"made/{name}/red/1.png", prompt="a red"),
                group(f"made/{name}/wood/0.png", prompt="a wood"),
            ],
            of_class=[group(f"class/{name}/0.png")],
            lookalikes=[group(f"alike/{name}/0.png")],
        )
        for name in ("bag", "cat")
    ]
    names = {"dino": "DINO (dino)", "clip_i": "CLIP-I (clip)", "clip_t": "CLIP-T (clip)", "pres": "PRES (dino)"}
    names |= {"div": "DIV (dino layers)", "lookalike_map": "look-alike mAP (dino)"}
    means = {label: np.mean([getattr(score, name) for score in wanted]) for name, label in names.items()}
    assert figures == pytest.approx(means, abs=1e-5)
    text = page.read_text()
    assert "0.668" in text and "0.803" in text and "0.305" in text
    assert text.count("<img") == 2 * 4 and 'src="http' not in text
    written = json.loads(page.with_suffix(".json").read_text())
    assert [row[0] for row in written["tables"][0]["rows"]] == ["bag", "cat"]
    assert written["details"]["backbones"] == backbones.revisions()


def test_painted_holes_are_reported_the_worst_first(ray_cluster, tmp_path: Path, monkeypatch):
    # Another pool of actors would take ten seconds to start.
    monkeypatch.setattr(recipe, "measure_holes", partial(measure_holes, here=ActorResources("cpu", 1)))
    save(tmp_path / "real/bag/0.png", 1)
    for name in ("0.png", "comparisons/0.png"):
        save(tmp_path / "painted/bag" / name, 7)
    page, figures = evaluate_pictures(
        EvaluatePictures(
            data=str(tmp_path / "real/bag"),
            painted=(str(tmp_path / "painted/bag"),),
            output=str(tmp_path / "holes"),
        )
    )
    assert page.read_text().count("<img") == 1
    assert figures.keys() == {"psnr", "ssim", "l1", "boundary_jump"} and 0.2 < figures["l1"] < 0.5
