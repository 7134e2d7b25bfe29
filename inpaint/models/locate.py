"""Where a base's files are, on this machine or the hub, and the revision that they make."""

import hashlib
import re
from functools import lru_cache
from pathlib import Path

from huggingface_hub import errors, snapshot_download

from inpaint.data.storage import fetched
from inpaint.errors import InpaintError
from inpaint.models.folder import PICKLES, PREFERENCES_FILE, VARIANTS, WEIGHTS, DiffusersFolder, weights_of
from inpaint.models.single_file import SingleFile, open_file

TOY_BASE = Path(__file__).resolve().parent.parent / "toy" / "weights" / "base"
"""The base shipped with the package, which the name `toy` stands for."""
TOYS = {"toy": TOY_BASE, "toy-sdxl": TOY_BASE.parent / "sdxl"}
"""The bases shipped with the package, by the names that stand for them."""
TOYS_OF_CONTROL = {"toy-edges": TOY_BASE.parent / "edges"}
"""The ControlNets that are shipped with it."""
CONTROLNET_WEIGHTS = WEIGHTS["unet"]
MADE_BY = {"toy": "python -m ray_jobs.pretrain_toy", "toy-sdxl": "python -m ray_jobs.pretrain_toy --architecture sdxl"}


def locate(name: str, revision: str | None, *, weights: bool) -> tuple[DiffusersFolder | SingleFile, str]:
    """The files of a base and its revision; what is on the hub is downloaded.

    Args:
        revision: branch, tag or commit of a hub id; else the expected sha256.
        weights: whether they are needed, or the configuration and the tokenizers alone.

    Raises:
        InpaintError: not found, not a supported base, or not of that revision.
    """
    path = _local(name)
    if path is None:
        folder = _download(name, revision, weights=weights)
        return DiffusersFolder(folder), folder.name
    source: DiffusersFolder | SingleFile
    if path.is_dir():
        source = DiffusersFolder(path)
        found = _revision_of(path, source.used_files())
    else:
        # A file's own, as Civitai shows it.
        source, found = open_file(path), _sha256(path)
    if revision is not None and revision != found:
        raise InpaintError(f"base {name}: revision {revision} is wanted, but what is in {path} is {found}")
    return source, found


def locate_controlnet(name: str, revision: str | None = None) -> tuple[Path, str | None, str]:
    """The folder of a ControlNet, the variant of its weights, and its revision; what is on the hub is downloaded.

    Raises:
        InpaintError: not found, without safetensors, or not of that revision.
    """
    folder = TOYS_OF_CONTROL.get(name) or (fetched(name) if "://" in name else Path(name).expanduser())
    if not folder.is_dir():
        if not _is_hub_id(name):
            toys = ", ".join(TOYS_OF_CONTROL)
            raise InpaintError(f"ControlNet {name}: no such folder, and not a URL, a hub id (owner/name) or {toys}")
        folder = _snapshot(name, revision, ["config.json", f"{CONTROLNET_WEIGHTS}*.safetensors*"], what="ControlNet")
        return folder, weights_of(folder, CONTROLNET_WEIGHTS)[0], folder.name
    variant, files = weights_of(folder, CONTROLNET_WEIGHTS)
    found = _revision_of(folder, sorted([folder / "config.json", *files]))
    if revision is not None and revision != found:
        raise InpaintError(f"ControlNet {name}: revision {revision} is wanted, but what is in {folder} is {found}")
    return folder, variant, found


def vae_revision(name: str, revision: str | None) -> str:
    """What names the weights of a base's VAE: of a folder they are hashed by themselves, so that bases share it; of
    others it is the base's own. Raises InpaintError, as `locate`."""
    source, found = locate(name, revision, weights=False)
    path = _local(name)
    if path is None or not isinstance(source, DiffusersFolder):
        return found
    return _revision_of(path, source.vae_files())


def absolute_name(name: str) -> str:
    """The same base for a process in another directory: an absolute path, a hub id or a toy as it is."""
    return str(Path(name).expanduser().resolve()) if name not in TOYS and Path(name).expanduser().exists() else name


def _local(name: str) -> Path | None:
    """The folder or file of a base on this machine; None for a hub id. Raises InpaintError for anything else."""
    if name in TOYS and not (TOYS[name] / "model_index.json").is_file():
        raise InpaintError(
            f"base {name!r}: its weights are not in {TOYS[name]}; make them with `{MADE_BY[name]}`, or restore them "
            "with `git checkout -- inpaint/toy/weights`"
        )
    path = TOYS[name] if name in TOYS else fetched(name) if "://" in str(name) else Path(name).expanduser()
    if path.exists():
        return path
    if _is_hub_id(name) and path.suffix not in (".safetensors", *PICKLES):
        return None
    raise InpaintError(
        f"base {name}: no such folder or file, and not a URL, a hub id (owner/name), 'toy' or 'toy-sdxl'"
    )


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w-]*/[\w][\w.-]*", name) is not None


def _revision_of(folder: Path, files: list[Path]) -> str:
    """Over the names and hashes of the files that are used."""
    lines = (f"{file.relative_to(folder).as_posix()}\0{_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(file: Path) -> str:
    """Read once per process, and again where size or time of change differ."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        raise InpaintError(f"{file} is missing: copy the whole base") from None
    return _hashed(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hashed(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(name: str, revision: str | None, *, weights: bool) -> Path:
    """The folder of a hub base in the local cache, called by its commit. What is in the cache is used offline.

    Configurations and safetensors only: plain weights first, the fp16 variant where those are absent.
    """
    if not weights:
        return _snapshot(name, revision, ["model_index.json", PREFERENCES_FILE, "*/config.json", "tokenizer*/*"])
    patterns = ["model_index.json", PREFERENCES_FILE, "*/*.json", "*/*.txt"]
    patterns += [f"{part}/{stem}{end}" for part, stem in WEIGHTS.items() for end in VARIANTS[None]]
    folder = _snapshot(name, revision, patterns)
    for part, stem in WEIGHTS.items():
        if (folder / part).is_dir() and not any((folder / part).glob("*.safetensors")):
            folder = _snapshot(name, revision, [f"{part}/{stem}{end}" for end in VARIANTS["fp16"]])
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str], *, what: str = "base") -> Path:
    """Raises InpaintError: unknown, gated or unreachable; the message names the way out."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise InpaintError(
            f"{what} {name}: gated; accept its licence on the hub and log in (`hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InpaintError(f"{what} {name}: the hub has no revision {revision} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise InpaintError(f"{what} {name}: neither a folder here nor a public repository on the hub") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        raise InpaintError(
            f"{what} {name}: the hub cannot be reached and it is not in the local cache. Download it where there "
            f"is a network (`hf download {name}`) and give the folder, or set HF_HOME to a filled cache"
        ) from error
