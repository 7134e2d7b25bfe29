"""The toy base's two trainings, which are not run here: on which rows they go on, and what is recorded of them."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inpaint import toy
from inpaint.command import parse
from inpaint.diffusion.objective import LossSettings
from inpaint.recipes import toy_base
from inpaint.recipes.toy_base import PretrainToy, ToyPart, pretrain_toy
from inpaint.recipes.toy_vision import PretrainToyVision
from inpaint.train.settings import Offload, Precision, plain

RECORDS = sorted(Path(toy.__file__).with_name("weights").glob("*.json"))


def test_it_goes_on_with_the_catalogue_that_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, int]] = []

    def run(part: ToyPart, **more: Any) -> list[str]:
        assert part.resume and part.recheck, "rows that differ from those it began with are refused"
        begun.append((part.title, len(Path(part.data).read_text().splitlines()) - 1))
        return [part.export_folder("")]

    monkeypatch.setattr(toy_base, "run", run)
    monkeypatch.setattr(toy_base, "measure_base", lambda folder: {})
    # As an earlier run left it that was killed while it wrote, or that was asked for another one.
    csv = tmp_path / "catalogue" / "catalogue.csv"
    csv.parent.mkdir()
    csv.write_text("input,mask,output,prompt,category\n")
    folder, _ = pretrain_toy(PretrainToy(output=str(tmp_path), images=3))
    assert begun == [("toy VAE", 3), ("toy U-Net", 3)]
    assert folder == tmp_path / "unet" / "base"


def repeated(record: dict[str, Any]) -> dict[str, Any]:
    """The settings that a record's command is parsed to."""
    python, option, module, *arguments = shlex.split(record["command"])
    assert (python, option) == ("python", "-m")
    kinds: dict[str, tuple[Any, Any]] = {
        "ray_jobs.pretrain_toy": (PretrainToy, PretrainToy.defaults),
        "ray_jobs.pretrain_toy_vision": (PretrainToyVision, None),
    }
    config, defaults = kinds[module]
    settings = plain(parse(config, None, arguments, defaults))
    assert settings.pop("output") == "RUN"
    return json.loads(json.dumps(settings))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_what_made_the_shipped_weights_is_repeated_by_the_command_in_their_record(record: Path) -> None:
    made = json.loads(record.read_text())
    assert repeated(made) == made["settings"]
    flags = {word for word in shlex.split(made["command"]) if word.startswith("--")}
    assert flags <= {"--architecture", "--output", "--vae.workers", "--unet.workers"}, "the defaults still make them"


def test_any_settings_are_recorded_with_a_command_that_repeats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_base, "run", lambda part, **more: [part.export_folder("")])
    monkeypatch.setattr(toy_base, "measure_base", lambda folder: {"hit_rate": 1.0})
    vae = replace(
        PretrainToy.vae,
        workers=(1, 2),
        gpu=False,
        gradient_checkpointing=True,
        epochs=0.5,
        offload=Offload.OPTIMIZER,
        zero_stage=1,
    )
    unet = replace(PretrainToy.unet, ema_halflife=None, precision=Precision.BF16, max_grad_norm=0.0)
    config = PretrainToy(output=str(tmp_path), images=3, loss=LossSettings(debiased=True), vae=vae, unet=unet)
    pretrain_toy(config)
    record = json.loads((tmp_path / "base.json").read_text())
    assert repeated(record) == record["settings"]
    assert record["settings"]["vae"]["workers"] == [1, 2] and record["settings"]["loss"]["debiased"] is True
