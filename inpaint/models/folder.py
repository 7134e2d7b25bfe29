"""A base as a folder in diffusers format: whether it is one that we support, which of its files are used, and loading.

Guaranteed: safetensors only; no pickle is ever opened.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from transformers import CLIPTextConfig

from inpaint.errors import InpaintError
from inpaint.models.architectures import Modules

FAMILIES: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionInpaintPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
    "StableDiffusionXLInpaintPipeline": ("text_encoder", "text_encoder_2"),
}
"""Supported pipeline classes -> their text encoders' folders; each has a tokenizer of the same suffix."""
PREFERENCES_FILE = "inpaint.json"
"""Optional, no part of a base's revision: `{"guidance_scale": ..., "steps": ...}`, where nobody says otherwise."""
_CLASSES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
    "scheduler": tuple(s.name for s in KarrasDiffusionSchedulers),
}
WEIGHT_STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
}
"""Component -> the name of its weights file without suffix, as `save_pretrained` writes it."""
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class DiffusersFolder:
    """A supported base on this machine, perhaps without its weights. Made by `open_folder`."""

    path: Path
    index: dict[str, Any]
    """`model_index.json`."""

    @property
    def encoders(self) -> tuple[str, ...]:
        """The text encoders' folders."""
        return FAMILIES[self.index["_class_name"]]

    @property
    def zero_empty_negative(self) -> bool:
        """As `Base.zero_empty_negative`."""
        return len(self.encoders) == 2 and bool(self.index.get("force_zeros_for_empty_prompt", True))

    def used_files(self) -> list[Path]:
        """All files that loading reads. Raises InpaintError where there are no safetensors."""
        plain = [self.path / "model_index.json", self.path / "scheduler" / "scheduler_config.json"]
        for part in (*self.encoders, "vae", "unet"):
            plain += [self.path / part / "config.json", *_weights(self.path / part, WEIGHT_STEMS[part])[1]]
        for part in self._tokenizer_folders():
            plain += [p for p in (self.path / part).glob("*") if p.suffix in (".json", ".txt")]
        return sorted(plain)

    def preferences(self) -> dict[str, Any]:
        """`guidance_scale` and `steps` as far as the base states them. Raises InpaintError for anything else."""
        path = self.path / PREFERENCES_FILE
        if not path.is_file():
            return {}
        given = _read_json(path)
        if given.keys() <= {"guidance_scale", "steps"} and all(type(v) in (int, float) for v in given.values()):
            return given
        raise InpaintError(f'{path}: give {{"guidance_scale": 7.5, "steps": 25}}, or one of the two')

    def tokenizers(self) -> list[Any]:
        """CLIP tokenizers."""
        return [self._plain(part, transformers) for part in self._tokenizer_folders()]

    def scheduler(self) -> SchedulerMixin:
        """As stored."""
        return self._plain("scheduler", diffusers)

    def blank(self) -> Modules:
        """The modules from their configurations alone, on torch's default device."""
        encoders = [self._class(part)(CLIPTextConfig(**self._config(part))) for part in self.encoders]
        vae, unet = (
            AutoencoderKL.from_config(self._config("vae")),
            UNet2DConditionModel.from_config(self._config("unet")),
        )
        return Modules(encoders, vae, unet)

    def load(self, dtype: torch.dtype) -> Modules:
        """The modules with their weights in `dtype`: plain safetensors if there, else the fp16 variant."""

        def weights(part: str) -> dict[str, Any]:
            return {"use_safetensors": True, "variant": _weights(self.path / part, WEIGHT_STEMS[part])[0]}

        encoders = [
            self._class(part).from_pretrained(self.path / part, dtype=dtype, **weights(part)) for part in self.encoders
        ]
        vae = AutoencoderKL.from_pretrained(self.path / "vae", torch_dtype=dtype, **weights("vae"))
        unet = UNet2DConditionModel.from_pretrained(self.path / "unet", torch_dtype=dtype, **weights("unet"))
        return Modules(encoders, vae, unet)

    def _tokenizer_folders(self) -> list[str]:
        return [part.replace("text_encoder", "tokenizer") for part in self.encoders]

    def _class(self, part: str) -> Any:
        return getattr(transformers, self.index[part][1])

    def _config(self, part: str) -> dict[str, Any]:
        return _read_json(self.path / part / "config.json")

    def _plain(self, part: str, library: Any) -> Any:
        """A component without weights."""
        if not (self.path / part).is_dir():
            raise InpaintError(f"{self.path}: the folder {part}/ is missing")
        return getattr(library, self.index[part][1]).from_pretrained(self.path / part)


def open_folder(path: Path) -> DiffusersFolder:
    """Read and check `model_index.json`.

    Raises:
        InpaintError: not a pipeline in diffusers format, or not of a supported family with components of known classes.
    """
    if not (path / "model_index.json").is_file():
        raise InpaintError(f"{path}: no model_index.json, so not a pipeline in diffusers format (save_pretrained)")
    index = _read_json(path / "model_index.json")
    family = index.get("_class_name")
    if family not in FAMILIES:
        raise InpaintError(f"{path}: {family} is not supported; supported are {', '.join(FAMILIES)}")
    encoders = FAMILIES[family]
    for part in (*encoders, *(e.replace("text_encoder", "tokenizer") for e in encoders), "vae", "unet", "scheduler"):
        _, class_name = index.get(part) or (None, None)
        if class_name not in _CLASSES[part]:
            raise InpaintError(
                f"{path}: {part} is {class_name}, which is not supported; supported are {', '.join(_CLASSES[part])}"
            )
    return DiffusersFolder(path, index)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InpaintError(f"{path} is missing: copy the whole folder of the base") from None
    except (ValueError, TypeError) as error:
        raise InpaintError(f"{path}: not valid JSON ({error})") from error


def _weights(folder: Path, stem: str) -> tuple[str | None, list[Path]]:
    """The variant of a component's safetensors and its files: plain if there, else `fp16`.

    Raises:
        InpaintError: no safetensors; pickled weights are refused by name.
    """
    shard = r"-\d+-of-\d+"
    for variant, infix in ((None, ""), ("fp16", r"\.fp16")):
        weights = rf"({infix}|{infix}{shard}|{shard}{infix})\.safetensors"
        names = re.compile(rf"{stem}({weights}|\.safetensors\.index{infix}\.json)")
        found = [path for path in folder.glob("*") if names.fullmatch(path.name)]
        if any(path.suffix == ".safetensors" for path in found):
            return variant, found
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if pickled:
        raise InpaintError(
            f"{folder}: has only pickled weights ({', '.join(pickled)}), which are not opened, for a pickle can run "
            "any code. Convert a base you trust: `DiffusionPipeline.from_pretrained(OLD, use_safetensors=False)"
            ".save_pretrained(NEW)`"
        )
    raise InpaintError(f"{folder}: {stem}.safetensors (or its fp16 variant) is missing")
