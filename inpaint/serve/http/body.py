"""A request's body: read up to a limit, then taken apart. Nothing here trusts what the client says about its bytes.

Forms are parsed strictly: a body that ends before its last boundary was cut off on the way and is refused, where
lenient parsers would quietly drop the last part.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from inpaint.serve.http.errors import Problem, bad, shown, too_large
from inpaint.serve.http.limits import HttpSettings

FORM = "multipart/form-data"
JSON = "application/json"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

# It warns of each byte that a client got wrong; our answer and our log's line say it once.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass
class Part:
    """One part of a form."""

    name: str = ""
    data: bytearray = field(default_factory=bytearray)


async def read_body(chunks: AsyncIterator[bytes], declared: str | None, settings: HttpSettings) -> bytes:
    """The whole body.

    Args:
        declared: `content-length` as sent; only ever used to refuse sooner.

    Raises:
        Problem: 413 above `max_body_bytes`, 408 where it took longer than `body_timeout_s`.
    """
    most = settings.max_body_bytes
    if declared is not None and declared.isdecimal() and len(declared) < 20 and int(declared) > most:
        raise too_large("body", f"{int(declared):,} bytes, the limit is {most:,}: scale the pictures down")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise too_large("body", f"more than the limit of {most:,} bytes: scale the pictures down")
    except TimeoutError as error:
        message = f"the body had not arrived after {settings.body_timeout_s:g} s: send it again"
        raise Problem(message, status=408, code="body_timeout") from error
    return bytes(body)


def parse_body(
    body: bytes, content_type: str, media_types: tuple[str, ...], files: Collection[str], settings: HttpSettings
) -> dict[str, Any]:
    """What a form (files as bytes, else text) or a JSON object says, by name; `files` are the names of files.

    Raises:
        Problem: 415 for another content type, 400 for what is not well-formed.
    """
    kind = content_type.split(";", 1)[0].strip().lower()
    if kind not in media_types:
        message = f"content-type: {shown(content_type)}; send {' or '.join(media_types)}"
        raise Problem(message, status=415, code="unsupported_media_type", field="content-type")
    return parse_json(body) if kind == JSON else by_name(parse_form(body, content_type, settings), files)


def parse_form(body: bytes, content_type: str, settings: HttpSettings) -> list[Part]:
    """The parts of a multipart/form-data body, in order; names as sent, contents undecoded."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise bad("content-type", "has no boundary: let the HTTP library write this header", "broken_form")
    reader = _FormReader(settings.max_parts)
    try:
        callbacks: Any = {name: getattr(reader, name) for name in vars(_FormReader) if name.startswith("on_")}
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise bad("body", f"not a well-formed form ({error}): let the HTTP library write it", "broken_form") from error
    if not reader.complete:
        raise bad("body", "the form ends before its last boundary: it was cut off, send it again", "broken_form")
    return reader.parts


def by_name(parts: list[Part], files: Collection[str]) -> dict[str, bytes | str]:
    """Files and texts by name; `image[]`, as SDKs write lists, counts as `image`.

    Raises:
        Problem: a name comes twice, or a text is not UTF-8.
    """
    values: dict[str, bytes | str] = {}
    for part in parts:
        name = part.name.removesuffix("[]") if part.name.removesuffix("[]") in files else part.name
        if name in values:
            raise bad(shown(name).strip("'"), "given twice; one is painted per request", "given_twice")
        try:
            values[name] = bytes(part.data) if name in files else part.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad(shown(name).strip("'"), "its text is not UTF-8") from error
    return values


class _FormReader:
    """Collects what the parser finds; its methods have the names of the parser's callbacks."""

    def __init__(self, most: int) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._most = most
        self._header = bytearray()
        self._value = bytearray()

    def on_part_begin(self) -> None:
        if len(self.parts) == self._most:
            raise bad("body", f"the form has more than {self._most} parts", "too_many_parts")
        self.parts.append(Part())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            name = parse_options_header(bytes(self._value))[1].get(b"name", b"")
            self.parts[-1].name = name.decode("utf-8")
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        if not self.parts[-1].name:
            raise bad("body", "a part of the form has no name", "broken_form")

    def on_end(self) -> None:
        self.complete = True


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object without NaN, infinities or a key given twice."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_constant, object_pairs_hook=_once)
    except Problem:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad("body", f"not valid JSON ({reason[:120]})", "broken_json") from error
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise bad("body", "holds half a surrogate pair: send plain Unicode text", "broken_json") from error
    if not isinstance(value, dict):
        raise bad("body", f"JSON {type(value).__name__}; send an object", "broken_json")
    return value


def _constant(name: str) -> NoReturn:
    raise bad("body", f"{name} is not JSON: send a finite number", "broken_json")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise bad(shown(name), "given twice", "given_twice")
    return found
