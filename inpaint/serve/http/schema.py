"""Request fields: a pydantic model declares each once, for reading, for its limits and for /docs.

    class Enlarge(Fields):
        image: Upload
        \"\"\"The photo.\"\"\"
        factor: Annotated[int, Within(1, "max_factor")] = 2
        \"\"\"Times larger.\"\"\"

A bound is a number, or the name of one of the limits that the service gives with every request (`HttpSettings` and
what the endpoint adds). Forms are all text, so numbers and flags are read from text, too; what is empty or null was
not given. The first field that cannot be read is told by name, with its value and what to give.
"""

import base64
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError, core_schema

from inpaint.serve.http.errors import Problem, shown
from inpaint.serve.http.limits import HttpSettings
from inpaint.serve.http.receipt import Encoding

LARGEST_SEED = 2**63 - 1
_LONGEST_DATA_PREFIX = 256
_URL = re.compile(r"(https?|ftp|file|s3|gs)://", re.IGNORECASE)
_NATIVE = frozenset(get_args(core_schema.ErrorType))
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "maxLength")

Bounds = Mapping[str, Any]
"""Name of a limit -> its value."""
FieldsT = TypeVar("FieldsT", bound="Fields")


class Fields(BaseModel):
    """A request's fields. Unknown ones are refused; `extra="allow"` in a subclass keeps them in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """Without what was left empty. An empty file or an empty text that is required was given."""
        if not isinstance(values, dict):
            return values
        kept = file_fields(cls) | {name for name, field in cls.model_fields.items() if field.is_required()}
        return {
            name: value
            for name, value in values.items()
            if name not in cls.model_fields or not (value is None or (value == "" and name not in kept))
        }


@dataclass(frozen=True)
class Within:
    """A finite number from `low` to `high`, or a word of a `Literal` in the type; `above`: low itself is refused."""

    low: float | str
    high: float | str
    above: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> core_schema.CoreSchema:
        kinds = get_args(source) or (source,)
        words = [word for kind in kinds for word in get_args(kind)]
        read = partial(self._read, "whole number" if int in kinds else "number", words)
        return core_schema.with_info_wrap_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return {**handler(schema), "exclusiveMinimum" if self.above else "minimum": self.low, "maximum": self.high}

    def _read(self, kind: str, words: list[str], value: Any, read: Any, info: ValidationInfo) -> Any:
        if value in words:
            return value
        low, high = _bound(self.low, info.context), _bound(self.high, info.context)
        least, most = (f"{bound:g}" if isinstance(bound, float) else f"{bound}" for bound in (low, high))
        give = f"more than {least} and at most {most}" if self.above else f"{least} to {most}"
        give = " or ".join([give, *words])
        try:
            number = None if isinstance(value, bool) else read(value)
        except ValidationError:
            number = None
        if number is None:
            raise PydanticCustomError("invalid_value", f"{shown(value)} is no {kind}; give {give}")
        if not low <= number <= high or (self.above and number == low):
            raise PydanticCustomError("out_of_range", f"{shown(value)}; give {give}")
        return number


def _text(limit: str) -> tuple[Any, Any]:
    """At most so many characters, none of them NUL."""

    def check(value: Any, info: ValidationInfo) -> Any:
        most = _bound(limit, info.context)
        if isinstance(value, str) and len(value) > most:
            raise PydanticCustomError("too_long", f"{len(value):,} characters, the limit is {most:,}")
        if isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("invalid_value", "holds a NUL character: send plain text")
        return value

    return BeforeValidator(check), Field(json_schema_extra={"maxLength": limit})


def _file(value: Any) -> bytes:
    """A form's file as it is; in JSON, base64 with or without `data:image/png;base64,`. URLs are not fetched."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("invalid_value", f"{shown(value)}; send the file's bytes in base64")
    if _URL.match(value):
        message = "a URL, and no URL is fetched here: send the file's bytes in base64"
        raise PydanticCustomError("url_refused", message)
    comma = value.find(",", 0, _LONGEST_DATA_PREFIX) if value.startswith("data:") else -1
    try:
        return base64.b64decode("".join(value[comma + 1 :].split()), validate=True)
    except ValueError as error:
        message = f"broken base64 ({error}): send the file's bytes in base64"
        raise PydanticCustomError("broken_base64", message) from error


Upload = Annotated[bytes, BeforeValidator(_file)]
"""A file's bytes."""
Word = Annotated[str, *_text("max_field_chars")]
"""A name or the like."""
PromptText = Annotated[str, *_text("max_prompt_chars")]


class PictureFields(Fields):
    """What every request for pictures may say."""

    seed: Annotated[int, Within(0, LARGEST_SEED)] | None = None
    """Same request, same seed: same picture. Random if not given; x-seed says."""
    output_format: Literal["png", "jpeg", "jpg", "webp"] = "png"
    """Only png keeps kept pixels bit for bit."""

    def encoding(self, quality: int, settings: HttpSettings) -> Encoding:
        """How pictures are written. Args: quality: of jpeg and webp."""
        form = "jpeg" if self.output_format == "jpg" else self.output_format
        return Encoding(format=form, quality=max(1, quality), compress_level=settings.png_compress_level)


class HoleFields(PictureFields):
    """What every request to paint a photo's hole may say, too."""

    feather: Annotated[int, Within(0, "max_feather")] = 0
    """Pixels inside the hole over which the photo fades into the painting."""


@cache
def file_fields(model: type[Fields]) -> frozenset[str]:
    """Names of the fields that are files."""
    hints = get_type_hints(model)
    return frozenset(name for name in model.model_fields if bytes in (hints[name], *get_args(hints[name])))


def read_fields(model: type[FieldsT], values: Mapping[str, Any], limits: Bounds) -> FieldsT:
    """The fields of a request. Raises Problem 400 that names the first that cannot be read."""
    try:
        return model.model_validate(dict(values), context=limits)
    except ValidationError as error:
        raise _problem(error, model) from error


def _problem(error: ValidationError, model: type[Fields]) -> Problem:
    first = error.errors(include_url=False)[0]
    kind, place = first["type"], [str(part) for part in first["loc"]]
    field, where, message = place[0] if place else "body", ".".join(place) or "body", first["msg"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(field[:100], model.model_fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(model.model_fields)}"
        message = f"{shown('.'.join(place))} is no field here; {hint}"
        return Problem(message, code="unknown_field", field=field[:100])
    if kind == "missing":
        about = model.model_fields[field].description if len(place) == 1 else None
        return Problem(f"{where}: missing; it is: {about or message}", code="missing", field=field)
    if kind not in _NATIVE:
        return Problem(f"{where}: {message}", code=kind, field=field)
    give = "give true or false" if kind.startswith("bool") else message.replace("Input should be", "give")
    return Problem(f"{where}: {shown(first['input'])}; {give}", field=field)


def request_body(model: type[Fields], media_types: tuple[str, ...], limits: Bounds) -> dict[str, Any]:
    """What OpenAPI says of a request's body, limits filled in."""
    schema = model.model_json_schema()
    definitions, needed = schema.pop("$defs", {}), schema.get("required", [])
    schema["properties"] = {name: schema["properties"][name] for name in (*needed, *schema["properties"])}
    content = {}
    for media_type in media_types:
        file = {"contentEncoding": "base64"} if media_type == "application/json" else {"format": "binary"}
        content[media_type] = {"schema": _filled_in(schema, definitions, limits, {"type": "string", **file})}
    return {"requestBody": {"required": True, "content": content}}


def _filled_in(node: Any, definitions: Mapping[str, Any], limits: Bounds, file: Mapping[str, str]) -> Any:
    """A JSON schema without references and nulls, its bounds numbers."""
    if isinstance(node, list):
        return [_filled_in(one, definitions, limits, file) for one in node]
    if not isinstance(node, dict):
        return node
    given = [one for one in node.get("anyOf", ()) if one != {"type": "null"}]
    if len(given) == 1:
        node = {**given[0], **{key: value for key, value in node.items() if key not in ("anyOf", "default")}}
    if "$ref" in node:
        node = {**definitions[node["$ref"].rpartition("/")[2]], **{k: v for k, v in node.items() if k != "$ref"}}
    if node.get("format") == "binary":
        node = {**{key: value for key, value in node.items() if key != "format"}, **file}
    return {
        key: _bound(value, limits) if key in _BOUNDS else _filled_in(value, definitions, limits, file)
        for key, value in node.items()
    }


def _bound(bound: Any, limits: Bounds | None) -> Any:
    """The number that a bound stands for; `-NAME` is the limit's negative."""
    if not isinstance(bound, str):
        return bound
    assert limits is not None, f"{bound} is the name of a limit: give the limits when reading"
    return -limits[bound[1:]] if bound.startswith("-") else limits[bound]
