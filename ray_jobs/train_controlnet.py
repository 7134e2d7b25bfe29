"""Train a ControlNet: photos with captions in, a ControlNet out that lets a base follow their edges or depth.

    python -m ray_jobs.train_controlnet --data photos --output runs/edges

The one that comes with the package, `toy-edges`, learned from products in two colours, which
`inpaint.toy.recoloured.write_recoloured("pairs", seed=7, count=3000)` writes (and then on the base with the adapter
`products`, docs/decisions.md), some 17 minutes on a core:

    python -m ray_jobs.train_controlnet --data pairs/recoloured.csv --output runs/edges --preset toy
"""

from inpaint.command import command
from inpaint.recipes.controlnet import TrainControlNet
from inpaint.train.run import run

if __name__ == "__main__":
    command(
        run,
        TrainControlNet,
        __doc__,
        defaults=TrainControlNet.defaults,
        say=lambda folders: [f"ControlNet: {folder}" for folder in folders],
    )
