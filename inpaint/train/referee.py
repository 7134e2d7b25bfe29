"""Who keeps a sweep's records and says which trials shall stop; part of the wiring, and light, for it has a process."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from inpaint.train.trials import Trial, TrialRecords, TrialState


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to be best."""

    metric: str
    """By its name in the reports."""
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """Asynchronous successive halving (Li et al. 2020), in samples: at each rung, a trial that is not among the best
    1 / `factor` of those that came there goes no further."""

    first: int
    """Samples of the lowest rung."""
    factor: int
    most: int
    """Samples of a trial that is never stopped."""

    @property
    def samples(self) -> list[int]:
        """Where they are."""
        found = [self.first]
        while found[-1] * self.factor < self.most:
            found.append(found[-1] * self.factor)
        return found


class Referee:
    """Keeps the records and says which trials shall stop: as an actor on the sweep's machine, which ends with it."""

    def __init__(self, output: str, goal: Goal, rungs: Rungs | None, decoded: Any = None) -> None:
        """Args: decoded: kept for the trials, for what Tune is handed it never lets go."""
        self._decoded = decoded
        self._records, self._goal, self._stopping = TrialRecords(output), goal, False
        self._most = 0 if rungs is None else rungs.most
        self._rungs = None if rungs is None else _scheduler(goal, rungs)
        self._entered = set[int]()
        for trial in self._records.trials.values():
            for samples in sorted(trial.reports):
                self._is_out(trial.number, samples)

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        """A trial is about to run."""
        self._records.begin(number, settings)

    def report(self, number: int, samples: int, measured: Mapping[str, float]) -> bool:
        """What a trial measured; whether it shall stop."""
        trial = self._records.trials[number]
        if trial.state is TrialState.RUNNING and samples not in trial.reports:
            self._records.report(number, samples, measured)
            if self._is_out(number, samples) and samples < self._most:
                self._records.end(number, TrialState.STOPPED)
        # One that was asked to stop may report once or twice more.
        return self._stopping or trial.state is TrialState.STOPPED

    def end(self, number: int, state: TrialState, cause: str = "") -> None:
        """A trial has ended by itself."""
        if self._records.trials[number].state is TrialState.RUNNING:
            self._records.end(number, state, cause)

    def decoded(self) -> Any:
        """What it was given."""
        return self._decoded

    def stop(self) -> None:
        """All trials shall write a checkpoint and end."""
        self._stopping = True

    def stopping(self) -> bool:
        """Whether they shall."""
        return self._stopping

    def trials(self) -> dict[int, Trial]:
        """As they stand."""
        return self._records.trials

    def _is_out(self, number: int, samples: int) -> bool:
        """Enter a report into the rungs; whether it is too bad to go on."""
        measured = self._records.trials[number].reports[samples]
        if self._rungs is None or not math.isfinite(measured.get(self._goal.metric, math.nan)):
            return False
        trial = SimpleNamespace(trial_id=number)
        if number not in self._entered:
            self._entered.add(number)
            self._rungs.on_trial_add(None, trial)
        return bool(self._rungs.on_trial_result(None, trial, {**measured, "samples": samples}) == TrialScheduler.STOP)


def _scheduler(goal: Goal, rungs: Rungs) -> AsyncHyperBandScheduler:
    """Tune's own, of which the rungs alone are used."""
    return AsyncHyperBandScheduler(
        time_attr="samples",
        metric=goal.metric,
        mode="max" if goal.higher_is_better else "min",
        grace_period=rungs.first,
        reduction_factor=rungs.factor,
        max_t=rungs.most,
        stop_last_trials=False,
    )
