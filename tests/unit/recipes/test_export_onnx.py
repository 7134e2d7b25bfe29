"""A base for ONNX Runtime with adapters beside it: our picture, where torch cannot be imported."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inpaint.diffusion import samplers
from inpaint.export.adapter_folder import save_adapter
from inpaint.export.onnx import base as onnx_base
from inpaint.export.onnx.adapter import save_onnx_adapter
from inpaint.export.onnx.painter import COLUMNS, Draws, OnnxPainter, card_of
from inpaint.paint.batch import read_models
from inpaint.recipes.exporting import ExportAdapter, export_adapter, fixed_set, paint_settings
from tests.adapters import made_up
from tests.tiny import tiny_sdxl_inpaint

STEPS = 3
PAINT = """
import sys

for name in ("torch", "transformers", "diffusers", "inpaint"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from painter import OnnxPainter

told = np.load(sys.argv[2])
adapters = {name: f"{sys.argv[1]}/{name}.onnx_adapter" for name in ("a", "b")}
painter = OnnxPainter(sys.argv[1], adapters=adapters, threads=1)
for name in ("a", "b"):
    settings = {"adapter": name, "seed": 3, "steps": 3, "guidance_scale": 4.0, "negative_prompt": "wood"}
    np.save(f"{sys.argv[2]}.{name}.npy", painter.paint(told["photo"], told["hole"], "a red box on wood", **settings))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of one base, exported one after the other, in files as those of a base that is too large for one."""
    root = tmp_path_factory.mktemp("onnx")
    base = tiny_sdxl_inpaint(root / "base")
    for seed, name in enumerate("ab"):
        adapter = made_up(base, seed, rank=2 + seed, tokens=("CDP_X", "CDP_X_1"))
        if name == "b":  # as those of others, it lacks layers
            adapter = replace(adapter, lora={n: t for n, t in adapter.lora.items() if "down_blocks" not in n})
        save_adapter(root / name, adapter)
        asked = ExportAdapter(adapter=str(root / name), to=("onnx",), output=str(root / "out"), pictures=1, steps=STEPS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_base, "LARGEST", 20_000)
            export_adapter(asked)
        if seed == 0:
            first = (root / "out/onnx/unet.onnx").stat().st_ino
    assert (root / "out/onnx/unet.onnx").stat().st_ino == first, "a base is exported once"
    assert (root / "out/onnx/unet.onnx.data").stat().st_size > 20_000
    return root


def test_both_adapters_of_one_base_paint_our_picture(exported: Path) -> None:
    told = json.loads((exported / "out/exports.json").read_text())
    assert [told[name]["onnx"]["bound"] for name in "ab"] == [1e-3, 1e-3]
    assert max(told[name]["onnx"]["largest"] for name in "ab") <= 1e-3


def test_in_half_precision_it_is_our_picture_too(exported: Path, tmp_path: Path) -> None:
    asked = ExportAdapter(adapter=str(exported / "a"), to=("onnx",), output=str(tmp_path), pictures=1, steps=STEPS)
    export_adapter(replace(asked, precision="fp16"))
    told = json.loads((tmp_path / "exports.json").read_text())["a"]["onnx"]
    assert told["largest"] <= told["bound"] == 2e-2


def test_it_paints_where_torch_cannot_be_imported(exported: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": STEPS, "guidance_scale": 4.0}
    for name in "ab":
        config = ExportAdapter(adapter=str(exported / name), pictures=1, steps=STEPS)
        models = read_models(replace(paint_settings(config), negative_prompt="wood"))
        (wanted,) = fixed_set(models, 1)
        wanted = replace(wanted, seed=3, sampling=replace(wanted.sampling, **settings))
        np.save(tmp_path / f"{name}.npy", models.painter("cpu", 1).paint([wanted])[0])
    np.savez(tmp_path / "told.npz", photo=wanted.image, hole=wanted.hole)
    command = [sys.executable, "-c", PAINT, str(exported / "out/onnx"), str(tmp_path / "told.npz")]
    done = subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pictures = {}
    for name in "ab":
        ours, theirs = np.load(tmp_path / f"{name}.npy"), np.load(tmp_path / f"told.npz.{name}.npy")
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        assert (theirs[~wanted.hole] == wanted.image[~wanted.hole]).all()
        pictures[name] = theirs
    assert np.abs(pictures["a"].astype(int) - pictures["b"]).max() > 8, "adapters that paint alike would prove nothing"


def test_a_weight_weighs_all_of_the_adapters_lora(exported: Path) -> None:
    """The text encoders', too."""
    models = read_models(paint_settings(ExportAdapter(adapter=str(exported / "a"), pictures=1, steps=STEPS)))
    (wanted,) = fixed_set(models, 1)
    painter = OnnxPainter(exported / "out/onnx", adapters={"a": exported / "out/onnx/a.onnx_adapter"}, threads=1)
    settings: dict[str, Any] = {"adapter": "a", "seed": wanted.seed, "steps": STEPS, "guidance_scale": 7.5}
    whole, half = (
        painter.paint_raw(wanted.image, wanted.hole, wanted.prompt, weight=weight, **settings) for weight in (1.0, 0.4)
    )
    (ours,) = models.painter("cpu", 1).paint_raw([replace(wanted, adapter_weight=0.4)])
    assert np.abs(ours - half).max() <= 1e-3 < np.abs(whole - half).max()


def test_what_onnx_runtime_does_not_check_is_checked(exported: Path, tmp_path: Path) -> None:
    base, folder = exported / "base", exported / "out/onnx"
    adapter = made_up(base, 5)
    other = replace(adapter, card=replace(adapter.card, base_revision="0" * 64))
    with pytest.raises(ValueError, match="adapter x: made for base .* at 000000000000"):
        OnnxPainter(folder, adapters={"x": save_onnx_adapter(tmp_path, other, "x")})
    right = card_of(save_onnx_adapter(tmp_path, adapter, "x")).read_bytes()
    path = save_onnx_adapter(tmp_path, other, "x")
    card_of(path).write_bytes(right)
    with pytest.raises(ValueError, match="not of one export"):
        OnnxPainter(folder, adapters={"x": path})
    painter, photo = OnnxPainter(folder), np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="adapter 'x': given were none"):
        painter.paint(photo, photo[..., 0] == 0, "a box", adapter="x")
    with pytest.raises(ValueError, match="steps 0: give 1 to"):
        painter.paint(photo, photo[..., 0] == 0, "a box", steps=0)
    with pytest.raises(ValueError, match="sides multiples of"):
        painter.paint(photo[:-1], photo[:-1, :, 0] == 0, "a box")
    wide = np.zeros((32, 64, 3), np.uint8)
    assert painter.paint(wide, wide[..., 0] == 0, "a box", steps=1).shape == wide.shape, "any size is painted"


def test_any_sampler_of_ours_is_a_table_of_its_columns() -> None:
    assert COLUMNS == samplers.COLUMNS


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 5, 5), (2, 9)])
def test_noise_is_torchs_own(shape: tuple[int, ...]) -> None:
    generator, draws = torch.Generator("cpu").manual_seed(2**40 + 3), Draws(2**40 + 3)
    for _ in range(2):
        assert np.abs(torch.randn(shape, generator=generator).numpy() - draws.normal(shape)).max() < 1e-6
