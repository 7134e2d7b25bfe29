"""Exports: what each library paints with its format is what we paint, or the format is not given out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inpaint.errors import InpaintError
from inpaint.evaluate.parity import Parity
from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import Adapter
from inpaint.models.base import load_base
from inpaint.models.folder import PREFERENCES_FILE
from inpaint.paint.painter import Painter
from inpaint.recipes import export_formats, exporting
from inpaint.recipes.exporting import ExportAdapter, export_adapter, fixed_set
from tests.adapters import made_up
from tests.tiny import tiny_sd, tiny_sd_inpaint, tiny_sdxl_inpaint

MAKERS = {"sd9": tiny_sd_inpaint, "sd4": tiny_sd, "sdxl9": tiny_sdxl_inpaint}


def exported(adapter: Adapter, where: Path, **settings: Any) -> list[str]:
    save_adapter(where / "style", adapter)
    return export_adapter(
        ExportAdapter(adapter=str(where / "style"), output=str(where / "out"), pictures=1, steps=2, **settings)
    )


@pytest.mark.parametrize("kind", MAKERS)
def test_every_format_is_written_and_is_our_picture(tmp_path: Path, kind: str) -> None:
    base = MAKERS[kind](tmp_path / "base")
    (base / PREFERENCES_FILE).write_text('{"guidance_scale": 3.0, "steps": 11}')
    adapter = made_up(base, 1, tokens=("CDP_X", "CDP_X_1"))
    assert len(exported(adapter, tmp_path)) == 2 + 3
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["diffusers", "exports.json", "kohya", "merged"]
    told = json.loads((out / "exports.json").read_text())["style"]
    assert {one["bound"] for one in told.values()} == {1e-3} and max(one["largest"] for one in told.values()) <= 1e-3
    again = load_adapter(out / "diffusers/style")
    assert all(torch.equal(again.lora[name], tensor) for name, tensor in adapter.lora.items())
    assert again.card.parity.keys() == told.keys()
    # The merged pipeline is a base of its own, which paints alone what the other does with the adapter.
    config = ExportAdapter(adapter=str(out / "diffusers/style"), pictures=1, steps=2)
    models = exporting.read_models(exporting.paint_settings(config))
    requests = fixed_set(models, 1)
    alone = load_base(out / "merged/style")
    assert (alone.info.guidance_scale, alone.info.steps) == (3.0, 11), "it prefers what the base does"
    (ours,), (merged,) = (
        painter.paint_raw(requests) for painter in (models.painter("cpu", 1), Painter(alone, device="cpu"))
    )
    assert np.abs(ours - merged).max() <= 1e-3
    (bare,) = Painter(load_base(base), device="cpu").paint_raw(requests)
    assert np.abs(ours - bare).max() > 2e-2, "it changes nothing, so equality says nothing"


def test_a_lora_of_others_becomes_an_adapter_of_ours(tmp_path: Path) -> None:
    base = tiny_sd_inpaint(tmp_path / "base")
    adapter = made_up(base, 1)
    exported(replace(adapter, embeds=()), tmp_path, to=("kohya",), name="ppz")
    file = str(tmp_path / "out/kohya/ppz.safetensors")
    config = ExportAdapter(adapter=file, base=str(base), to=("diffusers",), output=str(tmp_path / "in"), steps=2)
    export_adapter(config)
    back = load_adapter(tmp_path / "in/diffusers/ppz")
    assert back.card.base_revision == adapter.card.base_revision
    assert all(torch.equal(back.lora[name], tensor) for name, tensor in adapter.lora.items())


def test_what_paints_otherwise_is_not_given_out_and_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_sd_inpaint(tmp_path / "base")

    def wrong_alpha(folder: Path, adapter: Adapter, *more: Any) -> Path:
        return save_kohya(folder, replace(adapter, card=replace(adapter.card, alpha=adapter.card.alpha / 2)), *more)

    save_kohya = export_formats.save_kohya
    monkeypatch.setattr(export_formats, "save_kohya", wrong_alpha)
    with pytest.raises(InpaintError, match=r"kohya: not written, for its pictures differ\n[^$]*NOT written"):
        exported(made_up(base, 1), tmp_path, to=("kohya", "diffusers"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["diffusers", "exports.json"]
    told = json.loads((tmp_path / "out/exports.json").read_text())["style"]
    assert told["kohya"]["largest"] > 1e-3
    assert load_adapter(tmp_path / "out/diffusers/style").card.parity.keys() == {"diffusers"}


def test_a_picture_that_is_no_number_is_as_far_as_can_be() -> None:
    picture, none = np.zeros((2, 2, 3), np.float32), np.full((2, 2, 3), np.nan, np.float32)
    parity = Parity.of([picture, picture], [none, picture])
    assert not exporting.Exported(parity, 1e-3, {}).passed


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    base, other = tiny_sd_inpaint(tmp_path / "base"), tiny_sdxl_inpaint(tmp_path / "other")
    adapter = made_up(base, 1)
    first = next(iter(adapter.lora))
    broken = replace(adapter, lora={**adapter.lora, first: torch.full_like(adapter.lora[first], torch.nan)})
    with pytest.raises(InpaintError, match="not finite"):
        exported(broken, tmp_path / "nan")
    with pytest.raises(InpaintError, match=r"expected \((3, |\d+, 3\))"):  # either half
        exported(replace(adapter, card=replace(adapter.card, rank=3)), tmp_path / "rank")
    with pytest.raises(InpaintError, match="is wanted, but what is in"):
        exported(adapter, tmp_path / "base_of_another", base=str(other))
    with pytest.raises(InpaintError, match=r"'../x': give it a name"):
        exported(adapter, tmp_path / "name", name="../x")
    with pytest.raises(InpaintError, match="fp32 or fp16"):
        ExportAdapter(adapter="a", to=("onnx",), precision="bf16")
    with pytest.raises(InpaintError, match="to onnx_merged in bf16"):
        ExportAdapter(adapter="a", to=("onnx_merged",), precision="bf16")
    with pytest.raises(InpaintError, match="name at least one format"):
        ExportAdapter(adapter="a", to=())


def test_what_passed_goes_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    class Hub:
        def create_repo(self, repository: str, exist_ok: bool) -> None:
            calls.append(("made", repository))

        def upload_folder(self, repo_id: str, folder_path: Path, path_in_repo: str, allow_patterns: list[str]) -> None:
            there = sorted(path.name for path in Path(folder_path, "style").iterdir())
            assert sorted(allow_patterns) == [f"style/{name}" for name in there]
            calls.append((repo_id, path_in_repo))

    monkeypatch.setattr(exporting, "HfApi", Hub)
    base = tiny_sd_inpaint(tmp_path / "base")
    exported(made_up(base, 1), tmp_path, to=("diffusers",), push_to_hub="me/style")
    assert calls == [("made", "me/style"), ("me/style", "diffusers")]
