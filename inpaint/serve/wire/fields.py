"""Settings of a request, from a form (all text) or from JSON: read by name, type and range."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from inpaint.serve.wire.problems import bad

_SHOWN = 60  # characters of a bad value that are told


class Fields:
    """Named values; each `get` names the field, the value and the range where it refuses. None counts as not given."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    def unread(self) -> list[str]:
        """Names that were given and that nobody asked for."""
        return sorted(self._values.keys() - self._read)

    def raw(self, name: str) -> Any:
        """The value as sent, or None."""
        self._read.add(name)
        return self._values.get(name)

    def text(self, name: str, default: str, *, most: int) -> str:
        """At most `most` characters, which can be written as UTF-8 and hold no NUL."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise bad(name, f"{shown(value)} is no text")
        if len(value) > most:
            raise bad(name, f"{len(value):,} characters, the limit is {most:,}", "too_long")
        # A lone surrogate ("\ud800" in JSON) is a str that no tokenizer and no file can take.
        if "\0" in value or re.search("[\ud800-\udfff]", value):
            raise bad(name, "holds a NUL or half a surrogate pair: send plain Unicode text")
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number in [low, high]."""
        value = self.raw(name)
        if value is None or value == "":
            return default
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", value):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise bad(name, f"{shown(value)} is no whole number; give {low} to {high}")
        if not low <= value <= high:
            raise bad(name, f"{shown(value)}; give {low} to {high}", "out_of_range")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """As `integer`, where there always is one."""
        value = self.integer(name, default, low, high)
        assert value is not None
        return value

    def number(self, name: str, default: float, low: float, high: float, *, above: bool = False) -> float:
        """A finite number in [low, high]; with `above`, low itself is refused."""
        value = self.raw(name)
        if value is None or value == "":
            return default
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9.]{1,30}([eE][+-]?[0-9]{1,3})?\s*", value):
            try:
                value = float(value)
            except ValueError as error:
                raise bad(name, f"{shown(value)} is no number") from error
        return in_range(name, value, low, high, above=above)

    def flag(self, name: str, default: bool) -> bool:
        """true or false; 1 and 0 count, too."""
        value = self.raw(name)
        if value is None or value == "":
            return default
        known = {"true": True, "1": True, "false": False, "0": False}
        text = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
        if text not in known:
            raise bad(name, f"{shown(value)}; give true or false")
        return known[text]

    def choice(self, name: str, default: str, options: Sequence[str]) -> str:
        """One of `options`."""
        value = self.raw(name)
        if value is None or value == "":
            return default
        if not isinstance(value, str) or value not in options:
            raise bad(name, f"{shown(value)}; give one of {', '.join(options)}")
        return value


def in_range(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """`value` as a finite float in [low, high]; with `above`, low itself is refused."""
    bounds = f"more than {low:g} and at most {high:g}" if above else f"{low:g} to {high:g}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise bad(name, f"{shown(value)} is no number; give {bounds}")
    # Compared as it is: a whole number of 400 digits has no float.
    if not low <= value <= high or (above and value == low) or math.isnan(value):
        raise bad(name, f"{shown(value)}; give {bounds}", "out_of_range")
    return float(value)


def shown(value: object) -> str:
    """A value as it is told to a client: short, on one line, printable."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a number of many digits"
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
