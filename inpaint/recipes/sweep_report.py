"""The page of a sweep: its trials in a table, their settings as lines from axis to axis, their curves, and what the
best and the worst paint."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from inpaint.data.storage import open_root, read_file
from inpaint.evaluate.report import Axis, Chart, Gallery, Line, ParallelCoordinates, Report, Table
from inpaint.recipes.sweep_space import Range, Space
from inpaint.train.trials import Trial, TrialState


def report_of(
    space: Space, trials: Mapping[int, Trial], values: Mapping[int, float], best: Trial, *, objective: str, output: str
) -> Report:
    """Args: values: what trials reached, by number, from good to bad; those that reached nothing lack."""
    counts = {state: sum(trial.state is state for trial in trials.values()) for state in TrialState}
    ranked = list(values)
    shown = objective.replace("_", " ")
    axes = [
        *(Axis(name, [trials[n].settings[name] for n in ranked], _is_log(space, name)) for name in space),
        Axis(shown, [values[n] for n in ranked], False),
    ]
    order = [*ranked, *(number for number in trials if number not in values)]
    return Report(
        title="Sweep",
        summary=", ".join(f"{count} {state}" for state, count in counts.items() if count) + f", by {shown}.",
        headline={
            objective: values[best.number],
            "trials": float(len(trials)),
            "samples": float(sum(trial.samples for trial in trials.values())),
        },
        tables=[
            Table(
                title="Trials",
                note="The best first; those stopped early with what they had reached.",
                columns=("trial", *space, "samples", shown, "ended", "cause"),
                rows=[_row(trials[number], space, values.get(number)) for number in order],
            )
        ],
        charts=[
            Chart(
                title=f"{shown.capitalize()} over samples",
                lines=[Line(f"trial {n}", trials[n].curve(objective), n == best.number) for n in reversed(ranked)],
            )
        ],
        parallels=[
            ParallelCoordinates(title="Settings", axes=axes, strongest=ranked.index(best.number)),
        ],
        galleries=[
            Gallery(title=title, note="At its last validation.", pictures=[(picture, f"trial {number}")])
            for title, number in (("The best", best.number), ("The worst", ranked[-1]))
            if (picture := _painted(f"{output}/trials/{number:03}")) is not None
        ],
        details={"settings": best.settings, "output": output},
    )


def _row(trial: Trial, space: Space, value: float | None) -> list[object]:
    settings = [_shown(trial.settings[name]) for name in space]
    return [trial.number, *settings, trial.samples, "" if value is None else value, trial.state.value, trial.cause]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_log(space: Space, name: str) -> bool:
    kind = space[name]
    return isinstance(kind, Range) and kind.log


def _painted(folder: str) -> np.ndarray | None:
    """The pictures of the last validation, where there are some."""
    try:
        names = sorted(name for name in open_root(f"{folder}/validation").files() if name.endswith(".png"))
    except FileNotFoundError:
        return None
    data = read_file(f"{folder}/validation", names[-1]) if names else None
    return None if data is None else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
