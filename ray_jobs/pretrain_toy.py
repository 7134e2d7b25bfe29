"""Make the small base that ships with the package, from nothing.

    python -m ray_jobs.pretrain_toy --output runs/toy

Two minutes on a CPU, to see it run (its pictures will be noise):

    python -m ray_jobs.pretrain_toy --output runs/toy-short --images 200 --vae.samples 640 --unet.samples 640

The full command takes about 80 minutes on two cores; what it should reach stands in `inpaint/toy/weights/base.json`.
"""

import sys

import tyro

from inpaint.cluster import connect
from inpaint.errors import InpaintError
from inpaint.recipes.pretrain_toy import PretrainToy, pretrain_toy
from inpaint.train.trainer import stop_on_signals


def main() -> None:
    config = tyro.cli(PretrainToy, description=__doc__)
    connect()
    with stop_on_signals():
        folder, figures = pretrain_toy(config)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    print(f"base: {folder}")


if __name__ == "__main__":
    try:
        main()
    except InpaintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
