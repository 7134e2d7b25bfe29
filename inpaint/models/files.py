"""The files of a base: where they are, whether they are a base's, and the revision that they make.

Guaranteed: safetensors only (no pickle is ever opened), and a `revision` that identifies the exact files (hub commit,
or sha256 over a local folder).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from inpaint.errors import InpaintError
from inpaint.models.hub import WEIGHT_STEMS, download_base, download_configs

TOY_BASE = Path(__file__).resolve().parent.parent / "toy" / "weights" / "base"
"""The base shipped with the package, which the name `toy` stands for."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionInpaintPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
    "StableDiffusionXLInpaintPipeline": ("text_encoder", "text_encoder_2"),
}
"""Supported pipeline classes -> their text encoders' folders; each has a tokenizer of the same suffix."""

_CLASSES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "vae": ("AutoencoderKL",),
    "unet": ("UNet2DConditionModel",),
    "scheduler": tuple(s.name for s in KarrasDiffusionSchedulers),
}


@dataclass(frozen=True)
class BaseFiles:
    """Of a supported base, on this machine."""

    name: str
    """What the user called it."""
    revision: str
    """As `BaseInfo.revision`."""
    folder: Path
    """In diffusers format; without weights if those were not asked for."""
    index: Mapping[str, Any]
    """Its `model_index.json`, checked."""

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Their folders' names."""
        return FAMILIES[self.index["_class_name"]]

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Their folders' names."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.text_encoders)

    def config(self, part: str) -> dict[str, Any]:
        """A component's `config.json`."""
        return dict(json.loads((self.folder / part / "config.json").read_text(encoding="utf-8")))


def locate(name: str, revision: str | None, *, weights: bool) -> BaseFiles:
    """The files of a base; what is on the hub is downloaded.

    Args:
        revision: branch, tag or commit of a hub id; for a folder its expected sha256.
        weights: whether they are needed, or the configuration alone.

    Raises:
        InpaintError: not found, not a supported base, or not of that revision.
    """
    folder = _local_folder(name)
    if folder is None:
        folder, found = (download_base if weights else download_configs)(name, revision)
    else:
        found = _checked_revision(name, folder, revision)
    return BaseFiles(name, found, folder, _read_index(folder))


def absolute_name(name: str) -> str:
    """The same base for a process in another directory: a folder's absolute path, a hub id or `toy` as it is."""
    return str(Path(name).expanduser().resolve()) if name != "toy" and Path(name).expanduser().is_dir() else name


def _local_folder(name: str) -> Path | None:
    """The folder of a base on this machine; None for a hub id. Raises InpaintError for anything else."""
    if name == "toy" and not (TOY_BASE / "model_index.json").is_file():
        raise InpaintError(
            f"base 'toy': its weights are not in {TOY_BASE}; make them with `python -m ray_jobs.pretrain_toy`, "
            "or restore them with `git checkout -- inpaint/toy/weights`"
        )
    folder = TOY_BASE if name == "toy" else Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InpaintError(
            f"base {name}: a single file; a diffusers folder or hub id is needed. Convert it with diffusers: "
            "`StableDiffusionInpaintPipeline.from_single_file(FILE).save_pretrained(FOLDER)`"
        )
    if re.fullmatch(r"[A-Za-z0-9][\w-]*/[\w][\w.-]*", name):
        return None
    raise InpaintError(f"base {name}: no such folder, and not a hub id (owner/name) nor 'toy'")


def folder_revision(folder: Path) -> str:
    """sha256 over names and bytes of the files of a base that are used (json, txt, safetensors; no hidden files)."""
    digest = hashlib.sha256()
    for path in sorted(p for s in (".json", ".txt", ".safetensors") for p in folder.rglob(f"*{s}")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or path.name == "inpaint.json" or not path.is_file():
            continue
        with path.open("rb") as file:
            digest.update(f"{relative.as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _checked_revision(name: str, folder: Path, revision: str | None) -> str:
    found = folder_revision(folder)
    if revision is not None and revision != found:
        raise InpaintError(f"base {name}: revision {revision} is wanted, but the files in {folder} are {found}")
    return found


def _read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json`, checked: a supported family, each component of a known class."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise InpaintError(f"{folder}: no model_index.json, so not a pipeline in diffusers format (save_pretrained)")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InpaintError(f"{path}: not valid JSON ({error})") from error
    family = index.get("_class_name")
    if family not in FAMILIES:
        raise InpaintError(f"{folder}: {family} is not supported; supported are {', '.join(FAMILIES)}")
    encoders = FAMILIES[family]
    needed = (*encoders, *(e.replace("text_encoder", "tokenizer") for e in encoders), "vae", "unet", "scheduler")
    for part in needed:
        _, class_name = index.get(part) or (None, None)
        if class_name not in _CLASSES[part]:
            raise InpaintError(
                f"{folder}: {part} is {class_name}, which is not supported; supported are {', '.join(_CLASSES[part])}"
            )
    return index


def weights_variant(folder: Path, part: str) -> str | None:
    """None for plain safetensors, `fp16` where only that variant is there.

    Raises:
        InpaintError: no safetensors; pickled weights (.bin, .ckpt) are refused by name.
    """
    stem, files = WEIGHT_STEMS[part], {p.name for p in (folder / part).glob("*")}
    for variant, infix in ((None, ""), ("fp16", r"\.fp16")):
        shard = r"-\d+-of-\d+"
        names = re.compile(rf"{stem}({infix}|{infix}{shard}|{shard}{infix})\.safetensors")
        if any(names.fullmatch(f) for f in files):
            return variant
    pickled = sorted(f for f in files if f.endswith((".bin", ".ckpt", ".pt", ".pth")))
    if pickled:
        raise InpaintError(
            f"{folder / part}: has only pickled weights ({', '.join(pickled)}), which are not opened, for a pickle can "
            "run any code. Convert a base you trust: `DiffusionPipeline.from_pretrained(OLD, use_safetensors=False)"
            ".save_pretrained(NEW)`"
        )
    raise InpaintError(f"{folder / part}: {stem}.safetensors (or its fp16 variant) is missing")
