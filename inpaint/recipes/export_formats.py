"""The formats that an adapter is exported in: how each is written, and what its own library paints with it."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import load_file

from inpaint.evaluate.parity import load_pipeline, load_token, painted_by, pipeline_of
from inpaint.export.adapter_folder import EMBEDS_FILES, LORA_FILE, save_adapter
from inpaint.export.card import write_card
from inpaint.export.kohya_file import EMBEDDING_KEYS, EMBEDDINGS, save_kohya
from inpaint.export.kohya_names import SUFFIX
from inpaint.models.base import DTYPES, Base, load_base
from inpaint.models.folder import PREFERENCES_FILE
from inpaint.paint.batch import PaintModels
from inpaint.paint.request import PaintRequest

Kind = Literal["diffusers", "kohya", "merged", "onnx", "onnx_merged"]


@dataclass(frozen=True)
class ExportSource:
    """What is exported."""

    models: PaintModels
    name: str
    precision: str
    earlier: Path | None = None
    """Where exports in the same format are, if there are any."""

    def base(self) -> Base:
        """Without the adapter."""
        settings = self.models.settings
        assert settings.base is not None
        return load_base(settings.base, revision=settings.revision, dtype=DTYPES[self.precision])

    def pipeline(self) -> Any:
        """diffusers' pipeline of the base alone."""
        return pipeline_of(self.base())


def _write_diffusers(source: ExportSource, folder: Path) -> None:
    assert source.models.adapter is not None
    own = save_adapter(folder / source.name, source.models.adapter)
    write_card(own, source.models.adapter, source.models.info, [])


def _paint_diffusers(source: ExportSource, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    return painted_by(_with_adapter(source, folder), requests)


def _with_adapter(source: ExportSource, folder: Path) -> Any:
    """diffusers' pipeline of the base with what `_write_diffusers` wrote."""
    pipeline = source.pipeline()
    own = folder / source.name
    pipeline.load_lora_weights(own, weight_name=LORA_FILE, use_safetensors=True)
    embeds = [load_file(own / file) for file in EMBEDS_FILES if (own / file).is_file()]
    for token in embeds[0] if embeds else ():
        load_token(pipeline, token, [vectors[token] for vectors in embeds])
    return pipeline


def _write_kohya(source: ExportSource, folder: Path) -> None:
    assert source.models.adapter is not None
    save_kohya(folder, source.models.adapter, source.models.info, source.name)


def _paint_kohya(source: ExportSource, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    pipeline = source.pipeline()
    pipeline.load_lora_weights(folder, weight_name=source.name + SUFFIX, use_safetensors=True)
    for file in sorted((folder / EMBEDDINGS).glob(f"*{SUFFIX}")):
        vectors = load_file(file)
        load_token(pipeline, file.name.removesuffix(SUFFIX), [vectors[key] for key in EMBEDDING_KEYS[len(vectors)]])
    return painted_by(pipeline, requests)


def _write_merged(source: ExportSource, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as aside:
        _write_diffusers(source, Path(aside))
        pipeline = _with_adapter(source, Path(aside))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(folder / source.name)
    preferences = {"guidance_scale": source.models.info.guidance_scale, "steps": source.models.info.steps}
    (folder / source.name / PREFERENCES_FILE).write_text(json.dumps(preferences) + "\n", encoding="utf-8")


def _paint_merged(source: ExportSource, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    info, dtype = source.models.info, DTYPES[source.precision]
    return painted_by(load_pipeline(folder / source.name, is_xl=info.is_xl, dtype=dtype), requests)


def _write_onnx(source: ExportSource, folder: Path) -> None:
    """The base's files are those of `source.earlier` where it is the same base."""
    from inpaint.export.onnx.adapter import save_onnx_adapter
    from inpaint.export.onnx.base import base_files, export_base, is_export_of

    base = source.base()
    if source.earlier is not None and is_export_of(base, source.earlier):
        for file in base_files(source.earlier):
            target = folder / file.relative_to(source.earlier)
            target.parent.mkdir(exist_ok=True)
            os.link(file, target)
    else:
        export_base(base, folder)
    assert source.models.adapter is not None
    save_onnx_adapter(folder, source.models.adapter, source.name)


def _paint_onnx(source: ExportSource, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    from inpaint.export.onnx.adapter import SUFFIX as ONNX_SUFFIX
    from inpaint.export.onnx.painter import OnnxPainter

    painter = OnnxPainter(folder, adapters={source.name: folder / f"{source.name}{ONNX_SUFFIX}"})
    return _painted_by_onnx(painter, requests, source.name)


def _write_onnx_merged(source: ExportSource, folder: Path) -> None:
    """The merged pipeline is its base: it has its revision, and can be served in its place."""
    from inpaint.export.onnx.base import export_base

    assert source.models.adapter is not None
    card, own = source.models.adapter.card, folder / source.name
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        _write_merged(source, Path(aside))
        base = load_base(Path(aside) / source.name, dtype=DTYPES[source.precision])
        base.info = replace(base.info, name=f"{card.base} with {source.name}")
        own.mkdir()
        export_base(base, own, merged=card)


def _paint_onnx_merged(source: ExportSource, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    from inpaint.export.onnx.painter import OnnxPainter

    return _painted_by_onnx(OnnxPainter(folder / source.name), requests, None)


def _painted_by_onnx(painter: Any, requests: Sequence[PaintRequest], adapter: str | None) -> list[np.ndarray]:
    return [
        painter.paint_raw(
            request.image,
            request.hole,
            request.prompt,
            adapter=adapter,
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            steps=request.sampling.steps,
            guidance_scale=request.sampling.guidance_scale,
        )
        for request in requests
    ]


Write = Callable[[ExportSource, Path], None]
Paint = Callable[[ExportSource, Path, Sequence[PaintRequest]], list[np.ndarray]]
FORMATS: Mapping[Kind, tuple[Write, Paint]] = {
    "diffusers": (_write_diffusers, _paint_diffusers),
    "kohya": (_write_kohya, _paint_kohya),
    "merged": (_write_merged, _paint_merged),
    "onnx": (_write_onnx, _paint_onnx),
    "onnx_merged": (_write_onnx_merged, _paint_onnx_merged),
}
"""How each format is written, and how the library that it is for paints with what was written."""
