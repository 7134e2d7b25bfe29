"""The recipe: every size has its preset, epochs become samples, classes become what the objective is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inpaint.data.rows import Manifest, Row
from inpaint.data.sources import FolderNames
from inpaint.diffusion.unet import PRESETS
from inpaint.errors import InpaintError
from inpaint.recipes import inpainting
from inpaint.recipes.ddpm import TrainDdpm, preset_of
from inpaint.train.settings import Precision, plain

ROWS = Manifest.of(
    Row(id=f"{i}", root="", image=f"{i}.png", label=label, width=40, height=30, digest=f"{i:016x}{0:048x}")
    for i, label in enumerate(("cats", "dogs", None))
)


@pytest.mark.parametrize("size", sorted(PRESETS))
def test_every_size_has_a_preset(size: int) -> None:
    config = preset_of(size, data="in", output="out")
    assert config.unet == PRESETS[size]
    assert config.image_size == size
    assert config.train.ema_halflife is not None, "the moving average paints"
    assert config.train.precision is (Precision.FP32 if size == 32 else Precision.BF16)


def test_the_default_is_the_plain_ddpm_of_128_px() -> None:
    config = preset_of(128, data="in", output="out")
    assert config.noise.prediction_type == "epsilon" and config.noise.noise == "linear"
    assert config.train.lr_scale(40_000, 50_000) == 1, "the rate does not fall"
    assert (config.learning_rate, config.train.global_batch, config.train.epochs) == (1e-4, 32, 2000)


def test_checkpoints_by_epochs() -> None:
    config = preset_of(32, data="in", output="out")
    assert config.bind(ROWS).train.checkpoint_every == config.train.checkpoint_every
    assert replace(config, checkpoint_epochs=100).bind(ROWS).train.checkpoint_every == 300


def test_what_decides_what_is_learned_is_fixed() -> None:
    config = preset_of(32, data="in", output="out").bind(ROWS)
    fixed = plain(config, fixed_only=True)
    for changed in (
        replace(config, train=replace(config.train, epochs=5000, workers=3)),
        replace(config, output="elsewhere", resume=True, checkpoint_epochs=7.0),
    ):
        assert plain(changed, fixed_only=True) == fixed
    for changed in (
        replace(config, learning_rate=1.0),
        replace(config, loss=replace(config.loss, min_snr_gamma=5.0)),
        replace(config, holes=replace(config.holes, most_shapes=9)),
        replace(config, classes=True).bind(ROWS),
    ):
        assert plain(changed, fixed_only=True) != fixed


def test_holes_are_drawn_never_full_and_as_large_as_was_asked_for() -> None:
    hole = preset_of(32, data="in", output="out").bind(ROWS).read_settings().hole
    assert not hole.uses_own
    assert hole.probability == 0


def test_a_class_is_the_folders_name() -> None:
    config = preset_of(32, data="in", output="out")
    assert config.source("in").folder_names is FolderNames.NOTHING
    assert config.bind(ROWS).card().unet.classes == 0
    classes = replace(config, classes=True)
    assert classes.source("in").folder_names is FolderNames.LABEL
    bound = classes.bind(ROWS)
    assert bound.card().classes == ("cats", "dogs") and bound.card().unet.classes == 2
    with pytest.raises(InpaintError, match="folder 'dogs' is no class: class_names are cats, cows"):
        replace(classes, class_names=("cats", "cows")).bind(ROWS).check_rows(ROWS)
    with pytest.raises(InpaintError, match="folder 'dogs' is no class: class_names are cats"):
        classes.bind(ROWS.select(np.array([0]))).check_rows(ROWS)  # as rows of its own to validate on
    for seed in range(8):
        rest, _ = ROWS.select(np.array([0, 0, 1])).split(0.9, seed)
        assert rest.labels == ("cats", "dogs"), "no class goes whole"
    assert bound.read_settings().caption_dropout == classes.class_dropout
    with pytest.raises(InpaintError, match="names of folders"):
        classes.bind(ROWS.select(ROWS.table["label"].is_null().to_numpy()))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InpaintError, match="32, 64, 128, 256, 512"):
        preset_of(100, data="in", output="out")
    with pytest.raises(InpaintError, match="multiple of"):
        replace(preset_of(32, data="in", output="out"), image_size=36)


def test_a_cluster_may_have_the_gpus_that_this_process_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainDdpm] = []
    monkeypatch.setattr(inpainting, "run", lambda config: asked.append(config) or ["out"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cpu", None):
        inpainting.train_inpainting("in", "out", image_size=32, device=device, connect=False)
    assert [config.train.gpu for config in asked] == [True, False, None]
    with pytest.raises(InpaintError, match="give cpu, cuda or cuda:N"):
        inpainting.train_inpainting("in", "out", device="tpu9", connect=False)
