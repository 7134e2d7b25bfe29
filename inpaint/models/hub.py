"""Bases from the hub: configs and safetensors only, plain weights first, the fp16 variant where those are absent."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from inpaint.errors import InpaintError

WEIGHT_STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
}
"""Component -> the name of its weights file without suffix, as `save_pretrained` writes it."""


_PLAIN = (".safetensors", "-?????-of-?????.safetensors")
_FP16 = (".fp16.safetensors", ".fp16-?????-of-?????.safetensors", "-?????-of-?????.fp16.safetensors")


def download_base(name: str, revision: str | None) -> tuple[Path, str]:
    """The folder of hub base `name` in the local cache, and its commit. Files already in the cache are used offline.

    Raises:
        InpaintError: unknown, gated or unreachable; the message names the way out.
    """
    patterns = ["model_index.json", "inpaint.json", *(f"{part}/*.json" for part in ("scheduler", *WEIGHT_STEMS))]
    patterns += [f"tokenizer{suffix}/{kind}" for suffix in ("", "_2") for kind in ("*.json", "*.txt")]
    patterns += [f"{part}/{stem}{suffix}" for part, stem in WEIGHT_STEMS.items() for suffix in _PLAIN]
    folder = _snapshot(name, revision, patterns)
    for part, stem in WEIGHT_STEMS.items():
        if (folder / part).is_dir() and not any((folder / part).glob("*.safetensors")):
            folder = _snapshot(name, revision, [f"{part}/{stem}{suffix}" for suffix in _FP16])
    return folder, folder.name


def download_configs(name: str, revision: str | None) -> tuple[Path, str]:
    """As `download_base`, but without the weights: a few kB that say what the base is."""
    folder = _snapshot(name, revision, ["model_index.json", "*/config.json", "inpaint.json"])
    return folder, folder.name


def _snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise InpaintError(f"base {name}: gated; accept its licence on the hub and log in (`hf auth login`)") from error
    except RevisionNotFoundError as error:
        raise InpaintError(f"base {name}: the hub has no revision {revision} of it") from error
    except RepositoryNotFoundError as error:
        raise InpaintError(f"base {name}: neither a folder here nor a public repository on the hub") from error
    except (LocalEntryNotFoundError, IncompleteSnapshotError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise InpaintError(
            f"base {name}: the hub cannot be reached and the base is not in the local cache. Download it where there "
            f"is a network (`hf download {name}`) and give the folder as base, set HF_HOME to a filled cache, or use "
            "the base 'toy'"
        ) from error
