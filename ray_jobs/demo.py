"""The whole way on one machine, about ten minutes on two cores: catalogue, training, painting, report.

    python -m ray_jobs.demo

It should reach a hit rate of 0.90 or more per category. Two minutes, to see it run:

    python -m ray_jobs.demo --output runs/short --samples 480 --held-out 8
"""

from pathlib import Path

from inpaint.command import command
from inpaint.recipes.demo import Demo, run_demo


def say(ended: tuple[Path, dict[str, float]]) -> list[str]:
    page, figures = ended
    lines = [f"{name}: {value:g}" for name, value in figures.items()]
    return [*lines, f"report: {page}", f"figures: {page.with_suffix('.json')}"]


if __name__ == "__main__":
    command(run_demo, Demo, __doc__, say=say)
