"""A sweep on the embedded Ray: interrupted and resumed, one trial failing, and nothing of it left on the cluster."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray._private.state import actors
from ray.util import placement_group_table

from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.lora import LoraSettings
from inpaint.recipes import sweep as module
from inpaint.recipes.category_lora import CategoryLora
from inpaint.recipes.sweep import Searcher, Sweep, SweepReport, sweep
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import write_catalogue
from inpaint.train.run import decode_before
from inpaint.train.settings import TrainSettings, ValidationSettings
from inpaint.train.trainer import Training
from inpaint.train.trials import Trial, TrialRecords, TrialState
from tests.tiny import SIZE, tiny_sd_inpaint

RATES = (1e-3, 1e30, 1e-2)
"""The second one's loss is no number after a step."""
OF_RAY_DATA = ("_StatsActor", "_AutoscalingCoordinatorActor")
"""One of each, from the first dataset to the cluster's end."""
ITS_OWN = tuple(f"ray::{name}" for name in ("IDLE", *OF_RAY_DATA))
DECODED: set[str] = set()
"""Names of all pieces of rows that were decoded for trials."""
GONE_SECONDS = 60
pytestmark = pytest.mark.timeout(900)


class StopsOnceOneEnded(StopToken):
    """Asked as soon as a trial's end stands in the records."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self._output = output

    @property
    def requested(self) -> bool:
        return any(trial.state is not TrialState.RUNNING for trial in TrialRecords(self._output).trials.values())


@dataclass(frozen=True)
class Swept:
    """A sweep that was stopped and resumed."""

    config: Sweep
    before: dict[int, Trial]
    """When it was stopped."""
    report: SweepReport
    left: dict[str, set[str]]
    """What is on the cluster that was not there before, by kind."""

    @property
    def output(self) -> str:
        return str(self.config.recipe.output)


def on_cluster() -> dict[str, set[str]]:
    """Actors and placement groups that are alive, processes of Ray that do something, and decoded rows."""
    # Ray's public list of actors needs a dashboard, which an embedded one has not.
    alive = {
        number: actor
        for number, actor in actors().items()
        if actor["State"] != "DEAD" and actor["ActorClassName"] not in OF_RAY_DATA
    }
    groups = placement_group_table()
    counts = ray._private.worker.global_worker.core_worker.get_all_reference_counts
    busy = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            title = process.cmdline()[:1]
            ours = [name for name in title if name.startswith("ray::") and not name.startswith(ITS_OWN)]
            busy |= {f"{name} {process.pid}" for name in ours}
    return {
        "actors": {f"{actor['ActorClassName']} {number}" for number, actor in alive.items()},
        "placement groups": {number for number, group in groups.items() if group["state"] != "REMOVED"},
        "processes": busy,
        "rows": {name for name in map(bytes.decode, counts()) if name in DECODED},
    }


def records_of(output: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(output, "records").iterdir()}


def left_behind(before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What has not gone within a minute."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        left = {kind: found - before[kind] for kind, found in on_cluster().items()}
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


@pytest.fixture(scope="module")
def swept(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "decode_before", noted)
        yield made(tmp_path_factory)


def noted(trainings: list[Training], *others: Any) -> list[Training]:
    found = decode_before(trainings, *others)
    DECODED.update(piece.hex() for training in found if training.decoded for piece in training.decoded.pieces)
    return found


def made(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    recipe = CategoryLora(
        data=str(write_catalogue(folder, seed=3, count=6, categories=("CDP_FOOD",))),
        output=str(folder / "run"),
        base=str(tiny_sd_inpaint(folder / "base")),
        resolution=SIZE,
        lora=LoraSettings(rank=1),
        card_samples=0,
        train=TrainSettings(samples=6, global_batch=2, workers=1),
        validation=ValidationSettings(share=0.3, samples=2, pictures=1),
    )
    config = Sweep(
        recipe=recipe,
        samples=len(RATES),
        search=(f"unet_learning_rate={','.join(map(str, RATES))}",),
        searcher=Searcher.GRID,
        first_rung=2,
        at_once=1,
    )
    before = on_cluster()
    with pytest.raises(InpaintError, match="stopped as asked after 1 of 3 trials"):
        sweep(config, stop=StopsOnceOneEnded(recipe.output))
    stopped = TrialRecords(recipe.output).trials
    report = sweep(replace(config, recipe=replace(recipe, resume=True)))
    return Swept(config, stopped, report, left_behind(before))


def test_nothing_is_left_on_the_cluster(swept: Swept) -> None:
    assert DECODED, "the trials share rows"
    assert swept.left == {"actors": set(), "placement groups": set(), "processes": set(), "rows": set()}


def test_a_stopped_sweep_goes_on_where_it_was(swept: Swept) -> None:
    trials = TrialRecords(swept.output).trials
    (ended,) = [trial for trial in swept.before.values() if trial.state is not TrialState.RUNNING]
    assert trials[ended.number] == ended, "what had ended is as it was"
    assert [trials[number].settings["unet_learning_rate"] for number in range(3)] == list(RATES)
    with pytest.raises(InpaintError, match="holds a sweep: continue it with --resume"):
        sweep(swept.config)
    again = replace(swept.config, recipe=replace(swept.config.recipe, resume=True))
    known = records_of(swept.output)
    assert sweep(again).best == swept.report.best
    assert records_of(swept.output) == known, "nothing was trained again"


def test_a_trial_that_fails_is_reported_with_its_cause(swept: Swept) -> None:
    failed = TrialRecords(swept.output).trials[1]
    assert failed.state is TrialState.FAILED and "nan" in failed.cause
    assert failed.cause in Path(swept.report.page).read_text()


def test_the_best_is_exported_with_its_settings(swept: Swept) -> None:
    best = swept.report.best
    curves = {n: t.curve("validation_loss") for n, t in TrialRecords(swept.output).trials.items() if n != 1}
    ends = {n: min(loss for _, loss in curve) for n, curve in curves.items() if curve[-1][0] == 6}
    assert best.number == min(ends, key=ends.__getitem__)
    assert load_adapter(swept.report.result).card.tokens == {"CDP_FOOD": "CDP_FOOD"}
    told = json.loads(Path(swept.report.result, "sweep.json").read_text())
    assert told["trial"] == best.number and told["unet_learning_rate"] == RATES[best.number]
    assert told["recipe"]["unet_learning_rate"] == RATES[best.number]


def test_ray_still_works(swept: Swept) -> None:
    @ray.remote(num_cpus=2)
    def all_cpus() -> int:
        return 1

    assert ray.get(all_cpus.remote(), timeout=GONE_SECONDS) == 1
