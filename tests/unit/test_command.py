"""The shell of commands: what is parsed, what is printed, and with which code a process ends."""

import os
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest
import tyro

from inpaint.command import command, parse
from inpaint.errors import InpaintError
from inpaint.stopping import StopToken, stop_on_signals


class Size(StrEnum):
    """Whose values are not its names."""

    VERY_LARGE = "very-large"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What it takes."""

    data: str
    """Where from."""
    kind: str = "plain"
    """Chooses the number."""
    how_many: int = 1
    """A number."""
    size: Size | None = None
    """A word."""


def defaults(*, kind: str = "plain") -> Job:
    return Job(data=tyro.MISSING, kind=kind, how_many={"plain": 1, "fancy": 9}[kind])


def run(job: Any, *arguments: str, **more: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        command(job, Job, "Words.", say=lambda told: [told], cluster=False, arguments=arguments, **more)
        raise SystemExit(0)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("flag", ["--how-many", "--how_many"])
def test_a_few_settings_choose_the_defaults_of_the_others(flag: str) -> None:
    assert parse(Job, None, ["--data", "x", "--kind", "fancy"], defaults) == Job(data="x", kind="fancy", how_many=9)
    assert parse(Job, None, ["--data", "x", flag, "3", "--kind", "fancy"], defaults).how_many == 3
    assert parse(Job, None, ["--data", "x"], defaults).how_many == 1


def test_help_has_the_chosen_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config, stop: "", "--kind", "fancy", "--help", defaults=defaults) == 0
    text = capsys.readouterr().out
    assert "Words." in text and "(required)" in text and "(default: 9)" in text


def test_words_are_said_as_they_are_stored() -> None:
    assert parse(Job, None, ["--data", "x", "--size", "very-large"]).size is Size.VERY_LARGE


def test_what_the_job_returns_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda config, stop: f"made of {config.data}", "--data", "x") == 0
    assert capsys.readouterr().out == "made of x\n"


def test_what_users_did_wrong_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: Job, stop: StopToken) -> str:
        raise InpaintError("data 'x': no such file")

    assert run(job, "--data", "x") == 2
    assert capsys.readouterr().err == "error: data 'x': no such file\n"
    assert run(job, "--data", "x", "--how-many", "many") == 2, "as for an argument that cannot be read"


def test_our_own_mistakes_keep_their_traceback() -> None:
    def job(config: Job, stop: StopToken) -> str:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        command(job, Job, "", say=lambda told: [], cluster=False, arguments=["--data", "x"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_job_to_stop(capsys: pytest.CaptureFixture[str], number: int) -> None:
    def job(config: Job, stop: StopToken) -> str:
        stop.check()
        os.kill(os.getpid(), number)
        stop.check()
        return "never"

    assert run(job, "--data", "x") == 2
    assert "can go on with --resume" in capsys.readouterr().err


def test_tokens_of_two_runs_are_apart_and_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as first, stop_on_signals() as second:
        second.request()
        assert second.requested and not first.requested
    assert signal.getsignal(signal.SIGTERM) == before
