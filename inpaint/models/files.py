"""Where a base's files are, and the revision that they make."""

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

from inpaint.errors import InpaintError
from inpaint.models.folder import DiffusersFolder, open_folder
from inpaint.models.hub import download_base, download_configs
from inpaint.models.single_file import SingleFile, open_file

TOY_BASE = Path(__file__).resolve().parent.parent / "toy" / "weights" / "base"
"""The base shipped with the package, which the name `toy` stands for."""
_FILE = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def locate(name: str, revision: str | None, *, weights: bool) -> tuple[DiffusersFolder | SingleFile, str]:
    """The files of a base and its revision; what is on the hub is downloaded.

    Args:
        revision: branch, tag or commit of a hub id; else the expected sha256.
        weights: whether they are needed, or the configuration alone.

    Raises:
        InpaintError: not found, not a supported base, or not of that revision.
    """
    path = _local(name)
    if path is None:
        folder, commit = (download_base if weights else download_configs)(name, revision)
        return open_folder(folder), commit
    source = open_folder(path) if path.is_dir() else open_file(path)
    found = _revision(source, path)
    if revision is not None and revision != found:
        raise InpaintError(f"base {name}: revision {revision} is wanted, but what is in {path} is {found}")
    return source, found


def absolute_name(name: str) -> str:
    """The same base for a process in another directory: an absolute path, a hub id or `toy` as it is."""
    return str(Path(name).expanduser().resolve()) if name != "toy" and Path(name).expanduser().exists() else name


def _local(name: str) -> Path | None:
    """The folder or file of a base on this machine; None for a hub id. Raises InpaintError for anything else."""
    if name == "toy" and not (TOY_BASE / "model_index.json").is_file():
        raise InpaintError(
            f"base 'toy': its weights are not in {TOY_BASE}; make them with `python -m ray_jobs.pretrain_toy`, "
            "or restore them with `git checkout -- inpaint/toy/weights`"
        )
    path = TOY_BASE if name == "toy" else Path(name).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[A-Za-z0-9][\w-]*/[\w][\w.-]*", name) and path.suffix not in _FILE:
        return None
    raise InpaintError(f"base {name}: no such folder or file, and not a hub id (owner/name) nor 'toy'")


def _revision(source: DiffusersFolder | SingleFile, path: Path) -> str:
    """A file's own sha256, as Civitai shows it; for a folder sha256 over names and hashes of the files that are used.

    Files are hashed once per process, and again where size or time of change differ.
    """
    hashes = {file: _sha256(str(file), *_stamp(file)) for file in source.used_files()}
    if isinstance(source, SingleFile):
        return hashes[path]
    lines = (f"{file.relative_to(path).as_posix()}\0{digest}\n" for file, digest in hashes.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        raise InpaintError(f"{file} is missing: copy the whole base") from None
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
