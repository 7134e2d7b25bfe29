"""The registry: every subfolder with an `adapter.json` is an adapter, looked for again and again while serving.

Guarantees: an adapter that was copied in whole is served after one poll and the time to read it; one that is bad or
half copied is reported with its reason and never served; the version that was served before goes on in its place, and
all others are untouched; what has not changed costs its share of a listing, never a read.
Not covered: a folder whose files are replaced by others of equal size within the clock tick of the file system.
"""

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import pyarrow.fs as pafs
from pydantic import ConfigDict

from inpaint.data.storage import open_root
from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import CARD_FILE
from inpaint.models.adapter import check_adapter, check_card, check_name
from inpaint.models.base import BaseInfo
from inpaint.serve.adapters.cache import AdapterCache, Incomplete
from inpaint.serve.service import ServedAdapter

_LOG = logging.getLogger(__name__)
_READERS = 4
_CLOCK_TICK_NS = 2_000_000_000
"""Files as young as this may change once more without a change of their time: object stores count in seconds."""


@dataclass(frozen=True, kw_only=True)
class RegistrySettings:
    """Where adapters come from."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    root: str
    """Folder or bucket URL whose subfolders are adapters, and nothing else: all of it is listed at each poll."""
    cache: str | None = None
    """Local folder for copies; unset: one in the temporary folder, per user and registry."""
    cache_bytes: int = 20 << 30
    """Most bytes of copies."""
    poll_s: float = 2.0
    """Seconds between two looks."""
    max_rank: int = 64
    """Largest rank served."""
    max_adapter_bytes: int = 2 << 30
    """Largest adapter served."""

    def __post_init__(self) -> None:
        if self.poll_s <= 0 or self.max_rank < 1 or self.cache_bytes < 1 or self.max_adapter_bytes < 1:
            raise InpaintError(
                f"poll_s {self.poll_s}, max_rank {self.max_rank}, cache_bytes {self.cache_bytes}, max_adapter_bytes "
                f"{self.max_adapter_bytes}: all must be positive"
            )

    def open_cache(self) -> AdapterCache:
        """What reads adapters by digest, here or in a painter. Raises InpaintError for a URL that is none."""
        key = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        folder = open_root(self.cache or Path(tempfile.gettempdir()) / f"inpaint-{os.getuid()}" / key)
        if not folder.is_local:
            raise InpaintError(f"registry.cache {self.cache}: give a folder of this machine, for its copies are opened")
        return AdapterCache(
            open_root(self.root), folder.path, max_bytes=self.cache_bytes, max_adapter_bytes=self.max_adapter_bytes
        )


_Listed = frozenset[tuple[str, int, int]]
"""What a listing says of one folder: (file, bytes, time of change in ns) of each."""


class Registry:
    """Adapters served now. All methods may be called from any thread; `poll` from one at a time."""

    def __init__(self, settings: RegistrySettings, base: BaseInfo, cache: AdapterCache | None = None) -> None:
        self.settings = settings
        self.base = base
        self.cache = cache or settings.open_cache()
        self._seen: dict[str, _Listed] = {}
        self._good: dict[str, ServedAdapter] = {}
        self._reasons: dict[str, str] = {}
        self._served: Mapping[str, ServedAdapter] = MappingProxyType({})
        self._refused: Mapping[str, str] = MappingProxyType({})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)

    def start(self) -> None:
        """Look once, then go on looking in a thread."""
        self.poll()
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def catalogue(self) -> Mapping[str, ServedAdapter]:
        """Name -> what is served under it now."""
        return self._served

    def refused(self) -> Mapping[str, str]:
        """Name -> why its newest version is not served; an older one may be."""
        return self._refused

    def poll(self) -> None:
        """Look once. Where the registry cannot be listed, all stays as it was."""
        try:
            listing = self._list()
        except OSError as error:
            _LOG.warning("registry %s cannot be listed, so nothing changes: %s", self.settings.root, error)
            return
        for name in {*self._good, *self._reasons, *self._seen} - listing.keys():
            for table in (self._good, self._reasons, self._seen):
                table.pop(name, None)
        changed = [name for name, seen in listing.items() if self._seen.get(name) != seen]
        if changed:
            with ThreadPoolExecutor(min(_READERS, len(changed)), "registry") as pool:
                looks = {pool.submit(self._look, name): name for name in changed}
                published = time.monotonic()
                for look in as_completed(looks):
                    name = looks[look]
                    self._seen.pop(name, None)
                    newest_ns = max(changed_ns for _, _, changed_ns in listing[name])
                    # Files this young may still change unseen: look again next time.
                    if look.result() and time.time_ns() - newest_ns > _CLOCK_TICK_NS:
                        self._seen[name] = listing[name]
                    if time.monotonic() - published > 0.5:
                        self._publish()
                        published = time.monotonic()
        self._publish()

    def _watch(self) -> None:
        while not self._stop.wait(self.settings.poll_s):
            self.poll()

    def _list(self) -> dict[str, _Listed]:
        root = self.cache.root
        files: dict[str, list[tuple[str, int, int]]] = {}
        # One recursive listing: on an object store a thousand keys per call, where a look at each would be a call each.
        for info in root.filesystem.get_file_info(pafs.FileSelector(root.path, recursive=True)):
            name, _, file = info.path.removeprefix(root.path).lstrip("/").partition("/")
            if info.type == pafs.FileType.File and file:
                files.setdefault(name, []).append((file, info.size, info.mtime_ns))
        return {n: frozenset(found) for n, found in files.items() if any(file == CARD_FILE for file, _, _ in found)}

    def _look(self, name: str) -> bool:
        """Serve or refuse what lies there; False where it could not even be read, for a reason that may pass."""
        try:
            check_name(name)
            card, digest = self.cache.read_card(name)
            served = self._good.get(name)
            if served is None or served.digest != digest:
                check_card(card, self.base, max_rank=self.settings.max_rank)
                check_adapter(self.cache.fetch(name, digest), self.base, max_rank=self.settings.max_rank)
                self._good[name] = ServedAdapter(name=name, digest=digest, card=card)
                _LOG.info("adapter %s at %s is served", name, digest[:12])
            self._reasons.pop(name, None)
            return True
        except (InpaintError, OSError) as error:
            kind = "not complete yet" if isinstance(error, (Incomplete, OSError)) else "refused"
            reason = f"{kind}: {error}"
            if self._reasons.get(name) != reason:
                _LOG.warning("adapter %s %s", name, reason)
            self._reasons[name] = reason
            return not isinstance(error, OSError)

    def _publish(self) -> None:
        served, conflicts = settle(self._good.copy().values())
        self._served = MappingProxyType(served)
        self._refused = MappingProxyType({**self._reasons, **conflicts})


def settle(entries: Iterable[ServedAdapter]) -> tuple[dict[str, ServedAdapter], dict[str, str]]:
    """Who is served where two claim a category: the adapter that is called like it, else the first by name.

    The same for every process that sees the same registry, whatever came first.

    Returns:
        Served adapters by name, and the reasons of the others.
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
