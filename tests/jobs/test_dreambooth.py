"""Photos of subjects in, adapters out, their class's pictures made on the way: two small ones here, and as one job the
real photos of 30 subjects, where they are."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inpaint.data.rows import Manifest
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.architectures import clip_tokenizer
from inpaint.recipes import dreambooth_training
from inpaint.recipes.dreambooth import DreamboothLora
from inpaint.recipes.dreambooth_training import TrainDreambooth, train_dreambooth
from inpaint.rowmap import ActorPool
from inpaint.toy.catalogue import render
from inpaint.train.checkpoint import CHECKPOINTS, CheckpointStore
from inpaint.train.settings import Precision, ValidationSettings
from tests.photos import PHOTOS
from tests.tiny import SIZE, tiny_sd

MUGS = {"mug": 3, "mug2": 2}
TWICE = {"cat", "vase"}
pytestmark = pytest.mark.timeout(400)


def config_of(photos: Path, base: Path, output: Path, **changed: Any) -> TrainDreambooth:
    return TrainDreambooth(
        instance_dir=str(photos),
        base=str(base),
        output_dir=str(output),
        rank=1,
        resolution=SIZE,
        mixed_precision=Precision.FP32,
        zero_stage=0,
        **changed,
    )


@pytest.fixture(scope="module")
def mugs(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainDreambooth, list[str], list[str]]:
    """Two mugs, trained beside pictures of mugs; the settings, the adapters and what was said."""
    photos = tmp_path_factory.mktemp("photos")
    for name, count in MUGS.items():
        (photos / name / "masks").mkdir(parents=True)
        for index in range(count):
            scene = render(5, index, shape="mug")
            Image.fromarray(scene.image).save(photos / name / f"{index}.png")
            Image.fromarray(scene.product).save(photos / name / "masks" / f"{index}.png")
    config = config_of(
        photos,
        tiny_sd(tmp_path_factory.mktemp("tiny") / "sd"),
        tmp_path_factory.mktemp("run"),
        with_prior_preservation=True,
        num_class_images=2,
        class_endings=("indoors", "in the snow"),
        prior_loss_weight=0.5,
        mask_dir="masks",
        identifier="auto",
        train_text_encoder=True,
        max_train_steps=2,
        validation=ValidationSettings(samples=2, pictures=1),
        pool=ActorPool(max_batch=4),
    )
    said: list[str] = []
    return config, train_dreambooth(config, announce=said.append), said


def test_subjects_are_trained_beside_pictures_of_their_class(
    mugs: tuple[TrainDreambooth, list[str], list[str]],
) -> None:
    config, folders, said = mugs
    output = Path(config.output_dir)
    assert sorted(folders) == [f"{output}/adapters/{name}" for name in MUGS]
    made = output / "class_images"
    assert sorted(path.name for path in made.rglob("*.png")) == ["seed-0.png", "seed-1.png"], "of one class"
    lines = [json.loads(line) for line in (made / "class_images-0-1.jsonl").read_text().splitlines()]
    written = ["a photo of a mug indoors", "a photo of a mug in the snow"]
    assert [(line["prompt"], line["seed"]) for line in lines] == [*zip(written, (0, 1), strict=True)]
    for name, count in MUGS.items():
        rows = Manifest.load(output / name / "manifest.parquet")
        assert [row.weight for row in rows.rows()] == [1.0] * count + [0.5] * 2
        assert [row.prompt for row in rows.rows()][count:] == written
        progress = CheckpointStore(f"{output / name}/{CHECKPOINTS}").progress()
        assert progress is not None and (progress.samples, progress.unread, progress.manifest) == (8, 0, rows.hash)
        prompt = rows.row(0).prompt
        assert f"{name}: {prompt!r} beside 'a photo of a mug'" in said
        adapter = output / "adapters" / name
        assert load_adapter(str(adapter)).card.samples == 8
        assert f"image = pipe({prompt!r}).images[0]" in (adapter / "README.md").read_text()
        assert list((output / name / "validation").iterdir())
    table = list(csv.DictReader((output / "subjects.csv").open()))
    assert [(line["subject"], line["photos"], line["class_images"]) for line in table] == [
        ("mug", "3", "2"),
        ("mug2", "2", "2"),
    ]


def test_one_subject_is_any_recipes_run(
    mugs: tuple[TrainDreambooth, list[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many workers as there are; its class's pictures are there already."""
    config, _, _ = mugs
    runs: list[DreamboothLora] = []
    monkeypatch.setattr(dreambooth_training, "run", lambda recipe, **of_the_command: runs.append(recipe))
    of_class = f"{config.class_pictures}/mug"
    train_dreambooth(
        replace(config, instance_dir=f"{config.instance_dir}/mug", class_dir=of_class), announce=lambda line: None
    )
    (recipe,) = runs
    (subject,) = recipe.subjects
    assert (subject.name, subject.folder, subject.class_folder) == ("mug", "", of_class)
    assert recipe.run_folder("mug") == config.output_dir


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"the photos are not in ../{PHOTOS.parent.name}")
def test_thirty_subjects_are_one_job_and_every_photo_comes_as_often_as_it_should(
    ray_cluster: None, tmp_path: Path
) -> None:
    lines = (PHOTOS / "prompts_and_classes.txt").read_text(encoding="utf-8").splitlines()
    classes = dict(line.split(",") for line in lines if line.count(",") == 1 and "(" not in line)
    subjects = {path.name: classes[path.name] for path in (PHOTOS / "512").iterdir()}
    table, output, samples = tmp_path / "subjects.csv", tmp_path / "run", 3 * 6
    said = [f"{name},{kind},{2 if name in TWICE else 1}" for name, kind in subjects.items()]
    table.write_text("\n".join(["subject,class,repeats", *said]))
    config = config_of(
        PHOTOS / "512",
        tiny_sd(tmp_path / "base", clip_tokenizer()),
        output,
        subjects=str(table),
        max_train_steps=3,
        train_batch_size=6,
        max_micro_batch=6,
        validation=ValidationSettings(samples=0),
        pool=ActorPool(actors=2, cpus_per_actor=1),
    )
    prompts: list[str] = []
    folders = train_dreambooth(config, announce=prompts.append)
    assert len(folders) == len(subjects) == sum("a photo of" in line for line in prompts) == 30
    assert "dog6: 'a photo of sks dog'" in prompts
    assert (output / "data" / "quarantine.jsonl").read_text() == ""
    records = {line["id"]: line for line in map(json.loads, (output / "subjects.jsonl").read_text().splitlines())}
    for name in subjects:
        photos = sorted(path.name for path in (PHOTOS / "512" / name).iterdir())
        rows = Manifest.load(output / name / "manifest.parquet")
        assert sorted(row.image for row in rows.rows()) == photos
        progress = CheckpointStore(f"{output / name}/{CHECKPOINTS}").progress()
        assert progress is not None and (progress.samples, progress.unread) == (samples, 0)
        assert progress.manifest == rows.hash == load_adapter(str(output / "adapters" / name)).card.manifest
        repeats, seen = 2 if name in TWICE else 1, records[name]["seen"]
        assert sorted(seen) == photos and sum(seen.values()) == samples
        whole, more = divmod(samples, len(photos) * repeats)
        assert all(whole * repeats <= times <= (whole + bool(more)) * repeats for times in seen.values()), seen
    assert [line["subject"] for line in csv.DictReader((output / "subjects.csv").open())] == sorted(subjects)
