"""The trials of a sweep, as our own records have them: what each was given, what it reached when, and how it ended.

All that a sweep knows is in them: rungs, what a searcher has learned and which trials are done are worked out from the
records, so that an interrupted sweep goes on as if nothing had been. Each trial has a small JSON file, which is written
whole at each of its reports: a report costs the same however many trials there are, and on an object store as on a disk
a file that is there is whole.
"""

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from inpaint.data.storage import open_root, read_file, write_file

RECORDS = "records"
"""In a sweep's output: the folder of their files."""
READERS = 16


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
        self._folder = open_root(output).at(RECORDS)
        try:
            names = sorted(name for name in self._folder.files() if name.endswith(".json"))
        except FileNotFoundError:
            names = []
        with ThreadPoolExecutor(READERS) as threads:
            found = [_trial(data) for data in threads.map(lambda name: read_file(self._folder, name), names) if data]
        self.trials: dict[int, Trial] = {trial.number: trial for trial in found}

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        """A trial that is new."""
        if number not in self.trials:
            self.trials[number] = Trial(number, dict(settings))
            self._write(number)

    def report(self, number: int, samples: int, measured: Mapping[str, float]) -> None:
        """What a trial measured after so many samples; the first time counts."""
        trial = self.trials[number]
        if samples not in trial.reports:
            trial.reports[samples] = dict(measured)
            self._write(number)

    def end(self, number: int, state: TrialState, cause: str = "") -> None:
        """How a trial ended."""
        trial = self.trials[number]
        trial.state, trial.cause = state, cause
        self._write(number)

    def _write(self, number: int) -> None:
        write_file(self._folder, f"{number:03}.json", json.dumps(asdict(self.trials[number])).encode())


def _trial(data: bytes) -> Trial:
    told = json.loads(data)
    reports = {int(samples): measured for samples, measured in told["reports"].items()}
    return Trial(**{**told, "reports": reports, "state": TrialState(told["state"])})
