"""The whole way on one machine, about ten minutes on two cores: catalogue, training, painting, report.

    python -m ray_jobs.demo

It should reach a hit rate of 0.90 or more per category. Two minutes, to see it run:

    python -m ray_jobs.demo --output runs/short --samples 480 --held-out 8
"""

import sys

import tyro

from inpaint.cluster import connect
from inpaint.errors import InpaintError
from inpaint.recipes.demo import Demo, run_demo
from inpaint.train.trainer import stop_on_signals


def main() -> None:
    demo = tyro.cli(Demo, description=__doc__)
    connect()
    with stop_on_signals():
        page, data, figures = run_demo(demo)
    for name, value in figures.items():
        print(f"{name}: {value:g}")
    print(f"report: {page}\nfigures: {data}")


if __name__ == "__main__":
    try:
        main()
    except InpaintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
