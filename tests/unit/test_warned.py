"""Warnings are one line per kind with a count, take no memory that grows, and repeat no prompt."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from inpaint.models.prompt_text import PromptSettings, read_prompt, tokenize
from inpaint.models.prompts import warn_of_cuts
from inpaint.train import channel
from inpaint.train.console import RunConsole
from inpaint.warned import LONGEST, Several, Warned, Warnings, heard
from tests.tiny import tiny_tokenizer

COUNT = 600


def prompt(number: int) -> str:
    return "secret " * (30 + number % 7) + str(number)


class Told:
    """A channel, and the bar of the console at its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self.told = 0
        bar: Any = SimpleNamespace(warn=self.lines.append)
        self.console = RunConsole(bar, bar)
        self.tell = SimpleNamespace(remote=self._tell)
        monkeypatch.setattr(channel.ray, "get", lambda answer: answer)

    def _tell(self, *told: Warned) -> bool:
        self.told += 1
        for one in told:
            self.console.show(one)
        return False


def test_600_long_prompts_are_one_line_and_a_count_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, told, settings = tiny_tokenizer(), Told(monkeypatch), PromptSettings(prompt_chunks=1)
    with channel.sent_warnings(told):
        for first in range(0, COUNT, 50):
            prompts = [read_prompt(prompt(number), settings) for number in range(first, first + 50)]
            warn_of_cuts(tokenize([tokenizer], [prompts]).cut)
        assert len(told.lines) == 1 and told.told == 1, "said once, at once"
    told.console.sum_up()
    first, last = told.lines
    assert last == f"{first} ({COUNT} times)"
    assert "secret" not in first
    assert "secret" not in str(globals().get("__warningregistry__")), "where Python keeps what it has shown"


def test_kinds_are_told_apart_and_counted_over_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    for _ in range(2):
        with channel.sent_warnings(told):
            for number in range(3):
                warnings.warn(f"row {number} is gone", stacklevel=1)
            warnings.warn(Several("two are cut", 2), stacklevel=1)
            warnings.warn("of a library for its developers", DeprecationWarning, stacklevel=1)
    warned = Told(monkeypatch)
    with channel.sent_warnings(warned):
        warnings.warn("a single one", stacklevel=1)
    told.console.sum_up()
    warned.console.sum_up()
    assert told.lines == ["row 0 is gone", "two are cut", "row 0 is gone (6 times)", "two are cut (4 times)"]
    assert warned.lines == ["a single one"]


def test_what_a_worker_warned_of_before_it_failed_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    with pytest.raises(OSError, match="lost"), channel.sent_warnings(told):
        for _ in range(5):
            warnings.warn("again", stacklevel=1)
        raise OSError("lost")
    told.console.sum_up()
    assert told.lines[-1] == "again (5 times)"


def test_a_long_text_is_cut() -> None:
    counts = Warnings()
    with heard(counts.add):
        warnings.warn("x" * 10_000, stacklevel=1)
    assert [len(kind.text) for kind in counts.kinds.values()] == [LONGEST]
