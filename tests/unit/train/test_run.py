"""What a run reads, refuses, keeps and exports, around trainings that are not run."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pytest
import torch

from inpaint.cluster import Node
from inpaint.data.holes import WholeImage
from inpaint.data.rows import SCHEMA, Manifest
from inpaint.data.sample import ReadSettings
from inpaint.data.sources import CsvSource
from inpaint.errors import InpaintError, ResumeMismatch
from inpaint.train import run as module
from inpaint.train import start
from inpaint.train.checkpoint import CHECKPOINTS, VALIDATION_LOSS, CheckpointStore, Progress
from inpaint.train.recipe import Recipe, Trained
from inpaint.train.run import run
from inpaint.train.settings import Keep, Optimizer, Precision, TrainSettings, ValidationSettings, plain
from inpaint.train.start import TRAIN_ROWS, VALIDATION_ROWS
from inpaint.train.trainer import Training, starting_point


@dataclass(frozen=True, kw_only=True)
class Named(Recipe):
    """A training for each category, or one for all of them."""

    title = "one"
    apart: bool = False
    categories: tuple[str, ...] = ()

    def source(self, data: str) -> CsvSource:
        return CsvSource(path=data)

    def bind(self, rows: Manifest) -> Self:
        return replace(self, categories=rows.categories)

    def parts(self, rows: Manifest) -> dict[str, Manifest]:
        if self.apart:
            return {category: rows.select(category) for category in rows.categories}
        return {"+".join(rows.categories): rows}

    def run_folder(self, part: str) -> str:
        return f"{self.output}/{part}" if self.apart else self.output

    def export_folder(self, part: str) -> str:
        return f"{self.output}/export/{part}"

    def read_settings(self) -> ReadSettings:
        return ReadSettings(
            height=8,
            width=8,
            hole=WholeImage(),
            prompt_format="{token} {prompt}",
            tokens={c: c for c in self.categories},
        )

    def objective(self, device: torch.device) -> Any:
        raise AssertionError("nothing is trained here")

    def export(self, trained: Trained, folder: Path) -> None:
        (folder / "samples").write_text(f"{trained.progress.samples} of {trained.ended}, {len(trained.rows)} rows")


def rows_of(**counts: int) -> Manifest:
    """So many rows of each category, each with an image of its own."""
    names = [(category, i) for category, count in counts.items() for i in range(count)]
    columns: dict[str, Any] = {name: [None] * len(names) for name in SCHEMA.names}
    columns |= dict.fromkeys(("width", "height"), [8] * len(names))
    columns |= {"source": [0] * len(names), "repeats": [1] * len(names), "weight": [1.0] * len(names)}
    columns |= {"root": ["r"] * len(names), "prompt": ["x"] * len(names)}
    columns["id"] = columns["image"] = [f"{category}{i}" for category, i in names]
    columns["category"] = [category for category, _ in names]
    columns["digest"] = [np.random.default_rng(abs(hash(name))).bytes(32) for name in columns["id"]]
    return Manifest(pa.table({f.name: pa.array(columns[f.name]).cast(f.type) for f in SCHEMA}, schema=SCHEMA), (1,))


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> dict[str, Manifest]:
    """What lies at each path; trainings end at once, with the checkpoints of `losses`."""
    found: dict[str, Manifest] = {}
    monkeypatch.setattr(module, "runs_side_by_side", lambda *_: 2)
    monkeypatch.setattr(module, "read_manifest", lambda source, **more: (found[source.path], []))
    return found


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int, int | None]]]:
    """Lets trainings end with a checkpoint for each of these losses; returns (name, rows, held out) of those begun."""

    def let(losses: list[float], end: int | None = None) -> list[tuple[str, int, int | None]]:
        begun: list[tuple[str, int, int | None]] = []

        def fit(training: Training, **more: Any) -> Progress:
            held = training.held_out
            begun.append((training.name, len(training.rows), None if held is None else len(held)))
            progress, store = starting_point(training), training.store
            for file, rows in ((TRAIN_ROWS, training.rows), (VALIDATION_ROWS, held)):
                if rows is not None:
                    rows.save(f"{training.output}/{file}")
            for i, loss in enumerate(losses, start=1):
                progress = replace(progress, samples=16 * i, metrics={VALIDATION_LOSS: loss})
                store.save({"trained": {"a": torch.zeros(1)}}, progress)
            return progress

        monkeypatch.setattr(module, "fit", fit)
        return begun

    return let


def recipe(output: Path, **more: Any) -> Named:
    return Named(data="d.csv", output=str(output), train=TrainSettings(samples=32), **more)


def test_a_refusal_leaves_what_the_run_began_with(data, fits, tmp_path):
    data["d.csv"] = rows_of(a=4)
    fits([0.5, 0.4])
    config = recipe(tmp_path)
    assert run(config) == [f"{tmp_path}/export/a"]
    data["d.csv"] = rows_of(a=5)
    with pytest.raises(InpaintError, match="continue it with --resume"):
        run(config)
    with pytest.raises(ResumeMismatch, match="began with other rows"):
        run(replace(config, resume=True, recheck=True))
    assert run(replace(config, resume=True)) == [f"{tmp_path}/export/a"], "on the rows it began with"
    data["d.csv"] = rows_of(a=4)
    assert run(replace(config, resume=True, recheck=True)) == [f"{tmp_path}/export/a"]


@pytest.mark.parametrize("validation", [ValidationSettings(share=0.3), ValidationSettings(data="v.csv")])
def test_what_is_validated_on_is_the_same_on_a_resume(data, fits, tmp_path, validation):
    """Losses of one set cannot be compared with those of another, and the best of them is exported."""
    data |= {"d.csv": rows_of(a=60), "v.csv": rows_of(a=3)}
    fits([0.5, 0.4])
    config = recipe(tmp_path, validation=validation)
    run(config)
    trained, held = (Manifest.load(tmp_path / file) for file in (TRAIN_ROWS, VALIDATION_ROWS))
    data["d.csv" if validation.data is None else "v.csv"] = held.select(np.arange(1, len(held)))
    if validation.data is None:
        data["d.csv"] = Manifest(pa.concat_tables([trained.table, data["d.csv"].table]), (1,))
    with pytest.raises(ResumeMismatch, match="began with other rows: .*removed: a"):
        run(replace(config, resume=True, recheck=True))


def test_rows_that_the_prompt_cannot_be_written_for_are_refused_before_a_training_begins(data, fits, tmp_path):
    table, field = rows_of(a=3).table, SCHEMA.field("category")
    column = pa.array([None, "a", "a"]).cast(field.type)
    data["d.csv"] = Manifest(table.set_column(SCHEMA.get_field_index("category"), field, column), (1,))
    begun = fits([0.5, 0.4])
    with pytest.raises(InpaintError, match="needs a category and some rows have none"):
        run(recipe(tmp_path))
    assert begun == []


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_each_training_holds_out_rows_of_its_own_and_loses_no_category(data, fits, tmp_path, share):
    for number in range(6):
        data["d.csv"] = rows_of(**{f"a{number}": 20, "b": 2})
        begun = fits([0.5, 0.4])
        validation = ValidationSettings(share=share)
        run(recipe(tmp_path / f"apart{number}", apart=True, validation=validation))
        assert {name for name, *_ in begun} == {f"a{number}", "b"}
        assert all(rows >= 1 and held >= 1 for _, rows, held in begun) and sum(rows for _, rows, _ in begun) < 22
        run(recipe(tmp_path / f"together{number}", validation=validation))
        folder = tmp_path / f"together{number}"
        began_with = CheckpointStore(f"{folder}/{CHECKPOINTS}").progress()
        assert began_with is not None and began_with.run["categories"] == [f"a{number}", "b"]
    for rows, why in ((rows_of(a=1), "all show one image"), (rows_of(a=1, b=1), "each image is the only one")):
        data["d.csv"] = rows
        with pytest.raises(InpaintError, match=f"none of its rows can be held out, for {why}"):
            run(recipe(tmp_path / "few", validation=ValidationSettings(share=share)))


def test_rows_of_its_own_validate_all_that_is_trained(data, fits, tmp_path):
    data |= {"d.csv": rows_of(a=4, b=4), "v.csv": rows_of(b=3), "w.csv": rows_of(c=3)}
    begun, validation = fits([0.5, 0.4]), ValidationSettings(data="v.csv")
    run(recipe(tmp_path / "together", validation=validation))
    assert begun == [("a+b", 8, 3)]
    with pytest.raises(InpaintError, match="a: no row of v.csv is of it"):
        run(recipe(tmp_path / "apart", apart=True, validation=validation))
    with pytest.raises(InpaintError, match="'c'"):
        run(recipe(tmp_path / "other", validation=ValidationSettings(data="w.csv")))
    assert len(begun) == 1, "refused before a training begins"


@pytest.mark.parametrize(
    ("validation", "exported"),
    [
        (ValidationSettings(share=0.3), "16 of 32"),
        (ValidationSettings(share=0.3, export=Keep.LAST), "32 of 32"),
        (ValidationSettings(), "32 of 32"),
    ],
)
def test_the_best_on_held_out_rows_is_exported_unless_told_otherwise(data, fits, tmp_path, validation, exported):
    data["d.csv"] = rows_of(a=8)
    fits([0.2, 0.4])
    (folder,) = run(recipe(tmp_path, validation=validation))
    assert (Path(folder) / "samples").read_text().startswith(exported)


def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(data, fits, tmp_path):
    data["d.csv"] = rows_of(a=8)
    fits([0.2, 0.4])
    config = recipe(tmp_path)
    run(config)
    newest = sorted((tmp_path / CHECKPOINTS).iterdir())[-1]
    next(newest.glob("*.safetensors")).write_bytes(b"damaged")
    fits([])
    with pytest.warns(UserWarning, match="falling back"), pytest.raises(InpaintError, match="sample 16 with --resume"):
        run(replace(config, resume=True))
    fits([0.2, 0.4])
    assert run(replace(config, resume=True))


def test_settings_that_cannot_be_read_with_are_refused_before_a_training_begins(data, fits, tmp_path):
    data["d.csv"] = rows_of(a=8)
    begun = fits([0.2])

    class Mirrored(Named):
        def read_settings(self) -> ReadSettings:
            return replace(super().read_settings(), flip_probability=2.0)

    with pytest.raises(InpaintError, match="flip_probability"):
        run(Mirrored(**{**vars(recipe(tmp_path))}))
    assert begun == [] and plain(recipe(tmp_path))["output"] == str(tmp_path)
    assert not (tmp_path / "data" / "rows.parquet").exists()


@pytest.mark.parametrize(("gpu", "why"), [(None, "the cluster has none"), (False, "gpu is false")])
def test_fp16_on_cpus_is_refused_before_anything_is_read(
    gpu: bool | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inpaint.cluster.cluster_nodes", lambda: (Node(cpus=8.0, gpus=0.0 if gpu is None else 1.0),))
    halved = replace(recipe(tmp_path), train=TrainSettings(precision=Precision.FP16, gpu=gpu))
    with pytest.raises(InpaintError, match=f"fp16 needs GPUs, and {why}: give bf16"):
        run(halved)
    assert not list(tmp_path.iterdir())


def test_rates_that_prodigy_cannot_use_are_refused_before_anything_is_read(tmp_path: Path, data: object) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Rated(Named):
        unet_learning_rate: float = 1e-4

    rated = Rated(**vars(recipe(tmp_path)) | {"train": TrainSettings(zero_stage=0, optimizer=Optimizer.PRODIGY)})
    with pytest.raises(InpaintError, match="give unet_learning_rate 1, not 0.0001"):
        run(rated)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("workers", "is_raised"), [(1, False), (2, True)])
def test_what_can_never_succeed_is_told_and_not_tried_again(workers: int, is_raised: bool, monkeypatch) -> None:
    """Ray Train starts a group again whose worker raised: one of several does, for the others may wait for it."""
    told: list[str] = []
    refuse, refusal = SimpleNamespace(remote=told.append), SimpleNamespace(remote=lambda: told[0] if told else None)
    config = SimpleNamespace(channel=SimpleNamespace(refuse=refuse, refusal=refusal))
    begun: list[object] = []

    def fails(config: object) -> None:
        begun.append(config)
        raise InpaintError("no such setting")

    monkeypatch.setattr(start, "_work", fails)
    monkeypatch.setattr(start, "sent_warnings", lambda channel: nullcontext())
    monkeypatch.setattr(start.ray, "get", lambda answer: answer)
    monkeypatch.setattr(start.ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: workers))
    with pytest.raises(InpaintError, match="no such setting") if is_raised else nullcontext():
        start.work({"config": config})
    start.work({"config": config})
    assert told == ["no such setting"] and len(begun) == 1, "a group that starts after it ends at once"
