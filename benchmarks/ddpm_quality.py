"""How well a DDPM trained from scratch fills holes in periodic patterns, where smoothing and continuing edges fail.

    python -m benchmarks.ddpm_quality                  # trains 2 x 12 minutes, measures 10 more on 2 idle cores
    python -m benchmarks.ddpm_quality --minutes 1      # to see it run
    python -m benchmarks.ddpm_quality --known noisy    # the variant that does not see clean known pixels

Trains the 32 px preset through the one loop for `--minutes` of wall-clock time on two workers (one core each), from
stripes, checks, dots, rings and bricks; then a one-step regression of the same size for as long. Fills held-out
patterns, the six bins of covered area: PSNR and SSIM inside the hole, single DDIM samples, against OpenCV's Telea and
Navier-Stokes and scikit-image's biharmonic. The mean of four samples and the regression stand in the table, too, for
PSNR prefers the mean of what is possible. PSNR is capped at 50 dB for every fill, so that no lucky pixel decides.

Bars: `psnr_gain_over_*_db` >= 1.0, `resampling_gain_db` >= 0.5 (RePaint's resampling against as many evaluations in
more steps of the same sampler), `kept_pixels_changed` 0. The report with pictures goes to `--output`.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.harness import emit, progress
from benchmarks.one_step import TrainOneStep, paint_one_step
from benchmarks.patterns import render_pattern, write_patterns
from inpaint import cluster
from inpaint.data.holes import RandomShapes
from inpaint.data.pipeline import read_manifest
from inpaint.data.rows import Manifest
from inpaint.diffusion.ddpm import PixelSampler, PixelSampling
from inpaint.diffusion.unet import Known
from inpaint.evaluate.classical import FILLS, mean_colour
from inpaint.evaluate.metrics import hole_psnr, hole_ssim
from inpaint.evaluate.report import Gallery, Report, Table, write_report
from inpaint.paint.ddpm_painter import DdpmPainter
from inpaint.paint.paste import comparison, kept_pixels_changed
from inpaint.paint.request import DdpmRequest
from inpaint.randomness import generator
from inpaint.recipes.ddpm import TrainDdpm, load_ddpm, preset_of
from inpaint.stopping import StopToken
from inpaint.train.loop import StepReport
from inpaint.train.settings import ValidationSettings
from inpaint.train.trainer import Training, fit

SIZE = 32
BINS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))
PSNR_CAP = 50.0
MOST_SAMPLES_PER_S = 3000
"""More than any machine trains: what is read is planned beforehand, and the time ends it."""
SAMPLES = 4
HELD_OUT_SEED = 2
GRID_PER_BIN = 3

Pictures = list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    minutes: float = 12.0
    """Wall-clock time of each training, from its first step on."""
    images: int = 8000
    """Training patterns."""
    held_out: int = 128
    """Patterns filled in each bin."""
    steps: int = 10
    """DDIM steps; PSNR prefers few."""
    known: Known = Known.CLEAN
    """How the network is shown what lies outside the hole."""
    regression: bool = True
    """Whether the one-step network is trained, too."""
    learning_rate: float | None = None
    """Unset: the preset's."""
    seed: int = 0
    output: str | None = None
    """Folder of the trainings and the report, new or empty; unset: a temporary one, and the report in runs/."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.images < 1 or self.held_out < 5:
            raise SystemExit("minutes must be positive, images at least 1, held_out at least 5")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training went."""

    samples: int
    samples_per_s: float
    minutes: float
    waiting_share: float
    loss: float
    """Mean of the last tenth of the steps."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Held-out pictures and their holes of one bin."""

    images: Pictures
    holes: Pictures


def config_of(settings: Settings, data: Path, output: Path) -> TrainDdpm:
    """The 32 px preset, on both cores."""
    config = preset_of(SIZE, data=str(data), output=str(output))
    train = replace(
        config.train,
        epochs=None,
        samples=max(1, round(settings.minutes * 60 * MOST_SAMPLES_PER_S)),
        workers=2,
        zero_stage=0,
        seed=settings.seed,
        checkpoint_every=2**40,
    )
    rate = config.learning_rate if settings.learning_rate is None else settings.learning_rate
    return replace(
        config,
        unet=replace(config.unet, known=settings.known),
        holes=RandomShapes(areas=((BINS[0][0], BINS[-1][1]),)),
        learning_rate=rate,
        train=train,
        validation=ValidationSettings(samples=0),
    )


def train_for(recipe: TrainDdpm, rows: Manifest, output: Path, minutes: float) -> Trained:
    """Train until the time is up; the moving average is then what the run holds."""
    reports: list[StepReport] = []
    stop = StopToken()

    def watch(report: StepReport) -> None:
        reports.append(report)
        if report["time"] - reports[0]["time"] >= 60 * minutes:
            stop.request()

    ended = fit(Training(name=output.name, recipe=recipe, rows=rows, output=str(output)), stop=stop, watch=watch)
    seconds = reports[-1]["time"] - reports[0]["time"]
    return Trained(
        samples=ended.samples,
        samples_per_s=(reports[-1]["samples"] - reports[0]["samples"]) / seconds,
        minutes=seconds / 60,
        waiting_share=sum(r["waited"] for r in reports) / seconds,
        loss=float(np.mean([r["loss"] for r in reports[-max(1, len(reports) // 10) :]])),
    )


def tasks_of(count: int) -> list[Task]:
    """Per bin: the same held-out pictures, with holes of every kind."""
    images = [render_pattern(HELD_OUT_SEED, index, SIZE)[0] for index in range(count)]
    return [
        Task(
            images=images,
            holes=[
                RandomShapes(areas=(area,)).draw(None, SIZE, SIZE, generator(HELD_OUT_SEED, f"hole {area}", i)) > 0
                for i in range(count)
            ],
        )
        for area in BINS
    ]


def paint(painter: DdpmPainter, task: Task, sampling: PixelSampling, seed: int) -> Pictures:
    """One sample per picture; each has a seed of its own."""
    return painter.paint(
        [
            DdpmRequest(image=image, hole=hole, sampling=sampling, seed=seed * 10_000 + index)
            for index, (image, hole) in enumerate(zip(task.images, task.holes, strict=True))
        ]
    )


def psnrs(task: Task, results: Pictures) -> np.ndarray:
    """Per picture, dB, capped."""
    triples = zip(results, task.images, task.holes, strict=True)
    return np.array([min(hole_psnr(result, truth, hole), PSNR_CAP) for result, truth, hole in triples])


def ssims(task: Task, results: Pictures) -> np.ndarray:
    """Per picture."""
    triples = zip(results, task.images, task.holes, strict=True)
    return np.array([hole_ssim(result, truth, hole) for result, truth, hole in triples])


def fills_of(task: Task, painter: DdpmPainter, steps: int, regression: str | None) -> dict[str, Pictures]:
    """Every method's pictures."""
    fills = {
        name: [fill(image, hole) for image, hole in zip(task.images, task.holes, strict=True)]
        for name, fill in {"mean_colour": mean_colour, **FILLS}.items()
    }
    samples = [paint(painter, task, PixelSampling(steps=steps), seed) for seed in range(SAMPLES)]
    fills["ddim"] = samples[0]
    fills["mean_of_4"] = [np.rint(np.mean(four, axis=0)).astype(np.uint8) for four in zip(*samples, strict=True)]
    if regression is not None:
        fills["one_step_regression"] = paint_one_step(regression, painter.card, task.images, task.holes)
    return fills


def resampling(tasks: Sequence[Task], painter: DdpmPainter) -> dict[str, float]:
    """RePaint's resampling and as many evaluations in more steps of the same sampler: mean PSNR in the hole, dB."""
    resampled = PixelSampling(steps=10, jump_length=2, jump_count=5, sampler=PixelSampler.DDPM)
    straight = PixelSampling(steps=resampled.evaluations, sampler=PixelSampler.DDPM)
    assert straight.evaluations == resampled.evaluations
    figures = {"evaluations": float(resampled.evaluations)}
    for name, sampling in (("resampled", resampled), ("straight", straight)):
        figures[name] = float(np.mean([psnrs(task, paint(painter, task, sampling, 0)).mean() for task in tasks]))
    return figures


def grid(tasks: Sequence[Task], fills: Sequence[dict[str, Pictures]]) -> Gallery:
    """A few pictures per bin: truth, hole, and every method."""
    pictures = []
    for area, task, filled in zip(BINS, tasks, fills, strict=True):
        for nth in range(GRID_PER_BIN):
            index = (BINS.index(area) * GRID_PER_BIN + nth) % len(task.images)
            row = comparison(task.images[index], task.holes[index], filled["ddim"][index])
            gap = np.full((SIZE, 4, 3), 255, dtype=np.uint8)
            others = [p for name, f in filled.items() if name != "ddim" for p in (gap, f[index])]
            strip = np.concatenate([row, *others], axis=1).repeat(4, axis=0).repeat(4, axis=1)
            pictures.append((strip, _bin_name(area)))
    names = ["truth", "hole", "ddim", *(name for name in fills[0] if name != "ddim")]
    return Gallery(title="Pictures", note="From left to right: " + ", ".join(names), pictures=pictures)


def _bin_name(area: tuple[float, float]) -> str:
    return f"{area[0]:.0%} to {area[1]:.0%}"


def table(title: str, values: Sequence[dict[str, np.ndarray]], note: str = "") -> Table:
    """Means by bin and method."""
    names = list(values[0])
    rows: list[list[object]] = [
        [_bin_name(area), *(float(by_name[name].mean()) for name in names)]
        for area, by_name in zip(BINS, values, strict=True)
    ]
    rows.append(["all", *(float(np.mean([by_name[name].mean() for by_name in values])) for name in names)])
    return Table(title=title, note=note, columns=["area", *names], rows=rows)


def measure(
    settings: Settings,
    painter: DdpmPainter,
    tasks: Sequence[Task],
    fills: Sequence[dict[str, Pictures]],
    resampled: dict[str, float],
    trained: dict[str, Trained],
) -> tuple[dict[str, float], Report]:
    """The figures, and the report around them."""
    psnr = [{name: psnrs(task, f) for name, f in filled.items()} for task, filled in zip(tasks, fills, strict=True)]
    ssim = [{name: ssims(task, f) for name, f in filled.items()} for task, filled in zip(tasks, fills, strict=True)]
    mean = {name: float(np.mean([by_name[name].mean() for by_name in psnr])) for name in psnr[0]}
    changed = sum(
        kept_pixels_changed(image, result, hole)
        for task, filled in zip(tasks, fills, strict=True)
        for image, result, hole in zip(task.images, filled["ddim"], task.holes, strict=True)
    )
    figures = {f"psnr_gain_over_{name}_db": mean["ddim"] - mean[name] for name in (*FILLS, "mean_colour")}
    figures |= {
        "resampling_gain_db": resampled["resampled"] - resampled["straight"],
        "kept_pixels_changed": float(changed),
        "samples_per_s": trained["ddpm"].samples_per_s,
    }
    columns = list(asdict(trained["ddpm"]))
    report = Report(
        title="DDPM inpainting from scratch",
        summary=f"{settings.held_out} held-out patterns per bin, {settings.minutes:g} minutes of training, "
        f"{sum(p.numel() for p in painter.unet.parameters()) / 1e6:.1f} M parameters, DDIM in {settings.steps} steps.",
        headline=figures,
        tables=[
            table("PSNR inside the hole, dB", psnr, f"Higher is better; capped at {PSNR_CAP:g} per picture."),
            table("SSIM inside the hole", ssim, "Higher is better."),
            Table(
                title="Resampling (RePaint) at equal network evaluations",
                note="Mean PSNR over every other bin, ancestral sampling, one sample per picture.",
                columns=list(resampled),
                rows=[list(resampled.values())],
            ),
            Table(
                title="Training",
                columns=["network", *columns],
                rows=[[name, *asdict(one).values()] for name, one in trained.items()],
            ),
        ],
        galleries=[grid(tasks, fills)],
        details={"settings": asdict(settings), "model": painter.card.to_json(), "psnr_db": mean},
    )
    return figures, report


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    started = time.perf_counter()
    before = os.getloadavg()
    cluster.connect()
    torch.set_num_threads(cluster.usable_cores())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(settings.output or temporary)
        data = write_patterns(folder / "patterns", seed=settings.seed + 100, count=settings.images, size=SIZE)
        config = config_of(settings, data, folder / "ddpm")
        rows, _ = read_manifest(config.source(config.data))
        config = config.bind(rows)
        trained = {"ddpm": train_for(config, rows, folder / "ddpm", settings.minutes)}
        progress(f"ddpm: {trained['ddpm']}")
        painter = load_ddpm(str(folder / "ddpm"), device="cpu", max_batch=64)
        regression = None
        if settings.regression:
            regression = str(folder / "regression")
            other = TrainOneStep(**vars(config))
            trained["regression"] = train_for(other, rows, Path(regression), settings.minutes)
            progress(f"regression: {trained['regression']}")
        tasks = tasks_of(settings.held_out)
        fills = []
        for area, task in zip(BINS, tasks, strict=True):
            fills.append(fills_of(task, painter, settings.steps, regression))
            progress(
                f"filled {_bin_name(area)}: " + str({n: float(psnrs(task, f).mean()) for n, f in fills[-1].items()})
            )
        again = resampling(tasks[1::2], painter)
        figures, report = measure(settings, painter, tasks, fills, again, trained)
        page = write_report(settings.output or "runs/ddpm_quality", report)
    progress(f"report: {page}")
    emit(
        "ddpm_quality",
        figures,
        tables={t.title: {"columns": t.columns, "rows": t.rows} for t in report.tables},
        details=report.details,
        load_average=[before, os.getloadavg()],
        seconds=time.perf_counter() - started,
    )


if __name__ == "__main__":
    main()
