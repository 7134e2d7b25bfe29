"""Adapters by name and digest: verified copies in a local folder, filled from the registry's.

Guarantee: what `AdapterCache.load` returns has exactly the bytes that the digest names, whatever lies in the registry
now. The cache is bounded; what was used longest ago leaves first. Several processes of one machine may share a cache.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pyarrow.fs as pafs

from inpaint.data.storage import Root
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import (
    CARD_FILE,
    EMBEDS_FILES,
    LORA_FILE,
    AdapterIncomplete,
    adapter_files,
    parse_card,
    read_adapter,
)
from inpaint.export.kohya import SUFFIX, read_adapter_file
from inpaint.models.adapter import Adapter, AdapterCard
from inpaint.models.base import BaseInfo
from inpaint.serve.service import AdapterGone

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NEW = ".new-"
_LONGEST_PUT_S = 3600
_MAX_CARD_BYTES = 1 << 20

AdapterFiles = dict[str, bytes]
"""One version of an adapter, on its way to a cache: `adapter.json` and the safetensors files."""


class AdapterCache:
    """Copies of a registry's adapters, one subfolder per digest."""

    def __init__(
        self, root: Root, folder: str | Path, base: BaseInfo, *, max_bytes: int, max_adapter_bytes: int
    ) -> None:
        """
        Args:
            root: the registry's.
            folder: made if missing.
            base: what single files are read for.
            max_bytes: kept at most, but always the newest copy.
        """
        self.root, self.folder, self.base = root, Path(folder), base
        self.max_bytes, self.max_adapter_bytes = max_bytes, max_adapter_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, digest: str) -> bool:
        return bool(_DIGEST.fullmatch(digest)) and (self.folder / digest / CARD_FILE).is_file()

    def load(self, name: str, digest: str) -> Adapter:
        """That version, verified: the copy, else from the registry while it still has it. Raises AdapterGone."""
        return self._found(name, digest)[1]

    def files(self, name: str, digest: str) -> AdapterFiles:
        """The bytes of that version. Raises AdapterGone."""
        return self._found(name, digest)[0]

    def _found(self, name: str, digest: str) -> tuple[AdapterFiles, Adapter]:
        try:
            return self.fetch(name, digest)
        except (InpaintError, OSError) as error:
            raise AdapterGone(f"adapter {name} at {digest[:12]} cannot be read: {error}") from error

    def fetch(self, name: str, digest: str) -> tuple[AdapterFiles, Adapter]:
        """`files` and `load` in one, with the reason.

        Raises:
            AdapterIncomplete: a file is missing or does not match its sha256, or the registry has another version.
            InpaintError: the files are what the card says, but no adapter, or too large.
            OSError: the registry cannot be read.
        """
        if digest in self:
            folder = self.folder / digest
            try:
                os.utime(folder)
                files = {path.name: path.read_bytes() for path in folder.iterdir()}
                if _sha256(files.get(CARD_FILE, b"")) == digest:
                    return files, read_adapter(files.get, folder)
            except (OSError, InpaintError):
                pass
            # Another process has taken it off in between, or the disk has damaged it.
            shutil.rmtree(folder, ignore_errors=True)
        files = self._download(name, digest)
        return files, self.put(files, name)

    def put(self, files: AdapterFiles, where: str = "files") -> Adapter:
        """Keep a version, verified, by the digest of its card; errors call it `where`. Raises InpaintError where the
        bytes are no adapter."""
        if not files.keys() <= {CARD_FILE, LORA_FILE, *EMBEDS_FILES}:
            raise InpaintError(f"{where}: {', '.join(files)[:80]}: these are not the files of an adapter")
        adapter = read_adapter(files.get, where)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.folder))
        try:
            for name, data in files.items():
                (new / name).write_bytes(data)
            self._keep(new, _sha256(files[CARD_FILE]))
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return adapter

    def read_card(self, name: str) -> tuple[AdapterCard, str]:
        """The card that lies in the registry now, and its digest; of a single file, what it comes to. Raises
        AdapterIncomplete, OSError, and of a single file InpaintError for what is no adapter."""
        if (size := self._single(name)) is not None:
            files = self._converted(name, size)
            self.put(files, name)
            data = files[CARD_FILE]
        else:
            data = self._read(f"{name}/{CARD_FILE}", _MAX_CARD_BYTES)
        try:
            return parse_card(data, CARD_FILE), _sha256(data)
        except InpaintError as error:
            raise AdapterIncomplete(str(error)) from error

    def _download(self, name: str, digest: str) -> AdapterFiles:
        """What the registry has now; `put` sees whether it is whole."""
        single = self._single(name)
        if single is not None:
            files = self._converted(name, single)
        else:
            files = {CARD_FILE: self._read(f"{name}/{CARD_FILE}", _MAX_CARD_BYTES)}
        if _sha256(files[CARD_FILE]) != digest:
            raise AdapterIncomplete(f"{name} has been replaced in the registry: send the request again")
        if single is not None:
            return files
        paths = [self.root.join(f"{name}/{file}") for file in (LORA_FILE, *EMBEDS_FILES)]
        infos = [info for info in self.root.filesystem.get_file_info(paths) if info.type == pafs.FileType.File]
        size = sum(info.size for info in infos)
        self._check_size(name, size)
        return files | {info.base_name: self._read(f"{name}/{info.base_name}", size) for info in infos}

    def _single(self, name: str) -> int | None:
        """Bytes of the registry's file of that name; None where there is none, and a folder is meant."""
        info = self.root.filesystem.get_file_info(self.root.join(f"{name}{SUFFIX}"))
        return info.size if info.type == pafs.FileType.File else None

    def _converted(self, name: str, size: int) -> AdapterFiles:
        """A single file as the files of a folder; the same ones on every machine."""
        self._check_size(name, size)
        adapter = read_adapter_file(self._read(f"{name}{SUFFIX}", size), name, self.base)
        return adapter_files(adapter, repeatable=True)

    def _check_size(self, name: str, size: int) -> None:
        if size > self.max_adapter_bytes:
            raise InpaintError(
                f"{name} has {size:,} bytes: this service takes {self.max_adapter_bytes:,}; raise max_adapter_bytes"
            )

    def _read(self, relative: str, limit: int) -> bytes:
        """No more than `limit` bytes of a file of the registry: one that grows meanwhile is found damaged."""
        with self.root.filesystem.open_input_stream(self.root.join(relative)) as stream:
            return bytes(stream.read(limit))

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
        copies = []
        for kept in self.folder.iterdir():
            try:
                used = kept.stat().st_mtime
                # What a process that was killed had begun counts, too.
                if _DIGEST.fullmatch(kept.name) or (kept.name.startswith(_NEW) and used < time.time() - _LONGEST_PUT_S):
                    copies.append((used, sum(file.stat().st_size for file in kept.iterdir()), kept))
            except FileNotFoundError:
                continue  # another process lets copies go, too
        left = sum(size for _, size, _ in copies)
        for _, size, kept in sorted(copies):
            if left > self.max_bytes and kept != target:
                shutil.rmtree(kept, ignore_errors=True)
                left -= size


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
