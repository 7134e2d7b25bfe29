"""A base for ONNX Runtime with an adapter in its weights: our picture, from one folder without an adapter's file.

The base is a 4-channel SD 1.5, the adapter's token has two vectors.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import save_adapter
from inpaint.export.onnx.adapter import SUFFIX
from inpaint.export.onnx.painter import OnnxPainter
from inpaint.models.base import read_base_info
from inpaint.paint.batch import read_models
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.recipes.exporting import ExportAdapter, export_adapter, fixed_set, paint_settings
from inpaint.serve.engine.engine import Engine
from inpaint.serve.engine.onnx_executor import OnnxExecutor
from inpaint.serve.engine.settings import EngineSettings
from tests.adapters import made_up
from tests.tiny import tiny_sd
from tests.unit.serve.engines import LEVEL, Adapters, by_painter, difference, order, pictures, request

STEPS = 3
PAINT = """
import sys

for name in ("torch", "transformers", "diffusers", "inpaint"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from painter import OnnxPainter

told = np.load(sys.argv[2])
painter = OnnxPainter(sys.argv[1], threads=1)
settings = {"seed": 3, "steps": 3, "guidance_scale": 4.0}
np.save(sys.argv[3], painter.paint(told["photo"], told["hole"], "a red box on wood", **settings))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`merged` and `onnx_merged` of one adapter, `style`, in `out`."""
    root = tmp_path_factory.mktemp("merged")
    save_adapter(root / "style", made_up(tiny_sd(root / "base"), 1, tokens=("cdp", "cdp_1")))
    kinds, where = ("merged", "onnx_merged"), {"adapter": str(root / "style"), "output": str(root / "out")}
    export_adapter(ExportAdapter(to=kinds, pictures=1, steps=STEPS, **where))
    return root


def test_it_is_our_picture_from_a_folder_without_an_adapters_file(exported: Path) -> None:
    told = json.loads((exported / "out/exports.json").read_text())["style"]["onnx_merged"]
    assert told["largest"] <= told["bound"] == 1e-3
    assert all(file.startswith("style/") and not file.endswith(SUFFIX) for file in told["files"])
    graphs = [onnx.load(file).graph for file in (exported / "out/onnx_merged/style").glob("*.onnx")]
    inputs = {value.name for graph in graphs for value in graph.input}
    assert inputs == {"ids", "pixels", "latents", "sample", "timestep", "states"}, "it is slower with a LoRA's inputs"


def test_it_knows_its_categorys_token_where_torch_cannot_be_imported(exported: Path, tmp_path: Path) -> None:
    models = read_models(paint_settings(ExportAdapter(adapter=str(exported / "style"), steps=STEPS)))
    (wanted,) = fixed_set(models, 1)
    assert wanted.prompt == "cdp background, a red box on wood"
    wanted = replace(wanted, seed=3, sampling=replace(wanted.sampling, guidance_scale=4.0))
    np.savez(tmp_path / "told.npz", photo=wanted.image, hole=wanted.hole)
    where = [str(exported / "out/onnx_merged/style"), str(tmp_path / "told.npz"), str(tmp_path / "painted.npy")]
    done = subprocess.run([sys.executable, "-c", PAINT, *where], text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "painted.npy")
    assert difference(theirs, models.painter("cpu", 1).paint([wanted])[0]) <= LEVEL
    assert difference(theirs, by_painter(exported / "base", wanted)) > LEVEL, "the adapter changes nothing"


def test_it_takes_no_other_adapter_and_no_category_that_it_does_not_know(exported: Path) -> None:
    painter, photo = OnnxPainter(exported / "out/onnx_merged/style", threads=1), np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="adapter x: .*base with style has one in its weights"):
        painter.load("x", exported / "x.onnx_adapter")
    with pytest.raises(ValueError, match="category 'C1': this adapter knows C0"):
        painter.paint(photo, photo[..., 0] == 0, "a box", category="C1")


def test_it_is_served_as_an_export_of_the_merged_pipeline(exported: Path) -> None:
    merged, folder = exported / "out/merged/style", exported / "out/onnx_merged/style"
    info = read_base_info(str(merged))
    load = Adapters({"a": made_up(merged, 2)}).load
    engine = Engine(OnnxExecutor(folder, info, "fp32", EngineSettings(), load, threads=1))
    engine.start()
    with_photo = request(2, height=32, width=32, prompt="cdp background, a box", guidance_scale=2.0)
    sampling = SamplingSettings(steps=STEPS, guidance_scale=1.0)
    text = PaintRequest.of_text("a red cdp", height=32, width=32, seed=5, sampling=sampling)
    try:
        painted = pictures(engine, [order(with_photo), order(text)])
        with pytest.raises(InpaintError, match="adapter a: .*with style has one in its weights"):
            pictures(engine, [order(with_photo, "a")])
    finally:
        engine.close(drain=False)
    for one, picture in zip((with_photo, text), painted, strict=True):
        assert difference(picture, by_painter(merged, one)) <= LEVEL
