"""The shell of every command: a configuration from the command line, one call, exit codes, signals, the cluster.

A command is its configuration's type, the function that does the job (which is the way to it from Python, too) and what
is said at the end.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import tyro

from inpaint.cluster import connect
from inpaint.errors import InpaintError
from inpaint.stopping import stop_on_signals

C = TypeVar("C")
STOPPED = 2
"""Exit code where the message says what to do: bad input, or a run that was stopped and can go on."""


def command(
    job: Callable[..., Any],
    config: type[C],
    description: str | None,
    *,
    say: Callable[[Any], Iterable[str]],
    defaults: Callable[..., Any] | None = None,
    cluster: bool = True,
    arguments: Sequence[str] | None = None,
) -> None:
    """Run a command and end the process with its exit code.

    Args:
        job: called with the configuration and `stop`, the token that signals ask to stop by.
        description: the command's docstring.
        say: what the job returned -> the lines to print.
        defaults: a function whose arguments are the few settings by which the others' defaults are chosen, and which
            returns them; unset: the configuration's own.
        cluster: whether a Ray cluster is joined or started first.
        arguments: unset: the process's own.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parsed = parse(config, description, arguments, defaults)
        if cluster:
            connect()
        with stop_on_signals() as stop:
            result = job(parsed, stop=stop)
    except InpaintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(STOPPED)
    for line in say(result):
        print(line)


def parse(
    config: type[C], description: str | None, arguments: Sequence[str], defaults: Callable[..., Any] | None = None
) -> C:
    """The configuration that the arguments ask for; hyphens and underscores are alike."""
    default: Any = tyro.MISSING_NONPROP
    if defaults is not None:
        asked = [word for word in arguments if word not in ("-h", "--help")]  # a position would take it
        default, _ = tyro.cli(defaults, args=asked, return_unknown_args=True, add_help=False)
    program = getattr(sys.modules["__main__"].__spec__, "name", None)
    prog = None if program is None else f"python -m {program}"
    as_said = (tyro.conf.EnumChoicesFromValues,)
    return tyro.cli(config, prog=prog, description=description, default=default, args=arguments, config=as_said)
