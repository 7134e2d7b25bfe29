"""Trials on Ray Tune, each a Ray Train run of its own. Imports ray; part of the wiring.

Guarantees: a sweep that was interrupted, however, goes on with its rungs, what its searcher learned and its finished
trials as they were, for all of it is worked out from our own records (`trials.py`); Tune's saved state, which lacks
the rungs, is never read. Nothing is left on the cluster: a trial that is to end early is asked to, and ends as a
training does that was stopped. (Where Tune stops one itself, the placement group of its workers is freed by a process
that needs Ray's dashboard, and without one never.) Where a trial ended is read in its own checkpoints, not in what Tune
heard last.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from inpaint.cluster import GPU_WORKER_CPUS, Needs, check_fits, cluster_nodes, nodes_hold
from inpaint.data.pipeline import SharedRows
from inpaint.data.storage import open_root
from inpaint.errors import InpaintError
from inpaint.stopping import StopToken
from inpaint.train.checkpoint import VALIDATION_LOSS
from inpaint.train.loop import StepReport
from inpaint.train.referee import Goal, Referee, Rungs
from inpaint.train.settings import TrainSettings
from inpaint.train.trainer import Training, fit, runs_side_by_side
from inpaint.train.trials import Trial, TrialState

POLL_SECONDS, SHOW_SECONDS = 0.5, 3.0
HEAD_ONLY = {"node:__internal_head__": 0.001}
"""What the driver of a trial takes of the cluster: it waits for its workers, and a CPU would be lost."""
_QUIET = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is run."""

    trials: int
    suggest: Callable[[int, Mapping[int, Trial]], dict[str, Any]]
    """(number of a new trial, all trials so far) -> its settings."""
    training: Callable[[int, Mapping[str, Any]], Training]
    """(number, settings) -> what is trained; it goes on with what is in its output. Travels."""
    goal: Goal
    rungs: Rungs | None
    """None: every trial is trained to its end."""
    at_once: int
    retries: int
    """How often a trial is tried again whose driver or workers died."""
    workers: Needs
    """Of one trial."""


def plan_trials(settings: TrainSettings, gpus_per_worker: float, wanted: int | None = None) -> tuple[int, Needs]:
    """How many trials the connected cluster trains at once such that none waits for another, and the workers of one:
    each has its GPUs, or a CPU for each of its workers, and a CPU for its reading, which keeps it while it pauses.

    Args:
        wanted: so many, if there is room.

    Raises:
        ClusterTooSmall: there is no room for one, or for those wanted.
        InpaintError: it would train in fp16 on CPUs.
    """
    runs_side_by_side(settings)
    nodes = cluster_nodes()
    use_gpu = settings.gpu if settings.gpu is not None else any(node.gpus for node in nodes)
    fewest, _ = settings.worker_range
    one = Needs(workers=fewest, cpus_per_worker=1.0, gpus_per_worker=gpus_per_worker if use_gpu else 0.0)

    def of(trials: int, cpus: float = 1.0) -> Needs:
        return replace(one, workers=trials * fewest, cpus_per_worker=cpus, data_cpus=trials)

    at_once = wanted or 1
    check_fits(of(at_once), nodes)
    while wanted is None and nodes_hold(of(at_once + 1), nodes):
        at_once += 1
    cpus = 1.0
    while nodes_hold(of(at_once, cpus + 1), nodes) and (not use_gpu or cpus < GPU_WORKER_CPUS):
        cpus += 1
    return at_once, replace(one, cpus_per_worker=cpus)


def run_trials(
    tuning: Tuning,
    output: str,
    *,
    decoded: SharedRows | None = None,
    stop: StopToken,
    on_progress: Callable[[Mapping[int, Trial]], None],
) -> dict[int, Trial]:
    """Run all trials that the records in `output` do not know as ended; returns all of them.

    Args:
        decoded: rows of all of them.

    Raises:
        InpaintError: `stop` ended it; run again, it goes on.
    """
    os.environ.update(_QUIET)
    # It misses the files that Tune's loggers would write.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # In a list, and by its reference: the referee's process has no need to know what it is.
    rows = [ray.put(decoded)]
    referee = ray.remote(num_cpus=0, scheduling_strategy=here)(Referee).remote(output, tuning.goal, tuning.rungs, rows)
    storage, searcher = open_root(f"{output}/tune"), _Numbers(tuning, referee, stop)
    driver = ray.tune.with_parameters(_drive, referee=referee, tuning=tuning)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(driver, HEAD_ONLY),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            num_samples=tuning.trials,
            max_concurrent_trials=tuning.at_once,
        ),
        run_config=ray.tune.RunConfig(
            name=f"sweep-{time.time_ns()}",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            failure_config=ray.tune.FailureConfig(max_failures=tuning.retries),
            verbose=0,
        ),
    )
    try:
        with _watched(referee, stop, on_progress):
            ended = tuner.fit() if searcher.left else ()
        for result in ended:
            if result.error is not None:
                ray.get(referee.end.remote(result.config["number"], TrialState.FAILED, str(result.error)))
        trials: dict[int, Trial] = ray.get(referee.trials.remote())
        on_progress(trials)
    finally:
        ray.kill(referee)
        with suppress(FileNotFoundError):
            storage.filesystem.delete_dir(storage.path)
    done = sum(trial.state is not TrialState.RUNNING for trial in trials.values())
    if done < tuning.trials:
        raise InpaintError(f"stopped as asked after {done} of {tuning.trials} trials: go on with --resume")
    return trials


class _Numbers(Searcher):
    """Hands Tune the trials that have not ended, those that have begun first."""

    def __init__(self, tuning: Tuning, referee: Any, stop: StopToken) -> None:
        super().__init__()
        self._tuning, self._referee, self._stop = tuning, referee, stop
        known: dict[int, Trial] = ray.get(referee.trials.remote())
        begun = [number for number, trial in known.items() if trial.state is TrialState.RUNNING]
        self.left = [*begun, *(number for number in range(tuning.trials) if number not in known)]
        """Numbers, the next one first."""

    def suggest(self, trial_id: str) -> Any:
        """The next one, its settings found now, from what all others have shown."""
        if self._stop.requested or not self.left:
            return Searcher.FINISHED
        number, known = self.left.pop(0), ray.get(self._referee.trials.remote())
        settings = known[number].settings if number in known else self._tuning.suggest(number, known)
        ray.get(self._referee.begin.remote(number, settings))
        return {"number": number, "settings": settings}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Told to the referee by the trial itself."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: it knows no more than the records."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _drive(config: dict[str, Any], referee: Any, tuning: Tuning) -> None:
    """A trial: one Ray Train run, which reports to Tune and to the referee."""
    number, stop, asked = config["number"], StopToken(), time.monotonic()
    painted: dict[int, dict[str, float]] = {}

    def watch(told: StepReport) -> None:
        nonlocal asked
        samples, shall_stop = int(told["samples"]), False
        if VALIDATION_LOSS in told:
            measured = {VALIDATION_LOSS: told[VALIDATION_LOSS], **painted.pop(samples, {})}
            shall_stop = ray.get(referee.report.remote(number, samples, measured))
        elif "loss" not in told:
            painted[samples] = {name: value for name, value in told.items() if name != "samples"}
        elif time.monotonic() - asked > POLL_SECONDS:
            shall_stop, asked = ray.get(referee.stopping.remote()), time.monotonic()
        if shall_stop:
            stop.request()

    try:
        (rows,) = ray.get(referee.decoded.remote())
        training = replace(tuning.training(number, config["settings"]), decoded=ray.get(rows))
        ended = fit(
            training,
            workers=tuning.workers,
            stop=stop,
            watch=watch,
            callbacks=[TuneReportCallback()],
        )
    except (InpaintError, FloatingPointError) as error:
        # It can never succeed: nothing is tried again.
        ray.get(referee.end.remote(number, TrialState.FAILED, str(error)))
        return
    if ended.samples >= training.total:
        ray.get(referee.end.remote(number, TrialState.FINISHED))


@contextmanager
def _watched(referee: Any, stop: StopToken, on_progress: Callable[[Mapping[int, Trial]], None]) -> Iterator[None]:
    """Within, a thread shows how the trials stand, and passes `stop` on."""
    ended = threading.Event()

    def poll() -> None:
        is_told, shown = False, time.monotonic()
        while not ended.wait(POLL_SECONDS):
            if stop.requested and not is_told:
                ray.get(referee.stop.remote())
                is_told = True
            if time.monotonic() - shown > SHOW_SECONDS:
                shown = time.monotonic()
                on_progress(ray.get(referee.trials.remote()))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
