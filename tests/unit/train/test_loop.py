"""The loop around an engine that learns nothing: what is read, saved, validated and reported, and when it ends."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from inpaint.data.plan import StepLayout
from inpaint.errors import InpaintError
from inpaint.train.checkpoint import CheckpointStore, Progress
from inpaint.train.loop import Run, ValidationSet, train
from inpaint.train.settings import TrainSettings

GLOBAL_BATCH = 4


pytestmark = pytest.mark.usefixtures("process_group")


class Engine:
    """Counts steps; its losses are told beforehand."""

    device = torch.device("cpu")
    layout = StepLayout(global_batch=GLOBAL_BATCH, max_micro_batch=2, workers=1)
    objective: Any = None
    weight = 0.0

    def __init__(self, losses: Callable[[int], float], validation: Callable[[int], float], every: int) -> None:
        self.settings = TrainSettings(global_batch=GLOBAL_BATCH, checkpoint_every=every)
        self.losses, self.validation = losses, validation
        self.steps = 0

    def train_step(self, batches: list[Any], lr_scale: float) -> torch.Tensor:
        assert [len(batch["position"]) for batch in batches] == [2, 2]
        self.steps += 1
        return torch.tensor(self.losses(self.steps))

    def gather(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"trained": {"steps": torch.tensor([self.weight or float(self.steps)])}}

    def evaluating(self) -> Any:
        return nullcontext()

    def validation_loss(self, batch: Any) -> torch.Tensor:
        return torch.tensor(self.validation(self.steps) * float(batch["weight"].sum()))


def batches(start: int = 0, lost: int = -1) -> Iterator[dict[str, Any]]:
    for first in range(start, 10**6, 2):
        positions = np.arange(first, first + 2) + (first >= lost >= 0)
        yield {"position": positions, "error": np.array(["", "gone" if first == 6 else ""]), "weight": np.ones(2)}


def run_of(
    folder: Path,
    *,
    total: int = 40,
    every: int = 8,
    losses: Callable[[int], float] = lambda step: 1.0 / step,
    validation: Callable[[int], float] | None = None,
    **changed: Any,
) -> tuple[Run, list[dict[str, float]]]:
    told: list[dict[str, float]] = []
    engine: Any = Engine(losses, validation or (lambda step: 0.0), every)
    held = {"position": np.arange(2), "weight": np.array([1.0, 0.0])}
    run = Run(
        engine=engine,
        store=CheckpointStore(str(folder)),
        batches=batches(),
        validation=None if validation is None else ValidationSet([held], 8, 0, lambda samples, pictures: None),
        total=total,
        progress=Progress(samples=0, steps=0, seed=0, manifest=""),
        exchange=lambda report: bool(told.append(report)),
    )
    return replace(run, **changed), told


def test_it_trains_to_the_end_saves_when_due_and_reports_every_step(tmp_path: Path) -> None:
    saved: list[str] = []
    run, told = run_of(tmp_path, total=20)
    keep = run.store.save
    run.store.save = lambda tensors, progress: saved.append(keep(tensors, progress)) or saved[-1]  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="position 7 could not be read and counts nothing: gone"):
        ended = train(run)
    assert (ended.samples, ended.steps) == (20, 5)
    assert [int(name[-3:]) for name in saved] == [8, 16, 20]
    assert [report["samples"] for report in told] == [4, 8, 12, 16, 20]
    assert [report["loss"] for report in told] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert run.store.progress().metrics == {"loss": pytest.approx(1 / 5)}
    assert run.store.progress().unread == 1
    went_on, _ = run_of(tmp_path, total=32, progress=ended, batches=batches(start=20))
    assert train(went_on).unread == 1, "of the whole run"


def test_positions_that_are_not_the_plans_end_it(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, batches=batches(lost=10))
    with pytest.raises(AssertionError, match="the plan says"):
        train(run)
    assert run.store.progress().samples == 8


@pytest.mark.parametrize("at", [2, 3])
def test_a_loss_that_is_not_finite_ends_it_and_is_not_saved(tmp_path: Path, at: int) -> None:
    run, _ = run_of(tmp_path, losses=lambda step: float("nan") if step == at else 1.0)
    with pytest.raises(FloatingPointError, match=f"samples {4 * at - 4} to {4 * at - 1}"):
        train(run)
    progress = run.store.progress()
    assert (None if progress is None else progress.samples) == (None if at == 2 else 8)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path)
    run.engine.weight = float("nan")
    with pytest.raises(FloatingPointError, match="steps is no longer finite at samples 4 to 7"):
        train(run)
    assert run.store.progress() is None


def test_a_stop_wished_before_the_first_step_costs_one_step_and_is_saved(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, asked_to_stop=True, validation=lambda step: 1.0)
    assert train(run).samples == run.store.progress().samples == 4


def test_a_stop_wished_on_the_way_is_heard_within_two_steps(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, every=1000, exchange=lambda report: report["samples"] == 12)
    ended = train(run)
    assert ended.samples == run.store.progress().samples
    assert 12 < ended.samples <= 20


def test_a_stop_told_while_validating_is_heard(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, validation=lambda step: 0.1, exchange=lambda report: "validation_loss" in report)
    assert train(run).samples == 12


def test_a_stop_at_a_validation_does_not_leave_it_out(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, validation=lambda step: 0.1, exchange=lambda report: report["samples"] == 4)
    assert train(run).metrics["validation_loss"] == pytest.approx(0.1)


def test_a_validation_without_a_row_that_can_be_read_is_no_loss_of_zero(tmp_path: Path) -> None:
    unread = {"position": np.arange(2), "weight": np.zeros(2)}
    run, _ = run_of(tmp_path, validation=lambda step: 0.1)
    assert run.validation is not None
    with pytest.raises(InpaintError, match="no row of the validation can be read"):
        train(replace(run, validation=replace(run.validation, batches=[unread])))
    assert run.store.progress() is None


def test_padding_and_what_could_not_be_read_is_not_painted(tmp_path: Path) -> None:
    def batch(*weights: float) -> dict[str, Any]:
        return {"position": np.arange(2), "weight": np.array(weights)}

    shown: list[list[str]] = []
    run, _ = run_of(tmp_path, total=8, validation=lambda step: 0.1)
    run.engine.objective = SimpleNamespace(paint=lambda batch, count: [f"of {w}" for w in batch["weight"]][:count])
    batches = [batch(0.0, 0.5), batch(1.0, 2.0)]
    run.validation = ValidationSet(batches, 8, 3, lambda samples, pictures: shown.append(pictures))
    train(run)
    assert shown == [["of 0.5", "of 1.0"]]


def test_the_best_checkpoint_stays_beside_the_last_ones(tmp_path: Path) -> None:
    validated: list[dict[str, float]] = []
    of = {2: 0.5, 4: 0.3, 6: 0.4, 8: 0.6, 10: 0.7}
    run, told = run_of(tmp_path, validation=of.__getitem__, on_validation=validated.append)
    train(run)
    assert [line["validation_loss"] for line in validated] == pytest.approx(list(of.values()))
    assert [r["validation_loss"] for r in told if "validation_loss" in r] == pytest.approx(list(of.values()))
    assert [int(name[-3:]) for name in run.store.names()] == [16, 32, 40]
    assert run.store.best() == (run.store.names()[0], pytest.approx(0.3))


def test_a_validation_between_checkpoints_saves_only_what_is_better(tmp_path: Path) -> None:
    of = {2: 0.5, 4: 0.6, 6: 0.4, 8: 0.7, 10: 0.9}
    run, _ = run_of(tmp_path, every=1000, validation=of.__getitem__)
    run.store.keep = 10
    train(run)
    assert [int(name[-3:]) for name in run.store.names()] == [8, 24, 40]


def test_a_resumed_run_knows_what_was_best(tmp_path: Path) -> None:
    first, _ = run_of(tmp_path, total=16, validation=lambda step: 0.3)
    ended = train(first)
    again, _ = run_of(tmp_path, validation=lambda step: 0.4, batches=batches(16), progress=ended)
    train(again)
    assert again.store.best() == ("samples-000000000008", pytest.approx(0.3))
