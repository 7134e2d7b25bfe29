"""A request's body, a form or JSON -> values by name. Nothing here trusts what the client says about its bytes.

A form that ends before its last boundary was cut off on the way and is refused, where lenient parsers would quietly
drop the last part.
"""

import json
import logging
import math
import re
from collections.abc import Collection
from typing import Any

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header

from inpaint.serve.http.errors import Problem, bad, shown

FORM = "multipart/form-data"
JSON = "application/json"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MOST_LEVELS = 32
"""Of lists and objects within each other: more make Python's own recursion fail, here or where they are used."""

# It warns of each byte that a client got wrong; our answer and our log's line say it once.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


def parse_body(
    body: bytes, content_type: str, media_types: tuple[str, ...], files: Collection[str], max_parts: int
) -> dict[str, Any]:
    """What a form (`files` as bytes, else text) or a JSON object says, by name.

    Raises Problem: 415 for a content type that is not among `media_types`, 400 for what is not well-formed.
    """
    kind = content_type.split(";", 1)[0].strip().lower()
    if kind not in media_types:
        message = f"{shown(content_type)}; send {' or '.join(media_types)}"
        raise bad("content-type", message, "unsupported_media_type", 415)
    return parse_json(body) if kind == JSON else parse_form(body, content_type, files, max_parts)


def parse_form(body: bytes, content_type: str, files: Collection[str], max_parts: int) -> dict[str, bytes | str]:
    """Files and texts of a multipart/form-data body; `image[]`, as SDKs write lists, counts as `image`."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise bad("content-type", "has no boundary: let the HTTP library write this header", "broken_form")
    values: dict[str, bytes | str] = {}
    ends: list[bool] = []

    def take(part: Field | File) -> None:
        if len(values) == max_parts:
            raise bad("body", f"the form has more than {max_parts} parts", "too_many_parts")
        given = (part.field_name or b"").decode("utf-8")
        name = given.removesuffix("[]") if given.removesuffix("[]") in files else given
        field = shown(name).strip("'")
        if not name:
            raise bad("body", "a part of the form has no name", "broken_form")
        if name in values:
            raise bad(field, "given twice; one is painted per request", "given_twice")
        if isinstance(part, File):
            part.file_object.seek(0)
            data = part.file_object.read()
        else:
            data = part.value or b""
        try:
            values[name] = data if name in files else data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad(field, "its text is not UTF-8") from error

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": math.inf}
        parser = FormParser(FORM, take, take, lambda: ends.append(True), boundary, config=in_memory)
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        message = f"not a well-formed form ({str(error)[:120]}): let the HTTP library write it"
        raise bad("body", message, "broken_form") from error
    if not ends:
        raise bad("body", "the form ends before its last boundary: it was cut off, send it again", "broken_form")
    return values


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object without NaN, infinities or a key given twice. Raises Problem."""
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_given_once
        )
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises for half a surrogate pair
    except Problem:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise bad("body", f"not valid JSON ({reason[:120]})", "broken_json") from error
    if not isinstance(value, dict):
        raise bad("body", f"JSON {type(value).__name__}; send an object", "broken_json")
    level: list[Any] = [value]
    for _ in range(_MOST_LEVELS):
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return value
    raise bad("body", f"lists or objects in more than {_MOST_LEVELS} levels; send flat JSON", "broken_json")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise bad("body", f"{shown(number)}; send a finite number", "broken_json")
    return value


def _given_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise bad(shown(name), "given twice", "given_twice")
        found[name] = value
    return found
