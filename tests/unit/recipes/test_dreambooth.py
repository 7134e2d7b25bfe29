"""A subject's rows beside its class's, whatever their counts; who is found in a folder and what they are called."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inpaint.data.pipeline import read_manifest
from inpaint.data.plan import Plan
from inpaint.data.rows import Manifest
from inpaint.data.sample import read_batch
from inpaint.errors import InpaintError
from inpaint.models.architectures import clip_tokenizer
from inpaint.paint.batch import PaintSettings
from inpaint.recipes import class_images
from inpaint.recipes.class_images import fill_classes
from inpaint.recipes.dreambooth import DreamboothLora, Subject
from inpaint.recipes.dreambooth_identifier import doubts_about, rarest_token
from inpaint.recipes.dreambooth_subjects import Wording, find_subjects
from inpaint.recipes.dreambooth_training import TrainDreambooth
from inpaint.rowmap import ActorPool, Item

SIDE = 16
WORDING = Wording()


def write_images(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def tokenizers() -> list:
    return [clip_tokenizer()]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> DreamboothLora:
    """Two dogs and a can, 2, 3 and 2 photos; 5 pictures of dogs, 1 of a can."""
    folder = tmp_path_factory.mktemp("several")
    for number, (name, count) in enumerate({"can": 2, "dog": 2, "dog2": 3}.items()):
        write_images(folder / "photos" / name, count, first=10 * number)
    for number, (name, count) in enumerate({"can": 1, "dog": 5}.items()):
        write_images(folder / "classes" / name, count, first=10 * number + 50)
    subjects = [
        Subject(
            name=name,
            folder=name,
            prompt=f"a sks {kind}",
            class_prompt=f"a {kind}",
            class_folder=str(folder / "classes" / kind),
            repeats=2 if name == "dog2" else 1,
        )
        for name, kind in {"can": "can", "dog": "dog", "dog2": "dog"}.items()
    ]
    return DreamboothLora(
        data=str(folder / "photos"),
        output=str(folder / "out"),
        subjects=tuple(subjects),
        shares=(3, 2),
        prior_loss_weight=0.5,
        random_holes=False,
        resolution=SIDE,
    )


def parts_of(recipe: DreamboothLora) -> dict[str, Manifest]:
    rows, bad = read_manifest(recipe.source(recipe.data))
    assert not bad
    return recipe.parts(rows)


def test_each_subject_is_trained_with_its_class_at_the_ratio_and_by_its_repeats(
    ray_cluster: None, recipe: DreamboothLora
) -> None:
    part = parts_of(recipe)["dog2"]
    rows = list(part.rows())
    assert {(r.prompt, r.weight, r.source) for r in rows} == {("a sks dog", 1.0, 0), ("a dog", 0.5, 1)}
    plan = Plan.of(part, 0)
    epoch = plan.samples_per_epoch
    assert epoch == 10, "three photos twice, and two thirds as many of the class"
    epochs, places = plan.lookup(np.arange(5 * epoch))
    sources = np.array([rows[place].source for place in places])
    assert (np.bincount(sources) == [30, 20]).all(), "whatever their counts"
    photos = Counter((int(e), rows[p].image) for e, p, s in zip(epochs, places, sources, strict=True) if s == 0)
    assert set(photos.values()) == {2} and len(photos) == 5 * 3


def test_a_subjects_rows_are_the_same_whoever_else_is_trained(ray_cluster: None, recipe: DreamboothLora) -> None:
    several = parts_of(recipe)
    for subject in recipe.subjects:
        alone = replace(recipe, subjects=(subject,))
        assert parts_of(alone)[subject.name].hash == several[subject.name].hash
    assert recipe.run_folder("dog").endswith("/out/dog") and alone.run_folder("dog2").endswith("/out")


def test_subjects_are_found_with_their_prompts(tmp_path: Path, tokenizers: list) -> None:
    write_images(tmp_path / "wolf_plushie2", 1)
    write_images(tmp_path / "can", 1)
    found = {subject.name: subject for subject in find_subjects(str(tmp_path), WORDING, tokenizers)}
    assert found["wolf_plushie2"].prompt == "a photo of sks wolf plushie"
    assert found["can"].class_prompt == "a photo of a can" and not found["can"].class_folder

    table = tmp_path / "subjects.csv"
    table.write_text("subject,class,repeats\nwolf_plushie2,stuffed animal,3\ncan,can,\n")
    prior = Wording(instance_prompt="{identifier} {class}", class_prompt="a {class}", identifier="auto")
    found = {s.name: s for s in find_subjects(str(tmp_path), prior, tokenizers, table=str(table), class_dir="C")}
    toy = found["wolf_plushie2"]
    assert (toy.prompt, toy.class_folder, toy.repeats) == ("lun stuffed animal", "C/stuffed_animal", 3)
    table.write_text("subject,class\ncan,can\n")
    with pytest.raises(InpaintError, match="wolf_plushie2 has no line"):
        find_subjects(str(tmp_path), prior, tokenizers, table=str(table), class_dir="C")

    (one,) = find_subjects(str(tmp_path / "can"), prior, tokenizers, class_dir="C")
    assert (one.folder, one.class_folder) == ("", "C")
    with pytest.raises(InpaintError, match="is about several"):
        find_subjects(str(tmp_path / "can"), prior, tokenizers, table=str(table), class_dir="C")
    write_images(tmp_path / "more" / "data", 1)
    with pytest.raises(InpaintError, match="a run has a folder of that name"):
        find_subjects(str(tmp_path / "more"), prior, tokenizers, class_dir="C")


def test_the_rarest_short_token_that_no_caption_says(tokenizers: list) -> None:
    assert rarest_token(tokenizers, []) == "lun"
    assert rarest_token(tokenizers, ["Lun is a dog"]) == "hta"


def test_an_identifier_that_splits_or_is_common_is_doubted(tmp_path: Path, tokenizers: list) -> None:
    assert not doubts_about("sks", tokenizers)
    assert "3 tokens" in doubts_about("qzxj", tokenizers)[0]
    assert "a common word (token 1929 of" in doubts_about("dog", tokenizers)[0]
    write_images(tmp_path, 1)
    with pytest.warns(UserWarning, match="'shiny' is a common word"):
        find_subjects(str(tmp_path), Wording(**{**vars(WORDING), "identifier": "shiny"}), tokenizers)
    told = Wording(instance_prompt="a photo of my dog", class_prompt="a photo of a dog")
    with pytest.warns(UserWarning, match="'my' is a common word"):
        find_subjects(str(tmp_path), told, tokenizers, class_dir="C")
    with pytest.raises(InpaintError, match="does not say it"):
        find_subjects(str(tmp_path), Wording(**{**vars(told), "identifier": "sks"}), tokenizers, class_dir="C")
    with pytest.raises(InpaintError, match="write where it goes"):
        TrainDreambooth(instance_dir="D", output_dir="O", instance_prompt="a dog", identifier="auto")


def test_class_pictures_that_are_there_count_and_are_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a painter that is interrupted before one of them."""
    made: list[str] = []

    def work(items: Sequence[Item], load: object, output: str, *, name: str, **_: Any) -> None:
        (tmp_path / name).touch()
        for item in items:
            path = Path(output) / item.value.output
            assert not path.exists()
            if path.name == "seed-8.png":
                raise InpaintError("stopped")
            made.append(f"{item.value.prompt} {item.value.seed}")
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (SIDE, SIDE)).save(path)

    monkeypatch.setattr(class_images, "map_rows", work)
    settings = PaintSettings(base="toy", seed=5)

    def fill(count: int) -> int:
        return fill_classes(str(tmp_path), {"dog": "a dog", "can": "a can"}, count, settings, pool=ActorPool())

    write_images(tmp_path / "dog", 1)
    assert fill(2) == 3, "the user's own picture counts"
    assert made == ["a dog 5", "a can 5", "a can 6"]
    assert fill(2) == 0
    (tmp_path / "can" / "seed-6.png").unlink()
    with pytest.raises(InpaintError, match="stopped"):
        fill(3)
    assert fill(3) == 1, "what was removed does not come again"
    assert made[3:] == ["a dog 7", "a can 7", "a can 9"]


def test_the_masks_of_a_folder_are_where_the_loss_is_taken(ray_cluster: None, tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    (tmp_path / "masks").mkdir()
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "00.png")
    subject = Subject(name="s", prompt="a sks dog")
    recipe = DreamboothLora(
        data=str(tmp_path),
        output=str(tmp_path / "out"),
        subjects=(subject,),
        masks="masks",
        random_holes=False,
        resolution=SIDE,
        flip_probability=1.0,
    )
    part = parts_of(recipe)["s"]
    assert [row.hole for row in part.rows()] == ["masks/00.png", None], "a mask is no photo"
    with ThreadPoolExecutor(1) as threads:
        batch = read_batch(part, Plan.of(part, 0), recipe.read_settings(), np.arange(2), threads)
    _, rows = Plan.of(part, 0).lookup(np.arange(2))
    masked = int(np.flatnonzero(rows == 0)[0])
    assert (batch["area"][masked] == mask[:, ::-1]).all() and (batch["area"][1 - masked] == 255).all()
    assert (batch["hole"] == 255).all()
    with pytest.raises(InpaintError, match="no mask is in its folder other"):
        parts_of(replace(recipe, masks="other"))
