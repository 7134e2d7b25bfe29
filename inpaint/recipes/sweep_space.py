"""What a sweep searches: settings by their fields' names, with ranges or values, checked before anything starts.

    unet_learning_rate=1e-4..1e-2:log    lora.rank=4..32    loss.debiased=true,false    train.schedule=linear,cosine

A range of whole numbers is one where the field is; `:log` draws orders of magnitude alike.
"""

import dataclasses
import itertools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeVar

from inpaint.errors import InpaintError
from inpaint.randomness import generator

Value = float | int | str | bool | None
Settings = dict[str, Value]
"""By the fields' names."""
C = TypeVar("C")


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool
    whole: bool
    """Whether whole numbers are meant."""

    def at(self, share: float) -> Value:
        """The value at a share in [0, 1) of the range: each as likely as any other, or each order of magnitude."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        return min(int(value), int(self.high)) if self.whole else float(value)

    @property
    def ends(self) -> list[Value]:
        return [int(end) if self.whole else end for end in (self.low, self.high)]


@dataclass(frozen=True)
class Choice:
    """One of these."""

    values: tuple[Value, ...]

    def at(self, share: float) -> Value:
        """The value at a share in [0, 1): each as likely as any other."""
        return self.values[int(share * len(self.values))]

    @property
    def ends(self) -> list[Value]:
        return list(self.values)


Space = dict[str, Range | Choice]
"""By the fields' names."""


def parse_space(config: object, search: Sequence[str], fixed: Sequence[str] = ()) -> Space:
    """The space that `NAME=VALUES` ask for.

    Args:
        config: a dataclass, whose fields they are; nested ones as in `train.weight_decay`.
        fixed: fields, and groups of them, that cannot be searched.

    Raises:
        InpaintError: a field that is not there, values that it cannot have.
    """
    space: Space = {}
    for told in search:
        name, _, values = (part.strip() for part in told.partition("="))
        if not values:
            raise InpaintError(f"search {told!r}: write NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=VALUE,VALUE")
        if name in space:
            raise InpaintError(f"search {told!r}: {name} is searched already")
        if any(f"{name}.".startswith(f"{group}.") for group in fixed):
            raise InpaintError(f"search {told!r}: {name} is the same for all trials")
        space[name] = _parsed(told, values, _type_of(config, name, told))
        for end in space[name].ends:
            try:
                with_settings(config, {name: end})
            except InpaintError as error:
                raise InpaintError(f"search {told!r}: {error}") from error
    return space


def with_settings(config: C, settings: Mapping[str, Value]) -> C:
    """A configuration with other values of some fields. Raises InpaintError, as it does."""
    for name, value in settings.items():
        config = _with(config, name.split("."), value)
    return config


def drawn(space: Space, *, seed: int, number: int) -> Settings:
    """The settings of a trial of a random search, a function of its number."""
    return {name: kind.at(float(generator(seed, f"sweep {name}", number).random())) for name, kind in space.items()}


def grid(space: Space) -> list[Settings]:
    """All combinations. Raises InpaintError for a range, which has no end of values."""
    for name, kind in space.items():
        if isinstance(kind, Range):
            raise InpaintError(f"search {name}: a grid needs its values: {name}=VALUE,VALUE")
    listed = [kind.ends for kind in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*listed)]


def _with(config: Any, path: list[str], value: Value) -> Any:
    name, *rest = path
    if rest:
        return dataclasses.replace(config, **{name: _with(getattr(config, name), rest, value)})
    hint = typing.get_type_hints(type(config))[name]
    enums = [kind for kind in _kinds(hint) if isinstance(kind, type) and issubclass(kind, Enum)]
    return dataclasses.replace(config, **{name: enums[0](value) if enums and value is not None else value})


def _type_of(config: Any, name: str, told: str) -> Any:
    """The type of a field by its path."""
    *groups, field = name.split(".")
    for group in groups:
        config = getattr(config, group, None)
    known = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if field not in known:
        where = f"{'.'.join(groups)} has" if groups else "there are"
        raise InpaintError(f"search {told!r}: no such field; {where} {', '.join(known) or 'no fields'}")
    return typing.get_type_hints(type(config))[field]


def _kinds(hint: Any) -> list[Any]:
    """The types, or literals, of which a field's value is one."""
    if typing.get_origin(hint) is typing.Annotated:
        return _kinds(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for one in typing.get_args(hint) for kind in _kinds(one)]
    return [hint]


def _parsed(told: str, values: str, hint: Any) -> Range | Choice:
    kinds = _kinds(hint)
    bounds, _, scale = values.partition(":")
    low, dots, high = bounds.partition("..")
    if not dots:
        return Choice(tuple(_value(told, text.strip(), kinds) for text in values.split(",")))
    whole = float not in kinds
    if scale not in ("", "log") or not {int, float} & set(kinds):
        raise InpaintError(f"search {told!r}: a range is of numbers, LOW..HIGH or LOW..HIGH:log; else give the values")
    ends = [_value(told, text.strip(), [int if whole else float]) for text in (low, high)]
    found = Range(float(str(ends[0])), float(str(ends[1])), scale == "log", whole)
    if not found.low < found.high or (found.log and found.low <= 0):
        raise InpaintError(f"search {told!r}: give LOW below HIGH, and above 0 for log")
    return found


def _value(told: str, text: str, kinds: list[Any]) -> Value:
    for kind in kinds:
        for read in _READ.get(kind, (_literal(kind),)):
            try:
                return read(text)
            except (ValueError, KeyError):
                continue
    names = ", ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise InpaintError(f"search {told!r}: {text!r} is not what the field takes ({names})")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _literal(kind: Any) -> Callable[[str], Value]:
    """Reads one of an enum's values, or of a literal's."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda text: kind(text).value
    return {str(value): value for value in typing.get_args(kind) if typing.get_origin(kind) is Literal}.__getitem__


_READ: dict[Any, tuple[Callable[[str], Value], ...]] = {
    float: (_finite,),
    int: (int,),
    str: (str,),
    bool: ({"true": True, "false": False}.__getitem__,),
    type(None): ({"none": None}.__getitem__,),
}
