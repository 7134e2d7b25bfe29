"""A search is checked before anything starts; what a sweep knows is worked out from its records."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from inpaint.cluster import Node
from inpaint.data.rows import Manifest, Row
from inpaint.data.storage import write_file
from inpaint.errors import ClusterTooSmall, InpaintError
from inpaint.recipes import sweep as sweeping
from inpaint.recipes.category_lora import CategoryLora
from inpaint.recipes.sweep import Objective, Searcher, Sweep, space_of, sweep
from inpaint.recipes.sweep_space import Choice, Range, Settings, drawn, grid, parse_space, with_settings
from inpaint.recipes.sweep_tpe import suggested
from inpaint.train import trials
from inpaint.train import tuning as module
from inpaint.train.encoding import Latents
from inpaint.train.referee import Goal, Referee, Rungs
from inpaint.train.settings import RateSchedule, TrainSettings, ValidationSettings
from inpaint.train.trainer import Training
from inpaint.train.trials import TrialRecords, TrialState
from inpaint.train.tuning import plan_trials

RECIPE = CategoryLora.of_preset("toy", data="d.csv", output="out")
SPACE = parse_space(
    RECIPE, ["unet_learning_rate=1e-4..1e-2:log", "lora.rank=2..8", "train.schedule=linear,cosine", "kohya=true,false"]
)


def test_fields_are_searched_by_name_and_type() -> None:
    assert {
        "unet_learning_rate": Range(1e-4, 1e-2, log=True, whole=False),
        "lora.rank": Range(2, 8, log=False, whole=True),
        "train.schedule": Choice(("linear", "cosine")),
        "kohya": Choice((True, False)),
    } == SPACE
    changed = with_settings(RECIPE, {"lora.rank": 4, "train.schedule": "linear", "lora.alpha": None})
    assert (changed.lora.rank, changed.train.schedule, changed.unet_learning_rate) == (4, RateSchedule.LINEAR, 2e-3)
    assert parse_space(RECIPE, ["lora.alpha=none,2"]) == {"lora.alpha": Choice((None, 2.0))}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("lora.rang=2..8", "no such field; lora has rank, alpha"),
        ("lora=2..8", "'2' is not what the field takes|a range is of numbers"),
        ("lora.rank=0..8", "rank is 0: give at least 1"),
        ("lora.rank=2.5..8", "'2.5' is not what the field takes .int"),
        ("unet_learning_rate=0..1:log", "above 0 for log"),
        ("unet_learning_rate=1..0.1", "LOW below HIGH"),
        ("unet_learning_rate=nan,1", "'nan' is not what"),
        ("train.schedule=linear,cubic", "'cubic' is not what"),
        ("train.schedule=linear..cosine", "a range is of numbers"),
        ("unet_learning_rate", "write NAME=LOW..HIGH"),
        ("train.seed=1,2", "train.seed is the same for all trials"),
        ("validation.share=0.1,0.2", "validation.share is the same for all"),
        ("train.optimizer=adafactor,adamw", "adafactor needs whole parameters"),
    ],
)
def test_a_search_that_cannot_be_is_refused_by_name(told: str, message: str) -> None:
    with pytest.raises(InpaintError, match=f"search '{told}': .*({message})"):
        space_of(Sweep(recipe=RECIPE, search=(told,)))


def test_without_a_search_rates_and_rank_are_searched() -> None:
    space = space_of(Sweep(recipe=RECIPE))
    assert space["unet_learning_rate"] == Range(2e-4, 2e-2, log=True, whole=False)
    assert space["lora.rank"] == Choice((3, 6, 12)) and "token_learning_rate" in space


def test_a_trial_is_a_function_of_its_number() -> None:
    found = [drawn(SPACE, seed=0, number=number) for number in range(300)]
    assert found[7] == drawn(SPACE, seed=0, number=7) != drawn(SPACE, seed=1, number=7)
    assert {settings["lora.rank"] for settings in found} == set(range(2, 9))
    assert {settings["train.schedule"] for settings in found} == {"linear", "cosine"}
    rates = [float(str(settings["unet_learning_rate"])) for settings in found]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2 and 0.4 < sum(rate < 1e-3 for rate in rates) / 300 < 0.6


def test_a_grid_has_all_combinations() -> None:
    listed = parse_space(RECIPE, ["lora.rank=2,4", "train.schedule=linear,cosine"])
    assert len(grid(listed)) == 4 and {"lora.rank": 4, "train.schedule": "linear"} in grid(listed)
    with pytest.raises(InpaintError, match="unet_learning_rate: a grid needs its values"):
        grid(SPACE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"searcher": Searcher.GRID, "search": ("lora.rank=2,4",)}, "the grid has 2 combinations, samples is 16"),
        ({"recipe": replace(RECIPE, validation=ValidationSettings(samples=0))}, "validation.samples is 0"),
        (
            {"objective": Objective.PSNR, "recipe": replace(RECIPE, validation=ValidationSettings(pictures=0))},
            "validation.pictures is 0",
        ),
        (
            {
                "search": ("train.optimizer=adamw,prodigy",),
                "recipe": replace(RECIPE, train=TrainSettings(zero_stage=0)),
            },
            "search train.optimizer: with prodigy: optimizer prodigy finds the learning rate by itself",
        ),
    ],
)
def test_what_needs_no_data_is_refused_without(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InpaintError, match=message):
        sweep(Sweep(**{"recipe": RECIPE, **wrong}))


GOAL = Goal(metric="validation_loss", higher_is_better=False)
RUNGS = Rungs(first=10, factor=3, most=90)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("full_hole_probability=0.1,0.5", "a validation shows, or weighs, something else"),
        ("train.global_batch=8,16", "with aspect_buckets what a trial needs of the latents depends on it"),
        ("unet_learning_rate=1e-4,1e-3", None),
    ],
)
def test_what_decides_a_validation_or_the_latents_is_not_searched(told: str, message: str | None) -> None:
    sizes, seen = [(64, 64), (96, 64)], {"root": "", "category": "CDP_A"}
    rows = Manifest.of(
        Row(id=f"{n}", image=f"{n}.png", width=width, height=height, digest=f"{n:064x}", **seen)
        for n, (width, height) in enumerate(sizes)
    )
    recipe = replace(RECIPE, aspect_buckets=True, latents=Latents.CACHED)
    base = Training.of(recipe, rows, None, name="s", output="out")
    config = Sweep(recipe=recipe, search=(told,))
    with pytest.raises(InpaintError, match=message) if message else nullcontext():
        sweeping._check_comparable(config, base, space_of(config))


def test_rungs_and_ends_outlive_whoever_kept_them(tmp_path: Path) -> None:
    """A sweep that is killed after each report decides as one that never was."""
    losses = {0: (5, 4, 3), 1: (6, 5, 4), 2: (3, 2, 1), 3: (4, 3.5, 3), 4: (2, 3, 2)}
    decided = {}
    for name, dies in (("whole", False), ("killed", True)):
        output = str(tmp_path / name)
        referee = Referee(output, GOAL, RUNGS)
        said = []
        for number, curve in losses.items():
            referee.begin(number, {"lora.rank": number})
            for samples, loss in zip((10, 30, 90), curve, strict=True):
                referee = Referee(output, GOAL, RUNGS) if dies else referee
                said.append(referee.report(number, samples, {"validation_loss": loss}))
                if said[-1]:
                    break
            else:
                referee.end(number, TrialState.FINISHED)
        decided[name] = said, referee.trials()
    assert decided["whole"] == decided["killed"]
    states = [trial.state.value for trial in decided["whole"][1].values()]
    assert states == ["finished", "stopped", "finished", "stopped", "finished"]
    assert [trial.samples for trial in decided["whole"][1].values()] == [90, 10, 90, 30, 90]


@pytest.mark.parametrize("place", ["folder", "url"])
def test_a_report_writes_its_own_trials_record_alone(place: str, tmp_path: Path, monkeypatch) -> None:
    output = str(tmp_path) if place == "folder" else f"fsspec+memory://sweeps{tmp_path}"
    records, written = TrialRecords(output), list[str]()
    for number in (10, 2):
        records.begin(number, {"lora.rank": number})
        records.report(number, 10, {"validation_loss": 1.0})
    write_file(output, "records/002.json.8f.tmp", b"{")  # what a writer left that was killed
    write = trials.write_file

    def noted(folder: object, name: str, data: bytes) -> None:
        written.append(name)
        write(folder, name, data)

    monkeypatch.setattr(trials, "write_file", noted)
    records.report(2, 30, {"validation_loss": float("nan")})
    records.report(2, 30, {"validation_loss": 0.0})
    records.end(10, TrialState.FAILED, "why")
    assert written == ["002.json", "010.json"]
    again = TrialRecords(output).trials
    assert list(again) == [2, 10] and again[10] == records.trials[10]
    assert again[2].curve("validation_loss") == [(10, 1.0)] and again[2].samples == 30


def test_a_trial_that_begins_again_reports_what_it_reported(tmp_path: Path) -> None:
    referee = Referee(str(tmp_path), GOAL, None)
    referee.begin(0, {"a": 1})
    assert not referee.report(0, 10, {"validation_loss": 1.0}) and not referee.report(0, 10, {"validation_loss": 2.0})
    referee.stop()
    assert referee.report(0, 20, {"validation_loss": 0.5}), "asked to stop"
    referee.end(0, TrialState.FAILED, "why")
    referee.end(0, TrialState.FINISHED)
    (trial,) = TrialRecords(str(tmp_path)).trials.values()
    assert trial.curve("validation_loss") == [(10, 1.0), (20, 0.5)]
    assert (trial.state, trial.cause) == (TrialState.FAILED, "why")


def test_optuna_learns_from_the_records(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    records, space = TrialRecords(str(tmp_path)), parse_space(RECIPE, ["unet_learning_rate=1e-4..1e-2:log"])

    def suggest(number: int, records: TrialRecords) -> Settings:
        return suggested(space, number, records.trials, "validation_loss", minimise=True, seed=0)

    for number in range(30):
        settings = suggest(number, records)
        assert settings == suggest(number, TrialRecords(str(tmp_path))), "whoever reads the records goes on alike"
        records.begin(number, settings)
        rate = float(str(settings["unet_learning_rate"]))
        records.report(number, 10, {"validation_loss": abs(rate - 3e-3)})
        records.end(number, [TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED][min(number % 4, 2)])
    found = [float(str(trial.settings["unet_learning_rate"])) for trial in records.trials.values()]
    assert sum(1e-3 < rate < 6e-3 for rate in found[15:]) > sum(1e-3 < rate < 6e-3 for rate in found[:10])


def test_optuna_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inpaint.recipes.sweep.find_spec", lambda name: None)
    with pytest.raises(InpaintError, match="pip install 'inpaint.optuna.'"):
        sweep(Sweep(recipe=RECIPE, searcher=Searcher.OPTUNA))


@pytest.mark.parametrize(
    ("nodes", "settings", "share", "wanted", "expected"),
    [
        ([Node(2)], {}, 1.0, None, (1, 1.0, 0.0)),
        ([Node(16)], {}, 1.0, None, (8, 1.0, 0.0)),
        ([Node(16)], {}, 1.0, 3, (3, 4.0, 0.0)),
        ([Node(8, 4)] * 2, {"workers": (2, 8)}, 1.0, None, (4, 1.0, 1.0)),
        ([Node(16, 1)], {}, 0.25, None, (4, 3.0, 0.25)),
    ],
)
def test_as_many_trials_at_once_as_find_their_place(nodes, settings, share, wanted, expected, monkeypatch) -> None:
    monkeypatch.setattr(module, "cluster_nodes", lambda: nodes)
    monkeypatch.setattr(module, "runs_side_by_side", lambda settings: 1)
    at_once, needs = plan_trials(TrainSettings(**settings), share, wanted)
    assert (at_once, needs.cpus_per_worker, needs.gpus_per_worker) == expected
    with pytest.raises(ClusterTooSmall):
        plan_trials(TrainSettings(**settings), share, 100)
