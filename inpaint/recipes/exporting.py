"""An adapter in the formats of others, each proven before it is given out: what its library paints is what we paint.

A format is written aside, loaded back by the library that it is for, and paints the fixed set: backgrounds around toy
products, at the base's size. Only what paints them as the adapter does, to within a bound, goes to the output.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from huggingface_hub import HfApi

from inpaint.data.storage import output_folder
from inpaint.errors import InpaintError
from inpaint.evaluate.parity import Parity
from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import check_name
from inpaint.paint.batch import PaintModels, PaintSettings, read_models
from inpaint.paint.request import WHOLE, PaintRequest, SamplingSettings
from inpaint.progress import ProgressBar
from inpaint.recipes.export_formats import FORMATS, ExportSource, Kind
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import render

REPORT = "exports.json"
BOUNDS = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
"""By the precision that the fixed set is painted at: how far a pixel may be off, in [0, 1], before paste-back."""
FIXED_SEED = 4_000_000
"""Of the fixed set's pictures."""
WORDS = "a red box on wood"


@dataclass(frozen=True, kw_only=True)
class ExportAdapter:
    """Settings of `python -m ray_jobs.export`."""

    adapter: str
    """An adapter's folder or URL; or a `.safetensors` file of kohya, Civitai or diffusers, which needs `base`."""
    to: tuple[Kind, ...] = ("diffusers", "kohya", "merged")
    """diffusers: an adapter's folder as we write it, which `load_lora_weights` reads. kohya: one file for A1111,
    ComfyUI and others, and one per token. merged: a whole pipeline with the LoRA in its weights. onnx: the base for
    ONNX Runtime, with the adapter beside it. onnx_merged: the base for ONNX Runtime with the LoRA and the tokens in
    it, which takes no other adapter."""
    output: str = "export"
    """Folder (or URL); each format has a folder of its name in it, for as many adapters as are exported to it."""
    name: str | None = None
    """What the adapter is called in prompts and file names; unset: as its folder or file."""
    base: str | None = None
    """A folder, a hub id, a `.safetensors` file, `toy`; unset: the one that the adapter was trained on."""
    revision: str | None = None
    """Of a hub id; unset: the one that the adapter was trained on."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of what is merged, and of painting the fixed set."""
    pictures: Annotated[int, tyro.conf.arg(aliases=["--n"])] = 2
    """Of the fixed set."""
    steps: int = 10
    """Sampling steps of each."""
    seed: int = 0
    push_to_hub: str | None = None
    """A hub id (owner/name) to which each format goes that passed, in a folder of its name; it is made where there is
    none, and needs a token (`hf auth login`)."""

    def __post_init__(self) -> None:
        if not self.to:
            raise InpaintError("to: name at least one format")
        for kind in {"onnx", "onnx_merged"} & set(self.to):
            if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):
                raise InpaintError(f"to {kind}: its packages are not installed: pip install 'inpaint[onnx]'")
            if self.precision == "bf16":
                raise InpaintError(f"to {kind} in bf16: ONNX Runtime computes in fp32 or fp16; give one of these")
        if self.pictures < 1 or self.steps < 1:
            raise InpaintError(f"pictures {self.pictures}, steps {self.steps}: give at least 1")


@dataclass(frozen=True)
class Exported:
    """What became of one format."""

    parity: Parity
    bound: float
    files: dict[str, int]
    """Below the format's folder -> bytes."""

    @property
    def passed(self) -> bool:
        return self.parity.largest <= self.bound  # false for NaN, too


def export_adapter(config: ExportAdapter, *, stop: StopToken | None = None) -> list[str]:
    """Write the formats, and `exports.json` with their differences; returns a table's lines.

    Raises:
        InpaintError: an adapter or a base that cannot be used, or a format whose pictures differ: it is not written,
            the others are.
    """
    done = export(config, stop=stop)
    failed = [kind for kind, one in done.items() if not one.passed]
    if failed:
        raise InpaintError("\n".join([f"{', '.join(failed)}: not written, for its pictures differ", *table(done)]))
    return table(done)


def export(config: ExportAdapter, *, stop: StopToken | None = None) -> dict[Kind, Exported]:
    """The same, whether or not all pass; returns what became of each format. Raises InpaintError for what cannot be
    used."""
    stop = stop or StopToken()
    models = read_models(paint_settings(config))
    assert models.adapter_name is not None
    source = ExportSource(models, config.name or models.adapter_name, config.precision)
    check_name(source.name)
    requests = fixed_set(models, config.pictures)
    done: dict[Kind, Exported] = {}
    with ProgressBar("exporting") as bar, output_folder(config.output) as output:
        ours = models.painter("cpu", max_batch=1).paint_raw(requests)
        for number, kind in enumerate(config.to):
            stop.check()
            bar.show(number, len(config.to))
            done[kind] = _export(kind, source, requests, ours, output)
        _report(source.name, done, output)
        if config.push_to_hub is not None:
            _push(config.push_to_hub, output, {kind: one.files for kind, one in done.items() if one.passed})
    return done


def paint_settings(config: ExportAdapter) -> PaintSettings:
    """How the fixed set is painted."""
    return PaintSettings(
        base=config.base,
        revision=config.revision,
        adapter=config.adapter,
        sampling=SamplingSettings(steps=config.steps, padding=WHOLE),
        seed=config.seed,
        precision=config.precision,
    )


def table(done: Mapping[Kind, Exported]) -> list[str]:
    """A line for each format."""
    lines = [
        "| format | bytes | largest difference | mean difference | bound | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for kind, one in done.items():
        apart = f"{one.parity.largest:.2g} | {one.parity.mean:.2g} | {one.bound:g}"
        size, verdict = sum(one.files.values()), "written" if one.passed else "NOT written"
        lines.append(f"| {kind} | {size:,} | {apart} | {verdict} |")
    return lines


def fixed_set(models: PaintModels, count: int) -> list[PaintRequest]:
    """Toy products at the base's size, with all around them to be painted, and prompts as the adapter was trained."""
    assert models.adapter is not None
    category = next(iter(models.adapter.card.tokens), None)
    requests = []
    for number in range(count):
        scene = render(FIXED_SEED, number, models.info.default_size)
        prompt, seed = models.prompt(WORDS, category), models.settings.seed + number
        requests.append(models.request(scene.image, ~scene.product, prompt, seed))
    return requests


def _export(
    kind: Kind, source: ExportSource, requests: Sequence[PaintRequest], ours: Sequence[np.ndarray], output: Path
) -> Exported:
    """Write one format aside, and where it passes to `output/kind`, beside those of other adapters."""
    write, paint = FORMATS[kind]
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{kind}-") as aside:
        folder, target = Path(aside), output / kind
        write(replace(source, earlier=target), folder)
        parity = Parity.of(ours, paint(source, folder, requests))
        files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        exported = Exported(parity, BOUNDS[source.precision], files)
        if exported.passed:
            shutil.rmtree(target / source.name, ignore_errors=True)
            for file in files:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).replace(target / file)
    return exported


def _report(name: str, done: Mapping[Kind, Exported], output: Path) -> None:
    """In `exports.json`, and in the adapter's own card of what is in it."""
    file = output / REPORT
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    told[name] = {kind: {**asdict(one.parity), "bound": one.bound, "files": one.files} for kind, one in done.items()}
    file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if "diffusers" in done and done["diffusers"].passed:
        folder = output / "diffusers" / name
        adapter = load_adapter(folder)
        parity: dict[str, dict[str, float]] = {kind: asdict(one.parity) for kind, one in done.items() if one.passed}
        save_adapter(folder, replace(adapter, card=replace(adapter.card, parity=parity)))


def _push(repository: str, output: Path, passed: Mapping[Kind, Mapping[str, int]]) -> None:
    """This adapter's files alone: others' may lie beside them."""
    hub = HfApi()
    hub.create_repo(repository, exist_ok=True)
    for kind, files in passed.items():
        hub.upload_folder(repo_id=repository, folder_path=output / kind, path_in_repo=kind, allow_patterns=list(files))
