"""The formats that an adapter is exported in: how each is written, and what its own library paints with it."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import load_file

from inpaint.evaluate.parity import load_pipeline, load_token, painted_by, pipeline_of
from inpaint.export.adapter_folder import EMBEDS_FILES, LORA_FILE, save_adapter
from inpaint.export.card import write_card
from inpaint.export.kohya_file import EMBEDDING_KEYS, EMBEDDINGS, save_kohya
from inpaint.export.kohya_names import SUFFIX
from inpaint.models.base import DTYPES, load_base
from inpaint.paint.batch import PaintModels
from inpaint.paint.request import PaintRequest

Kind = Literal["diffusers", "kohya", "merged"]


@dataclass(frozen=True)
class Source:
    """What is exported."""

    models: PaintModels
    name: str
    precision: str

    def pipeline(self) -> Any:
        """diffusers' pipeline of the base alone."""
        settings = self.models.settings
        assert settings.base is not None
        return pipeline_of(load_base(settings.base, revision=settings.revision, dtype=DTYPES[self.precision]))


def _write_diffusers(source: Source, folder: Path) -> None:
    assert source.models.adapter is not None
    save_adapter(folder, source.models.adapter)
    write_card(folder, source.models.adapter, source.models.info, [])


def _paint_diffusers(source: Source, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    return painted_by(_with_adapter(source, folder), requests)


def _with_adapter(source: Source, folder: Path) -> Any:
    """diffusers' pipeline of the base with the adapter's folder loaded."""
    pipeline = source.pipeline()
    pipeline.load_lora_weights(folder, weight_name=LORA_FILE, use_safetensors=True)
    embeds = [load_file(folder / file) for file in EMBEDS_FILES if (folder / file).is_file()]
    for token in embeds[0] if embeds else ():
        load_token(pipeline, token, [vectors[token] for vectors in embeds])
    return pipeline


def _write_kohya(source: Source, folder: Path) -> None:
    assert source.models.adapter is not None
    save_kohya(folder, source.models.adapter, source.models.info, source.name)


def _paint_kohya(source: Source, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    pipeline = source.pipeline()
    pipeline.load_lora_weights(folder, weight_name=source.name + SUFFIX, use_safetensors=True)
    for file in sorted((folder / EMBEDDINGS).glob(f"*{SUFFIX}")):
        vectors = load_file(file)
        load_token(pipeline, file.name.removesuffix(SUFFIX), [vectors[key] for key in EMBEDDING_KEYS[len(vectors)]])
    return painted_by(pipeline, requests)


def _write_merged(source: Source, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as aside:
        _write_diffusers(source, Path(aside))
        pipeline = _with_adapter(source, Path(aside))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(folder)


def _paint_merged(source: Source, folder: Path, requests: Sequence[PaintRequest]) -> list[np.ndarray]:
    info, dtype = source.models.info, DTYPES[source.precision]
    return painted_by(load_pipeline(folder, is_xl=info.is_xl, dtype=dtype), requests)


Write = Callable[[Source, Path], None]
Paint = Callable[[Source, Path, Sequence[PaintRequest]], list[np.ndarray]]
FORMATS: Mapping[Kind, tuple[Write, Paint]] = {
    "diffusers": (_write_diffusers, _paint_diffusers),
    "kohya": (_write_kohya, _paint_kohya),
    "merged": (_write_merged, _paint_merged),
}
"""How each format is written, and how the library that it is for paints with what was written."""
