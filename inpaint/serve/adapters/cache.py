"""Adapters by digest: a local cache of verified copies, and the store that fills it from the registry's folder.

Guarantee: what `AdapterStore.load` returns has exactly the bytes that the digest names, whatever lies in the
registry now.
The cache is bounded; what was used longest ago leaves first. Several processes of one machine may share a cache.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
_UNFINISHED = ".new-"


class NotYet(InpaintError):
    """The folder does not hold what its card lists: it is still being copied, or a file is damaged."""


@dataclass(frozen=True)
class AdapterFiles:
    """One version of an adapter on its way to a replica that cannot find it."""

    digest: str
    files: dict[str, bytes]
    """`adapter.json` and the safetensors files."""


class AdapterCache:
    """Verified copies in a local folder, one subfolder per digest."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        """Args: folder: made if missing. max_bytes: kept at most, but always the newest copy."""
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, digest: str) -> bool:
        return bool(_DIGEST.fullmatch(digest)) and (self.folder / digest / CARD_FILE).is_file()

    def load(self, digest: str) -> Adapter | None:
        """That version, verified again; None where it is not here."""
        if digest not in self:
            return None
        folder = self.folder / digest
        try:
            os.utime(folder)
            if hashlib.sha256((folder / CARD_FILE).read_bytes()).hexdigest() != digest:
                raise InpaintError(f"{folder}: its card is not the one that it is named by")
            return load_adapter(folder)
        except (OSError, InpaintError):
            # Another process has taken it off in between, or the disk has damaged it: it will be fetched again.
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def parcel(self, digest: str) -> AdapterFiles | None:
        """The bytes of that version; None where it is not here."""
        if self.load(digest) is None:
            return None
        folder = self.folder / digest
        return AdapterFiles(digest, {path.name: path.read_bytes() for path in folder.iterdir()})

    @contextmanager
    def place(self) -> Iterator[Path]:
        """An empty folder to write a copy into; `keep` takes it over, else it is gone at the end."""
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path, digest: str) -> None:
        """Take over a verified copy made in a `place`."""
        target = self.folder / digest
        if digest not in self:
            shutil.rmtree(target, ignore_errors=True)
            try:
                folder.rename(target)
            except OSError:
                if digest not in self:  # else another process was faster
                    raise
        os.utime(target)
        self._trim(digest)

    def put(self, parcel: AdapterFiles) -> None:
        """Store a parcel. Raises InpaintError where its bytes are not what the digest names."""
        if parcel.digest in self:
            return
        card = parcel.files.get(CARD_FILE, b"")
        if hashlib.sha256(card).hexdigest() != parcel.digest or set(parcel.files) - {CARD_FILE, *ADAPTER_FILES}:
            raise InpaintError(f"parcel {parcel.digest[:12]}: its files are not those of that digest")
        with self.place() as folder:
            for name, data in parcel.files.items():
                (folder / name).write_bytes(data)
            load_adapter(folder)
            self.keep(folder, parcel.digest)

    def _trim(self, newest: str) -> None:
        copies = []
        for folder in self.folder.iterdir():
            if _DIGEST.fullmatch(folder.name):
                try:
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    copies.append((folder.stat().st_mtime_ns, size, folder))
                except FileNotFoundError:
                    continue  # another process trims, too
        left = sum(size for _, size, _ in copies)
        for _, size, folder in sorted(copies):
            if left <= self.max_bytes:
                return
            if folder.name != newest:
                shutil.rmtree(folder, ignore_errors=True)
                left -= size


class AdapterStore:
    """Adapters by name and digest: from the cache, else from the registry's folder while it still has that version."""

    def __init__(self, root: Root, cache: AdapterCache, max_adapter_bytes: int) -> None:
        self.root = root
        self.cache = cache
        self.max_adapter_bytes = max_adapter_bytes

    def load(self, name: str, digest: str) -> Adapter:
        """That version, verified. Raises AdapterGone."""
        adapter = self.cache.load(digest)
        if adapter is not None:
            return adapter
        try:
            card, data = self.read_card(name)
            if hashlib.sha256(data).hexdigest() == digest:
                with self.fetched(name, card, data) as (folder, adapter):
                    self.cache.keep(folder, digest)
                    return adapter
        except (InpaintError, OSError) as error:
            raise AdapterGone(f"adapter {name} at {digest[:12]} cannot be read: {error}") from error
        raise AdapterGone(f"adapter {name} at {digest[:12]} has been replaced in the registry: send the request again")

    def read_card(self, name: str) -> tuple[AdapterCard, bytes]:
        """The card that lies in the registry now. Raises NotYet where it is not readable, OSError."""
        try:
            data = self._read(f"{name}/{CARD_FILE}", _MAX_CARD_BYTES)
            card = parse_card(data, CARD_FILE)
        except NotYet:
            raise
        except InpaintError as error:
            raise NotYet(str(error)) from error
        return card, data

    @contextmanager
    def fetched(self, name: str, card: AdapterCard, card_bytes: bytes) -> Iterator[tuple[Path, Adapter]]:
        """A local copy of the files, verified, and what they hold; gone at the end unless the cache keeps it.

        Raises:
            NotYet: a file is missing or does not match its sha256.
            InpaintError: the files are what the card says, but no adapter.
        """
        if not isinstance(card.files, Mapping) or set(card.files) - set(ADAPTER_FILES):
            raise InpaintError(f"{CARD_FILE} lists {str(card.files)[:80]}: only {', '.join(ADAPTER_FILES)} are read")
        with self.cache.place() as folder:
            (folder / CARD_FILE).write_bytes(card_bytes)
            left = self.max_adapter_bytes
            for file, digest in card.files.items():
                data = self._read(f"{name}/{file}", left)
                left -= len(data)
                if hashlib.sha256(data).hexdigest() != digest:
                    raise NotYet(f"{file} does not match its sha256 in {CARD_FILE}: still being copied, or damaged")
                (folder / file).write_bytes(data)
            yield folder, load_adapter(folder)

    def _read(self, relative: str, limit: int) -> bytes:
        path = self.root.join(relative)
        info = self.root.filesystem.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise NotYet(f"{relative} is missing: still being copied?")
        if info.size > limit:
            raise InpaintError(f"{relative} has {info.size:,} bytes: this service takes {limit:,}; raise the limit")
        with self.root.filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read(limit + 1)
        return data
