"""An adapter per category from one CSV, several in one process: one that cannot be trained stops no other."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from inpaint.errors import InpaintError
from inpaint.export.adapter_folder import load_adapter
from inpaint.models.lora import LoraSettings
from inpaint.recipes.fleet import Fleet, FleetReport, train_fleet
from inpaint.rowmap import ActorPool
from inpaint.toy.catalogue import write_catalogue
from inpaint.train.settings import Precision, TrainSettings, ValidationSettings
from tests.tiny import SIZE, tiny_sd_inpaint

KINDS = {"CDP_COS": 3, "CDP_FOOD": 2, "CDP_ONE": 1}
"""Products of each category; of the last one none can be held out."""


@pytest.fixture(scope="module")
def fleet(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, FleetReport, list[str]]:
    folder = tmp_path_factory.mktemp("fleet")
    catalogue = write_catalogue(folder, seed=3, count=6, categories=("CDP_COS", "CDP_FOOD"))
    with catalogue.open(newline="") as file:
        lines = list(csv.DictReader(file))
    kept = [line for name, count in KINDS.items() for line in [one for one in lines if one["category"] == name][:count]]
    kept.append({**lines[-1], "category": "CDP_ONE"})
    with catalogue.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(kept)
    config = Fleet(
        data=str(catalogue),
        output=str(folder / "run"),
        base=str(tiny_sd_inpaint(folder / "base")),
        resolution=SIZE,
        lora=LoraSettings(rank=1),
        train=TrainSettings(samples=4, global_batch=2),
        validation=ValidationSettings(share=0.3, samples=2, pictures=1),
    )
    said: list[str] = []
    return config, train_fleet(config, announce=said.append), said


def test_each_category_has_an_adapter_and_a_line(fleet: tuple[Fleet, FleetReport, list[str]]) -> None:
    config, report, said = fleet
    output = Path(config.output)
    (planned,) = said
    plan = r"2 adapters, 2 at once in each of 1 process\(es\): one takes (.*) GB and (.*) GB for each adapter, "
    found = re.fullmatch(plan + "a machine has (.*) GB", planned)
    assert found is not None, planned
    base, adapter, there = map(float, found.groups())
    assert 0.2 < base < 3 and 0 < adapter < 0.1 and there > base
    assert sorted(report.adapters) == [f"{output}/adapters/{name}" for name in ("CDP_COS", "CDP_FOOD")]
    assert [load_adapter(folder).card.tokens for folder in sorted(report.adapters)] == [
        {"CDP_COS": "CDP_COS"},
        {"CDP_FOOD": "CDP_FOOD"},
    ]
    assert list(report.failed) == ["CDP_ONE"] and "all show one image" in report.failed["CDP_ONE"]
    with open(report.table, newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["category"], line["rows"], line["samples"]) for line in table] == [
        ("CDP_COS", "2", "4"),
        ("CDP_FOOD", "1", "4"),
        ("CDP_ONE", "", ""),
    ]
    assert table[2]["error"] == report.failed["CDP_ONE"] and float(table[0]["validation_loss"]) > 0


def test_a_second_run_does_what_is_not_done(fleet: tuple[Fleet, FleetReport, list[str]]) -> None:
    config, report, _ = fleet
    with pytest.raises(InpaintError, match="continue it with --resume"):
        train_fleet(config)
    said: list[str] = []
    assert train_fleet(replace(config, resume=True), announce=said.append) == report and not said


def test_a_machine_too_small_for_one_adapter_is_refused(fleet: tuple[Fleet, FleetReport, list[str]]) -> None:
    config, _, _ = fleet
    small = replace(config, output=f"{config.output}-small", pool=ActorPool(memory_gb_per_actor=0.01))
    with pytest.raises(InpaintError, match=r"takes [\d.]+ GB, memory_gb_per_actor has 0.01 GB: give a smaller"):
        train_fleet(small)


@pytest.mark.parametrize("wrong", [{"together": 0}, {"train": TrainSettings(precision=Precision.FP16)}])
def test_what_cannot_be_trained_together_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(InpaintError, match="together is 0|one training"):
        train_fleet(Fleet(data="none.csv", output="none", **wrong))
