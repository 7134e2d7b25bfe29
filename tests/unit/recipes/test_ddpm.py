"""The recipe: every size has its preset, epochs become samples, classes become what the objective is told."""

from dataclasses import replace

import pytest

from inpaint.data.holes import Sometimes
from inpaint.data.rows import Manifest, Row
from inpaint.diffusion.unet import PRESETS
from inpaint.errors import InpaintError
from inpaint.recipes.ddpm import card_of, preset, workload_of
from inpaint.train.settings import Precision, Schedule

ROWS = tuple(
    Row(id=f"{i}", root="", image=f"{i}.png", prompt="a caption", label=label, width=40, height=30, digest="0" * 64)
    for i, label in enumerate(("cats", "dogs", None))
)
MANIFEST = Manifest.of(ROWS)


@pytest.mark.parametrize("size", sorted(PRESETS))
def test_every_size_has_a_preset(size: int) -> None:
    config = preset(size, data="in", output="out")
    assert config.unet == PRESETS[size]
    assert config.image_size == size
    assert config.train.ema_halflife is not None, "the moving average paints"
    assert config.train.precision is (Precision.FP32 if size == 32 else Precision.BF16)


def test_the_default_is_the_plain_ddpm_of_128_px() -> None:
    config = preset(128, data="in", output="out")
    assert config.noise.prediction_type == "epsilon" and config.noise.noise == "linear"
    assert config.train.lr_scale(40_000, 50_000) == 1, "the rate does not fall"
    assert (config.learning_rate, config.train.global_batch, config.train.epochs) == (1e-4, 32, 2000)


def test_checkpoints_by_epochs() -> None:
    config = preset(32, data="in", output="out")
    assert workload_of(config, MANIFEST).settings.checkpoint_every == config.train.checkpoint_every
    assert workload_of(replace(config, checkpoint_epochs=100), MANIFEST).settings.checkpoint_every == 300


def test_a_run_may_go_on_for_more_epochs_than_it_began_with() -> None:
    config = preset(32, data="in", output="out")
    longer = replace(config, train=replace(config.train, epochs=5000))
    falling = [replace(c, train=replace(c.train, schedule=Schedule.COSINE)) for c in (config, longer)]
    assert workload_of(config, MANIFEST).fixed() == workload_of(longer, MANIFEST).fixed()
    assert workload_of(falling[0], MANIFEST).fixed() != workload_of(falling[1], MANIFEST).fixed()


def test_holes_are_drawn_never_full_and_as_large_as_was_asked_for() -> None:
    config = preset(32, data="in", output="out")
    assert workload_of(config, MANIFEST).read.hole == Sometimes(config.holes, probability=0.0)


def test_a_class_is_the_folders_name_and_captions_are_not_read() -> None:
    plain = preset(32, data="in", output="out")
    assert workload_of(plain, MANIFEST).read.caption_dropout == 1
    assert card_of(plain, MANIFEST).unet.classes == 0
    config = replace(plain, classes=True)
    card = card_of(config, MANIFEST)
    assert card.classes == ("cats", "dogs") and card.unet.classes == 2
    workload = workload_of(config, MANIFEST)
    assert workload.manifest == MANIFEST
    assert workload.read.caption_dropout == config.class_dropout
    with pytest.raises(InpaintError, match="names of folders"):
        card_of(config, Manifest.of(ROWS[2:]))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InpaintError, match="32, 64, 128, 256, 512"):
        preset(100, data="in", output="out")
    with pytest.raises(InpaintError, match="multiple of"):
        replace(preset(32, data="in", output="out"), image_size=36)
