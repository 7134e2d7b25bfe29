"""The trials of a sweep, as our own records have them: what each was given, what it reached when, and how it ended.

All that a sweep knows is in them: rungs, what a searcher has learned and which trials are done are worked out from the
records, so that an interrupted sweep goes on as if nothing had been. One JSON object per line, written whole each time.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from inpaint.data.storage import read_file, write_file

TRIALS = "trials.jsonl"


class TrialState(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    """Or interrupted: it goes on."""
    FINISHED = "finished"
    STOPPED = "stopped"
    """Early: others were better after as many samples."""
    FAILED = "failed"


@dataclass
class Trial:
    """One trial."""

    number: int
    settings: dict[str, Any]
    """By the fields' names."""
    reports: dict[int, dict[str, float]] = field(default_factory=dict)
    """Samples -> what was measured there, by name."""
    state: TrialState = TrialState.RUNNING
    cause: str = ""
    """Why it failed."""

    @property
    def samples(self) -> int:
        """As far as it is known."""
        return max(self.reports, default=0)

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(samples, value), in the order of samples; what is not finite is left out."""
        found = [(samples, told.get(metric, math.nan)) for samples, told in sorted(self.reports.items())]
        return [(samples, value) for samples, value in found if math.isfinite(value)]


class TrialRecords:
    """The records in a sweep's output, which one process writes."""

    def __init__(self, output: str) -> None:
        """Args: output: a folder or URL; what it holds is gone on with."""
        self._output, self._lines = output, list[str]()
        self.trials: dict[int, Trial] = {}
        for line in (read_file(output, TRIALS) or b"").decode().splitlines():
            self._add(json.loads(line))

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        """A trial that is new."""
        if number not in self.trials:
            self._write({"trial": number, "settings": dict(settings)})

    def report(self, number: int, samples: int, measured: Mapping[str, float]) -> None:
        """What a trial measured after so many samples; the first time counts."""
        if samples not in self.trials[number].reports:
            self._write({"trial": number, "samples": samples, "measured": dict(measured)})

    def end(self, number: int, state: TrialState, cause: str = "") -> None:
        """How a trial ended."""
        self._write({"trial": number, "state": state, "cause": cause})

    def _write(self, line: dict[str, Any]) -> None:
        self._add(line)
        write_file(self._output, TRIALS, "".join(self._lines).encode())

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(json.dumps(line) + "\n")
        number = line["trial"]
        if "settings" in line:
            self.trials[number] = Trial(number, line["settings"])
        elif "samples" in line:
            self.trials[number].reports[line["samples"]] = line["measured"]
        else:
            self.trials[number].state, self.trials[number].cause = TrialState(line["state"]), line["cause"]
