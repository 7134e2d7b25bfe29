"""What stopping trials early is worth, and whether a killed sweep goes on as it was.

    python -m benchmarks.sweep

A category LoRA of the toy base: 12 trials with asynchronous successive halving; then random trials trained to their
ends, the first of the same draws, until they have seen as many samples. Compared is the lowest validation loss on
held-out rows (`best_loss_ratio_vs_random` < 1). Then the first sweep once more, killed (SIGKILL) when half of its
trials have ended, and resumed: `trials_lost` counts what had ended before and is not there, or other, afterwards, and
`rungs_differing` the trials whose state, samples or losses are others than in the sweep that was not killed. Half an
hour on two cores, for each trial is a Ray Train run; `--trials` and `--samples` make it shorter.
"""

import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.harness import emit, progress
from inpaint.toy.catalogue import write_catalogue
from inpaint.train.trials import Trial, TrialRecords, TrialState

LOSS = "validation_loss"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    trials: int = 12
    samples: int = 720
    """Of a trial that is never stopped."""
    images: int = 32
    halving: int = 3
    seed: int = 0
    killed: bool = True
    """Kill and resume one, too."""


def command(settings: Settings, data: Path, output: Path, *more: str) -> list[str]:
    """The sweep's command line."""
    words = [sys.executable, "-m", "ray_jobs.sweep", "category_lora", "--data", str(data), "--output", str(output)]
    words += ["--train.samples", str(settings.samples), "--halving", str(settings.halving), "--card-samples", "0"]
    words += ["--validation.share", "0.25", "--validation.samples", "32", "--validation.pictures", "2"]
    words += ["--search-seed", str(settings.seed), "--train.workers", "1"]
    return [*words, *more]


def best(trials: dict[int, Trial]) -> float:
    """The lowest validation loss of those trained to their ends."""
    finished = [trial for trial in trials.values() if trial.state is TrialState.FINISHED]
    return min(value for trial in finished for _, value in trial.curve(LOSS))


def run(words: list[str]) -> None:
    subprocess.run(words, check=True, stdout=sys.stderr)


def killed_and_resumed(settings: Settings, data: Path, output: Path) -> tuple[dict[int, Trial], dict[int, Trial]]:
    """What had ended when it was killed, and all trials when it was resumed."""
    asked = command(settings, data, output, "--samples", str(settings.trials))
    process = subprocess.Popen(asked, stdout=sys.stderr)
    ended: dict[int, Trial] = {}
    while len(ended) < settings.trials // 2 and process.poll() is None:
        time.sleep(1)
        known = TrialRecords(str(output)).trials
        ended = {number: trial for number, trial in known.items() if trial.state is not TrialState.RUNNING}
    process.send_signal(signal.SIGKILL)
    process.wait()
    progress(f"killed after {len(ended)} trials")
    run([*asked, "--resume"])
    return ended, TrialRecords(str(output)).trials


def differing(one: dict[int, Trial], other: dict[int, Trial]) -> int:
    """Trials that are not alike, or lack."""

    def alike(a: Trial, b: Trial) -> bool:
        curves = zip(a.curve(LOSS), b.curve(LOSS), strict=False)
        same = all(s == t and math.isclose(x, y, rel_tol=1e-5) for (s, x), (t, y) in curves)
        return same and (a.state, a.samples, a.settings) == (b.state, b.samples, b.settings)

    return sum(number not in other or not alike(trial, other[number]) for number, trial in one.items())


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = write_catalogue(folder / "data", seed=settings.seed + 3, count=settings.images, categories=("CDP_FOOD",))
        started = time.monotonic()
        run(command(settings, data, folder / "asha", "--samples", str(settings.trials)))
        halved = TrialRecords(str(folder / "asha")).trials
        seen = sum(trial.samples for trial in halved.values())
        progress(f"halving: {seen} samples, best {best(halved):.4f}, {time.monotonic() - started:.0f} s")
        # Whole trials, so that random search has no fewer samples.
        count = math.ceil(seen / settings.samples)
        run(command(settings, data, folder / "random", "--samples", str(count), "--no-asha"))
        random = TrialRecords(str(folder / "random")).trials
        progress(f"random: {sum(trial.samples for trial in random.values())} samples, best {best(random):.4f}")
        figures: dict[str, float] = {"best_loss_ratio_vs_random": best(halved) / best(random)}
        if settings.killed:
            before, after = killed_and_resumed(settings, data, folder / "killed")
            figures |= {"trials_lost": differing(before, after), "rungs_differing": differing(halved, after)}
        told = {
            name: {
                number: [trial.state, trial.samples, *(v for _, v in trial.curve(LOSS))]
                for number, trial in them.items()
            }
            for name, them in (("halving", halved), ("random", random))
        }
    emit("sweep", figures, samples=seen, trials=json.loads(json.dumps(told)), settings=vars(settings))


if __name__ == "__main__":
    main()
