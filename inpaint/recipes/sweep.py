"""A sweep: which settings of a workload are best for its data, found by many trainings; and the best one's result."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import tyro

from inpaint.data.storage import absolute, output_folder, read_file, write_file
from inpaint.errors import InpaintError, ResumeMismatch
from inpaint.evaluate.report import write_report
from inpaint.models.lora import LoraSettings
from inpaint.progress import ProgressBar
from inpaint.recipes.category_lora import CategoryLora
from inpaint.recipes.controlnet import TrainControlNet
from inpaint.recipes.ddpm import TrainDdpm
from inpaint.recipes.ddpm import defaults as of_image_size
from inpaint.recipes.latent import LatentRecipe, Preset
from inpaint.recipes.panel_lora import TrainPanelLora
from inpaint.recipes.photoshoot_lora import TrainPhotoshootLora
from inpaint.recipes.sweep_report import report_of
from inpaint.recipes.sweep_space import Settings, Space, drawn, grid, parse_space, with_settings
from inpaint.recipes.sweep_tpe import suggested
from inpaint.stopping import StopToken
from inpaint.train import optimizers
from inpaint.train.checkpoint import VALIDATION_LOSS
from inpaint.train.encoding import Latents
from inpaint.train.recipe import Recipe
from inpaint.train.referee import Goal, Rungs
from inpaint.train.run import decode_before, encode_before, prepared, trained_by
from inpaint.train.settings import Keep, plain
from inpaint.train.trainer import Training
from inpaint.train.trials import Trial, TrialState
from inpaint.train.tuning import Tuning, plan_trials, run_trials

SETTINGS = "sweep.json"
"""In the output, and beside what the best trial exported."""
FIXED = (
    "data", "data_dir", "instance_dir", "output", "output_dir", "resume", "recheck", "resume_from_checkpoint",
    "max_bad_fraction", "validation", "card_samples", "preset", "seed", "train.seed", "train.samples", "train.epochs",
    "adapters", "latents", "encoding", "workers", "train.workers", "train.gpu",
)  # fmt: skip
"""The same for all trials: else they would not be comparable, or not of one sweep."""
WORKLOADS: dict[str, Any] = {
    "category_lora": CategoryLora,
    "ddpm": TrainDdpm,
    "controlnet": TrainControlNet,
    "panel_lora": TrainPanelLora,
    "photoshoot_lora": TrainPhotoshootLora,
}
"""Those of the command; from Python any recipe can be swept."""


class Searcher(StrEnum):
    """Where a trial's settings come from."""

    RANDOM = "random"
    GRID = "grid"
    """All combinations of the listed values."""
    OPTUNA = "optuna"
    """From what other trials reached; needs optuna."""


class Objective(StrEnum):
    """What of a validation is to be best."""

    VALIDATION_LOSS = VALIDATION_LOSS
    """Of the fixed validation, in the hole."""
    L1 = "l1"
    PSNR = "psnr"
    SSIM = "ssim"
    """These of the pictures that a validation paints (`validation.pictures`), against the photos."""

    @property
    def higher_is_better(self) -> bool:
        return self in (Objective.PSNR, Objective.SSIM)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Settings of `python -m ray_jobs.sweep`: a workload's own, and how its settings are searched."""

    workload: tyro.conf.Positional[str] = ""
    """The command's: category_lora, panel_lora, photoshoot_lora, controlnet or ddpm, whose own settings follow."""
    recipe: Annotated[Any, tyro.conf.arg(name="")]
    """The workload, with the settings that all trials share."""
    samples: int = 16
    """Trials."""
    search: tuple[str, ...] = ()
    """What is searched: `unet_learning_rate=1e-4..1e-2:log`, `lora.rank=4..32` or `lora.rank=4,8,16`, by the fields'
    names; unset: each learning rate, from a tenth to ten times its own, and a LoRA's rank, from half to twice its
    own."""
    searcher: Searcher = Searcher.RANDOM
    objective: Objective = Objective.VALIDATION_LOSS
    """Taken at each validation, of the same samples in all trials."""
    asha: bool = True
    """Stop trials early that are not among the best 1 / `halving` at a rung (asynchronous successive halving)."""
    first_rung: int | None = None
    """Samples of the lowest rung; unset: `halving` twice below the whole training."""
    halving: int = 3
    """From one rung to the next so many times the samples, for so many times fewer trials."""
    at_once: int | None = None
    """Trials at once; unset: as many as the cluster trains without one waiting for another."""
    gpus_per_worker: float = 1.0
    """Share of a GPU, for small bases."""
    retries: int = 1
    """How often a trial is tried again that died."""
    search_seed: int = 0
    register: str | None = None
    """Folder or URL into which the best trial's result goes, too, such as a new one among a service's adapters."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.retries < 0 or self.halving < 2 or (self.first_rung or 1) < 1:
            raise InpaintError(
                f"samples {self.samples} and first_rung {self.first_rung}: give at least 1; halving {self.halving}: at "
                f"least 2; retries {self.retries}: not below 0"
            )
        if not 0 < self.gpus_per_worker <= 1 or (self.at_once is not None and self.at_once < 1):
            raise InpaintError(
                f"gpus_per_worker {self.gpus_per_worker}: give more than 0, up to 1; at_once {self.at_once}: at least 1"
            )


def defaults(
    workload: tyro.conf.Positional[
        Literal["category_lora", "ddpm", "controlnet", "panel_lora", "photoshoot_lora"]
    ] = "category_lora",
    *,
    preset: Preset | None = None,
    base: str = "toy",
    image_size: int = 128,
) -> Sweep:
    """The command's, of a workload."""
    kind = WORKLOADS[workload]
    if kind is TrainDdpm:
        return Sweep(workload=workload, recipe=of_image_size(image_size=image_size))
    if issubclass(kind, LatentRecipe):
        return Sweep(workload=workload, recipe=kind.defaults(preset=preset, base=base))
    needed = {f.name: tyro.MISSING for f in fields(kind) if f.default is f.default_factory is MISSING}
    return Sweep(workload=workload, recipe=kind(**needed))


@dataclass(frozen=True)
class SweepReport:
    """What a sweep found."""

    page: str
    """Path or URL of the report."""
    best: Trial
    result: str
    """Folder or URL of what the best trial exported: an adapter, or a model."""

    @property
    def lines(self) -> list[str]:
        """What is said of it."""
        found = [f"{name}: {value}" for name, value in self.best.settings.items()]
        return [*found, f"best: {self.result}", f"report: {self.page}"]


def sweep(config: Sweep, *, stop: StopToken | None = None, announce: Callable[[str], None] = print) -> SweepReport:
    """Train with one setting after another, those that fall behind not to the end; export the best trial's result with
    its settings, and write a report.

    With `resume` a sweep that was interrupted goes on: with its rungs, what its searcher learned, and what has ended as
    it was; `samples` may be more than before.

    Raises:
        InpaintError: settings, a search or data that cannot be used, every trial failed, or `stop` ended it.
    """
    stop, recipe, space = stop or StopToken(), recipe_of(config.recipe), space_of(config)
    _check(config, recipe, space)
    at_once, workers = plan_trials(recipe.train, config.gpus_per_worker, config.at_once)
    trainings = prepared(recipe, stop)
    if len(trainings) > 1:
        raise InpaintError(f"{len(trainings)} trainings, of {trainings[0].name} and others: sweep one at a time")
    (base,) = trainings
    _check_comparable(config, base, space)
    rungs = _rungs(config, base)
    _begin(config, base, space, rungs)
    announce(f"{config.samples} trials, {at_once} at once, of {base.length}")
    if config.asha:
        announce(f"rungs at {', '.join(f'{samples:,}' for samples in rungs.samples)} samples")
    encode_before([base], stop, announce)
    (read,) = decode_before([base], stop, announce)
    tuning = Tuning(
        trials=config.samples,
        suggest=partial(_suggest, config, space),
        training=partial(_trial, config, base, rungs.first),
        goal=Goal(metric=config.objective.value, higher_is_better=config.objective.higher_is_better),
        rungs=rungs if config.asha else None,
        at_once=at_once,
        retries=config.retries,
        workers=workers,
    )
    with ProgressBar("trials") as bar:

        def show(trials: Mapping[int, Trial]) -> None:
            ended = [trial for trial in trials.values() if trial.state is not TrialState.RUNNING]
            shown = ", ".join(f"{kind} {count}" for kind, count in Counter(t.state for t in trials.values()).items())
            bar.show(len(ended), config.samples, shown)

        where, decoded = absolute(recipe.output), read.decoded
        trials = run_trials(tuning, where, decoded=decoded, stop=stop, on_progress=show)
    return _concluded(config, base, space, tuning, trials)


def recipe_of(config: Any) -> Recipe:
    """What a configuration trains: a recipe itself, or a command's."""
    recipe: Recipe = config if isinstance(config, Recipe) else config.recipe()
    return recipe


def space_of(config: Sweep) -> Space:
    """What is searched. Raises InpaintError for what cannot be."""
    if config.search:
        return parse_space(config.recipe, config.search, FIXED)
    rates = [f.name for f in fields(config.recipe) if f.name.endswith(("learning_rate", "_lr"))]
    search = [f"{name}={rate / 10:g}..{rate * 10:g}:log" for name in rates if (rate := getattr(config.recipe, name))]
    lora = getattr(config.recipe, "lora", None)
    if isinstance(lora, LoraSettings):
        search.append(f"lora.rank={max(1, lora.rank // 2)},{lora.rank},{2 * lora.rank}")
    if config.searcher is Searcher.GRID or not search:
        raise InpaintError("nothing is searched: give --search NAME=VALUE,VALUE")
    return parse_space(config.recipe, search, FIXED)


def _check(config: Sweep, recipe: Recipe, space: Space) -> None:
    """Refuse what can be refused without data. Raises InpaintError."""
    if config.searcher is Searcher.OPTUNA and find_spec("optuna") is None:
        raise InpaintError("searcher optuna is not installed: pip install 'inpaint[optuna]', or give random")
    validation = recipe.validation
    if not validation.samples:
        raise InpaintError("validation.samples is 0: a sweep compares its trials by their validation")
    if config.objective is not Objective.VALIDATION_LOSS and not validation.pictures:
        raise InpaintError(f"objective {config.objective} is of pictures, and validation.pictures is 0: give some")
    if isinstance(recipe, LatentRecipe) and recipe.latents is Latents.STREAMED:
        raise InpaintError("latents streamed: is of one training's own; trials share what is cached: give cached")
    if config.searcher is Searcher.GRID and (count := len(grid(space))) != config.samples:
        raise InpaintError(f"the grid has {count} combinations, samples is {config.samples}: give {count}")
    for name, kind in space.items():
        for end in kind.ends:
            changed = recipe_of(with_settings(config.recipe, {name: end}))
            try:
                optimizers.check(changed.train.optimizer, changed.learning_rates())
                changed.check()
            except InpaintError as error:
                raise InpaintError(f"search {name}: with {end}: {error}") from error


def _check_comparable(config: Sweep, base: Training, space: Space) -> None:
    """Refuse a search of what decides which samples are validated, or what is taken of them. Raises InpaintError."""

    encoding = base.recipe.how_encoded()

    def seen(recipe: Recipe) -> object:
        read = recipe.read_settings()
        if encoding is None:  # else what is trained on was made before, for all
            read = replace(read, caption_dropout=0.0, flip_probability=0.0, bank=None)
        return read, getattr(recipe, "loss", None) if config.objective is Objective.VALIDATION_LOSS else None

    for name, kind in space.items():
        for end in kind.ends:
            changed = recipe_of(with_settings(config.recipe, {name: end})).bind(base.rows)
            if seen(changed) != seen(base.recipe):
                raise InpaintError(
                    f"search {name}: with {end} a validation shows, or weighs, something else, so that trials could "
                    f"not be compared by {config.objective}"
                    + (": give --objective psnr" if config.objective is Objective.VALIDATION_LOSS else "")
                )
            batches = {recipe.train.global_batch for recipe in (changed, base.recipe)}
            if encoding is not None and base.rows.buckets is not None and len(batches) > 1:
                raise InpaintError(
                    f"search {name}: with aspect_buckets what a trial needs of the latents depends on it, and they are "
                    "made before, for all: leave it out, or give --latents online"
                )


def _rungs(config: Sweep, base: Training) -> Rungs:
    batch, most = base.recipe.train.global_batch, base.total
    first = config.first_rung or max(batch, most // config.halving**2 // batch * batch)
    if first > most:
        raise InpaintError(f"first_rung {first}: a training has {most} samples")
    return Rungs(first=first, factor=config.halving, most=most)


def _begin(config: Sweep, base: Training, space: Space, rungs: Rungs) -> None:
    """Write what the sweep is into its output, or see that it is the one there. Raises InpaintError."""
    recipe = recipe_of(config.recipe)
    told = {
        "search": {name: plain(kind) for name, kind in space.items()},
        "searcher": config.searcher,
        "objective": config.objective,
        "rungs": plain(rungs) if config.asha else None,
        "search_seed": config.search_seed,
        "recipe": plain(base.recipe, fixed_only=True),
        "rows": base.rows.hash,
        "held_out": None if base.held_out is None else base.held_out.hash,
        "samples": base.total,
    }
    told = json.loads(json.dumps(told))
    known = read_file(recipe.output, SETTINGS)
    if known is None:
        write_file(recipe.output, SETTINGS, json.dumps(told, indent=1).encode())
        return
    if not recipe.resume:
        raise InpaintError(f"{recipe.output} holds a sweep: continue it with --resume, or give another output")
    changed = [name for name, value in told.items() if json.loads(known).get(name) != value]
    if changed:
        raise ResumeMismatch(f"{recipe.output} began with another {', '.join(changed)}: resume with what it began with")


def _suggest(config: Sweep, space: Space, number: int, trials: Mapping[int, Trial]) -> Settings:
    match config.searcher:
        case Searcher.GRID:
            return grid(space)[number]
        case Searcher.RANDOM:
            return drawn(space, seed=config.search_seed, number=number)
        case Searcher.OPTUNA:
            is_low = not config.objective.higher_is_better
            return suggested(space, number, trials, config.objective, minimise=is_low, seed=config.search_seed)


def _trial(config: Sweep, base: Training, rung: int, number: int, settings: Mapping[str, Any]) -> Training:
    """What a trial trains: on the rows of all others, and validated at each rung."""
    recipe = recipe_of(with_settings(config.recipe, settings))
    output = absolute(f"{recipe.output}/trials/{number:03}")
    validation = replace(recipe.validation, every=recipe.validation.every or rung)
    shared: dict[str, Any] = {}
    if isinstance(base.recipe, LatentRecipe):
        cache = base.recipe.encoding.cache or f"{base.recipe.output}/latents"
        shared["encoding"] = replace(base.recipe.encoding, cache=absolute(cache))
    recipe = replace(recipe, output=output, resume=True, recheck=False, validation=validation, **shared)
    return Training.of(recipe, base.rows, base.held_out, name=f"trial {number}", output=output)


def value_of(trial: Trial, tuning: Tuning, base: Training) -> float:
    """What a trial reached: at its best where its best checkpoint is what it exports, else at its end."""
    values = [value for _, value in trial.curve(tuning.goal.metric)]
    validation = base.recipe.validation
    if validation.export is Keep.BEST and validation.is_held_out and tuning.goal.metric == VALIDATION_LOSS:
        return min(values)
    return values[-1]


def _concluded(config: Sweep, base: Training, space: Space, tuning: Tuning, trials: Mapping[int, Trial]) -> SweepReport:
    """Export the best trial that was trained to its end, and write the report."""
    output = recipe_of(config.recipe).output
    values = {n: value_of(trial, tuning, base) for n, trial in trials.items() if trial.curve(tuning.goal.metric)}
    finished = [n for n in values if trials[n].state is TrialState.FINISHED]
    if not finished:
        causes = {trial.cause for trial in trials.values() if trial.cause}
        raise InpaintError(f"no trial was trained to its end: {'; '.join(sorted(causes))}")
    choose = max if tuning.goal.higher_is_better else min
    best = trials[choose(finished, key=values.__getitem__)]
    training = tuning.training(best.number, best.settings)
    ended = training.store.progress()
    assert ended is not None, "a finished trial has a checkpoint"
    where = base.recipe.export_folder(base.name)
    with output_folder(where) as folder:
        training.recipe.export(trained_by(training, ended), folder)
        told = {"trial": best.number, **best.settings, config.objective: values[best.number]}
        (folder / SETTINGS).write_text(json.dumps({**told, "recipe": plain(training.recipe)}, indent=1) + "\n")
        if config.register is not None:
            with output_folder(config.register) as registered:
                shutil.copytree(folder, registered, dirs_exist_ok=True)
    ranked = sorted(values, key=values.__getitem__, reverse=tuning.goal.higher_is_better)
    reached = {number: values[number] for number in ranked}
    report = report_of(space, trials, reached, best, objective=config.objective, output=output)
    with output_folder(f"{output}/report") as folder:
        page = write_report(folder, report)
    return SweepReport(f"{output}/report/{page.name}", best, where)
