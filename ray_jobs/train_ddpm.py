"""Train an inpainting model of one's own from a folder of images, with no pretrained weights.

    python -m ray_jobs.train_ddpm --data FOLDER --output runs/mine

All folders below FOLDER are read. `--image-size 32|64|128|256|512` (default 128) gives the defaults below. Two minutes
on two cores, to see it run (its pictures will be blurs); `python -m benchmarks.ddpm_quality` measures what 12 reach:

    python -m ray_jobs.train_ddpm --image-size 32 --data FOLDER --output runs/short --train.epochs 4

Paint with it, also while it trains:

    python -m ray_jobs.paint --model runs/mine --image image.png --mask mask.png --output output.png
"""

import argparse
import sys

import tyro

from inpaint.cluster import connect
from inpaint.errors import InpaintError
from inpaint.recipes.ddpm import TrainDdpm, preset, train_ddpm
from inpaint.train.trainer import stop_on_signals


def parse(arguments: list[str]) -> TrainDdpm:
    """The defaults for `--image-size`, overridden by flags."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--image-size", "--image_size", type=int, default=128)
    size = peek.parse_known_args(arguments)[0].image_size
    default = preset(size, data=tyro.MISSING, output=tyro.MISSING)
    return tyro.cli(TrainDdpm, description=__doc__, default=default, args=arguments)


def main() -> None:
    config = parse(sys.argv[1:])
    connect()
    with stop_on_signals():
        progress = train_ddpm(config)
    print(f"model: {config.output}, trained on {progress.samples} samples")


if __name__ == "__main__":
    try:
        main()
    except InpaintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
