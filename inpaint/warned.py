"""Warnings by kind: one line each, and how often it came. What is kept does not grow with what is warned of.

A kind is the line of code that warns: its first text stands for it, so none may repeat what is private to a row.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

LONGEST = 500
"""Characters of a text that are kept."""


class Several(UserWarning):
    """A warning that stands for several of its kind."""

    def __init__(self, text: str, count: int) -> None:
        super().__init__(text)
        self.count = count


@dataclass(frozen=True)
class Warned:
    """A kind of warning."""

    kind: str
    """File and line."""
    text: str
    """Of the first one."""
    count: int

    @property
    def line(self) -> str:
        """With the count, where it came more than once."""
        return self.text if self.count == 1 else f"{self.text} ({self.count} times)"


class Warnings:
    """Counts of warnings, in the order in which their kinds came first."""

    def __init__(self) -> None:
        self.kinds: dict[str, Warned] = {}

    def add(self, warned: Warned) -> bool:
        """Count; whether it is the first of its kind."""
        known = self.kinds.get(warned.kind)
        self.kinds[warned.kind] = warned if known is None else replace(known, count=known.count + warned.count)
        return known is None


@contextmanager
def heard(hear: Callable[[Warned], object]) -> Iterator[None]:
    """Within, all that this process warns of is heard, instead of the first of each text being printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: Any = None,
            line: Any = None,
        ) -> None:
            if issubclass(category, UserWarning):
                count = message.count if isinstance(message, Several) else 1
                hear(Warned(f"{filename}:{lineno}", str(message)[:LONGEST], count))

        warnings.showwarning = show
        yield
