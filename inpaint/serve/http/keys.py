"""API keys: who may ask.

Guaranteed: the time of a check does not depend on how much of a key is right, nor on which key it is; keys are neither
logged nor told. A keys file that became unreadable or wrong leaves the keys as they were and is logged as an error.
Not covered: quotas, and encryption on the way (put TLS in front).
"""

import base64
import hashlib
import hmac
import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from inpaint.errors import InpaintError
from inpaint.serve.http.limits import HttpSettings

logger = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,64})\s*:\s*(?P<key>[!-~]{16,512})|(?P<unnamed>[!-9;-~]{16,512})")
NOBODY = "-"
"""The name of whoever asks a service that has no keys."""


class ApiKeys:
    """The keys that are valid now."""

    def __init__(self, settings: HttpSettings, environment: Mapping[str, str] = os.environ) -> None:
        """Raises InpaintError: a key is unusable, or there is none and the host is not a loopback address."""
        self._file = Path(settings.keys_file) if settings.keys_file else None
        given = environment.get(settings.keys_variable, "")
        self._fixed = parse_keys(given.replace(",", "\n"), settings.keys_variable)
        self._from_file: dict[str, bytes] = {}
        self._state: tuple[int, ...] | None = None
        self._refresh()
        if not self.required and not _is_loopback(settings.host):
            raise InpaintError(
                f"host {settings.host} can be reached from other machines and there are no API keys: put some into "
                f"keys_file or {settings.keys_variable}, or listen on 127.0.0.1"
            )

    @property
    def required(self) -> bool:
        """Whether a key must be shown. Once a keys file is named, always: an emptied file opens nothing."""
        return self._file is not None or bool(self._fixed)

    def name_of(self, headers: Mapping[str, str]) -> str | None:
        """The name of the key that a request shows; None where none is valid."""
        if not self.required:
            return NOBODY
        try:
            self._refresh()
        except InpaintError as error:
            logger.error("the keys stay as they were: %s", error)
        digests = [hashlib.sha256(shown).digest() for shown in _shown(headers)]
        found: str | None = None
        for name, known in (*self._fixed.items(), *self._from_file.items()):
            for digest in digests:
                # No early exit: every check compares with every key.
                if hmac.compare_digest(digest, known):
                    found = name
        return found

    def _refresh(self) -> None:
        """Read the file where it has changed. Raises InpaintError, once, where it cannot be read."""
        if self._file is None or self._state == (state := _state(self._file)):
            return
        self._state = state
        try:
            self._from_file = parse_keys(self._file.read_text(encoding="utf-8"), str(self._file))
        except (OSError, UnicodeDecodeError) as error:
            raise InpaintError(f"keys_file {self._file} cannot be read: {error}") from error


def parse_keys(text: str, source: str) -> dict[str, bytes]:
    """Name -> sha256 of the key. Raises InpaintError, whose message has the line and not the key."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise InpaintError(
                f"{source}, line {number}: give `name:key` or `key`; a name has 1 to 64 letters, digits, '_', '.' or "
                "'-', a key 16 to 512 printable ASCII characters without spaces; make one with: openssl rand -hex 32"
            )
        name = match["name"] or f"key-{number}"
        if name in keys:
            raise InpaintError(f"{source}, line {number}: the name {name} is used twice")
        keys[name] = hashlib.sha256((match["key"] or match["unnamed"]).encode()).digest()
    return keys


def _shown(headers: Mapping[str, str]) -> list[bytes]:
    """Keys that a request shows: Bearer, the password of Basic (A1111's clients), or x-api-key."""
    shown = []
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown.append(value.strip().encode("utf-8", "replace"))
    elif scheme.lower() == "basic":
        # Broken base64 shows no key.
        with suppress(ValueError):
            shown.append(base64.b64decode(value.strip(), validate=True).partition(b":")[2])
    if "x-api-key" in headers:
        shown.append(headers["x-api-key"].strip().encode("utf-8", "replace"))
    return shown


def _state(path: Path) -> tuple[int, ...]:
    """Of a file, another one when its content or who may read it has changed; empty where there is none."""
    with suppress(OSError):
        stat = path.stat()
        return stat.st_ctime_ns, stat.st_size, stat.st_ino
    return ()


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"
