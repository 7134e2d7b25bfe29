"""`ray_jobs.train_photoshoot_lora`: kohya's folders, tags and counts; one training from photos to its adapter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from inpaint.data.holes import Sometimes, WholeImage
from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.export.kohya import read_adapter_file
from inpaint.models.base import read_base_info
from inpaint.recipes.photoshoot_lora import TrainPhotoshootLora
from inpaint.recipes.picture_lora import RANDOM_HOLES
from inpaint.stopping import StopToken
from inpaint.train.alone import train_alone
from inpaint.train.run import prepared, trained_by
from inpaint.train.settings import Precision, ValidationSettings
from inpaint.train.trainer import Training
from tests.tiny import SIZE, tiny_sd, tiny_sd_inpaint

CPU = torch.device("cpu")
GIVEN = {"data_dir": "D", "output_dir": "O"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sd(tmp_path_factory.mktemp("tiny") / "sd"))


def rows(*repeats: int, prompt: str = "p") -> Manifest:
    """Of these repeats."""
    shared = {"root": "/", "width": 8, "height": 8, "digest": "0" * 64, "prompt": prompt}
    return Manifest.of(Row(id=f"{n}.png", image=f"{n}.png", repeats=times, **shared) for n, times in enumerate(repeats))


def test_its_settings_are_called_as_kohya_calls_them() -> None:
    flags = "--train_data_dir D --output_dir O --pretrained_model_name_or_path toy --network_dim 8 --network_alpha 4"
    flags += " --unet_lr 1e-3 --text_encoder_lr 0 --shuffle_caption --keep_tokens 2 --caption_dropout_rate 0.1"
    flags += " --max_train_epochs 4 --train_batch_size 3 --output_name mine --save_every_n_epochs 2 --flip_aug"
    recipe = tyro.cli(TrainPhotoshootLora, args=flags.split()).recipe()
    assert (recipe.base, recipe.name, recipe.train.epochs, recipe.train.global_batch) == ("toy", "mine", 4, 3)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.unet, recipe.lora.text_encoder) == (8, 4, True, False)
    assert (recipe.captions.shuffle, recipe.captions.keep, recipe.caption_dropout) == (True, 2, 0.1)


def test_adapters_are_called_by_tag_and_epochs() -> None:
    assert TrainPhotoshootLora(**GIVEN, tag="ppzocketv2").name == "ppzocketv2-10"
    assert TrainPhotoshootLora(**GIVEN, tag="pp zocket, studio", max_train_epochs=2.5).name == "pp-zocket-studio-2.5"
    assert TrainPhotoshootLora(**GIVEN).name == "photoshoot-10"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output_name": "a/b"}, "'a/b': give it a name"),
        ({"max_train_epochs": 0}, "max_train_epochs 0"),
        ({"unet_lr": 0, "text_encoder_lr": 0}, "unet_lr 0, text_encoder_lr 0: give learning rates"),
        ({"unet_lr": -1}, "unet_lr -1"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InpaintError, match=message):
        TrainPhotoshootLora(**{**GIVEN, **changed})


def length(manifest: Manifest, base: str) -> str:
    recipe = TrainPhotoshootLora(**GIVEN, base=base, tag="t").recipe().bind(manifest)
    return Training(name="t", recipe=recipe, rows=manifest, output="O").length


def test_the_counts_are_said_as_such(base: str) -> None:
    assert length(rows(*[6] * 65), base) == "65 images x 6 repeats / 2 = 195 steps per epoch, 1,950 in all"
    assert length(rows(*[1] * 5), base) == "5 images / 2 = 2.5 steps per epoch, 25 in all"
    mixed = "(2 images x 6 repeats + 3 images) / 2 = 7.5 steps per epoch, 75 in all"
    assert length(rows(6, 1, 1, 6, 1), base) == mixed


def test_bases_decide_what_is_painted_and_epochs_when_it_is_kept(base: str, tmp_path: Path) -> None:
    recipe = TrainPhotoshootLora(**GIVEN, base=base, tag="t", save_every_n_epochs=2).recipe()
    bound = recipe.bind(rows(6, 1))
    assert bound.hole() == WholeImage() and bound.text_alone(rows(6, 1)) == "t, p"
    assert bound.train.checkpoint_every == 14
    inpainting = replace(recipe, base=str(tiny_sd_inpaint(tmp_path))).bind(rows(6, 1))
    assert inpainting.hole() == Sometimes(RANDOM_HOLES, 0.25) and inpainting.text_alone(rows(6)) is None
    assert [row.prompt for row in inpainting.shown(rows(1, 1)).rows()] == ["t, p"] * 2


def test_images_that_nothing_is_told_of_are_refused(base: str) -> None:
    recipe = TrainPhotoshootLora(**GIVEN, base=base).recipe().bind(rows(1))
    recipe.check_rows(rows(1))
    with pytest.raises(InpaintError, match=r"2 images have no caption \(the first: 0.png\).*give an activation tag"):
        recipe.check_rows(rows(1, 1, prompt=" "))


@pytest.mark.parametrize(("rates", "trained"), [((1e-4, 0), {"unet"}), ((0, 1e-4), {"text_encoder"})])
def test_either_model_is_trained_alone(base: str, rates: tuple[float, float], trained: set[str]) -> None:
    config = TrainPhotoshootLora(**GIVEN, base=base, tag="t", unet_lr=rates[0], text_encoder_lr=rates[1])
    groups = config.recipe().bind(rows(1)).objective(CPU).groups()
    assert [group.learning_rate for group in groups] == [1e-4]
    assert {name.split(".")[0] for name in groups[0].parameters} == trained


def test_photos_become_an_adapter_that_its_tag_calls(
    ray_cluster: None, process_group: None, base: str, tmp_path: Path
) -> None:
    for number, name in enumerate(("2_handbag/a.png", "2_handbag/b.png", "c.png")):
        file = tmp_path / "photos" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    (tmp_path / "photos/2_handbag/b.txt").write_text("ppz, gold, on wood\n")
    config = TrainPhotoshootLora(
        data_dir=str(tmp_path / "photos"),
        output_dir=str(tmp_path / "run"),
        base=base,
        tag="ppz",
        max_train_epochs=2,
        network_dim=2,
        network_alpha=1,
        shuffle_caption=True,
        mixed_precision=Precision.FP32,
        validation=ValidationSettings(samples=2, pictures=1),
        card_samples=0,
    )
    recipe = config.recipe()
    (training,) = prepared(recipe, StopToken())
    assert training.length == "(2 images x 2 repeats + 1 images) / 2 = 2.5 steps per epoch, 5 in all"
    told = {row.image[-5]: training.recipe.read_settings().prompt_of(row) for row in training.rows.rows()}
    assert told == {"a": "ppz, handbag", "b": "ppz, gold, on wood", "c": "ppz"}
    progress = train_alone(training, CPU, 1)
    assert progress.samples == 10
    folder = tmp_path / "run/adapters/ppz-2"
    assert recipe.export_folder(training.name) == str(folder)
    folder.mkdir(parents=True)
    training.recipe.export(trained_by(training, progress), folder)
    card = load_adapter(folder).card
    assert (card.tokens, card.rank, card.alpha) == ({"ppz-2": "ppz"}, 2, 1)
    assert card.prompt("a shoe", "ppz-2") == "ppz, a shoe" == card.prompt("ppz, a shoe", "ppz-2")
    bags = {"n_repeats": 2, "img_count": 2, "tags": {"ppz": 2, "handbag": 1, "gold": 1, "on wood": 1}}
    assert card.dataset == {"2_handbag": bags, "photos": {"n_repeats": 1, "img_count": 1, "tags": {"ppz": 1}}}
    adapter = read_adapter_file((folder / "kohya/ppz-2.safetensors").read_bytes(), "ppz-2", read_base_info(base))
    assert adapter.card.tokens == card.tokens
    assert "# A LoRA for ppz, handbag" in (folder / "README.md").read_text()
