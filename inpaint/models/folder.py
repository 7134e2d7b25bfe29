"""A base as a folder in diffusers format: whether it is one that we support, which of its files are used, and loading.

Guaranteed: safetensors only; no pickle is ever opened.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from inpaint.errors import InpaintError
from inpaint.models.layers import Modules

FAMILIES = (
    "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline",
)
"""Supported pipeline classes."""
_MODELS: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
}
"""Part -> its class; those in _2 are SDXL's, here and below."""
_CLASSES: dict[str, tuple[str, ...]] = {
    **{part: (model.__name__,) for part, model in _MODELS.items()},
    **dict.fromkeys(("tokenizer", "tokenizer_2"), ("CLIPTokenizer", "CLIPTokenizerFast")),
    "scheduler": tuple(s.name for s in KarrasDiffusionSchedulers),
}
"""Part -> names of its supported classes."""
PREFERENCES_FILE = "inpaint.json"
"""Optional, no part of a base's revision: `{"guidance_scale": ..., "steps": ...}`, where nobody says otherwise."""
WEIGHTS = {part: "model" if part.startswith("text") else "diffusion_pytorch_model" for part in _MODELS}
"""Part -> how the names of its weights' files begin, as `save_pretrained` writes them."""
VARIANTS: dict[str | None, tuple[str, ...]] = {
    None: (".safetensors", "-?????-of-?????.safetensors", ".safetensors.index.json"),
    "fp16": (
        ".fp16.safetensors",
        ".fp16-?????-of-?????.safetensors",
        "-?????-of-?????.fp16.safetensors",
        ".safetensors.index.fp16.json",
    ),
}
"""Variant of the weights -> how these names end, the one that is preferred first."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


class DiffusersFolder:
    """A supported base on this machine, perhaps without its weights."""

    def __init__(self, path: Path) -> None:
        """Reads `model_index.json`. Raises InpaintError for what is not a pipeline in diffusers format, or not of a
        supported family with parts of known classes."""
        if not (path / "model_index.json").is_file():
            raise InpaintError(f"{path}: no model_index.json, so not a pipeline in diffusers format (save_pretrained)")
        self.path, index = path, _read_json(path / "model_index.json")
        family = index.get("_class_name")
        if family not in FAMILIES:
            raise InpaintError(f"{path}: {family} is not supported; supported are {', '.join(FAMILIES)}")
        self.is_xl = is_xl = "XL" in family
        self.zero_empty_negative = is_xl and bool(index.get("force_zeros_for_empty_prompt", True))
        """As `Base.zero_empty_negative`."""
        parts = {part: index.get(part) for part in _CLASSES if is_xl or not part.endswith("_2")}
        self._classes = {part: named[1] if named else "missing" for part, named in parts.items()}
        for part, class_name in self._classes.items():
            if class_name not in _CLASSES[part]:
                known = ", ".join(_CLASSES[part])
                raise InpaintError(f"{path}: {part} is {class_name}, which is not supported; supported are {known}")

    def used_files(self) -> list[Path]:
        """All files that loading reads. Raises InpaintError where there are no safetensors."""
        used = [self.path / "model_index.json", self.path / "scheduler" / "scheduler_config.json"]
        for part in self._classes.keys() & _MODELS.keys():
            used += [self.path / part / "config.json", *self._weights(part)[1]]
        for part in self._parts("tokenizer"):
            used += [path for path in (self.path / part).glob("*") if path.suffix in (".json", ".txt")]
        return sorted(used)

    def preferences(self) -> dict[str, Any]:
        """`guidance_scale` and `steps` as far as the base states them. Raises InpaintError for anything else."""
        path = self.path / PREFERENCES_FILE
        given = _read_json(path) if path.is_file() else {}
        if given.keys() <= {"guidance_scale", "steps"} and all(type(v) in (int, float) for v in given.values()):
            return given
        raise InpaintError(f'{path}: give {{"guidance_scale": 7.5, "steps": 25}}, or one of the two')

    def tokenizers(self) -> list[Any]:
        """CLIP tokenizers."""
        return [self._plain(part, transformers) for part in self._parts("tokenizer")]

    def scheduler(self) -> SchedulerMixin:
        """As stored."""
        return self._plain("scheduler", diffusers)

    def blank(self) -> Modules:
        """The modules from their configurations alone, on torch's default device."""

        def blank(part: str, model: Any) -> Any:
            config = _read_json(self.path / part / "config.json")
            return model(CLIPTextConfig(**config)) if part.startswith("text") else model.from_config(config)

        return self._modules(blank)

    def load(self, dtype: torch.dtype) -> Modules:
        """The modules with their weights in `dtype`: plain safetensors if there, else the fp16 variant."""

        def loaded(part: str, model: Any) -> Any:
            variant, _ = self._weights(part)
            return model.from_pretrained(self.path / part, use_safetensors=True, variant=variant, dtype=dtype)

        return self._modules(loaded)

    def load_vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """Of the modules the VAE alone."""
        variant, _ = self._weights("vae")
        where = self.path / "vae"
        return AutoencoderKL.from_pretrained(where, use_safetensors=True, variant=variant, dtype=dtype)

    def vae_config(self) -> dict[str, Any]:
        """As stored."""
        return _read_json(self.path / "vae" / "config.json")

    def vae_files(self) -> list[Path]:
        """Those that `load_vae` reads."""
        return [self.path / "vae" / "config.json", *self._weights("vae")[1]]

    def _modules(self, make: Callable[[str, Any], Any]) -> Modules:
        made = {part: make(part, model) for part, model in _MODELS.items() if part in self._classes}
        return Modules(unet=made.pop("unet"), vae=made.pop("vae"), text_encoders=list(made.values()))

    def _parts(self, kind: str) -> list[str]:
        return [part for part in self._classes if part.startswith(kind)]

    def _plain(self, part: str, library: Any) -> Any:
        """A part without weights."""
        if not (self.path / part).is_dir():
            raise InpaintError(f"{self.path}: the folder {part}/ is missing")
        return getattr(library, self._classes[part]).from_pretrained(self.path / part)

    def _weights(self, part: str) -> tuple[str | None, list[Path]]:
        return weights_of(self.path / part, WEIGHTS[part])


def weights_of(folder: Path, stem: str) -> tuple[str | None, list[Path]]:
    """The variant of a model's safetensors and its files. Raises InpaintError; pickles are refused by name."""
    for variant, ends in VARIANTS.items():
        found = [path for end in ends for path in folder.glob(stem + end)]
        if any(path.suffix == ".safetensors" for path in found):
            return variant, found
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickled:
        raise InpaintError(
            f"{folder}: has only pickled weights ({', '.join(pickled)}), which are not opened, for a pickle can "
            "run any code. Convert what you trust: `DiffusionPipeline.from_pretrained(OLD, use_safetensors=False)"
            ".save_pretrained(NEW)`"
        )
    raise InpaintError(f"{folder}: {stem}.safetensors (or its fp16 variant) is missing")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InpaintError(f"{path} is missing: copy the whole folder of the base") from None
    except (ValueError, TypeError) as error:
        raise InpaintError(f"{path}: not valid JSON ({error})") from error
