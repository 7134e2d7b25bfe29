"""Make the small base that ships with the package, from nothing.

    python -m ray_jobs.pretrain_toy --output runs/toy

Two minutes on a CPU, to see it run (its pictures will be noise):

    python -m ray_jobs.pretrain_toy --output runs/toy-short --images 200 --vae.samples 640 --unet.samples 640

The full command takes about 80 minutes on two cores; what it should reach stands in `inpaint/toy/weights/base.json`.
The small SDXL base begins with it and takes two to three hours:

    python -m ray_jobs.pretrain_toy --architecture sdxl --output runs/toy-sdxl
"""

from inpaint.command import command
from inpaint.recipes.toy_base import PretrainToy, pretrain_toy

if __name__ == "__main__":
    command(
        pretrain_toy,
        PretrainToy,
        __doc__,
        defaults=PretrainToy.defaults,
        say=lambda made: [*(f"{name}: {value:.4g}" for name, value in made[1].items()), f"base: {made[0]}"],
    )
