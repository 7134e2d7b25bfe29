"""`ray_jobs.train_panel_lora`: its settings and what they become; composites that it cannot train on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import tyro

from inpaint.data.rows import Manifest, Row
from inpaint.errors import InpaintError
from inpaint.recipes.panel_lora import PanelLora, TrainPanelLora, train_panels
from inpaint.train.engine import deepspeed_config
from inpaint.train.settings import Offload, Precision
from tests.tiny import tiny_sd, tiny_sdxl_inpaint

GIVEN = {"data_dir": "D", "output_dir": "O"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_sdxl_inpaint(tmp_path_factory.mktemp("tiny") / "sdxl4", in_channels=4))


def rows(*sizes: tuple[int, int]) -> Manifest:
    """Of these widths and heights."""
    return Manifest.of(
        Row(id=f"{n}.png", root="/", image=f"{n}.png", prompt="p", width=width, height=height, digest="0" * 64)
        for n, (width, height) in enumerate(sizes)
    )


def test_its_settings_are_called_as_they_are_in_the_field_with_underscores_or_hyphens() -> None:
    flags = "--data_dir D --output-dir O --lora_rank 8 --lora-alpha 4 --resume_from_checkpoint latest --grid 1x4"
    given = tyro.cli(TrainPanelLora, args=[*flags.split(), "--validation.samples", "0"])
    assert (given.lora_rank, given.lora_alpha, given.resume_from_checkpoint, given.grid) == (8, 4, "latest", "1x4")
    assert given.validation.samples == 0


def test_the_defaults_and_what_they_become() -> None:
    config = TrainPanelLora(**GIVEN)
    recipe = config.recipe()
    assert recipe.base == "stabilityai/stable-diffusion-xl-base-1.0" and recipe.resolution == 1024
    train, lora = recipe.train, recipe.lora
    assert (train.epochs, train.global_batch, train.checkpoint_every, train.seed) == (100, 4, 4000, 42)
    assert (lora.rank, lora.scaled_alpha, lora.dropout, lora.text_encoder) == (64, 64, 0.1, False)
    assert recipe.unet_learning_rate == 1e-4 and train.precision is Precision.BF16 and train.gradient_checkpointing
    assert recipe.full_hole_probability == pytest.approx(0.3) and recipe.max_masked_panels == 2
    assert not recipe.resume and replace(config, resume_from_checkpoint="latest").recipe().resume


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask_probability": 1.5}, "mask_probability 1.5"),
        ({"max_masked_panels": 4}, "up to 4 of 2x2 panels"),
        ({"grid": "2"}, "grid '2'"),
        ({"save_every": 0}, "save_every 0"),
        ({"batch_size": 0}, "batch_size 0: give at least 1"),
        ({"num_epochs": 0}, "num_epochs 0: give more than 0"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InpaintError, match=message):
        TrainPanelLora(**{**GIVEN, **changed})


def test_composites_are_seen_in_their_own_aspect(base: str) -> None:
    recipe = PanelLora(data="D", output="O", base=base, resolution=64)
    assert recipe.bind(rows((500, 500))).resolution == (64, 64)
    wide = recipe.bind(rows((400, 100), (404, 100)))
    assert wide.resolution == (32, 128)
    wide.check_rows(rows((400, 100), (404, 100)))
    with pytest.raises(InpaintError, match="aspect_buckets: composites of one training are all of one aspect"):
        replace(recipe, aspect_buckets=True).check()
    with pytest.raises(InpaintError, match=r"1.png has 300 x 100 pixels.*trained on at 128 x 32.*cut into panels"):
        wide.check_rows(rows((400, 100), (300, 100)))


def test_every_setting_of_memory_and_speed_reaches_the_loop(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    config = TrainPanelLora(
        **{**GIVEN, "model_id": base, "image_size": 64},
        train_text_encoders=True,
        text_encoder_learning_rate=3e-5,
        ema_halflife=400,
        zero_stage=2,
        offload=Offload.OPTIMIZER,
        max_micro_batch=1,
    )
    recipe = config.recipe().bind(rows((64, 64)))
    train = recipe.train
    zero = deepspeed_config(train, train.layout(1), trained=10)
    assert (zero["gradient_accumulation_steps"], zero["train_micro_batch_size_per_gpu"]) == (4, 1)
    assert zero["zero_optimization"]["stage"] == 2 and zero["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert train.ema_halflife == 400
    objective = recipe.objective(torch.device("cpu"))
    assert objective.unet.is_gradient_checkpointing and objective.unet.conv_in.weight.dtype == torch.bfloat16
    unet, encoders = objective.groups()
    assert (unet.learning_rate, encoders.learning_rate) == (1e-4, 3e-5)
    assert {name.split(".")[0] for name in encoders.parameters} == {"text_encoder", "text_encoder_2"}
    trained = {name.rpartition(".lora_")[0] for name in unet.parameters}
    assert all(".attn" in name or ".ff." in name for name in trained)
    alone = replace(config, train_text_encoders=False).recipe().bind(rows((64, 64)))
    assert len(alone.objective(torch.device("cpu")).groups()) == 1


def test_fp16_asks_for_zero_where_it_is_given_and_for_gpus_where_it_runs() -> None:
    half = TrainPanelLora(**GIVEN, mixed_precision=Precision.FP16)
    assert half.recipe().train.precision is Precision.FP16
    with pytest.raises(InpaintError, match="precision fp16 needs zero_stage 1, 2 or 3"):
        replace(half, zero_stage=0).recipe()


def test_a_base_that_is_not_sdxl_is_refused_before_the_composites_are_read(tmp_path: Path) -> None:
    recipe = PanelLora(data="D", output="O", base=str(tiny_sd(tmp_path)))
    with pytest.raises(InpaintError, match=f"base {tmp_path}: is not SDXL, .*give SDXL or SDXL inpainting"):
        recipe.check()


def test_it_goes_on_with_what_is_named_alone(tmp_path: Path) -> None:
    config = TrainPanelLora(data_dir="D", output_dir=str(tmp_path), resume_from_checkpoint="elsewhere/checkpoint-500")
    with pytest.raises(InpaintError, match="elsewhere/checkpoint-500: a run goes on from its newest checkpoint"):
        train_panels(config)
