"""The registry: every subfolder with an `adapter.json`, and every `.safetensors` file of kohya, Civitai or diffusers
beside them, is an adapter, looked for again and again while serving.

Guarantees: an adapter that was copied in whole is served after one poll and the time to read it; one that is bad or
half copied is reported with its reason and never served; the version that was served before goes on in its place, and
all others are untouched; what has not changed costs its share of a listing, never a read.
Not covered: a folder whose files are replaced by others of equal size within the clock tick of the file system.
"""

import asyncio
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from inpaint.data.storage import open_root
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import CARD_FILE, AdapterIncomplete
from inpaint.export.kohya import SUFFIX
from inpaint.models.adapter import check_adapter, check_card, check_name
from inpaint.models.base import BaseInfo
from inpaint.serve.adapters.cache import AdapterCache
from inpaint.serve.service import ServedAdapter

_LOG = logging.getLogger(__name__)
_READERS = 4
_CLOCK_TICK_NS = 2_000_000_000
"""Files as young as this may change once more without a change of their time: object stores count in seconds."""


class RegistrySettings(BaseModel):
    """Where adapters come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str
    """Folder or bucket URL of adapters (subfolders, and single `.safetensors` files) and nothing else: all of it is
    listed at each poll."""
    cache: str | None = None
    """Local folder for copies; unset: one in the temporary folder, per user and registry."""
    cache_bytes: int = Field(default=20 << 30, ge=1)
    """Most bytes of copies."""
    poll_s: float = Field(default=2.0, gt=0)
    """Seconds between two looks."""
    max_rank: int = Field(default=64, ge=1)
    """Largest rank served."""
    max_adapter_bytes: int = Field(default=2 << 30, ge=1)
    """Largest adapter served."""

    def open_cache(self, base: BaseInfo) -> AdapterCache:
        """What reads adapters by digest, here or in a painter of `base`. Raises InpaintError for a URL that is none."""
        key = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        folder = open_root(self.cache or Path(tempfile.gettempdir()) / f"inpaint-{os.getuid()}" / key)
        if not folder.is_local:
            raise InpaintError(f"registry.cache {self.cache}: give a folder of this machine, for its copies are opened")
        limits = {"max_bytes": self.cache_bytes, "max_adapter_bytes": self.max_adapter_bytes}
        return AdapterCache(open_root(self.root), folder.path, base, **limits)


_Listed = frozenset[tuple[str, int | None, int | None]]
"""What a listing says of one adapter: (file, bytes, time of change in ns) of each in its folder; a single file's name
is empty."""


@dataclass
class _Folder:
    """What is known of one folder."""

    seen: _Listed = frozenset()
    """As it was looked at; empty: to be looked at again."""
    served: ServedAdapter | None = None
    """The newest version that was good."""
    refused: str = ""
    """Why a newer one is not served."""


class Registry:
    """Adapters served now. `poll` or `watch` it from one place; all else may be called from any thread."""

    def __init__(self, settings: RegistrySettings, base: BaseInfo, cache: AdapterCache | None = None) -> None:
        self.settings = settings
        self.base = base
        self.cache = cache or settings.open_cache(base)
        self.scans = 0
        """Looks so far."""
        self._folders: dict[str, _Folder] = {}
        self._served: Mapping[str, ServedAdapter] = {}
        self._refused: Mapping[str, str] = {}

    def catalogue(self) -> Mapping[str, ServedAdapter]:
        """Name -> what is served under it now."""
        return self._served

    def refused(self) -> Mapping[str, str]:
        """Name -> why its newest version is not served; an older one may be."""
        return self._refused

    async def watch(self) -> None:
        """Look again and again, in another thread."""
        while True:
            await asyncio.sleep(self.settings.poll_s)
            await asyncio.to_thread(self.poll)

    def poll(self) -> None:
        """Look once. Where the registry cannot be listed, all stays as it was."""
        self.scans += 1
        try:
            listing = self._list()
        except (OSError, UnicodeError) as error:  # also for a file name that is not UTF-8
            _LOG.warning("registry %s cannot be listed, so nothing changes: %s", self.settings.root, error)
            return
        self._folders = {name: self._folders.get(name, _Folder()) for name in listing}
        changed = [name for name, folder in self._folders.items() if folder.seen != listing[name]]
        published, now = time.monotonic(), time.time_ns()
        with ThreadPoolExecutor(_READERS, "registry") as pool:
            looks = {pool.submit(self._look, name, self._folders[name], listing[name]): name for name in changed}
            for look in as_completed(looks):
                name = looks[look]
                # Files this young may still change unseen: look again next time.
                changes = [changed_ns or now for _, _, changed_ns in listing[name]]  # some stores tell no times
                is_settled = now - max(changes) > _CLOCK_TICK_NS
                self._folders[name].seen = listing[name] if look.result() and is_settled else frozenset()
                if time.monotonic() - published > 0.5:
                    self._publish()
                    published = time.monotonic()
        self._publish()

    def _list(self) -> dict[str, _Listed]:
        files: dict[str, list[tuple[str, int | None, int | None]]] = {}
        # One recursive listing: on an object store a thousand keys per call, where a look at each would be a call each.
        for path, info in self.cache.root.files().items():
            name, _, file = path.partition("/")
            if file or name.endswith(SUFFIX):
                files.setdefault(name if file else name.removesuffix(SUFFIX), []).append((file, *info))
        adapters = {n: found for n, found in files.items() if any(_is_adapters(file) for file, *_ in found)}
        return {name: frozenset(found) for name, found in adapters.items()}

    def _look(self, name: str, folder: _Folder, listed: _Listed) -> bool:
        """Serve or refuse what lies there; False where it could not even be read, for a reason that may pass."""
        try:
            check_name(name)
            files = {file for file, *_ in listed}
            if "" in files and len(files) > 1:
                raise InpaintError(f"{name}{SUFFIX} and the folder {name} are both there: remove one")
            if not files & {"", CARD_FILE}:
                message = f"no {CARD_FILE}: copy it, or put a LoRA of others beside the folders as NAME{SUFFIX}"
                raise AdapterIncomplete(message)
            card, digest = self.cache.read_card(name)
            if folder.served is None or folder.served.digest != digest:
                check_card(card, self.base, max_rank=self.settings.max_rank)
                check_adapter(self.cache.fetch(name, digest)[1], self.base, max_rank=self.settings.max_rank)
                folder.served = ServedAdapter(name=name, digest=digest, card=card)
                _LOG.info("adapter %s at %s is served", name, digest[:12])
            folder.refused = ""
            return True
        except (InpaintError, OSError) as error:
            kind = "not complete yet" if isinstance(error, (AdapterIncomplete, OSError)) else "refused"
            reason = f"{kind}: {error}"
            if folder.refused != reason:
                _LOG.warning("adapter %s %s", name, reason)
            folder.refused = reason
            return not isinstance(error, OSError)

    def _publish(self) -> None:
        self._served, conflicts = settle(folder.served for folder in self._folders.values() if folder.served)
        self._refused = {name: folder.refused for name, folder in self._folders.items() if folder.refused} | conflicts


def _is_adapters(file: str) -> bool:
    """Whether this file of a folder says that it is, or shall be, an adapter; the empty name is a single file."""
    return file in ("", CARD_FILE) or ("/" not in file and file.endswith(SUFFIX))


def settle(entries: Iterable[ServedAdapter]) -> tuple[dict[str, ServedAdapter], dict[str, str]]:
    """Served adapters by name, and the reasons of the others: where two claim a category, the one that is called like
    it is served, else the first by name. The same for every process that sees the same registry, whatever came first.
    """
    owners: dict[str, str] = {}
    served: dict[str, ServedAdapter] = {}
    reasons: dict[str, str] = {}
    for entry in sorted(entries, key=lambda e: (e.name not in e.card.tokens, e.name)):
        taken = next((c for c in sorted(entry.card.tokens) if c in owners), None)
        if taken is not None:
            reasons[entry.name] = (
                f"refused: category {taken} is served by adapter {owners[taken]}: remove one, or call the folder that "
                f"shall serve it {taken}"
            )
            continue
        owners |= dict.fromkeys(entry.card.tokens, entry.name)
        served[entry.name] = entry
    return dict(sorted(served.items())), reasons
