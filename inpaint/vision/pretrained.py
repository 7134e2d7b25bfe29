"""Pretrained models that look at photos: where their files are, which version they are, and loading them.

A name is a hub id, a folder that transformers saved, or one of a model's own short names.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig

from inpaint.errors import InpaintError
from inpaint.models.base import no_progress_bars

TOYS = Path(__file__).resolve().parent.parent / "toy" / "weights"
"""Where the models that ship with the package are."""
T = TypeVar("T")


def loaded(name: str, load: Callable[..., T], **settings: Any) -> T:
    """What `load` makes of a model's name. Raises InpaintError for what is not there, or is no such model."""
    try:
        with no_progress_bars():
            return load(name, **settings)
    except (OSError, ValueError) as error:
        raise InpaintError(f"model {name}: {error}; give a hub id, or a folder that transformers saved") from error


@cache
def revision(name: str) -> str:
    """The commit on the hub, or a hash over the folder's files. Raises InpaintError where there is none."""
    if Path(name).is_dir():
        digest = hashlib.sha256()
        for file in sorted(path for path in Path(name).iterdir() if path.is_file()):
            with file.open("rb") as stream:
                digest.update(f"{file.name}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()
    return str(loaded(name, AutoConfig.from_pretrained)._commit_hash)


def absolute_name(name: str) -> str:
    """The same model for a process in another directory: an absolute path, or a hub id as it is."""
    return str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
