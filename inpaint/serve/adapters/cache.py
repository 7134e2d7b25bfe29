"""Adapters by name and digest: verified copies in a local folder, filled from the registry's.

Guarantee: what `AdapterCache.load` returns has exactly the bytes that the digest names, whatever lies in the registry
now. The cache is bounded; what was used longest ago leaves first. Several processes of one machine may share a cache.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs

from inpaint.data.storage import Root
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import CARD_FILE, EMBEDS_FILES, LORA_FILE, load_adapter, parse_card
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.serve.service import AdapterGone

ADAPTER_FILES = (LORA_FILE, *EMBEDS_FILES)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_CARD_BYTES = 1 << 20


class Incomplete(InpaintError):
    """The registry's folder does not hold what its card lists: it is still being copied, or a file is damaged."""


@dataclass(frozen=True)
class AdapterFiles:
    """One version of an adapter, on its way to a cache."""

    digest: str
    files: dict[str, bytes]
    """`adapter.json` and the safetensors files."""


class AdapterCache:
    """Copies of a registry's adapters, one subfolder per digest."""

    def __init__(self, root: Root, folder: str | Path, *, max_bytes: int, max_adapter_bytes: int) -> None:
        """Args: root: the registry's. folder: made if missing. max_bytes: kept at most, but always the newest copy."""
        self.root, self.folder = root, Path(folder)
        self.max_bytes, self.max_adapter_bytes = max_bytes, max_adapter_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, digest: str) -> bool:
        return bool(_DIGEST.fullmatch(digest)) and (self.folder / digest / CARD_FILE).is_file()

    def load(self, name: str, digest: str) -> Adapter:
        """That version, verified: the copy, else from the registry while it still has it. Raises AdapterGone."""
        try:
            return self.fetch(name, digest)
        except (InpaintError, OSError) as error:
            raise AdapterGone(f"adapter {name} at {digest[:12]} cannot be read: {error}") from error

    def fetch(self, name: str, digest: str) -> Adapter:
        """As `load`, with the reason.

        Raises:
            Incomplete: a file is missing or does not match its sha256, or the registry has another version.
            InpaintError: the files are what the card says, but no adapter, or too large.
            OSError: the registry cannot be read.
        """
        adapter = self._copy(digest)
        return self.put(self._download(name, digest)) if adapter is None else adapter

    def files(self, name: str, digest: str) -> AdapterFiles:
        """The bytes of that version. Raises AdapterGone."""
        self.load(name, digest)
        return AdapterFiles(digest, {path.name: path.read_bytes() for path in (self.folder / digest).iterdir()})

    def put(self, version: AdapterFiles) -> Adapter:
        """Keep a version, verified. Raises InpaintError for bytes that are no adapter, or not what the digest names."""
        digest, files = version.digest, version.files
        if _sha256(files.get(CARD_FILE, b"")) != digest or set(files) - {CARD_FILE, *ADAPTER_FILES}:
            raise InpaintError(f"adapter files {digest[:12]}: they are not those of that digest")
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
        try:
            for name, data in files.items():
                (new / name).write_bytes(data)
            adapter = load_adapter(new)
            self._keep(new, digest)
            return adapter
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def read_card(self, name: str) -> tuple[AdapterCard, str]:
        """The card that lies in the registry now, and its digest. Raises Incomplete for none, OSError."""
        data = self._read(f"{name}/{CARD_FILE}", _MAX_CARD_BYTES)
        try:
            return parse_card(data, CARD_FILE), _sha256(data)
        except InpaintError as error:
            raise Incomplete(str(error)) from error

    def _copy(self, digest: str) -> Adapter | None:
        """What is kept, verified again; None where it is not here."""
        if digest not in self:
            return None
        folder = self.folder / digest
        try:
            os.utime(folder)
            if _sha256((folder / CARD_FILE).read_bytes()) != digest:
                raise InpaintError(f"{folder}: its card is not the one that it is named by")
            return load_adapter(folder)
        except (OSError, InpaintError):
            # Another process has taken it off in between, or the disk has damaged it: it will be fetched again.
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def _download(self, name: str, digest: str) -> AdapterFiles:
        card_bytes = self._read(f"{name}/{CARD_FILE}", _MAX_CARD_BYTES)
        if _sha256(card_bytes) != digest:
            raise Incomplete(f"{name} has been replaced in the registry: send the request again")
        listed = parse_card(card_bytes, CARD_FILE).files
        if not isinstance(listed, Mapping) or set(listed) - set(ADAPTER_FILES):
            raise InpaintError(f"{CARD_FILE} lists {str(listed)[:80]}: only {', '.join(ADAPTER_FILES)} are read")
        files, left = {CARD_FILE: card_bytes}, self.max_adapter_bytes
        for file, wanted in listed.items():
            files[file] = self._read(f"{name}/{file}", left)
            left -= len(files[file])
            if _sha256(files[file]) != wanted:
                raise Incomplete(f"{file} does not match its sha256 in {CARD_FILE}: still being copied, or damaged")
        return AdapterFiles(digest, files)

    def _read(self, relative: str, limit: int) -> bytes:
        path = self.root.join(relative)
        info = self.root.filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise Incomplete(f"{relative} is missing: still being copied?")
        if info.size > limit:
            raise InpaintError(f"{relative} has {info.size:,} bytes: this service takes {limit:,}; raise the limit")
        with self.root.filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read(limit + 1)
        return data

    def _keep(self, folder: Path, digest: str) -> None:
        """Take over a verified copy, and let the oldest go."""
        target = self.folder / digest
        if digest not in self:
            shutil.rmtree(target, ignore_errors=True)
            try:
                folder.rename(target)
            except OSError:
                if digest not in self:  # else another process was faster
                    raise
        os.utime(target)
        copies = []
        for kept in self.folder.iterdir():
            if _DIGEST.fullmatch(kept.name):
                try:
                    size = sum(file.stat().st_size for file in kept.iterdir())
                    copies.append((kept.stat().st_mtime_ns, size, kept))
                except FileNotFoundError:
                    continue  # another process lets copies go, too
        left = sum(size for _, size, _ in copies)
        for _, size, kept in sorted(copies):
            if left > self.max_bytes and kept != target:
                shutil.rmtree(kept, ignore_errors=True)
                left -= size


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
