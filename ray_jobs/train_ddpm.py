"""Train an inpainting model of one's own from a folder of images, with no pretrained weights.

    python -m ray_jobs.train_ddpm --data FOLDER --output runs/mine

All folders below FOLDER are read. `--image-size 32|64|128|256|512` (default 128) gives the defaults below. Two minutes
on two cores, to see it run (its pictures will be blurs); `python -m benchmarks.ddpm_quality` measures what 12 reach:

    python -m ray_jobs.train_ddpm --image-size 32 --data FOLDER --output runs/short --train.epochs 4

Paint with it, also while it trains:

    python -m ray_jobs.paint --model runs/mine --image image.png --mask mask.png --output output.png
"""

from inpaint.command import command
from inpaint.recipes.ddpm import TrainDdpm, defaults
from inpaint.train.run import run

if __name__ == "__main__":
    command(run, TrainDdpm, __doc__, defaults=defaults, say=lambda folders: [f"model: {folders[0]}"])
