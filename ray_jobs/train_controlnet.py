"""Train a ControlNet: photos with captions in, a ControlNet out that lets a base follow their edges or depth.

python -m ray_jobs.train_controlnet --data photos --output runs/edges
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
