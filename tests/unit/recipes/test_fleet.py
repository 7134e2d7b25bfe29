"""What fails is one adapter's affair, however many its worker was given."""

from types import SimpleNamespace

import pytest

from inpaint.errors import BadRow, InpaintError
from inpaint.recipes import side_by_side as module
from inpaint.recipes.side_by_side import AdapterWorker
from inpaint.rowmap import ActorResources
from inpaint.train.checkpoint import Progress


@pytest.mark.parametrize("given", [1, 2])
@pytest.mark.parametrize("where", ["training", "checkpoint"])
def test_a_failure_is_told_and_not_raised(given: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = InpaintError("damaged")
    ended = failure if where == "training" else Progress(samples=1, steps=1, seed=0, manifest="")

    def alone(*_: object) -> object:
        if where == "training":
            raise failure
        return ended

    def export(*_: object) -> None:
        raise failure

    monkeypatch.setattr(module, "train_alone", alone)
    monkeypatch.setattr(module, "train_together", lambda trainings, *_: [ended] * len(trainings))
    monkeypatch.setattr(module, "trained_by", export)
    trainings = [SimpleNamespace(name=f"{number}", recipe=SimpleNamespace(export=export)) for number in range(given)]
    outcomes = AdapterWorker(ActorResources("cpu", 1))(trainings)
    assert [(type(outcome), outcome.detail) for outcome in outcomes] == [(BadRow, "damaged")] * given
